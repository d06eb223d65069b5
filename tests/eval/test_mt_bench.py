"""Two turns of answers, their ratings by a scripted judge over real HTTP, and the means."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openai", reason="judges are asked with the package openai; pip install -r requirements.txt")

from ba_lora.data.instruction import encode_prompt
from ba_lora.data.templates import TEMPLATES, make_template
from ba_lora.errors import UserError
from ba_lora.inference.requests import make_request
from ba_lora.inference.subject import Subject
from eval.judging.ratings import CATEGORIES, draw_radar, summarise
from eval.mt_bench import main
from tests.eval.json_lines import read, write
from tests.eval.judging.scripted_judge import ScriptedJudge, serve
from tests.eval.three_questions import ANSWERS, rate, rescore, run, write_folder
from tests.inference import vllm_servers

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path):
    return write_folder(tmp_path / "data")


# The score


def test_the_score_is_the_mean_of_all_ratings_by_turn_and_category(tmp_path, data):
    score, judge = rescore(tmp_path, data)
    assert len(judge.asked) == 6
    assert score["benchmark"] == "mt_bench" and score["score"] == pytest.approx((8 + 5 + 6 + 3 + 8 + 5) / 6)
    assert (score["n"], score["n_questions"], score["missing"], score["n_unparsable"]) == (6, 3, 0, 0)
    assert score["first_turn"] == {"score": pytest.approx(22 / 3), "stderr": pytest.approx(2 / 3), "n": 3}
    assert score["second_turn"]["score"] == pytest.approx(13 / 3)
    assert list(score["by_category"]) == ["writing", "math", "stem"]
    assert score["by_category"]["math"]["score"] == 4.5 and score["by_category"]["math"]["stderr"] is None
    assert score["by_category"]["math"]["second_turn"] == {"score": 3, "stderr": None, "n": 1}
    assert score["stderr"] == pytest.approx(np.std([6.5, 4.5, 6.5], ddof=1) / math.sqrt(3))
    half = 1.959963984540054 * score["stderr"]
    assert score["interval"] == pytest.approx([score["score"] - half, score["score"] + half])


def test_the_score_says_who_judged_how_and_when(tmp_path, data):
    score, _ = rescore(tmp_path, data, rate, ANSWERS, "--judge_options", '{"seed": 1}')
    assert (score["judge"], score["judge_options"]) == ("scripted", {"temperature": 0, "max_tokens": 2048, "seed": 1})
    assert score["prompt_version"].startswith("own (sha256 ") and len(score["questions_hash"]) == 64
    assert len(score["judged"]) == 2 and all(date.endswith("Z") for date in score["judged"])
    assert (score["protocol"], score["protocol_version"], score["data"]) == ("ba-lora", "2", data)
    scored = read(tmp_path / "out" / "scored.jsonl")
    assert [(line["id"], line["turn"]) for line in scored] == [(a["id"], a["turn"]) for a in ANSWERS]
    assert scored[3] | {"judgment": 0} == {
        **{"id": 111, "turn": 2, "category": "math", "rating": 3.0, "reason": None, "judgment": 0}
    }


def test_the_judge_sees_stripped_answers_references_and_both_turns(tmp_path, data):
    _, judge = rescore(tmp_path, data)
    seen = {body["messages"][1]["content"] for body in judge.asked}
    assert "turn 1\nQ: 2 + 3?\nR: five\nA: answer 111-1" in seen
    assert "turn 2\nR: five six\nQ: And + 1?\nA: answer 111-2" in seen
    assert "turn 2\nQ: Write a poem.\nA: answer 81-1\nQ: Make it short.\nA: answer 81-2" in seen


def test_an_answer_of_half_a_character_is_judged_all_the_same(tmp_path, data):
    answers = [ANSWERS[0] | {"completion": "\ud83d \x00 \u2028"}, ANSWERS[1]]
    score, judge = rescore(tmp_path, data, rate, answers)
    assert score["n"] == 2 and judge.asked[0]["messages"][1]["content"].endswith(("A: ? \x00", "A: answer 81-2"))


def test_judgments_without_a_rating_are_counted_with_their_reason_and_leave_the_mean(tmp_path, data):
    def script(body, nth):
        text = body["messages"][1]["content"]
        if "heat?" in text and text.startswith("turn 1"):
            return "no idea"
        if "heat?" in text:
            return "[[15]]"
        if "R: five six" in text:
            return (400, '{"error": {"message": "filtered"}}')
        return "[[4]] no, [[6]]" if "poem" in text else "[[7]]"

    score, judge = rescore(tmp_path, data, script)
    assert score["score"] == pytest.approx((6 + 6 + 7) / 3) and score["n"] == 3 and score["n_questions"] == 2
    assert score["n_unparsable"] == 3
    assert score["unrated"] == {"no rating": 1, "out of range": 1, "refused": 1}
    assert score["n_several"] == 2 and "stem" not in score["by_category"]
    assert len(judge.asked) == 3 + 3 + 1 + 1 + 2
    reasons = [line["reason"] for line in read(tmp_path / "out" / "scored.jsonl")]
    assert reasons == [None, None, None, "refused", "no rating", "out of range"]


def test_no_rating_at_all_is_an_error_that_shows_a_reply_or_the_refusal(tmp_path, data):
    match = r"judge scripted rates none of 6 answers \(no rating: 6; its first reply begins 'I am a poet'\)"
    with pytest.raises(UserError, match=match):
        rescore(tmp_path, data, lambda body, nth: "I am a poet")
    (tmp_path / "out" / "judgments.jsonl").unlink()
    refusal = (400, '{"error": {"message": "max_tokens is not supported"}}')
    with pytest.raises(UserError, match=r"none of 6 .*max_tokens is not supported"):
        rescore(tmp_path, data, lambda body, nth: refusal)
    assert not (tmp_path / "out" / "score.json").exists()


def test_judgments_are_not_asked_for_twice_and_scoring_them_again_needs_no_judge(tmp_path, data):
    first, _ = rescore(tmp_path, data, lambda body, nth: "First [[3]], then [[9]]")
    assert first["score"] == 9
    score, judge = rescore(tmp_path, data, rate, ANSWERS, "--overwrite")
    assert not judge.asked and score == first
    source = tmp_path / "out" / "generations.jsonl"
    write(source, ANSWERS)
    outputs = []
    for name, protocol in (("a", "ba-lora"), ("b", "ba-lora"), ("c", "fastchat")):
        folder = tmp_path / name
        arguments = ["--rescore", str(source), "--data", data, "--protocol", protocol, "--output_dir", str(folder)]
        assert main(arguments) == 0
        outputs.append([(folder / file).read_bytes() for file in ("score.json", "scored.jsonl")])
    assert outputs[0] == outputs[1] != outputs[2]
    again, published = (json.loads(outputs[number][0]) for number in (0, 2))
    assert again | {name: first[name] for name in ("rescored", "checksum")} == first
    assert (published["score"], published["n_several"], published["protocol"]) == (3, 6, "fastchat")


def test_only_changed_answers_are_judged_again(tmp_path, data):
    rescore(tmp_path, data)
    changed = [line | {"completion": "better"} if line["id"] == 81 and line["turn"] == 1 else line for line in ANSWERS]
    _, judge = rescore(tmp_path, data, rate, changed, "--overwrite")
    assert len(judge.asked) == 2  # the second turn's prompt shows the first answer


def test_a_second_turn_without_its_first_is_missing_and_so_is_what_the_file_lacks(tmp_path, data):
    score, judge = rescore(tmp_path, data, rate, [ANSWERS[1], ANSWERS[2], ANSWERS[3]])
    assert (score["n"], score["missing"], len(judge.asked)) == (2, 4, 2)
    score, _ = rescore(tmp_path, data, rate, ANSWERS, "--limit", "1", "--overwrite")
    assert (score["n"], score["missing"], score["n_questions"]) == (2, 0, 1)


@pytest.mark.parametrize("per_question", [1, 2])
def test_the_standard_error_is_that_of_question_means_when_all_have_equally_many(per_question):
    ratings = np.random.default_rng(0).integers(1, 11, (7, per_question))
    lines = [{"id": row, "rating": float(value)} for row, values in enumerate(ratings) for value in values]
    found = summarise(lines)
    assert found["score"] == pytest.approx(ratings.mean()) and found["n"] == 7 * per_question
    assert found["stderr"] == pytest.approx(ratings.mean(axis=1).std(ddof=1) / math.sqrt(7))
    assert summarise(lines[:1])["stderr"] is None and summarise([])["score"] is None


def test_the_radar_plot_is_a_picture_for_one_category_as_for_all(tmp_path):
    turn = {"score": 5.0, "stderr": None, "n": 1}
    one = {"score": 5.0, "stderr": None, "n": 2, "first_turn": turn, "second_turn": turn | {"score": None}}
    sizes = []
    for number in (1, 8):
        draw_radar({name: one for name in CATEGORIES[:number]}, tmp_path / "radar.png")
        picture = (tmp_path / "radar.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        sizes.append(len(picture))
    assert sizes[0] != sizes[1] and not list(tmp_path.glob("*.tmp"))


# Interruptions


def test_a_killed_judging_goes_on_where_it_stopped_and_ends_alike(tmp_path, data):
    whole, _ = rescore(tmp_path / "whole", data)
    source = write(tmp_path / "given.jsonl", ANSWERS)
    arguments = ["--rescore", source, "--data", data, "--output_dir", str(tmp_path / "out")]
    judgments, slow = tmp_path / "out" / "judgments.jsonl", ScriptedJudge(rate, delay=0.4)
    with serve(slow) as url:
        options = ["--judge", "scripted", "--judge_url", url, "--judge_concurrency", "1"]
        command = [sys.executable, "-m", "eval.mt_bench", *arguments, *options]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (judgments.is_file() and judgments.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = len(read(judgments))
    assert 2 <= kept < 6 and not (tmp_path / "out" / "score.json").exists()
    with open(judgments, "a") as file:
        file.write('{"id": 141, "torn')
    judge = ScriptedJudge(rate)
    score = run(judge, *arguments)
    assert len(judge.asked) == 6 - kept and len(read(judgments)) == 6
    same = {"judged": None, "rescored": None, "checksum": None}
    assert score | same == whole | same


# With the embedded model


def generate(tmp_path, data, judge, *options):
    arguments = ["--model", "tiny", "--data", data, "--limit", "2", "--max_new_tokens", "8"]
    return run(judge, *arguments, "--output_dir", str(tmp_path / "D"), *options)


def test_the_embedded_model_answers_both_turns_and_is_judged(tmp_path, data, tiny_tokenizer):
    judge = ScriptedJudge(rate)
    score = generate(tmp_path, data, judge)
    lines = read(tmp_path / "D" / "generations.jsonl")
    assert [(line["id"], line["turn"]) for line in lines] == [(81, 1), (81, 2), (111, 1), (111, 2)]
    assert [line["reference"] for line in lines] == [None, None, "five", "six"]
    assert lines[2]["prompt"] == TEMPLATES["plain"].render("2 + 3?")
    answer = lines[2]["completion"].strip()
    assert lines[3]["prompt"] == f"Question: 2 + 3?\nAnswer: {answer}</s>\n\nQuestion: And + 1?\nAnswer:"
    assert all(0 < line["tokens"] <= 8 for line in lines)
    expected = {"model": "tiny", "template": "plain", "backend": "transformers", "data": data, "missing": 0, "n": 4}
    assert {key: score[key] for key in expected} == expected
    assert score["sampling"]["temperature"] == {"writing": 0.7, "math": 0.0}
    assert score["sampling"]["max_new_tokens"] == 8 and score["seconds"] > 0 and score["tokens_per_second"] > 0
    assert score["n_truncated"] == sum(line["finish_reason"] == "length" for line in lines)
    shown = "\n".join(body["messages"][1]["content"] for body in judge.asked)
    assert all(line["completion"].strip() in shown for line in lines)
    there = sorted(path.name for path in (tmp_path / "D").iterdir())
    assert there == [
        *("generation.json", "generations.jsonl", "judgments.jsonl", "radar.png", "score.json", "scored.jsonl")
    ]
    source = tmp_path / "D" / "generations.jsonl"
    arguments = ["--rescore", str(source), "--data", data, "--limit", "2"]
    assert main([*arguments, "--output_dir", str(tmp_path / "D2")]) == 0
    again = json.loads((tmp_path / "D2" / "score.json").read_text())
    assert again | {name: score[name] for name in ("rescored", "checksum", "files")} == score


def test_a_judge_that_fails_costs_no_generation(tmp_path, data):
    down = ScriptedJudge(lambda body, nth: (500, '{"error": {"message": "down"}}'))
    with pytest.raises(UserError, match=r"HTTP 500 \(down\); run again later"):
        generate(tmp_path, data, down, "--judge_retries", "0")
    before = (tmp_path / "D" / "generations.jsonl").read_bytes()
    facts = json.loads((tmp_path / "D" / "generation.json").read_text())
    assert not (tmp_path / "D" / "score.json").exists()
    score = generate(tmp_path, data, ScriptedJudge(rate))
    assert (tmp_path / "D" / "generations.jsonl").read_bytes() == before
    assert (score["seconds"], score["tokens_per_second"]) == (facts["seconds"], facts["tokens_per_second"])


def test_answers_can_be_generated_now_and_judged_later(tmp_path, data, capsys):
    arguments = ["--model", "tiny", "--data", data, "--limit", "2", "--max_new_tokens", "8", "--temperature", "0"]
    assert main([*arguments, "--generate_only", "--output_dir", str(tmp_path / "D")]) == 0
    source = tmp_path / "D" / "generations.jsonl"
    assert f"4 answers → {source}; judge them with --rescore {source}" in capsys.readouterr().out
    options = ["--data", data, "--limit", "2", "--output_dir", str(tmp_path / "D")]
    score = run(ScriptedJudge(rate), "--rescore", str(source), *options)
    assert (score["model"], score["n"], score["rescored"]) == ("tiny", 4, str(source))
    assert score["sampling"]["temperature"] == {"writing": 0, "math": 0}


def test_the_second_prompt_of_a_chat_template_is_the_conversation(tiny_tokenizer):
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    try:
        template = make_template("chat", tiny_tokenizer)
        subject = Subject(None, tiny_tokenizer, template, "tiny", "tiny", None)
        conversation = [("user", "a?"), ("assistant", "b."), ("user", "c?")]
        messages = [{"role": role, "content": text} for role, text in conversation]
        request = make_request(subject, 1, messages, None)
        end = tiny_tokenizer.eos_token
        assert tiny_tokenizer.decode(request.ids) == f"<user>a?<assistant>b.{end}<user>c?<assistant>"
        assert request.ids == encode_prompt(tiny_tokenizer, template, messages)
    finally:
        tiny_tokenizer.chat_template = None


@pytest.mark.slow
def test_unfinished_answers_go_on_after_a_kill_and_end_alike(tmp_path, data):
    arguments = ["--model", "tiny", "--data", data, "--max_new_tokens", "200", "--temperature", "0", "--generate_only"]
    assert main([*arguments, "--output_dir", str(tmp_path / "whole")]) == 0
    command = [sys.executable, "-m", "eval.mt_bench", *arguments, "--output_dir", str(tmp_path / "out")]
    parts = tmp_path / "out" / "turns"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not list(parts.glob("2-*/generation.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(read(next(parts.glob("1-*/generations.jsonl")))) == 3
    assert main([*arguments, "--output_dir", str(tmp_path / "out")]) == 0
    whole, resumed = ((tmp_path / name / "generations.jsonl").read_bytes() for name in ("whole", "out"))
    assert whole == resumed


# With a real server


@pytest.fixture
def vllm_server(tmp_path):
    """The address of vLLM's OpenAI server with the embedded model and a chat template."""
    python, chat = vllm_servers.python_or_skip(), tmp_path / "chat.jinja"
    chat.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}Answer:")
    with vllm_servers.serve(python, tmp_path / "server.txt", "--chat-template", str(chat)) as address:
        yield address


