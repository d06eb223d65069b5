"""A classifier from training to its scores: the files written, recomputing the scores from them, and refusals."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from ba_lora.errors import UserError
from ba_lora.experiments.single import train_and_evaluate
from ba_lora.methods.save import load
from ba_lora.training.command_line import parse
from ba_lora.training.run import train
from eval import glue, gluex
from tests.tiny_encoder import make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("glue"))


def trained(home, name, task="sst2", *words):
    common = ["--model", str(home / "encoder"), "--data", str(home / task), "--progress", "false", "--max_length", "16"]
    rates = [
        "--learning_rate",
        "0.01",
        "--max_steps",
        "100",
        "--micro_batch_size",
        "16",
        "--effective_batch_size",
        "16",
    ]
    words = [*common, *rates, "--rank", "4", "--lr_scheduler", "constant", *words]
    return train(parse(["--task", task, "--output_dir", str(home / name), *words]))


@pytest.fixture(scope="module")
def run(home):
    return trained(home, "run")


def read(path):
    return json.loads(path.read_text())


def test_a_run_learns_and_its_scores_can_be_computed_again(home, run, tmp_path):
    assert glue.main(["--model", str(run)]) == 0
    folder = run / "eval/glue"
    score, lines = read(folder / "score.json"), (folder / "predictions.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    predicted = [int(np.argmax(record["logits"])) for record in records]
    labels = [record["label"] for record in records]
    assert score["n"] == len(records) == 60 and score["metric"] == "accuracy"
    assert score["score"] == pytest.approx(accuracy_score(labels, predicted)) and score["score"] > 0.9
    assert (folder / "reliability.png").stat().st_size > 1000
    words = ["--rescore", str(folder / "predictions.jsonl"), "--task", "cola", "--output_dir", str(tmp_path)]
    glue.main(words)
    assert read(tmp_path / "score.json")["score"] == pytest.approx(matthews_corrcoef(labels, predicted))
    with pytest.raises(UserError, match="already holds score.json; add --overwrite"):
        glue.main(words)


def test_batches_and_padding_change_no_logit(home, run, tmp_path):
    for size in ("1", "60"):
        glue.main(["--model", str(run), "--batch_size", size, "--output_dir", str(tmp_path / size)])
    logits = [
        np.array(
            [json.loads(line)["logits"] for line in (tmp_path / size / "predictions.jsonl").read_text().splitlines()]
        )
        for size in ("1", "60")
    ]
    assert np.allclose(*logits, atol=1e-5) and np.ptp(logits[0]) > 0.1


@pytest.mark.parametrize("method", ["full", "pfeiffer", "adalora"])
def test_what_other_methods_trained_is_what_is_evaluated(home, method):
    run = trained(home, method, "sst2", "--method", method, "--max_steps", "8")
    glue.main(["--model", str(run)])
    first = json.loads((run / "eval/glue/predictions.jsonl").read_text().splitlines()[0])
    row = json.loads((home / "sst2/validation.jsonl").read_text().splitlines()[0])
    inputs = BertTokenizerFast.from_pretrained(home / "encoder")(row["sentence"], return_tensors="pt")
    with torch.no_grad():
        alone = load(run)(**inputs).logits[0]
        start = AutoModelForSequenceClassification.from_pretrained(home / "encoder")(**inputs).logits[0]
    assert first["logits"] == pytest.approx(alone.tolist(), abs=1e-5) and first["label"] == row["label"]
    assert first["logits"] != pytest.approx(start.tolist(), abs=1e-3)


def test_a_regression_is_scored_by_its_correlations(home):
    run = trained(home, "stsb-run", "stsb", "--method", "lora")
    glue.main(["--model", str(run)])
    score = read(run / "eval/glue/score.json")
    assert score["metric"] == "pearson" and score["score"] > 0.8 and "spearman" in score
    assert not (run / "eval/glue/reliability.png").exists()


def test_the_test_split_is_predicted_in_glues_format(run, tmp_path):
    glue.main(["--model", str(run), "--submission", "--output_dir", str(tmp_path)])
    lines = (tmp_path / "SST-2.tsv").read_text().splitlines()
    assert lines[0] == "index\tprediction" and len(lines) == 6
    assert {line.split("\t")[1] for line in lines[1:]} <= {"0", "1"}
    with pytest.raises(UserError, match="has no labels; to predict it add --submission"):
        glue.main(["--model", str(run), "--split", "test", "--output_dir", str(tmp_path / "other")])


def test_a_submission_numbers_its_predictions_as_the_file_does(run, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    words = ["--model", str(run), "--submission", "--data", str(data), "--output_dir", str(out)]
    (data / "test.tsv").write_text("index\tsentence\n7\tgood film\n\n3\tbad film\n0\tgood\n")
    glue.main(words)
    assert [line.split("\t")[0] for line in (out / "SST-2.tsv").read_text().splitlines()] == ["index", "7", "3", "0"]
    (data / "test.tsv").write_text("index\tsentence\n7\tgood film\n7\tbad film\n")
    with pytest.raises(UserError, match="test.tsv, line 3: index 7 was already in .*line 2"):
        glue.main(words)
    assert len((out / "SST-2.tsv").read_text().splitlines()) == 4


def test_out_of_domain_sets_are_scored_and_those_not_at_hand_named(home, run, capsys):
    gluex.main(["--model", str(run), "--at_hand", "--data", f"imdb={home / 'imdb.jsonl'}"])
    whole = read(run / "eval/gluex/scores.json")
    assert whole["scores"]["imdb"]["n"] == 40 and whole["scores"]["imdb"]["score"] > 0.8
    assert "flipkart" in whole["left_out"] and "flipkart" in capsys.readouterr().out
    assert len((run / "eval/gluex/imdb/predictions.jsonl").read_text().splitlines()) == 40


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (glue, [], "give either --model RUN"),
        (glue, ["--model", "nowhere"], "--model nowhere is not a run folder of a classifier"),
        (glue, ["--model", "RUN", "--task", "cola"], "--task cola, but .* was trained on sst2"),
        (glue, ["--model", "RUN", "--limit", "0"], "--limit is 0"),
        (glue, ["--rescore", "nowhere.jsonl", "--task", "cola", "--output_dir", "OUT"], "nowhere.jsonl does not exist"),
        (glue, ["--rescore", "x.jsonl", "--output_dir", "OUT"], "needs --task NAME"),
        (gluex, [], "--model is missing"),
        (gluex, ["--model", "RUN", "--sets", "imbd"], "set.*imbd"),
        (gluex, ["--model", "RUN", "--data", "imdb"], "write NAME=PATH"),
        (gluex, ["--model", "RUN", "--sets", "flipkart"], "flipkart has no copy on the hub"),
    ],
)
def test_what_cannot_work_is_refused(run, tmp_path, command, words, message):
    words = [{"RUN": str(run), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    extra = ["--output_dir", str(tmp_path / "out2")] if words and "--output_dir" not in words else []
    with pytest.raises(UserError, match=message):
        command.main([*words, *extra])


def test_predictions_that_do_not_fit_are_named_by_line(tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_text('{"id": 1, "logits": [0.1, 0.2], "label": 1}\n{"id": 2, "logits": [0.1], "label": 1}\n')
    with pytest.raises(UserError, match=r"predictions.jsonl, line 2: the logits are \[0.1\], 2 numbers"):
        glue.main(["--rescore", str(file), "--task", "cola", "--output_dir", str(tmp_path / "out")])


# Options of training


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "cloa"], "task 'cloa'.*cola"),
        (["--task", "sst2"], "--model tiny generates"),
        (["--task", "sst2", "--model", "x", "--template", "plain"], "--template is an option of generation"),
        (["--task", "sst2", "--model", "x", "--label_noise", "1.5"], "--label_noise is a share"),
        (["--label_noise", "0.1"], "--label_noise is an option of classification; add --task"),
    ],
)
def test_options_that_do_not_fit_the_kind_of_run_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        parse([*words, "--output_dir", "out"])


def test_corrupted_labels_are_recorded_in_the_run(home):
    words = ["--label_noise", "0.25", "--class_shares", "negative=0.5", "--max_steps", "2"]
    run = trained(home, "noisy", "sst2", *words)
    thinned, noisy = read(run / "run.json")["data"]["corruption"]
    assert thinned["change"] != "labels" and noisy["rate"] == 0.25
    assert noisy["changed"] == round(0.25 * read(run / "run.json")["data"]["kept"])


def test_features_are_saved_for_the_figure_and_asked_for_in_vain_beyond_the_end(home):
    run = trained(
        home, "features", "sst2", "--features_steps", "0", "4", "--max_steps", "5", "--features_examples", "20"
    )
    assert np.load(run / "features/features_step_4.npy").shape == (20, 32)
    with pytest.raises(UserError, match="step 9"):
        trained(home, "late", "sst2", "--features_steps", "9", "--max_steps", "5")
    assert not (home / "late").exists()


def test_one_config_is_trained_evaluated_in_and_out_of_domain_and_described(home, tmp_path, capsys):
    config = tmp_path / "small.yaml"
    options = {"task": "sst2", "model": str(home / "encoder"), "data": str(home / "sst2"), "max_steps": 60, "rank": 4}
    options |= {"learning_rate": 0.01, "effective_batch_size": 16, "micro_batch_size": 16, "max_length": 16}
    options |= {"benchmarks": ["glue", "gluex"], "eval_data": [f"imdb={home / 'imdb.jsonl'}"], "progress": False}
    config.write_text(json.dumps(options))
    assert train_and_evaluate(str(config), ["--output_dir", str(tmp_path / "run")]) == 0
    score = read(tmp_path / "run/eval/glue/score.json")["score"]
    assert read(tmp_path / "run/eval/gluex/scores.json")["scores"]["imdb"]["n"] == 40
    card = (tmp_path / "run/adapter/README.md").read_text()
    assert "pipeline_tag: text-classification" in card and f"| accuracy | {score:.4f} |" in card
    assert "sst2 (classes negative, positive)" in card and str(home) not in card
    with pytest.raises(UserError, match="benchmark 'gsm8k'"):
        train_and_evaluate(str(config), ["--output_dir", str(tmp_path / "other"), "--benchmarks", "gsm8k"])


def test_consistency_starts_at_exactly_zero_without_dropout_and_its_first_size_is_logged_with_it(home):
    first = []
    for name, words in (("still", ["--model_dropout", "0"]), ("moving", [])):
        run = trained(home, name, "sst2", "--max_steps", "1", "--logging_steps", "1", *words)
        first.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["consistency"])
    assert first[0] == 0.0 and first[1] > 1e-6
