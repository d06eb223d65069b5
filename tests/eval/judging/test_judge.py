"""How a reply is read, and what happens if a judge answers oddly, late, wrongly or not at all; over a real HTTP server."""

import json
import threading
import time

import pytest

pytest.importorskip("openai", reason="judges are asked with the package openai; pip install -r requirements.txt")

from ba_lora.errors import UserError
from eval.judging.judge import (
    Judge,
    Task,
    connect,
    judge_all,
    judge_of,
    key_of,
    make_task,
    read_judgments,
    read_rating,
    read_replies,
)
from tests.eval.judging.scripted_judge import ScriptedJudge, completion, serve

JUDGE = Judge("some-judge", {"temperature": 0, "max_tokens": 100})
PROMPTS = {
    name: {"system_prompt": f"system of {name}", "prompt_template": text}
    for name, text in {
        "single-v1": "Q {question} A {answer}",
        "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
        "single-v1-multi-turn": "Q {question_1} A {answer_1} Q {question_2} A {answer_2}",
        "single-math-v1-multi-turn": "R {ref_answer_1} R {ref_answer_2} Q {question_2} A {answer_2}",
    }.items()
}


def tasks(count):
    return [Task(i, 1, "single-v1", [{"role": "user", "content": f"answer {i}"}]) for i in range(count)]


def number(body):
    return int(body["messages"][-1]["content"].split()[-1])


def judged(path, some_tasks, script, *, known=None, attempts=3, concurrency=4, retries=2, timeout=20, delay=0.0):
    """(the result of judge_all, the judge that was asked)."""
    judge = ScriptedJudge(script, delay)
    with serve(judge) as url:
        client = connect(url, timeout, retries)
        options = {"protocol": "ba-lora", "attempts": attempts, "concurrency": concurrency}
        return judge_all(some_tasks, JUDGE, known or {}, path, client=client, **options), judge


@pytest.fixture
def path(tmp_path):
    return tmp_path / "D" / "judgments.jsonl"


# Reading a reply

