"""Held-out rows: which they are, the means over them against numpy, a training that does not notice them, and what they decide."""

import json
import random
import shutil

import numpy as np
import pytest
import torch

from ba_lora.data.held_out import hold_out
from ba_lora.data.pairs import PadPairs
from ba_lora.errors import DamagedFile, RunFailure, UserError
from ba_lora.experiments.matrix import read_experiment
from ba_lora.files import read_json
from ba_lora.methods.attach import attach
from ba_lora.methods.teacher import teacher
from ba_lora.objective.settings import Objective, of_training, of_validation
from ba_lora.planning.plan import plan, render
from ba_lora.training import checkpoints
from ba_lora.training.classifier_model import ClassifierModel
from ba_lora.training.command_line import parse
from ba_lora.training.held_out import HeldOut
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.run import train
from ba_lora.training.trainer import BALoRATrainer
from ba_lora.training.validation import Validation
from tests.common import TokenIds, collate, move, ragged_samples, small_llama
from tests.tiny_encoder import make_home
from tests.training.resuming import GENERATION, SHORT, rows, write_lines
from tests.training.test_classifier_model import by_numpy, small_bert
from tests.training.test_trainer import arguments, trained

ALL_ON = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3, svd_norm="frobenius")
LATE = {"lambda2_schedule": "two_phase", "lambda3_schedule": "two_phase"}  # weights that are 0 in the first steps


def trainer_of(folder, model, held, validation=True, objective=ALL_ON, batch=3, wrapper=ObjectiveModel, **changes):
    kinds = {name: changes.pop(name) for name in ("every", "keep", "patience") if name in changes}
    classify = wrapper is not ObjectiveModel
    pad = PadPairs(TokenIds()) if classify else collate
    samples = ragged_samples(24)
    made = BALoRATrainer(
        model,
        objective,
        arguments(folder, **changes),
        metrics=folder / "metrics.jsonl",
        wrapper=wrapper,
        validation=Validation(HeldOut(held, pad, {}), batch, **kinds) if validation else None,
        train_dataset=[s | {"labels": s["input_ids"][1] % 3} for s in samples] if classify else samples,
        data_collator=pad,
    )
    return made


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def rows_of(model, samples):
    """[(logits (n, V), target tokens (n,))] of each sample alone, in float64."""
    found = []
    for sample in samples:
        labels = np.array(sample["labels"])[1:]
        z = model(torch.tensor([sample["input_ids"]])).logits[0, :-1].detach().numpy()
        found.append((z[labels != -100].astype(np.float64), labels[labels != -100]))
    return found


@pytest.mark.parametrize("chunked", [True, False], ids=["hidden states", "logits"])
def test_a_look_has_the_means_over_all_held_out_tokens_by_numpy(tmp_path, chunked):
    """7 samples in micro-batches of 3: the last one is short."""
    model, held = attach(small_llama(), "ba-lora", rank=4, alpha=4).double(), ragged_samples(7, seed=5)
    move(model)
    with teacher(model):
        before = rows_of(model, held)
    after = rows_of(model, held)
    trainer = trainer_of(tmp_path, model, held, objective=Objective(**vars(ALL_ON) | LATE))
    trainer.objective_callback.model.may_split = chunked
    look = trainer.validation.look()
    logs, count = [log_softmax(z) for z, _ in after], sum(len(targets) for _, targets in after)
    task = -sum(p[np.arange(len(t)), t].sum() for p, (_, t) in zip(logs, after, strict=True)) / count
    soft = [(log_softmax(z0 / 2), log_softmax(z / 2)) for (z0, _), (z, _) in zip(before, after, strict=True)]
    consistency = 4 * sum((np.exp(p) * (p - q)).sum() for p, q in soft) / count
    largest = [log_softmax(np.sort(z, axis=1)[:, -5:]) for z, _ in after]
    diversity = sum((np.exp(p) * p).sum() for p in largest) / count
    sigma = [
        np.linalg.svd(np.concatenate([z for z, _ in after[first : first + 3]]), compute_uv=False) for first in (0, 3, 6)
    ]
    spectrum = -np.mean([values[:3].sum() / np.sqrt((values**2).sum()) for values in sigma])
    assert bool(trainer.objective_callback.model.parts) == chunked
    assert look == pytest.approx(
        {"task": task, "consistency": consistency, "diversity": diversity, "spectrum": spectrum}, rel=1e-9
    )


