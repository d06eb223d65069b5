"""A teacher on a share of the sequences: the draws, an unbiased gradient by enumeration, the sequences that run, resuming."""

import itertools
import json
import math
import random
from collections import Counter
from functools import cache

import pytest
import torch

from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.objective import chunk
from ba_lora.objective.settings import Objective
from ba_lora.planning.plan import plan, render
from ba_lora.training import checkpoints, step_model
from ba_lora.training.callbacks import short_from
from ba_lora.training.classifier_model import ClassifierModel
from ba_lora.training.command_line import as_config, parse
from ba_lora.training.objective_model import ObjectiveModel
from ba_lora.training.taught import selected
from ba_lora.training.teacher_share import Draw, TeacherShare, count, draw, phase
from ba_lora.training.trainer import BALoRATrainer
from tests.common import collate, move, ragged_samples, small_llama
from tests.training.lives import assert_same, life, metrics, on_call
from tests.training.test_classifier_model import batch as classifier_batch
from tests.training.test_classifier_model import small_bert
from tests.training.test_trainer import arguments, student, trained

SHARES = (0.1, 0.25, 0.375, 0.5, 0.7, 1.0)
CONSISTENCY = Objective(0.3, temperature=2.0)
ALL_ON = Objective(0.3, 0.2, 0.1, temperature=2.0, top_k=5, svd_k=3)


def phases(share, micro_batch, micro_batches):
    """(φ in its middle, length) of each interval of [0, 1) in which no count changes."""
    mean = share * micro_batch
    cuts = {0.0, 1.0, *(-mean * micro % 1 for micro in range(micro_batches + 1))}
    cuts = sorted(cuts)
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(cuts) if b - a > 1e-12]


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 7])
@pytest.mark.parametrize("share", SHARES)
def test_every_micro_batch_runs_its_share_on_average_and_every_step_within_one_of_it(share, micro_batch):
    intervals = phases(share, micro_batch, 5)
    for micro in range(5):
        mean = sum(length * count(share, micro_batch, micro, phi) for phi, length in intervals)
        assert mean == pytest.approx(share * micro_batch, abs=1e-12)
    for phi, _ in intervals:
        counts = [count(share, micro_batch, micro, phi) for micro in range(5)]
        assert all(0 <= each <= micro_batch for each in counts)
        assert abs(sum(counts) - 5 * share * micro_batch) < 1


def test_the_phase_is_uniform_and_the_subsets_of_a_size_are_equally_frequent():
    found = sorted(phase(7, step) for step in range(4000))
    assert (
        max(abs(value - (place + 0.5) / 4000) for place, value in enumerate(found)) < 1.63 / 4000**0.5
    )  # Kolmogorov, 1 %
    form = TeacherShare(0.5, 4, 7)
    seen = Counter(draw(form, step, 0, 0, 4).sequences for step in range(6000))
    assert set(seen) == set(itertools.combinations(range(4), 2))
    assert sum((times - 1000) ** 2 / 1000 for times in seen.values()) < 15.1  # χ² of 5 degrees, 1 %


def test_a_draw_depends_on_seed_step_micro_batch_and_rank_and_on_no_global_generator():
    form = TeacherShare(0.5, 8, 3)
    before = random.getstate(), torch.get_rng_state()
    first = draw(form, 5, 1, 0, 8)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    random.seed(1), torch.manual_seed(1)
    assert draw(form, 5, 1, 0, 8) == first == Draw((1, 3, 4, 5), 2.0)  # these bits: a resumed run relies on them
    others = [
        draw(form._replace(seed=4), 5, 1, 0, 8),
        *(draw(form, *at, 8) for at in ((6, 1, 0), (5, 2, 0), (5, 1, 1))),
    ]
    assert all(other.sequences != first.sequences and len(other.sequences) == 4 for other in others)