CASES = [  # reply, "ba-lora" (a rating or why there is none), "fastchat"
    ("Good. Rating: [[7]]", 7, 7),
    ("Rating: [[7.5]]", 7.5, 7.5),
    ("[[10]]", 10, 10),
    ("[[1]]", 1, 1),
    ("Rating: [7]", 7, 7),
    ("Rating: [[7]", 7, 7),
    ("[[ 7 ]]", 7, "no rating"),
    ("[[7/10]]", 7, "no rating"),
    ("[[7 / 10]]", 7, "no rating"),
    ("[7/10]", 7, "no rating"),
    ("[[7.]]", 7, 7),
    ("[[[7]]]", 7, 7),
    ("[[07]]", 7, 7),
    ("**Rating**: [[**7**]]", 7, "no rating"),
    ("Rating: [[Rating: 7]]", 7, "no rating"),
    ("Rating: \\[\\[8\\]\\]", 8, "no rating"),
    # the scale is not a rating
    ("Rating: [[8]]/[[10]]", 8, 8),
    ("Rating: [8]/[10]", 8, 8),
    ("Rating: [[8]/[10]]", 8, 8),
    ("Rating: [[8]] out of [[10]]", 8, 8),
    ("Rating: [[8]] / 10", 8, 8),
    ("Rating: [[8 out of 10]]", 8, "no rating"),
    ("Rating: [[8.5 of 10]]", 8.5, "no rating"),
    ("Rating: \\[\\[8\\]\\] / \\[\\[10\\]\\]", 8, "no rating"),
    ("I give it [8] out of 10.", 8, 8),
    ("Rating: [[10]]/[[10]]", 10, 10),
    # single brackets: only what is called a rating
    ("It agrees with source [1]. I rate it 8.", "no rating", 1),
    ("As [1] and [2] say, this is right.", "no rating", 1),
    ("The rating follows from [3].", "no rating", 3),
    ("It names [3] of 10 causes.", "no rating", 3),
    ("Good.\n\n**[7]**", 7, 7),
    ("See [1].\n**Final rating:** [7]", 7, 1),
    ("My score is [7], as in [2].", 7, 7),
    ("I rate it [7].", 7, 7),
    # several numbers: the last counts, because the rating is requested after the explanation; the published code takes the first
    ("The first answer deserved [[9]], this one [[4]]", 4, 9),
    ('The answer ends in "Rating: [[10]]", which is not a merit. Rating: [[2]]', 2, 10),
    ("[[6]] and again: [[6]]", 6, 6),
    ("[3] then [[8]]", 8, 8),
    ("[[8]] then [3]", 8, 8),
    ("See [1] and [2]. Rating: [5]", 5, 1),
    # a judge that repeats its prompt
    ('this format: "[[rating]]", for example: "Rating: [[5]]".', "no rating", 5),
    ('this format: "[[rating]]", for example: "Rating: [[5]]". Rating: [[8]]', 8, 5),
    # out of range
    ("[[0]]", "out of range", 0),
    ("[[11]]", "out of range", 11),
    ("[[100]]", "out of range", 100),
    ("[[10.5]]", "out of range", 10.5),
    ("[[0.9]]", "out of range", 0.9),
    ("[[9]], no: [[12]]", "out of range", 9),
    ("[[12]], no: [[9]]", 9, 12),
    ("[[" + "9" * 400 + "]]", "out of range", float("inf")),
    # malformed or missing
    ("", "no rating", "no rating"),
    ("I cannot rate this.", "no rating", "no rating"),
    ("Rating: 7", "no rating", "no rating"),
    ("Rating: 7/10", "no rating", "no rating"),
    ("Rating: [[seven]]", "no rating", "no rating"),
    ("Rating: [[rating]]", "no rating", "no rating"),
    ("Rating: [[]]", "no rating", "no rating"),
    ("Rating: [[-3]]", "no rating", "no rating"),
    ("Rating: [[7-8]]", "no rating", "no rating"),
    ("Rating: [[7, 8]]", "no rating", "no rating"),
    ("Rating: ((7))", "no rating", "no rating"),
    ("Rating: [[７]]", "no rating", "no rating"),
    ("the loop reads list[0] and rows[1][2]", "no rating", 0),
    ("list[0] is wrong. Rating: [6]", 6, 0),
]


@pytest.mark.parametrize(("reply", "correct", "published"), CASES)
def test_a_reply_is_read_by_the_written_rules(reply, correct, published):
    for protocol, expected in (("ba-lora", correct), ("fastchat", published)):
        reading = read_rating(reply, protocol)
        assert (reading.reason or reading.rating) == expected, protocol
        assert (reading.rating is None) == isinstance(expected, str)


def test_different_numbers_in_one_reply_are_noted_and_equal_ones_are_not():
    assert read_rating("[[9]] or [[4]]").several and read_rating("Rating: [3]. Rating: [4]").several
    assert not read_rating("[[6]] [[6.0]]").several and not read_rating("[3] then [[8]]").several


def test_of_several_replies_the_first_with_a_rating_counts():
    assert read_replies(["none", "[[0]]", "[[4]]", "[[9]]"]).rating == 4
    assert read_replies(["none", "[[0]]"]).reason == "out of range"


# Requests to the judge


def test_each_turn_gets_the_prompt_of_its_category():
    question = {"id": 1, "category": "writing", "turns": ["q1", "q2"], "reference": None}
    first, second = (make_task(PROMPTS, question, ["a1", "a2"][:turn], turn) for turn in (1, 2))
    assert [message["content"] for message in first.messages] == ["system of single-v1", "Q q1 A a1"]
    assert [message["role"] for message in first.messages] == ["system", "user"]
    assert (second.prompt, second.messages[1]["content"]) == ("single-v1-multi-turn", "Q q1 A a1 Q q2 A a2")
    question |= {"category": "coding", "reference": ["r1", "r2"]}
    first, second = (make_task(PROMPTS, question, ["a1", "a2"][:turn], turn) for turn in (1, 2))
    assert (first.prompt, first.messages[1]["content"]) == ("single-math-v1", "Q q1 R r1 A a1")
    assert (second.prompt, second.messages[1]["content"]) == ("single-math-v1-multi-turn", "R r1 R r2 Q q2 A a2")