def test_a_look_at_a_classifier_counts_samples_and_right_answers(tmp_path):
    model = attach(small_bert(), "ba-lora", rank=4, alpha=4).double()
    move(model)
    held = [s | {"labels": s["input_ids"][1] % 3} for s in ragged_samples(7, seed=5)]
    labels = np.array([sample["labels"] for sample in held])

    def logits():
        return np.concatenate(
            [model(torch.tensor([s["input_ids"]])).logits.detach().numpy().astype(np.float64) for s in held]
        )

    z = logits()
    with teacher(model):
        z0 = logits()
    form = Objective(0.3, 0.2, 0.1, temperature=2.0, diversity="covariance", svd_k=1)
    look = trainer_of(tmp_path, model, held, objective=form, batch=4, wrapper=ClassifierModel).validation.look()
    task, consistency, _, _ = by_numpy(z, z0, labels, form)
    parts = [by_numpy(z[part], z0[part], labels[part], form) for part in (slice(0, 4), slice(4, 7))]
    diversity, spectrum = (np.mean([part[place] for part in parts]) for place in (2, 3))
    assert look == pytest.approx(
        {
            **{"task": task, "consistency": consistency, "diversity": diversity, "spectrum": spectrum},
            "accuracy": (z.argmax(1) == labels).mean(),
        },
        rel=1e-9,
    )


def test_a_term_without_a_weight_is_none_and_one_with_dropout_is_the_same_at_every_look(tmp_path):
    model = attach(small_llama(attention_dropout=0.5), "lora", rank=4, alpha=4, dropout=0.5).train()
    trainer = trainer_of(tmp_path, model, ragged_samples(4, seed=5), objective=Objective())
    state = torch.get_rng_state()
    one, two = trainer.validation.look(), trainer.validation.look()
    assert one == two and one.pop("task") > 0 and set(one.values()) == {None}
    assert torch.equal(state, torch.get_rng_state()) and model.training


@pytest.mark.parametrize(
    "wrapper",
    [
        pytest.param(ObjectiveModel, id="generator"),
        pytest.param(ClassifierModel, id="classifier", marks=pytest.mark.slow),
    ],
)
def test_a_training_with_looks_has_the_bits_of_one_without(tmp_path, wrapper):
    ends, lines = [], []
    for looks in (False, True):
        body = small_llama(attention_dropout=0.2) if wrapper is ObjectiveModel else small_bert()
        model = attach(body, "lora", rank=4, alpha=4, dropout=0.2, keep_initial=True)
        held = [s | {"labels": s["input_ids"][1] % 3} for s in ragged_samples(5, seed=5)]
        held = ragged_samples(5, seed=5) if wrapper is ObjectiveModel else held
        form = Objective(0.3, 0.2, 0.1, temperature=2.0, svd_k=1, lambda1_schedule="adaptive")
        torch.manual_seed(3), random.seed(3)
        (tmp_path / str(looks)).mkdir()
        made = trainer_of(tmp_path / str(looks), model, held, looks, form, wrapper=wrapper, every=1, keep="best")
        made.train()
        ends.append((trained(model), torch.rand(3), random.random()))
        lines.append([json.loads(line) for line in (tmp_path / str(looks) / "metrics.jsonl").read_text().splitlines()])
    for plain, looked in zip(*ends, strict=True):
        assert torch.equal(torch.as_tensor(plain), torch.as_tensor(looked))
    same = ("step", "loss", "task", "consistency", "lambda1", "spectrum_searches_failed", "tokens")
    plain, looked = ([[row[name] for name in same] for row in of_training(each)] for each in lines)
    assert plain == looked and not of_validation(lines[0])
    assert [row["step"] for row in of_validation(lines[1])] == [1, 2, 3, 4, 5, 6]


LOSSES = (3.0, 2.0, 2.5, 2.0, 1.0, 0.5)  # of the six looks


def looks_like(validation, losses=LOSSES):
    """Let `validation` see these task losses, one after another."""
    seen = iter(losses)
    validation.look = lambda: {"task": next(seen)}


