"""Encoded samples in flat arrays: equal to the dicts they were made of, in memory and from files."""

import pickle

import numpy as np
import pytest

from ba_lora.data.samples import Samples

GENERATION = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [9], "labels": [-100]}]
PAIRS = [
    {"input_ids": [1, 2], "token_type_ids": [0, 1], "labels": 1},
    {"input_ids": [3], "token_type_ids": [0], "labels": 0},
]
RATINGS = [{"input_ids": [1, 2], "labels": 3.5}, {"input_ids": [128255], "labels": 0.0}]


@pytest.mark.parametrize("made", [GENERATION, PAIRS, RATINGS])
def test_samples_are_what_they_were_made_of_and_so_are_their_files(made, tmp_path):
    samples = Samples.from_list(made)
    samples.save(tmp_path)
    for each in (samples, Samples.load(tmp_path), pickle.loads(pickle.dumps(samples))):
        assert list(each) == made and each[np.int64(1)] == made[1]
        assert each.lengths.tolist() == [len(sample["input_ids"]) for sample in made]
        assert [type(sample["labels"]) for sample in each] == [type(sample["labels"]) for sample in made]
    assert isinstance(Samples.load(tmp_path).ragged["input_ids"], np.memmap)


def test_numbered_samples_carry_their_number_and_leave_the_others_alone():
    samples = Samples.from_list(GENERATION)
    assert list(samples.numbered()) == [sample | {"sample": number} for number, sample in enumerate(GENERATION)]
    assert list(samples) == GENERATION


@pytest.mark.parametrize("number", [-1, 2])
def test_a_number_outside_is_an_index_error(number):
    with pytest.raises(IndexError, match=f"sample {number} of 2"):
        Samples.from_list(GENERATION)[number]


def test_files_without_their_cuts_are_refused(tmp_path):
    Samples.from_list(GENERATION).save(tmp_path)
    (tmp_path / "offsets.npy").unlink()
    with pytest.raises(ValueError, match="offsets.npy is missing"):
        Samples.load(tmp_path)