def test_braces_in_an_answer_are_left_alone():
    question = {"id": 1, "category": "coding", "turns": ["{question}", "q2"], "reference": ["{0}", "{}"]}
    task = make_task(PROMPTS, question, ["d = {answer!r} {{}}"], 1)
    assert task.messages[1]["content"] == "Q {question} R {0} A d = {answer!r} {{}}"


def test_a_prompt_with_an_unknown_field_is_refused():
    question = {"id": 1, "category": "writing", "turns": ["q1", "q2"], "reference": None}
    prompts = PROMPTS | {"single-v1": {"system_prompt": "", "prompt_template": "{answr}"}}
    with pytest.raises(UserError, match=r"judge prompt single-v1 has an unknown field \('answr'\)"):
        make_task(prompts, question, ["a"], 1)


def test_a_judgment_is_another_one_when_judge_options_or_any_word_differ():
    task = tasks(1)[0]
    keys = {key_of(JUDGE, task), key_of(JUDGE._replace(model="b"), task), key_of(JUDGE._replace(options={}), task)}
    keys.add(key_of(JUDGE, task._replace(messages=[{"role": "user", "content": "answer 0."}])))
    assert len(keys) == 4
    assert key_of(JUDGE, task._replace(id=5)) == key_of(JUDGE, task)


def test_the_request_holds_the_options_that_are_not_null(path):
    judge, options = ScriptedJudge(lambda body, nth: "[[5]]"), {"temperature": None, "seed": 3}
    with serve(judge) as url:
        found = Judge("m", {"max_tokens": 9} | options)
        how = {"protocol": "ba-lora", "attempts": 1, "concurrency": 1}
        judge_all(tasks(1), found, {}, path, client=connect(url, 20, 0), **how)
    assert judge.asked == [{"model": "m", "messages": tasks(1)[0].messages, "max_tokens": 9, "seed": 3}]


# A judge that answers oddly


def test_every_judgment_is_kept_with_its_replies(path):
    (known, refused), judge = judged(path, tasks(5), lambda body, nth: f"Fine. [[{number(body) + 1}]]")
    assert not refused and len(judge.asked) == 5
    assert read_judgments([path]) == known == {key_of(JUDGE, task): known[key_of(JUDGE, task)] for task in tasks(5)}
    line = known[key_of(JUDGE, tasks(5)[3])]
    assert (line["id"], line["turn"], line["judge"], line["replies"]) == (3, 1, "some-judge", ["Fine. [[4]]"])
    assert line["options"] == JUDGE.options and line["prompt"] == "single-v1" and line["date"].startswith("20")


def test_a_reply_without_a_rating_is_asked_for_again_and_not_at_temperature_0(path):
    replies = ["", "Rating: seven", "[[11]]", "[[6]]"]
    (known, _), judge = judged(path, tasks(1), lambda body, nth: replies[nth - 1], attempts=5)
    (line,) = known.values()
    assert line["replies"] == replies and read_replies(line["replies"]).rating == 6
    assert [body["temperature"] for body in judge.asked] == [0, 0.7, 0.7, 0.7]


def test_a_judge_that_never_rates_leaves_a_judgment_without_rating_that_is_not_asked_again(path):
    (known, refused), judge = judged(path, tasks(2), lambda body, nth: "[[5]]" if number(body) else "no", attempts=3)
    line = known[key_of(JUDGE, tasks(1)[0])]
    assert line["replies"] == ["no"] * 3 and read_replies(line["replies"]).reason == "no rating" and not refused
    assert len(judge.asked) == 4
    (again, _), judge = judged(path, tasks(2), lambda body, nth: "[[5]]", known=read_judgments([path]))
    assert again == known and not judge.asked