def test_a_short_micro_batch_runs_whole_and_a_larger_one_is_refused():
    form = TeacherShare(0.25, 4, 0)
    assert draw(form, 0, 0, 0, 3) == Draw((0, 1, 2), 1.0)
    with pytest.raises(UserError, match="micro-batches of 4 sequences and got 5"):
        draw(form, 0, 0, 0, 5)


def test_ranks_never_differ_in_whether_the_teacher_runs_also_beside_a_short_micro_batch():
    form, seen = TeacherShare(0.25, 2, 9), set()
    for step, micro in itertools.product(range(40), range(3)):
        whole = [draw(form, step, micro, rank, 2) for rank in range(3)]
        assert len({len(each.sequences) for each in whole}) == 1
        last = [draw(form, step, micro, rank, 1 if rank == 2 else 2, may_be_short=True) for rank in range(3)]
        assert all(each.sequences for each in last)
        for before, now in zip(whole[:2], last[:2], strict=True):
            assert now == (before if before.sequences else Draw((0,), 0.0))
        seen.add(len(whole[0].sequences))
    assert seen == {0, 1}


def test_the_last_micro_batch_of_an_epoch_and_any_of_a_stream_may_be_short():
    assert [short_from(step, range(7), 3) for step in range(6)] == [None, None, 0, None, None, 0]
    assert [short_from(step, range(6), 3) for step in range(4)] == [None, 2, None, 2]
    assert short_from(0, iter(()), 3) == 0


# The gradient


def generator_of(is_chunked, objective=CONSISTENCY, **options):
    model = attach(small_llama(), "ba-lora", rank=4, alpha=4, keep_initial=True).double()
    move(model)
    return ObjectiveModel(model, objective, chunked=is_chunked, **options).train()


def classifier_of(objective=CONSISTENCY, **options):
    model = attach(small_bert(), "ba-lora", rank=2, alpha=2, head=("classifier",), keep_initial=True).double()
    move(model)
    return ClassifierModel(model, objective, **options).train()


KINDS = {
    "dense": lambda *more, **options: generator_of(False, *more, **options),
    "chunked": lambda *more, **options: generator_of(True, *more, **options),
    "classifier": classifier_of,
}


def micro_batches(kind, size, number):
    """(micro-batches of `size` sequences, their items together)"""
    if kind == "classifier":
        whole = classifier_batch(rows=size * number)
        cut = [slice(start, start + size) for start in range(0, size * number, size)]
        return [{name: value[part] for name, value in whole.items()} for part in cut], size * number
    samples = ragged_samples(size * number)
    made = [collate(samples[start : start + size]) for start in range(0, size * number, size)]
    return made, sum(int((each["labels"] != -100).sum()) for each in made)


def gradient(model, batches, items, draws=None, monkeypatch=None):
    """The gradient of a step on these micro-batches, with these draws."""
    model.zero_grad()
    model.begin_step(0, 1, len(batches))
    if draws is not None:
        monkeypatch.setattr(step_model, "draw", lambda form, step, micro, *more: draws[micro])
    for batch in batches:
        model(**batch, num_items_in_batch=items).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("micro_batch", "share", "number"), [(1, 0.4, 3), (2, 0.75, 2), (4, 0.375, 2)])
def test_the_mean_gradient_over_all_draws_is_that_of_every_sequence(monkeypatch, kind, micro_batch, share, number):
    batches, items = micro_batches(kind, micro_batch, number)
    whole = gradient(KINDS[kind](), batches, items)
    alone = whole - gradient(KINDS[kind](Objective()), batches, items)
    model = KINDS[kind](teacher_share=TeacherShare(share, micro_batch))
    none = [Draw((), 0.0)] * number
    task = gradient(model, batches, items, none, monkeypatch)

    @cache  # the draws of different micro-batches add up
    def added(micro, chosen):
        draws = [*none[:micro], Draw(chosen, 1 / share), *none[micro + 1 :]]
        return gradient(model, batches, items, draws, monkeypatch) - task

    mean, total = torch.zeros_like(whole), 0.0
    for phi, length in phases(share, micro_batch, number):
        sizes = [count(share, micro_batch, micro, phi) for micro in range(number)]
        outcomes = list(itertools.product(*(itertools.combinations(range(micro_batch), size) for size in sizes)))
        for outcome in outcomes:
            total += length / len(outcomes)
            step = sum(added(micro, chosen) for micro, chosen in enumerate(outcome) if chosen)
            mean += length / len(outcomes) * (task + step)
    assert total == pytest.approx(1) and alone.norm() > 1e-3
    assert ((mean - whole).norm() / alone.norm()).item() < 1e-6


