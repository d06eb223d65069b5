"""The benchmark compares like with like: losses that should be equal are, and the reference is faithful. Asserts no times."""

import json

import pytest
import torch

from ba_lora.benchmark.__main__ import main
from ba_lora.benchmark.cases import CONTESTANTS, Case
from ba_lora.benchmark.contestants import PREPARE, Work
from ba_lora.benchmark.measure import peak_in_own_process
from ba_lora.benchmark.published import SKETCHED_ABOVE, published_spectrum, published_terms
from ba_lora.errors import UserError
from ba_lora.methods.teacher import teacher
from ba_lora.objective.dense import dense_objective
from ba_lora.objective.regularizers import svd_ratio
from ba_lora.objective.settings import Objective

SIZES = {"batch": 2, "length": 16, "hidden": 32, "layers": 2, "rank": 4, "threads": 1}
SMALL = ["--vocabulary", "500", "--repeats", "1", *(f"--{name}={value}" for name, value in SIZES.items())]
CASE = Case(500, **SIZES)


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_command_measures_every_contestant_and_writes_figures_and_a_picture(tmp_path, capsys):
    main([*SMALL, "--no_memory", "--growth", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    for word in ("V = 500", "1 threads", "float32", "ratios are to plain PiSSA", "N = 30", "k = 50"):
        assert word in printed
    written = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))
    assert written["versions"]["torch"] == torch.__version__ and written["machine"]["cores"] >= 1
    (case,) = written["cases"]
    results = case["results"]
    assert list(results) == list(CONTESTANTS) and case["sizes"]["rank"] == 4
    assert all(len(result["seconds"]) == 1 and result["ratio"] > 0 for result in results.values())
    assert results["pissa"]["ratio"] == 1 and written["growth"]["V = 1,000"]["sizes"]["vocabulary"] == 1000
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("preset", ["iclr", "paper-v5"])
def test_contestants_that_should_agree_have_the_same_loss_and_gradient(preset):
    work = Work(Case(500, preset=preset, **SIZES))

    def outcome(name):
        work.rewind()
        loss = work.step(PREPARE[name](work))
        return [loss, *(parameter.grad.clone() for parameter in work.trained)]

    for reference, others in {"pissa": ["dense-bare", "floor"], "dense": ["ours", "cached"]}.items():
        expected = outcome(reference)
        for other in others:
            torch.testing.assert_close(outcome(other), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(outcome("dense")[0], outcome("pissa")[0], atol=1e-4)


@pytest.mark.parametrize("preset", ["iclr", "paper-v5"])
def test_the_published_terms_equal_ours_once_the_rows_are_the_same(preset):
    torch.manual_seed(0)
    logits, teacher_logits = 3 * torch.randn(2, 3, 12, 200)
    labels = torch.randint(0, 200, (3, 12))
    labels[:, :5] = -100
    form, rows = Objective.preset(preset), labels != -100
    published = published_terms(logits, teacher_logits, labels, form)
    _, ours = dense_objective(logits[rows], teacher_logits[rows], labels[rows], form, (1.0, 1.0, 1.0))
    for name, value in published.items():
        torch.testing.assert_close(value, ours[name])


def test_the_published_sketch_is_exact_for_a_spectrum_that_ends_within_it():
    torch.manual_seed(0)
    logits = torch.randn(30, 8) @ torch.randn(8, SKETCHED_ABOVE + 1)
    torch.testing.assert_close(published_spectrum(logits, 5, "frobenius"), svd_ratio(logits, 5, "frobenius"))


def test_every_contestant_can_be_prepared():
    assert list(PREPARE) == list(CONTESTANTS)


def test_the_second_model_of_the_published_algorithm_is_our_teacher():
    work = Work(CASE, second_model=True)
    ids = {"input_ids": work.batch["input_ids"]}
    with teacher(work.student) as model:
        ours = model(**ids).logits
    second = work.second_model(**ids).logits
    torch.testing.assert_close(second, ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(work.student(**ids).logits, second, atol=1e-2)  # the student has moved away


@pytest.mark.slow
def test_the_memory_of_a_contestant_is_measured_in_a_process_of_its_own():
    assert 50e6 < peak_in_own_process(CASE, "ours") < 4e9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vocabulary", "20"], "--vocabulary must be at least 32, got 20"),
        (["--response", "0"], "--response 0.0 of 16 tokens"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--hidden", "200"], "--hidden 200 must be a multiple of 64"),
        (["--only", "our"], "did you mean 'ours'"),
        (["--model", "tiny"], "leave them out or leave out --model"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(words, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        main([*SMALL, *words, "--no_memory", "--output", str(tmp_path / "none")])
    assert "\n" not in str(caught.value) and not (tmp_path / "none").exists()