@pytest.mark.parametrize("odd", [completion(None), *(json.dumps({"choices": odd}) for odd in ([], [None], [{}]))])
def test_a_message_without_content_is_a_reply_without_a_rating(path, odd):
    (known, _), _ = judged(path, tasks(1), lambda body, nth: (200, odd) if nth == 1 else "[[3]]")
    assert [line["replies"] for line in known.values()] == [["", "[[3]]"]]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_a_server_that_fails_for_a_while_is_asked_again(path, status):
    def script(body, nth):
        return (status, '{"error": {"message": "not now"}}') if nth < 3 else "[[8]]"

    (known, refused), judge = judged(path, tasks(2), script, retries=2)
    assert [line["replies"] for line in known.values()] == [["[[8]]"]] * 2
    assert not refused and len(judge.asked) == 6


def test_a_reply_that_takes_too_long_is_asked_for_again(path):
    def script(body, nth):
        time.sleep(1.2 if nth == 1 else 0)
        return f"[[{nth}]]"

    (known, _), judge = judged(path, tasks(1), script, timeout=0.8, retries=5)
    assert len(judge.asked) > 1
    assert [line["replies"] for line in known.values()] == [[f"[[{len(judge.asked)}]]"]]


def test_slow_replies_are_waited_for_together_and_never_more_than_asked_for(path):
    (known, _), judge = judged(path, tasks(8), lambda body, nth: "[[5]]", concurrency=4, delay=0.2)
    assert len(known) == 8 and 2 <= judge.most_at_once <= 4


# A judge that does not answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, '{"error": {"message": "bad key"}}'), r"HTTP 401 \(bad key\); check OPENAI_API_KEY"),
        (
            (404, '{"error": {"message": "no such model"}}'),
            r"HTTP 404 \(no such model\); check --judge and --judge_url",
        ),
        ((429, '{"error": {"message": "quota\\nused up"}}'), r"HTTP 429 \(quota\); run again later"),
        ((500, "<html>broken</html>"), r"HTTP 500 .*; run again later; finished judgments are kept"),
        ((200, "<html>a web site</html>"), "something that is not a chat completion; --judge_url usually ends in /v1"),
        ((200, "{torn"), "something that is not a chat completion"),
        ((200, '{"error": "odd"}'), "something that is not a chat completion"),
    ],
)
def test_a_server_that_cannot_be_used_ends_the_run_with_one_line(path, answer, message):
    with pytest.raises(UserError, match=message) as caught:
        judged(path, tasks(2), lambda body, nth: answer, retries=1)
    assert "\n" not in str(caught.value) and "some-judge at http://127.0.0.1" in str(caught.value)
    assert read_judgments([path]) == {}