@pytest.mark.parametrize(("micro_batch", "share"), [(4, 0.5), (4, 0.25), (2, 0.5)])
def test_the_variance_of_a_whole_number_of_sequences_is_that_of_the_page(monkeypatch, micro_batch, share):
    """(1 − s)/s · B/R² · S², where S² is the variance of the sequences' own gradients."""
    batches, items = micro_batches("dense", micro_batch, 1)
    model, everything = generator_of(False, teacher_share=TeacherShare(share, micro_batch)), range(micro_batch)

    def of(*sequences, weight):
        return gradient(model, batches, items, [Draw(sequences, weight)], monkeypatch)

    task, whole = of(weight=0.0), of(*everything, weight=1.0)
    own = torch.stack([items * (of(each, weight=1.0) - task) for each in everything])
    spread = (own - own.mean(0)).square().sum() / (micro_batch - 1)
    subsets = itertools.combinations(everything, round(share * micro_batch))
    errors = [(of(*chosen, weight=1 / share) - whole).square().sum() for chosen in subsets]
    expected = (1 - share) / share * micro_batch / items**2 * spread
    torch.testing.assert_close(
        torch.stack(errors).mean(), expected, rtol=1e-5, atol=0.0
    )  # transformers' norms are float32


@pytest.mark.parametrize("kind", KINDS)
def test_the_draws_of_a_step_add_up(monkeypatch, kind):
    """As the enumeration above assumes; and a drawn step is not the whole one."""
    batches, items = micro_batches(kind, 4, 2)
    model = KINDS[kind](teacher_share=TeacherShare(0.5, 4))
    first, second, nothing = Draw((0, 3), 2.0), Draw((1,), 2.0), Draw((), 0.0)
    step = [gradient(model, batches, items, each, monkeypatch) for each in
            ([first, second], [first, nothing], [nothing, second], [nothing, nothing])]  # fmt: skip
    torch.testing.assert_close(step[0] + step[3], step[1] + step[2], rtol=1e-9, atol=1e-12)
    assert (step[0] - gradient(KINDS[kind](), batches, items)).norm() > 1e-4


def test_the_dense_and_the_chunked_form_have_the_same_step_with_all_terms(monkeypatch):
    batches, items = micro_batches("dense", 4, 2)
    draws, found = [Draw((1, 2), 1.25), Draw((), 0.0)], {}
    for kind in ("dense", "chunked"):
        model = KINDS[kind](ALL_ON, teacher_share=TeacherShare(0.8, 4))
        found[kind] = gradient(model, batches, items, draws, monkeypatch), model.sums
    torch.testing.assert_close(found["dense"], found["chunked"], rtol=1e-8, atol=1e-9)
    whole = KINDS["dense"](ALL_ON)
    gradient(whole, batches, items)
    for name in ("task", "diversity", "spectrum"):  # these see every row
        torch.testing.assert_close(whole.sums[name], found["dense"][1][name], rtol=1e-9, atol=0.0)
    assert (whole.sums["consistency"] - found["dense"][1]["consistency"]).abs() > 1e-3


# What runs


