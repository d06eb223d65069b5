"""The command: generate then score, score again from a file, and everything that can go wrong."""

import json
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ba_lora.data.templates import TEMPLATES
from ba_lora.errors import UserError
from ba_lora.inference.requests import make_request
from ba_lora.inference.subject import open_subject
from eval.gsm8k import load_problems, main, score_records
from eval.harness.ask import complete
from eval.harness.scores import summarise
from tests.common import command
from tests.eval import json_lines
from tests.eval.json_lines import read, write

LINES = [
    {"id": 0, "completion": "6 * 3 = 18. The answer is: 18", "reference": "18"},
    {"id": 1, "completion": "#### 1,000", "reference": "10 * 100 = <<10*100=1000>>1000\n#### 1000"},
    {"id": 2, "completion": "The answer is: 4", "reference": "2 + 3 = 5. The answer is: 5"},
    {"id": "three", "completion": "no idea", "reference": 7},
]
rescore = partial(json_lines.rescore, main)


# Scoring from a file


def test_rescore_gives_the_fraction_right_with_its_uncertainty(tmp_path):
    score = rescore(tmp_path, LINES)
    expected = {"benchmark": "gsm8k", "score": 0.5, "n": 4, "n_correct": 2, "stderr": 0.25, "n_unparsable": 1}
    expected |= {"protocol": "ba-lora", "protocol_version": "3", "missing": None, "n_truncated": None, "model": None}
    assert {key: score[key] for key in expected} == expected
    assert score["interval"] == pytest.approx([0.1500, 0.8500], abs=1e-4)
    scored = read(tmp_path / "out" / "scored.jsonl")
    assert [line["correct"] for line in scored] == [True, True, False, False]
    assert [line["answer"] for line in scored] == ["18", "1,000", "4", None]
    assert [line["id"] for line in scored] == [0, 1, 2, "three"]


def test_rescore_under_the_upstream_protocol_reads_as_upstream_does(tmp_path):
    score = rescore(tmp_path, LINES, "--protocol", "upstream")
    assert (score["score"], score["n_unparsable"], score["protocol"]) == (0.25, 2, "upstream")


def test_rescore_counts_the_tasks_of_the_data_that_the_file_lacks(tmp_path):
    data = write(tmp_path / "data.jsonl", [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(10)])
    score = rescore(tmp_path, LINES[:3], "--data", data)
    assert (score["missing"], score["n"], score["data"]) == (7, 3, data)


def test_generated_problems_keep_the_version_under_which_their_results_were_written(tmp_path):
    problems = load_problems("tinymath:test", 3)
    lines = [{"id": each["id"], "completion": "The answer is: 1", "reference": each["reference"]} for each in problems]
    score = rescore(tmp_path, lines, "--data", "tinymath:test", "--limit", "3")
    assert (score["benchmark"], score["protocol_version"]) == ("tinymath", "2")


def test_rescore_takes_the_first_lines_with_limit_and_skips_blank_ones(tmp_path):
    assert rescore(tmp_path, [LINES[0], "", *LINES[1:]], "--limit", "2")["score"] == 1.0


def test_samples_of_a_problem_count_as_their_mean(tmp_path):
    lines = [LINES[0] | {"id": task, "sample": number} for task in range(4) for number in range(2)]
    for line in (lines[1], lines[4], lines[5]):  # the tasks then score 0.5, 1, 0 and 1
        line["completion"] = "The answer is: 3"
    score = rescore(tmp_path, lines)
    assert (score["n"], score["score"], score["n_correct"]) == (4, 0.625, 2.5)
    assert score["stderr"] == pytest.approx((0.171875 / 4) ** 0.5)  # of 0.5, 1, 0, 1
    low, high = score["interval"]
    assert 0.15 < low < 0.3 and 0.85 < high < 0.95
    assert [line["sample"] for line in read(tmp_path / "out" / "scored.jsonl")] == [0, 1] * 4


def test_rescore_counts_completions_that_were_cut(tmp_path):
    lines = [line | {"finish_reason": "length" if line["id"] else "stop"} for line in LINES]
    assert rescore(tmp_path, lines)["n_truncated"] == 3


