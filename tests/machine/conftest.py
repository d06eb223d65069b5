import os

import pytest

from tests.machine.drivers import answer


@pytest.fixture
def environment_of():
    """A function: the environment of a command on a machine whose nvidia-smi gives an answer."""

    def make(folder, text, status=0):
        kept = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "NPROC")}
        return kept | {"PATH": answer(folder, text, status)}

    return make