def watch(monkeypatch, model):
    """The shapes of input_ids in every forward pass of the student, as (shape, is it the teacher's?)."""
    seen = []
    base = model.student.get_base_model()

    def hook(module, args, kwargs):
        seen.append((tuple(kwargs["input_ids"].shape), not torch.is_grad_enabled()))

    (base.model if hasattr(base, "lm_head") else base).register_forward_pre_hook(hook, with_kwargs=True)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_runs_on_the_drawn_sequences_without_their_common_padding(monkeypatch, kind):
    (batch,), items = micro_batches(kind, 4, 1)
    lengths = batch["attention_mask"].sum(1).tolist()
    chosen = tuple(sorted(sorted(range(4), key=lengths.__getitem__)[:2]))
    model = KINDS[kind](teacher_share=TeacherShare(0.5, 4))
    gradient(model, [batch], items, [Draw(chosen, 2.0)], monkeypatch)
    seen, teachers, logits_of = watch(monkeypatch, model), [], chunk.logits_of
    monkeypatch.setattr(
        chunk, "logits_of", lambda hidden, *more: teachers.append(len(hidden)) or logits_of(hidden, *more)
    )
    gradient(model, [batch], items, [Draw(chosen, 2.0)], monkeypatch)
    width = max(lengths[each] for each in chosen)
    assert width < max(lengths) and seen == [((2, width), True), (tuple(batch["input_ids"].shape), False)]
    if kind == "chunked":
        rows = (batch["labels"][:, 1:] != -100).sum(1)
        assert sorted(teachers) == sorted(
            map(int, (rows[list(chosen)].sum(), rows[list(chosen)].sum(), rows.sum() - rows[list(chosen)].sum()))
        )
    seen.clear()
    gradient(model, [batch], items, [Draw((), 0.0)], monkeypatch)
    assert len(seen) == 1 and model.sums["consistency"].item() == 0.0


def test_evaluation_and_a_share_of_one_draw_nothing(monkeypatch):
    (batch,), _ = micro_batches("dense", 4, 1)

    def refuse(*arguments):
        raise AssertionError("drew")

    monkeypatch.setattr(step_model, "draw", refuse)
    whole = generator_of(True)
    whole(**batch)
    evaluated = generator_of(True, teacher_share=TeacherShare(0.25, 4)).eval()
    torch.testing.assert_close(evaluated(**batch).loss, whole.sums["loss"], rtol=1e-9, atol=0.0)
    with pytest.raises(AssertionError, match="drew"):
        evaluated.train()(**batch)


def test_every_input_of_a_sample_is_selected_and_other_inputs_are_kept():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    inputs = {"attention_mask": mask, "token_type_ids": mask + 5, "labels": torch.tensor([7, 8, 9])}
    inputs |= {"use_cache": False, "position_ids": torch.arange(4)[None]}
    made = selected(inputs, torch.tensor([1, 2]), 3)
    assert made["token_type_ids"].tolist() == [[6, 6], [6, 5]] and made["labels"].tolist() == [8, 9]
    assert made["attention_mask"].shape == (2, 2) and made["use_cache"] is False
    left = {"attention_mask": mask.flip(1), "input_ids": mask}
    assert selected(left, torch.tensor([2]), 3)["input_ids"].tolist() == [
        [1, 0, 0, 0]
    ]  # padded on the left: nothing to cut


# Runs


def run(folder, share, samples=24, resume=None, **changes):
    made = BALoRATrainer(
        student(),
        ALL_ON,
        arguments(folder, logging_steps=1, **changes),
        metrics=folder / "metrics.jsonl",
        teacher_share=share,
        train_dataset=ragged_samples(samples),
        data_collator=collate,
    )
    made.train(resume_from_checkpoint=resume)
    return trained(made.objective_callback.model.student)


def test_a_run_draws_by_its_seed_and_its_steps_and_its_short_last_micro_batch_runs_whole(tmp_path, monkeypatch):
    asked, original = [], step_model.draw

    def spy(*arguments):
        asked.append((*arguments, original(*arguments)))
        return asked[-1][-1]

    monkeypatch.setattr(step_model, "draw", spy)
    run(tmp_path, 0.5, samples=11, max_steps=-1, num_train_epochs=2)
    expected = [(step, micro) for step in range(6) for micro in range(2)]
    assert [each[1:3] for each in asked] == expected
    assert all(each[0] == TeacherShare(0.5, 2, 1) and each[3] == 0 for each in asked)
    assert [len(each[-1].sequences) for each in asked] == [1] * 12  # one of two, or all of one
    assert [each[-1].weight for each in asked] == [*[2.0] * 5, 1.0] * 2