def test_rescore_keeps_how_the_generations_of_a_run_came_about(tmp_path):
    (tmp_path / "D").mkdir()
    source = write(tmp_path / "D" / "generations.jsonl", LINES)
    known = {"model": "some-model", "template": "alpaca", "data": "tinymath:test", "score": 0.9}
    (tmp_path / "D" / "score.json").write_text(json.dumps(known))
    main(["--rescore", source, "--output_dir", str(tmp_path / "D2")])
    score = json.loads((tmp_path / "D2" / "score.json").read_text())
    assert (score["model"], score["template"], score["benchmark"]) == ("some-model", "alpaca", "tinymath")
    assert score["score"] == 0.5


def test_the_same_file_scored_twice_gives_the_same_bytes(tmp_path):
    source = write(tmp_path / "given.jsonl", LINES)
    outputs = []
    for name in ("a", "b"):
        main(["--rescore", source, "--output_dir", str(tmp_path / name)])
        outputs.append([(tmp_path / name / file).read_bytes() for file in ("score.json", "scored.jsonl")])
    assert outputs[0] == outputs[1]


# Refusals, each one line that names the problem and its place


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LINES[0], "{broken"], r"given.jsonl, line 2: not valid JSON"),
        ([LINES[0], "[1, 2]"], r"line 2: a list, an object"),
        ([LINES[0], "", {"id": 1, "completion": "x"}], r"line 3: no 'reference' \(the line has: id, completion\)"),
        ([{"completion": "x", "reference": "1"}], r"line 1: no 'id'"),
        ([{"id": 0, "completion": 18, "reference": "18"}], r"line 1: 'completion' is 18, a text"),
        ([LINES[0], LINES[1], LINES[0]], r"line 3: id 0 was already on line 1"),
        ([{"id": 0, "completion": "1", "reference": "one"}], r"id 0: no number in the reference 'one'"),
        ([], r"given.jsonl has no lines"),
        (["", " "], r"given.jsonl has no lines"),
    ],
)
def test_rescore_refuses_a_broken_file_and_writes_nothing(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        rescore(tmp_path, lines)
    assert not (tmp_path / "out").exists()


def test_rescore_refuses_a_file_that_is_not_text(tmp_path):
    (tmp_path / "given.jsonl").write_bytes(b'{"id": 0, "completion": "\xff", "reference": "1"}\n')
    with pytest.raises(UserError, match="line 1: not UTF-8"):
        main(["--rescore", str(tmp_path / "given.jsonl"), "--output_dir", str(tmp_path / "out")])


def test_rescore_refuses_data_with_which_the_file_has_no_task_in_common(tmp_path):
    data = write(tmp_path / "data.jsonl", [{"id": "other", "question": "q", "answer": "#### 1"}])
    with pytest.raises(UserError, match=r"no id of .*given.jsonl is a task of --data"):
        rescore(tmp_path, LINES, "--data", data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --model M .* or --rescore FILE"),
        (["--model", "tiny", "--rescore", "f"], "either --model M .* or --rescore FILE"),
        (["--rescore", "f", "--adapter", "a"], "--adapter a has no effect with --rescore"),
        (["--rescore", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--rescore", "f", "--protocol", "upstraem"], "did you mean 'upstream'"),
        (["--rescore", "f", "--limit", "0"], "--limit is 0; it must be at least 1"),
        (["--model", "tiny", "--temperature", "-1"], "--temperature is -1; it must be at least 0"),
        (["--model", "tiny", "--top_p", "0"], "--top_p is 0; it must be above 0"),
        (["--model", "tiny", "--samples", "2"], "2 samples at temperature 0 are one completion 2 times; add --temp"),
        (["--model", "tiny", "--tensor_parallel", "2"], "--tensor_parallel is an option of --backend vllm"),
        (["--model", "tiny", "--base_url", "http://x/v1"], "--base_url is an option of --backend openai"),
        (["--model", "tiny", "--backend", "openai"], "--backend openai needs --base_url URL"),
        pytest.param(
            ["--model", "tiny", "--backend", "vllm"],
            "--backend vllm is not installed in this Python; .*run sh scripts/install_vllm_cpu.sh",
            marks=pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here"),
        ),
        (["--model", "tiny", "--backend", "transformer"], "did you mean 'transformers'"),
        (["--model", "tiny", "--data", "tinymath:tset"], "did you mean 'test'"),
        (["--model", "tiny", "--data", "tinymath:test:x"], "seed 'x' is not an integer"),
        (["--model", "tiny", "--data", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--model", "tiny", "--template", "alpacca"], "did you mean 'alpaca'"),
        (["--model", "tiny", "--dtype", "float31"], "did you mean 'float32'"),
        (
            ["--model", "some/model"],
            "data 'openai/gsm8k:main' is neither a file nor a folder here, and the hub did not give it",
        ),
        (["--model", "./nowhere", "--data", "tinymath:test"], "nowhere does not exist"),
    ],
)
def test_options_that_cannot_work_are_refused_with_their_remedy(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_missing_output_dir_is_refused():
    with pytest.raises(UserError, match="--output_dir is missing"):
        main(["--rescore", "f"])


def test_results_are_only_replaced_with_overwrite(tmp_path):
    rescore(tmp_path, LINES)
    with pytest.raises(UserError, match=r"already holds scored.jsonl, score.json; add --overwrite"):
        rescore(tmp_path, LINES[:1])
    assert rescore(tmp_path, LINES[:1], "--overwrite")["n"] == 1


def test_generations_can_be_scored_into_their_own_folder(tmp_path):
    source = write(tmp_path / "generations.jsonl", LINES)
    main(["--rescore", source, "--output_dir", str(tmp_path)])
    assert len(read(tmp_path / "generations.jsonl")) == 4 and (tmp_path / "score.json").is_file()


def test_the_command_exits_0_when_done_and_2_with_one_line_when_not(tmp_path):
    source = write(tmp_path / "given.jsonl", LINES)
    done = command("-m", "eval.gsm8k", "--rescore", source, "--output_dir", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "") and "50.00% of 4" in done.stdout
    refused = command("-m", "eval.gsm8k", "--rescore", source, "--output_dir", str(tmp_path / "out"))
    assert refused.returncode == 2 and refused.stderr.startswith("error: --output_dir")
    assert len(refused.stderr.splitlines()) == 1


def test_help_shows_a_command_for_each_use():
    shown = command("-m", "eval.gsm8k", "--help")
    assert shown.returncode == 0
    for piece in ("--model tiny", "--adapter", "--rescore out/generations.jsonl", "tinymath", "grade-school-math"):
        assert piece in shown.stdout


# Problems


def test_problems_of_a_file_keep_their_id_or_get_their_index(tmp_path):
    rows = [{"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "The answer is: 2", "id": "x"}]
    problems = load_problems(write(tmp_path / "data.jsonl", rows))
    assert problems[0] == {"id": 0, "question": "a", "reference": "#### 1"}
    assert problems[1]["id"] == "x"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "b"}, "row 2 has no field 'answer'"),
        ({"question": "b", "answer": "?"}, "row 2: no number"),
        ({"question": 5, "answer": "5"}, "row 2: 'question' is 5"),
        ({"question": "b", "answer": "5", "id": 0}, "id 0 stands for more than one row"),
    ],
)
def test_a_row_of_the_data_that_cannot_be_asked_or_scored_is_named(tmp_path, row, message):
    data = write(tmp_path / "data.jsonl", [{"question": "a", "answer": "#### 1"}, row])
    with pytest.raises(UserError, match=message):
        load_problems(data)


def test_generated_problems_are_500_unless_limited_and_the_same_each_time():
    assert len(load_problems("tinymath:test")) == 500
    assert load_problems("tinymath:shifted", 5) == load_problems("tinymath:shifted", 5)
    assert load_problems("tinymath:test:1", 5) != load_problems("tinymath:test", 5)


def test_generated_references_score_one_against_themselves():
    problems = load_problems("tinymath:validation", 50)
    records = [problem | {"completion": problem["reference"]} for problem in problems]
    assert score_records(records)[0]["score"] == score_records(records, "upstream")[0]["score"] == 1.0


def test_wilson_interval_stays_within_bounds_at_the_ends():
    low, high = summarise([True] * 10)["interval"]
    assert low == pytest.approx(0.7225, abs=1e-4) and high == pytest.approx(1.0)
    assert summarise([False] * 10)["interval"] == pytest.approx([0.0, 0.2775], abs=1e-4)


# With a model: random weights and a byte tokenizer, saved as a folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "?": 3} | {chr(code): code - 28 for code in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    folder = tmp_path_factory.mktemp("model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    yield folder
    torch.set_num_threads(threads)


def test_generating_writes_generations_and_a_complete_score_that_rescoring_repeats(tmp_path, model_folder):
    data = write(tmp_path / "data.jsonl", [{"question": f"{i} + 1 = ?", "answer": f"#### {i + 1}"} for i in range(6)])
    arguments = ["--model", str(model_folder), "--data", data, "--max_new_tokens", "8", "--limit", "5"]
    assert main([*arguments, "--output_dir", str(tmp_path / "D")]) == 0
    lines = read(tmp_path / "D" / "generations.jsonl")
    assert [line["id"] for line in lines] == [0, 1, 2, 3, 4]
    assert {"id", "prompt", "completion", "reference", "finish_reason"} <= set(lines[0])
    assert lines[0]["prompt"] == TEMPLATES["alpaca"].render("0 + 1 = ?")
    score = json.loads((tmp_path / "D" / "score.json").read_text())
    expected = {"benchmark": "gsm8k", "n": 5, "missing": 0, "model": str(model_folder), "adapter": None}
    expected |= {"template": "alpaca", "backend": "transformers", "stop": ["</s>"], "data": data, "dtype": "float32"}
    assert {key: score[key] for key in expected} == expected
    assert score["sampling"]["temperature"] == 0 and score["sampling"]["max_new_tokens"] == 8
    assert score["seconds"] > 0 and score["tokens_per_second"] > 0 and score["backend_version"]
    main(["--rescore", str(tmp_path / "D" / "generations.jsonl"), "--output_dir", str(tmp_path / "D2")])
    again = json.loads((tmp_path / "D2" / "score.json").read_text())
    for each in (again, score):  # only the first score has the file of generations beside it
        assert each.pop("checksum") and each.pop("files")
    assert {**again, "missing": 0, "rescored": None} == score


def test_an_adapter_and_a_run_folder_are_evaluated_alike_and_differ_from_the_base(tmp_path, model_folder):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(model_folder), config)
    run = tmp_path / "run"
    model.save_pretrained(run / "adapter")
    template = {"name": "plain", "prompt": "Q: {instruction}\nA:", "separator": " "}
    (run / "run.json").write_text(json.dumps({"model": str(model_folder), "template": template}))
    base = ["--model", str(model_folder)]
    ways = {"run": ["--model", str(run)], "adapter": [*base, "--adapter", str(run / "adapter")], "base": base}
    found = {}
    for name, way in ways.items():
        options = ["--data", "tinymath:test", "--limit", "4", "--max_new_tokens", "6", "--output_dir"]
        main([*way, *options, str(tmp_path / "eval" / name)])
        found[name] = [line["completion"] for line in read(tmp_path / "eval" / name / "generations.jsonl")]
    assert found["run"] == found["adapter"] != found["base"]
    assert read(tmp_path / "eval" / "run" / "generations.jsonl")[0]["prompt"].startswith("Q: ")
    score = json.loads((tmp_path / "eval" / "run" / "score.json").read_text())
    assert (score["benchmark"], score["template"], score["base"]) == ("tinymath", "plain", str(model_folder))


def test_a_failed_evaluation_leaves_the_earlier_results_alone(tmp_path, model_folder):
    rescore(tmp_path, LINES)
    arguments = ["--model", str(model_folder), "--data", "tinymath:test", "--template", "nope", "--overwrite"]
    with pytest.raises(UserError, match="template 'nope'"):
        main([*arguments, "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "out" / "score.json").is_file()


def test_an_open_model_answers_in_the_order_of_the_problems(model_folder):
    subject, problems = open_subject(str(model_folder), template="plain"), load_problems("tinymath:test", 6)
    requests = [make_request(subject, each["id"], each["question"], each["reference"]) for each in problems]
    batched = complete(subject, requests, max_new_tokens=4, batch_size=4)
    alone = [complete(subject, [request], max_new_tokens=4, batch_size=1)[0] for request in requests]
    assert batched == alone
    assert [record["id"] for record in batched] == [problem["id"] for problem in problems]