@pytest.mark.parametrize(
    ("patience", "best", "last"),
    [(None, 6, 6), (2, 2, 4), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((3, 6, 6), (1, 2, 3)))],
)
def test_the_best_step_is_kept_and_patience_ends_the_run(tmp_path, patience, best, last):
    """A loss equal to the best one is no improvement."""
    model = attach(small_llama(), "ba-lora", rank=4, alpha=4)
    trainer = trainer_of(tmp_path, model, ragged_samples(3), every=1, keep="best", patience=patience, save_steps=1)
    ends, keep = {}, trainer.validation._take
    looks_like(trainer.validation)

    def take(look, args, state):
        ends[state.global_step] = trained(model)
        keep(look, args, state)

    trainer.validation._take = take
    trainer.train()
    state = trainer.validation.state
    assert (state["best"]["step"], state["last"]["step"]) == (best, last) == (best, trainer.state.global_step)
    assert state["stopped"] == (last < 6) and list(ends) == list(range(1, last + 1))
    assert torch.equal(trained(model), ends[last])
    trainer.validation.restore(model, tmp_path)
    assert torch.equal(trained(model), ends[best])
    trainer.validation.state["best"]["step"] = best + 1
    with pytest.raises(
        DamagedFile, match=f"belongs to something else .step {best}, not step {best + 1}.; --resume takes"
    ):
        trainer.validation.restore(model, tmp_path)
    kept = tmp_path / checkpoints.BEST
    kept.write_bytes(kept.read_bytes()[:-1] + b"z")
    with pytest.raises(DamagedFile, match="was altered after it was written; --resume takes"):
        trainer.validation.restore(model, tmp_path)


def test_a_loss_on_held_out_rows_that_is_not_finite_stops_the_run(tmp_path):
    trainer = trainer_of(tmp_path, attach(small_llama(), "ba-lora", rank=4, alpha=4), ragged_samples(3), every=2)
    looks_like(trainer.validation, [2.0, float("nan")])
    with pytest.raises(RunFailure, match="the task term on the held-out rows is nan after step 4"):
        trainer.train()


def test_held_out_rows_depend_on_the_seed_alone():
    kept, held = hold_out(20, 0.25, seed=3)
    assert sorted(kept + held) == list(range(20)) and len(held) == 5 and held == sorted(held)
    assert hold_out(20, 0.25, seed=3) == (kept, held) and hold_out(20, 0.25, seed=4)[1] != held
    assert held == sorted(random.Random("validation share 3").sample(range(20), 5))
    assert [len(hold_out(10, share, 0)[1]) for share in (0.05, 0.14, 0.25, 0.94)] == [1, 1, 3, 9]
    for share, side in ((0.04, "held-out"), (0.96, "training")):
        with pytest.raises(UserError, match=f"--validation_share {share} of 10 rows leaves no {side} row"):
            hold_out(10, share, 0)


@pytest.fixture
def home(generation, tmp_path, monkeypatch):
    """The model M and d.jsonl with 12 rows, in the current folder."""
    shutil.copytree(generation / "M", tmp_path / "M")
    monkeypatch.chdir(tmp_path)
    write_lines("d.jsonl", rows(12))
    return tmp_path


def run(name, *words):
    folder = train(parse([*GENERATION, *SHORT, "--lambda2_schedule", "constant", "--output_dir", name, *words]))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    looks = [{key: value for key, value in row.items() if key != "validation_seconds"} for row in of_validation(lines)]
    return read_json(folder / "run.json"), looks, (folder / "adapter/adapter_model.safetensors").read_bytes()


def test_a_run_on_a_share_equals_one_on_the_other_rows_with_the_held_out_ones_as_data(home):
    kept, held = hold_out(12, 0.25, 42)
    record, looks, adapter = run("share", "--validation_share", "0.25", "--validation_steps", "2")
    for name, numbers in (("kept", kept), ("held", held)):
        write_lines(f"{name}.jsonl", [rows(12)[number] for number in numbers])
    words = ["--data", "kept.jsonl", "--validation_data", "held.jsonl", "--validation_steps", "2"]
    other, other_looks, same = run("files", *words)
    assert adapter == same and looks == other_looks and [look["step"] for look in looks] == [2, 3]
    facts, others = record["validation"], other["validation"]
    assert facts["rows"] == 3 and record["data"]["kept"] == 9 and facts["also_trained"] == 0
    assert (facts["share"], facts["seed"], facts["data"]) == (0.25, 42, None) and others["data"] == "held.jsonl"
    assert facts["hash"] == others["hash"] and facts["last"]["step"] == facts["saved_step"] == 3
    assert facts["last"]["task"] == looks[-1]["validation_task"] and facts["every"] == 2


