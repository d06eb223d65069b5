"""The noise of a share of the teacher against an enumeration of its draws, and of sketches against their definition."""

from itertools import combinations, product

import pytest
import torch

from ba_lora.benchmark import teacher_gradients
from ba_lora.errors import UserError
from tests.common import ROOT

TINY = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--test", "unused", "--output_dir", "unused"]


@pytest.mark.parametrize("share", [0.5, 0.25, 1.0])
def test_the_deviation_of_a_share_is_that_of_all_its_draws(share):
    gradients = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)) + 0.7
    whole = gradients.double().sum(0)
    subsets = list(combinations(range(4), round(4 * share)))
    squares = [
        (gradients.double()[[*first, *(4 + each for each in second)]].sum(0) / share - whole).square().sum()
        for first, second in product(subsets, subsets)
    ]
    expected = (torch.stack(squares).mean().sqrt() / whole.norm()).item()
    assert teacher_gradients.share_deviation(gradients, share, 4) == pytest.approx(expected, abs=1e-12)
    assert (expected == 0) == (share == 1)


def test_the_deviation_of_a_sketch_is_the_root_of_all_squares_over_the_norm_of_the_sum():
    gradients = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert teacher_gradients.sketch_deviation(gradients, 1.0 + 4.0) == pytest.approx(5**0.5 / 5)


@pytest.mark.parametrize("sizes", [(1, 16), (4, 6), (6, 12)])
def test_sizes_without_a_known_variance_are_refused(sizes):
    from ba_lora.benchmark.teacher_noise import main

    size, samples = map(str, sizes)
    with pytest.raises(UserError, match=f"--samples {samples} must be a multiple of --micro_batch_size {size}"):
        main([*TINY, "--micro_batch_size", size, "--effective_batch_size", size, "--samples", samples])