@pytest.mark.slow
def test_a_real_server_answers_both_turns_and_judges_them(tmp_path, data, vllm_server):
    arguments = ["--model", "tiny", "--data", data, "--max_new_tokens", "16", "--output_dir", str(tmp_path / "D")]
    arguments += ["--backend", "openai", "--base_url", vllm_server, "--judge", "tiny", "--judge_url", vllm_server]
    with pytest.raises(UserError, match=r"judge tiny rates none of 6 answers \(no rating: 6; "):
        main([*arguments, "--judge_options", '{"max_tokens": 32}'])
    shape = {"regex": r"[a-z ]{1,20}Rating: \[\[([1-9]|10)\]\]"}  # so small a model rates only if it is forced to
    options = json.dumps({"max_tokens": 64, "structured_outputs": shape})
    assert main([*arguments, "--judge_options", options]) == 0
    score = json.loads((tmp_path / "D" / "score.json").read_text())
    assert (score["n"], score["n_questions"], score["n_unparsable"], score["missing"]) == (6, 3, 0, 0)
    assert 1 <= score["score"] <= 10 and score["judge"] == "tiny" and score["backend"] == "openai"
    lines = read(tmp_path / "D" / "judgments.jsonl")
    assert len(lines) == 12 and sum("[[" in line["replies"][0] for line in lines) == 6