def test_a_run_whose_held_out_rows_have_changed_is_not_resumed_and_shared_rows_are_told(home, caplog):
    write_lines("held.jsonl", rows(3))
    words = ["--validation_data", "held.jsonl", "--save_steps", "1"]
    record, _, _ = run("run", *words)
    assert record["validation"]["also_trained"] == 3
    assert "3 of the 3 held-out rows have the same tokens as a training row" in caplog.text
    assert record["inputs"]["validation"]
    write_lines("held.jsonl", rows(4))
    with pytest.raises(UserError, match="this has changed: the held-out rows"):
        run("run", *words, "--resume")
    with pytest.raises(UserError, match="--resume: validation_steps is 1 and was None"):
        run("run", *words, "--resume", "--validation_steps", "1")


@pytest.mark.slow
def test_a_cache_of_the_teacher_serves_runs_with_and_without_held_out_rows(home):
    """The held-out rows have the online teacher: the same numbers as without a cache."""
    words = ["--validation_share", "0.25"]
    _, looks, _ = run("online", *words)
    run("whole", "--teacher_cache", "cache")
    files = {file.name: file.read_bytes() for file in (home / "cache").glob("rows-*")}
    record, cached, _ = run("cached", *words, "--teacher_cache", "cache")
    assert record["teacher_cache"] and files == {
        file.name: file.read_bytes() for file in (home / "cache").glob("rows-*")
    }
    assert len(looks) == len(cached) == 3
    for one, two in zip(looks, cached, strict=True):
        assert one == pytest.approx(two, rel=1e-4)