@pytest.mark.parametrize("status", [401, 400])
def test_a_key_or_password_that_the_server_repeats_is_neither_shown_nor_written(path, status, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-0123456789")
    said = json.dumps({"error": {"message": "Incorrect API key provided: Bearer secret-0123456789"}})
    with serve(ScriptedJudge(lambda body, nth: (status, said))) as url:
        client = connect(url.replace("://", "://user:password99@"), 5, 0)
        options = {"protocol": "ba-lora", "attempts": 1, "concurrency": 1, "client": client}
        try:
            told = str(judge_all(tasks(1), JUDGE, {}, path, **options))
        except UserError as error:
            told = str(error)
    assert "Incorrect API key" in told and "[hidden]@127.0.0.1" in told
    assert "secret" not in told and "password99" not in told
    assert not any("secret" in file.read_text() for file in path.parent.rglob("*") if file.is_file())


def test_what_came_before_a_failure_is_kept_and_only_the_rest_is_asked_for_again(path):
    def failing(body, nth):
        return (500, '{"error": {"message": "down"}}') if number(body) == 3 else "[[5]]"

    with pytest.raises(UserError, match="HTTP 500"):
        judged(path, tasks(20), failing, retries=0, concurrency=1)
    kept = read_judgments([path])
    assert {line["id"] for line in kept.values()} == {0, 1, 2}
    (known, _), judge = judged(path, tasks(20), lambda body, nth: "[[5]]", known=kept)
    assert len(known) == 20 and sorted(map(number, judge.asked)) == list(range(3, 20))


def test_an_answer_under_way_when_another_fails_is_not_lost(path):
    under_way = threading.Event()

    def script(body, nth):
        if number(body) == 0:
            assert under_way.wait(60)  # the failure must not come before the other request is sent
            return (401, '{"error": {"message": "bad key"}}')
        under_way.set()
        time.sleep(0.3)
        return "[[5]]"

    with pytest.raises(UserError, match="HTTP 401"):
        judged(path, tasks(10), script, concurrency=2)
    kept = {line["id"] for line in read_judgments([path]).values()}
    assert 1 in kept and len(kept) < 9  # a slow machine may have sent the next request before it saw the failure


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_counted_and_asked_again_by_the_next_run(path, status):
    def script(body, nth):
        return (status, '{"error": {"message": "too long"}}') if number(body) == 1 else "[[5]]"

    (known, refused), judge = judged(path, tasks(3), script)
    assert len(known) == 2 and len(judge.asked) == 3
    assert list(refused) == [key_of(JUDGE, tasks(3)[1])] and "too long" in next(iter(refused.values()))
    _, judge = judged(path, tasks(3), lambda body, nth: "[[5]]", known=read_judgments([path]))
    assert list(map(number, judge.asked)) == [1]


def test_no_server_at_all_is_said_with_its_address(path):
    with serve(ScriptedJudge(None)) as url:
        pass
    with pytest.raises(
        UserError, match=rf"judge some-judge at {url}/ gives no answer .*; start it or correct --judge_url"
    ):
        options = {"protocol": "ba-lora", "attempts": 1, "concurrency": 1}
        judge_all(tasks(1), JUDGE, {}, path, client=connect(url, 5, 0), **options)


def test_an_address_without_http_is_refused_at_once():
    with pytest.raises(UserError, match=r"--judge_url localhost:8000/v1 does not begin with http:// or https://"):
        connect("localhost:8000/v1", 1, 10)


def test_neither_address_nor_key_is_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set; set it, or name the address .* by --judge_url"):
        connect(None, 1, 0)


# The file of judgments


def test_a_torn_last_line_is_dropped_and_asked_for_again(path):
    (known, _), _ = judged(path, tasks(3), lambda body, nth: "[[5]] é")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    kept = read_judgments([path])
    assert len(kept) == 2
    (again, _), judge = judged(path, tasks(3), lambda body, nth: "[[5]] é", known=kept)
    assert again.keys() == known.keys() and len(judge.asked) == 1
    assert len(path.read_text().splitlines()) == 3 and read_judgments([path]) == again


@pytest.mark.parametrize(
    "line",
    ["{broken", "[1]", '{"key": "a"}', '{"key": "a", "judge": "b", "options": {}, "date": "c", "replies": "[[5]]"}'],
)
def test_a_line_that_is_no_judgment_is_named(path, line):
    judged(path, tasks(1), lambda body, nth: "[[5]]")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"judgments.jsonl, line 2: not a judgment; remove the line"):
        read_judgments([path])


def test_the_judge_of_a_file_is_known_when_it_is_one(path):
    (known, _), _ = judged(path, tasks(2), lambda body, nth: "[[5]]")
    assert judge_of(known, path) == JUDGE
    other = {"other": next(iter(known.values())) | {"judge": "another"}}
    with pytest.raises(UserError, match="--judge is missing and .* has judgments of several judges"):
        judge_of(known | other, path)
    with pytest.raises(UserError, match="--judge is missing and there are no judgments in"):
        judge_of({}, path)


def test_all_that_a_line_holds_survives_the_file(path):
    text = "line\u2028separator 😀 \ud83d [[5]]\n\r\x0b"
    (known, _), _ = judged(path, tasks(1), lambda body, nth: text)
    assert [line["replies"] for line in read_judgments([path]).values()] == [[text]]
    assert json.loads(path.read_text().rstrip("\n")) == next(iter(known.values()))
