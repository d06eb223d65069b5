"""Pre-trained bodies in folders, for the classifiers."""

import pytest
import torch

from tests.methods.classifiers import BODIES


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """{name: folder} of pre-trained bodies without a head, as on the hub."""
    folder = tmp_path_factory.mktemp("bodies")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, make in BODIES.items():
            make().save_pretrained(folder / name)
    return {name: str(folder / name) for name in BODIES}
