"""--optimizer and --modules_to_save under DeepSpeed: two processes equal one, or the choice is refused in one line."""

import pytest

from ba_lora.errors import UserError
from ba_lora.training.optimizers import OPTIMIZERS, check_optimizer
from tests.training import two_choices
from tests.training.test_distributed import assert_trained_alike, cut_finely, launch, result

REFUSED = {name for name, row in OPTIMIZERS.items() if not row.elementwise} | {"adamw_torch_fused"}


def trained_alike(tmp_path, stage, *choice):
    config = cut_finely(tmp_path / "zero.json", stage)
    (tmp_path / "one").mkdir()
    two_choices.main(tmp_path / "one", 4, *choice)
    two = launch(tmp_path / "two", *choice, config, main=two_choices.main)
    assert_trained_alike(result(tmp_path / "one"), two)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS.keys() - REFUSED))
def test_an_optimizer_under_zero_takes_the_steps_of_one_process(optimizer, stage, tmp_path):
    check_optimizer(optimizer, cut_finely(tmp_path / "checked.json", stage))
    trained_alike(tmp_path, stage, optimizer, ())


@pytest.mark.parametrize("optimizer", sorted(REFUSED))
def test_an_optimizer_that_works_on_whole_tensors_is_refused_under_zero(optimizer, tmp_path):
    with pytest.raises(UserError, match=f"--optimizer {optimizer} does not go with --deepspeed .*; use ") as error:
        check_optimizer(optimizer, cut_finely(tmp_path / "zero.json", 2))
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("modules", [("input_layernorm", "norm"), ("embed_tokens", "layers.1.mlp.up_proj")])
def test_modules_trained_whole_under_zero_take_the_steps_of_one_process(modules, stage, tmp_path):
    trained_alike(tmp_path, stage, "adamw_torch", modules)