def test_a_resumed_run_draws_on_and_ends_with_the_same_bits(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 4}
    whole = run(tmp_path, 0.25, **options)
    before = (tmp_path / "metrics.jsonl").read_text()
    assert torch.equal(run(tmp_path, 0.25, resume=str(tmp_path / "checkpoint-4"), **options), whole)
    now = [json.loads(line)["consistency"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert now == [json.loads(line)["consistency"] for line in before.splitlines()] and len(now) == 6
    assert not torch.equal(run(tmp_path / "all", 1.0), whole)


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bits(tmp_path):
    words = ["--teacher_share", "0.25", "--save_steps", "2", "--logging_steps", "1"]
    assert life(tmp_path / "whole", *words)[0] == 0
    assert life(tmp_path / "cut", *words, before=on_call(checkpoints, "write", 3))[0] == -9
    assert life(tmp_path / "cut", *words)[0] == 0
    assert_same(tmp_path / "cut", tmp_path / "whole")
    assert math.isfinite(metrics(tmp_path / "cut")[-1][1])
    status, said = life(tmp_path / "cut", *words, "--teacher_share", "0.5")
    assert status == 2 and "teacher_share is 0.5 and was 0.25" in said


# Options

REFUSED = [
    (["--teacher_share", "0"], "--teacher_share must be above 0 and at most 1, got 0.0"),
    (["--teacher_share", "1.5"], "--teacher_share must be above 0 and at most 1, got 1.5"),
    (["--teacher_share", "nan"], "--teacher_share must be above 0 and at most 1, got nan"),
    (["--teacher_share", "0.5", "--lambda1_schedule", "adaptive"], "does not go with --lambda1_schedule adaptive"),
    (["--teacher_share", "0.5", "--lambda1", "0"], "--teacher_share 0.5: no teacher runs here"),
    (["--teacher_share", "0.5", "--method", "lora"], "--teacher_share 0.5: no teacher runs here"),
    (["--teacher_share", "0.5", "--teacher_cache", "c"], "the cache has the rows of every sequence"),
]


@pytest.mark.parametrize(
    ("words", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_what_does_not_go_with_a_share_is_refused_in_one_line(words, message):
    with pytest.raises(UserError) as error:
        parse(["--output_dir", "x", *words])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_share_is_recorded_and_one_of_one_goes_with_everything():
    assert as_config(parse(["--output_dir", "x", "--teacher_share", "0.5"]))["teacher_share"] == 0.5
    for words in (["--lambda1_schedule", "adaptive"], ["--method", "lora"], ["--teacher_cache", "c"]):
        assert parse(["--output_dir", "x", "--teacher_share", "1", *words]).teacher_share == 1.0
    assert parse(["--output_dir", "x", "--teacher_share", "0.5", "--lambda1", "0", "--log_all_terms"]).log_all_terms


def test_a_plan_says_the_share_and_counts_its_operations():
    def work(*words):
        given = parse(["--dry_run", "--devices", "1xA40", "--max_steps", "1", *words])
        made = plan(given, memory=False)
        return made["devices"]["forms"]["as planned"]["flops"], render(made)

    (whole, said), (half, said_half), (none, _) = work(), work("--teacher_share", "0.5"), work("--lambda1", "0")
    assert none < half < whole and whole - half == pytest.approx(half - none, rel=1e-9)
    assert "teacher " not in said and "on 0.5 of the sequences of a step, drawn by the seed" in said_half


def test_a_model_with_an_adaptive_weight_takes_no_share():
    with pytest.raises(UserError, match="use --teacher_share 1 or another schedule"):
        generator_of(True, Objective(0.3, lambda1_schedule="adaptive"), teacher_share=TeacherShare(0.5, 4))
