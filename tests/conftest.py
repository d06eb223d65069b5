"""No test uses a hub or a GPU. Fixtures of the embedded model, for tests that need more than a random model."""

import atexit
import gc
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ba-lora-tests-")  # read when `datasets` is imported
os.environ["HF_DATASETS_CACHE"] = os.environ["HF_HOME"] + "/datasets"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch

from ba_lora.models import load_model, load_tokenizer

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)


def pytest_collection_finish():
    """Keep the libraries out of every later garbage collection: Trainer collects after each run, which takes half a second with them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Leave nothing in the user's cache and use nothing from it. Workers share what they fetch."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["BA_LORA_CACHE"] = str(cache)
    if "PYTEST_XDIST_WORKER" in os.environ:
        for name in ("packages", "models"):
            shared = tmp_path_factory.getbasetemp().parent / name
            shared.mkdir(exist_ok=True)
            (cache / name).symlink_to(shared)


@pytest.fixture(scope="module")
def one_thread():
    """So small a model is fastest on one thread, and a hundredfold slower on two if other processes want the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return load_tokenizer("tiny")


@pytest.fixture
def tiny_model():
    return load_model("tiny")
