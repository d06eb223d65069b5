"""AnchoredSFTTrainer on two processes equals one process on the same micro-batches, with DeepSpeed and without."""

import pytest

from tests.training.test_distributed import cut_finely, launch, result
from tests.trl import two_processes

NAMES = ("loss", "task", "consistency", "diversity", "spectrum", "num_tokens")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    two_processes.main(folder, 4)
    return result(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "recomputing"),
    [(None, False), (None, True), (2, False), (2, True), (3, False), (3, True)],
    ids=["ddp", "ddp, checkpointing", "zero2", "zero2, checkpointing", "zero3", "zero3, checkpointing"],
)
def test_two_processes_train_as_one(alone, tmp_path, stage, recomputing):
    config = stage and cut_finely(tmp_path / "zero.json", stage)
    one, rows_of_one = alone
    two, rows_of_two = launch(tmp_path / "two", config, recomputing, main=two_processes.main)
    update = (one["end"] - one["start"]).norm()
    assert update > 0.01 and (one["end"] - two["end"]).norm() / update < 1e-5
    for a, b in zip(rows_of_one, rows_of_two, strict=True):
        assert [b[name] for name in NAMES] == pytest.approx([a[name] for name in NAMES], rel=1e-4, abs=1e-6)
