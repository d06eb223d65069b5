"""The benchmark compares like with like: losses that should be equal are, and the reference is faithful. Asserts no times."""

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ba_lora.benchmark.__main__ import main
from ba_lora.benchmark.bodies import body_config, make
from ba_lora.benchmark.cases import CONTESTANTS, Case, is_here
from ba_lora.benchmark.contestants import PREPARE, Work
from ba_lora.benchmark.measure import peak_in_own_process
from ba_lora.benchmark.predicted import planned
from ba_lora.benchmark.published import SKETCHED_ABOVE, published_spectrum, published_terms
from ba_lora.errors import UserError
from ba_lora.methods.teacher import teacher
from ba_lora.objective.dense import dense_objective
from ba_lora.objective.regularizers import svd_ratio
from ba_lora.objective.settings import Objective
from ba_lora.planning.plan import plan
from ba_lora.training.command_line import parse
from tests.common import ROOT

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
    assert list(results) == list(filter(is_here, CONTESTANTS)) and case["sizes"]["rank"] == 4
    assert all(len(result["seconds"]) == 1 and result["ratio"] > 0 for result in results.values())
    assert results["pissa"]["ratio"] == 1 and written["growth"]["V = 1,000"]["sizes"]["vocabulary"] == 1000
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("preset", ["iclr", "paper-v5"])
def test_contestants_that_should_agree_have_the_same_loss_and_gradient(preset):
    case = Case(500, preset=preset, **SIZES)
    works = {form: Work(case, form) for form in ("residual", "delta")}

    def outcome(name):
        work = works[CONTESTANTS[name].form]
        loss = work.step(PREPARE[name](work))
        return [loss, *(parameter.grad.clone() for parameter in work.trained)]

    for reference, others in {
        "pissa": ["dense-bare", "floor", "delta-bare"],
        "dense": ["ours", "cached", "delta"],
    }.items():
        expected = outcome(reference)
        for other in others:
            torch.testing.assert_close(outcome(other), expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(outcome("dense")[0], outcome("pissa")[0], atol=1e-4)


def test_the_losses_with_a_teacher_on_half_of_two_samples_have_the_mean_of_ours():
    work = Work(CASE)
    step = PREPARE["share-0.5"](work)
    losses = {round(work.step(step).item(), 6) for _ in range(12)}
    whole = work.step(PREPARE["ours"](work)).item()
    assert len(losses) == 2 and sum(losses) / 2 == pytest.approx(whole, abs=2e-6) and whole not in losses


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


def test_every_way_to_train_runs_under_autocast():
    work = Work(Case(SKETCHED_ABOVE + 1, dtype="bfloat16", **SIZES))
    for name in ("pissa", "published", "floor", "ours", "share-0.5", "cached"):
        assert work.step(PREPARE[name](work)).isfinite(), name
        assert all(parameter.grad.isfinite().all() for parameter in work.trained), name


def test_the_second_model_of_the_published_algorithm_is_our_teacher():
    work = Work(CASE)
    ids = {"input_ids": work.batch["input_ids"]}
    with teacher(work.student) as model:
        ours = model(**ids).logits
    second = work.second_model(**ids).logits
    torch.testing.assert_close(second, ours, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(work.student(**ids).logits, second, atol=1e-2)  # the student has moved away


BODY = ["--body", "tiny", "--layers", "1", "--length", "16", "--batch", "2", "--repeats", "1", "--threads", "1"]
BODY += ["--dtype", "float32", "--device", "cpu"]


@pytest.mark.slow
def test_a_body_is_made_at_its_sizes_and_measured_in_this_process(tmp_path, capsys):
    main([*BODY, "--only", "published", "floor", "ours", "cached", "delta", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "random weights of the sizes of tiny, 1 layers, random start" in printed and "took" in printed
    (case,) = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))["cases"]
    sizes, results = case["sizes"], case["results"]
    assert (sizes["body"], sizes["start"], sizes["rank"]) == ("tiny", "random", 16) and case["start_seconds"] >= 0
    assert list(results) == ["pissa", "published", "floor", "ours", "cached", "delta"]
    assert all(result["seconds"][0] > 0 and result["peak"] > 1e6 and result["ratio"] for result in results.values())
    assert results["floor"]["loss"] == pytest.approx(results["pissa"]["loss"], rel=1e-5)
    assert results["cached"]["loss"] == pytest.approx(results["ours"]["loss"], rel=1e-4)
    assert results["delta"]["loss"] == pytest.approx(results["ours"]["loss"], rel=1e-2)  # not the same values


def test_the_peak_of_a_body_is_predicted_as_that_of_a_run():
    case = Case(32000, body="llama-2-7b", layers=None, rank=128, length=512, dtype="bfloat16", device="cuda")
    config = ROOT / "configs/nlg/llama-2-7b-metamath-iclr.yaml"
    words = ["--config", str(config), "--micro_batch_size", "4", "--max_length", "512", "--dry_run"]
    assert planned(case) == sum(plan(parse(words))["memory"].values())
    assert planned(replace(case, layers=2)) is None and planned(CASE) is None


def test_no_copy_of_a_body_is_made_on_the_host():
    """The meta device stands for a GPU: a tensor of the host in the model would be seen."""
    config = body_config("llama-2-7b")
    with CountedOnHost() as host:
        model = make(config, "bfloat16", "meta", decaying=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 6738415616
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"} and host.bytes < 1e6


class CountedOnHost(TorchDispatchMode):
    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.device.type == "cpu":
            self.bytes += result.nbytes
        return result


def test_a_contestant_without_memory_leaves_the_others_their_figures(monkeypatch, tmp_path, capsys):
    def fails(work):
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setitem(PREPARE, "ours", fails)
    with pytest.raises(UserError, match="'ours': out of memory"):
        main([*BODY, "--only", "ours", "floor", "--output", str(tmp_path)])
    (case,) = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))["cases"]
    assert case["results"]["ours"]["seconds"] == [] and case["results"]["floor"]["ratio"] > 0
    assert "ours" in capsys.readouterr().out


def test_liger_is_asked_as_its_interface_is_and_may_fail_alone(monkeypatch, tmp_path):
    """Liger needs Triton, which no CPU has: a stand-in with the arguments of its class computes what ours does."""

    class LigerFusedLinearJSDLoss(torch.nn.Module):
        def __init__(self, weight_hard_loss, weight_soft_loss, beta, temperature, compiled):
            super().__init__()
            self.form = Objective(weight_soft_loss / temperature**2, temperature=temperature)
            assert beta == 0.0 and not compiled

        def forward(self, student_input, student_weight, teacher_input, teacher_weight, true_labels, **biases):
            assert biases == {"student_bias": None, "teacher_bias": None} and len(student_input) == len(true_labels)
            logits, other = student_input @ student_weight.T, teacher_input @ teacher_weight.T
            return dense_objective(logits, other, true_labels, self.form, self.form.weights(0, 1))[0]

    package, inner = ModuleType("liger_kernel"), ModuleType("liger_kernel.chunked_loss")
    package.__spec__ = ModuleSpec("liger_kernel", None)
    inner.LigerFusedLinearJSDLoss = LigerFusedLinearJSDLoss
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", inner)
    main([*BODY, "--only", "consistency", "liger", "--output", str(tmp_path)])
    (case,) = json.loads((tmp_path / "benchmark.json").read_text(encoding="utf-8"))["cases"]
    found = case["results"]
    assert found["liger"]["loss"] == pytest.approx(found["consistency"]["loss"], rel=1e-5)
    monkeypatch.setattr(inner, "LigerFusedLinearJSDLoss", None)
    with pytest.raises(UserError, match="'liger': TypeError"):
        main([*BODY, "--only", "floor", "liger", "--output", str(tmp_path)])


@pytest.mark.slow
def test_the_memory_of_a_contestant_is_measured_in_a_process_of_its_own():
    assert 50e6 < peak_in_own_process(CASE, "ours") < 4e9


def test_a_body_must_be_a_known_decoder(tmp_path):
    for name, message in {
        "llama-2-7": "did you mean 'llama-2-7b'",
        "bert-large": "not a causal language model",
    }.items():
        with pytest.raises(UserError, match=message):
            main(["--body", name, "--device", "cpu", "--output", str(tmp_path / "none")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vocabulary", "20"], "--vocabulary must be at least 32, got 20"),
        (["--response", "0"], "--response 0.0 of 16 tokens"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--hidden", "200"], "--hidden 200 must be a multiple of 64"),
        (["--only", "our"], "did you mean 'ours'"),
        (["--model", "tiny"], "leave them out or leave out --model"),
        (["--body", "tiny"], "--body has its own sizes; leave out --model, --vocabulary and --growth"),
        (["--start", "svd"], "--start"),
        (["--only", "liger"], "needs the package liger_kernel, which is not installed"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_one_line(words, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        main([*SMALL, *words, "--no_memory", "--output", str(tmp_path / "none")])
    assert "\n" not in str(caught.value) and not (tmp_path / "none").exists()
