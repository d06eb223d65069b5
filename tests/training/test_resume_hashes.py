"""The hashes by which a resumed run knows its inputs: of models, samples and files."""

import pytest
import torch

from ba_lora.data.samples import Samples
from ba_lora.training.command_line import parse
from ba_lora.training.inputs import input_hashes
from ba_lora.training.resume import SAMPLED, base_of, tensors_hash, trained_hash
from tests.common import small_llama


def test_every_value_of_a_model_counts_in_its_hash():
    model = small_llama()
    before = base_of(model)
    assert base_of(small_llama()) == before
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            was = parameter.view(-1)[-1].item()
            parameter.view(-1)[-1] = was + 1e-3
            assert base_of(model)["weights"] != before["weights"], name
            parameter.view(-1)[-1] = was
    assert base_of(model) == before
    assert base_of(model.to(torch.bfloat16))["weights"] != before["weights"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_tensors_of_any_precision_shape_and_layout_have_a_hash(dtype):
    values = torch.arange(24).reshape(4, 6).to(dtype)
    assert tensors_hash([("a", values.t())]) == tensors_hash([("a", values.t().contiguous())])
    assert len({tensors_hash([("a", each)]) for each in (values, values.t(), values[:0], values[0, 0])}) == 4
    assert tensors_hash([("a", values)]) != tensors_hash([("b", values)])
    many = torch.zeros(40 * SAMPLED)
    sample = tensors_hash([("a", many)], SAMPLED)
    many[1] = 1.0
    assert tensors_hash([("a", many)], SAMPLED) == sample != tensors_hash([("a", many)])


def test_the_hash_of_trained_tokens_sees_masks_and_borders():
    def of(*labels):
        return trained_hash(Samples.from_list([{"input_ids": ids, "labels": ids} for ids in labels]))

    hashes = {of([1, 2, 3], [4]), of([1, 2], [3, 4]), of([-100, 2, 3], [4]), of([4], [1, 2, 3])}
    assert len(hashes) == 4


def test_the_files_of_a_run_are_those_of_its_split_and_task(tmp_path):
    for name in ("sst2/train.tsv", "sst2/dev.tsv", "cola/train.tsv", "plain/a.jsonl", "plain/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def changes(file, *words):
        options = [*words, "--model", "someone/encoder", "--output_dir", "x"]
        before = input_hashes(parse(options))["data"]
        (tmp_path / file).write_text((tmp_path / file).read_text() + "y")
        return input_hashes(parse(options))["data"] != before

    task = ["--task", "sst2", "--data", str(tmp_path)]
    assert changes("sst2/train.tsv", *task)
    assert not changes("sst2/dev.tsv", *task) and not changes("cola/train.tsv", *task)
    assert changes("plain/b.jsonl", "--data", f"{tmp_path}:plain", "--template", "plain")
    generated = parse(["--data", "tinymath:train", "--output_dir", "x"])
    assert input_hashes(generated)["data"] is None and input_hashes(generated)["base"]