@pytest.mark.slow
def test_held_out_labels_of_a_classifier_are_never_corrupted(tmp_path, monkeypatch):
    home = make_home(tmp_path)
    monkeypatch.chdir(home)
    words = ["--task", "sst2", "--model", "encoder", "--data", ".", "--limit", "40", "--rank", "2", "--max_steps", "2"]
    words += ["--micro_batch_size", "8", "--effective_batch_size", "8", "--use_cpu", "--progress", "false"]
    share, records = ["--validation_share", "0.25"], {}
    for name, more in (
        ("clean", share),
        ("noisy", [*share, "--label_noise", "0.4"]),
        ("data", ["--validation_data", "."]),
    ):
        folder = train(parse([*words, *more, "--output_dir", name]))
        records[name] = read_json(folder / "run.json")
        looks = of_validation(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
        assert [look["step"] for look in looks] == [1, 2]
        assert all(0 <= look["validation_accuracy"] <= 1 and look["validation_task"] > 0 for look in looks)
        assert "accuracy |" in (folder / "adapter" / "README.md").read_text()
    clean, noisy = (records[name] for name in ("clean", "noisy"))
    assert (clean["validation"]["rows"], clean["data"]["kept"]) == (10, 30)
    assert clean["validation"]["hash"] == noisy["validation"]["hash"] and clean["data"]["hash"] != noisy["data"]["hash"]
    assert noisy["data"]["corruption"][0]["changed"] == 12 and records["data"]["validation"]["rows"] == 60


@pytest.mark.slow
def test_tensorboard_and_the_lines_of_a_run_show_the_loss_on_held_out_rows(home, capsys):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    _, looks, _ = run("run", "--validation_share", "0.25", "--report_to", "tensorboard")
    events = reader.EventAccumulator("run/logs")
    events.Reload()
    for name in ("task", "consistency", "diversity"):
        seen = {event.step: event.value for event in events.Scalars(f"eval/{name}")}
        assert seen == pytest.approx({look["step"]: look[f"validation_{name}"] for look in looks}, rel=1e-6)
    out, task = capsys.readouterr().out, looks[0]["validation_task"]
    assert "step 1 of 3, loss " in out and f", held-out task loss {task:.3f} (step 1), about" in out


def test_a_plan_counts_the_rows_that_are_trained_on_and_the_looks_at_the_others(home):
    words = ["--dry_run", "--data", "d.jsonl", "--model", "tiny", "--effective_batch_size", "4", "--devices", "A40"]
    share, other = ["--validation_share", "0.34"], ["--validation_data", "someone/data"]
    makings = [[], share, [*share, "--validation_steps", "2"], other, [*other, "--validation_limit", "7"]]
    planned = [plan(parse([*words, *more]), memory=False) for more in makings]
    assert [(each["samples"], each["steps"]) for each in planned] == [(12, 3), (8, 2), (8, 2), (12, 3), (12, 3)]
    assert [each["held_out"] for each in planned] == [
        None,
        {"looks": 2, "rows": 4},
        {"looks": 1, "rows": 4},
        {"looks": 3, "rows": None},
        {"looks": 3, "rows": 7},
    ]
    plain, two, one, unknown, limited = (each["devices"]["forms"]["as planned"]["flops"] for each in planned)
    look = two - one  # of 4 rows
    assert 0 < look < plain / 3 and two - 2 * look == pytest.approx(plain * 8 / 12)
    assert unknown == plain and limited - plain == pytest.approx(3 * look * 7 / 4)
    assert "held-out rows" not in render(planned[0])
    assert "4 rows, looked at 2 times; work and time include them" in render(planned[1])
    assert "an unknown number of rows, looked at 3 times; work and time leave them out" in render(planned[3])


def test_a_matrix_takes_the_options_of_validation_for_a_method(home):
    (home / "c.yaml").write_text("model: M\ndata: d.jsonl\ntemplate: plain\n")
    method = "{method: lora, rank: 2, validation_share: 0.25, keep: best, patience: 3}"
    (home / "e.yaml").write_text(f"name: e\nconfig: c.yaml\nmethods: {{lora: {method}}}\nseeds: [1]\n")
    made = read_experiment("e.yaml").runs[0].arguments
    assert (made.validation_share, made.keep, made.patience) == (0.25, "best", 3)


BAD = [
    (["--keep", "best"], "--keep best needs held-out rows; add --validation_data FILE or --validation_share SHARE"),
    (["--patience", "2"], "--patience 2 needs held-out rows"),
    (["--validation_steps", "2"], "--validation_steps 2 needs held-out rows"),
    (["--validation_split", "test"], "--validation_split test belongs to --validation_data FILE"),
    (
        ["--validation_share", "0.1", "--validation_limit", "5"],
        "--validation_limit 5 belongs to --validation_data FILE",
    ),
    (["--validation_share", "0.1", "--validation_data", "d.jsonl"], "both name held-out rows; leave one of them out"),
    (["--validation_share", "1"], "--validation_share must be at least 0 and below 1, got 1.0"),
    (["--validation_share", "0.1", "--patience", "0"], "--patience must be at least 1, got 0"),
    (["--validation_share", "0.1", "--validation_steps", "0"], "--validation_steps must be at least 1, got 0"),
    (["--validation_share", "0.1", "--keep", "first"], "'first'"),
    (
        ["--validation_share", "0.1", "--keep", "best", "--method", "adalora"],
        "--keep best: adalora plans its ranks over all steps of the run; leave it out",
    ),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=lambda value: value if isinstance(value, str) else None)
def test_options_without_a_sense_are_refused_in_a_line(words, said):
    with pytest.raises(UserError) as refused:
        parse(["--output_dir", "x", *words])
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_checkpoint_without_the_best_step_is_no_start(tmp_path):
    trainer = trainer_of(tmp_path, attach(small_llama(), "ba-lora", rank=4, alpha=4), ragged_samples(3), keep="best")
    trainer.validation.state["best"] = {"step": 2, "task": 1.0}
    (tmp_path / checkpoints.BEST).write_bytes(b"of a later step")
    with pytest.raises(UserError, match="best.safetensors is missing, which holds the best step's tensors"):
        trainer.validation._put_back(tmp_path, 4)
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / checkpoints.BEST).write_bytes(b"of step 2")
    trainer.validation._put_back(tmp_path, 4)
    assert (tmp_path / checkpoints.BEST).read_bytes() == b"of step 2"
    trainer.validation.state["best"] = None
    trainer.validation._put_back(tmp_path, 0)
    assert not (tmp_path / checkpoints.BEST).exists()
