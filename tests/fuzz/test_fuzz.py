"""Damaged files of every kind: each is read or refused by one line of UserError; nothing else is raised.

FUZZ_SEED chooses other damage, FUZZ_INPUTS another number of inputs. A failure prints the seed, the kind and the input.
"""

import contextlib
import io
import os
import shutil
import traceback
import warnings
from pathlib import Path
from random import Random

import pytest

from ba_lora.errors import UserError
from tests.common import ROOT
from tests.fuzz.mutations import damaged, written
from tests.fuzz.readers import Kind, kinds

SEED = int(os.environ.get("FUZZ_SEED", 20))
FEW = 4  # inputs of each kind in the fast tier
MANY = int(os.environ.get("FUZZ_INPUTS", 4000))  # of all kinds in the slow tier
KINDS = kinds()


def fault_of(kind: Kind, content: bytes, folder: Path) -> str | None:
    """The fault in the answer to a file of this content; None if it is read, or refused in one line."""
    file = folder / kind.name
    file.parent.mkdir(parents=True, exist_ok=True)
    kind.prepare(folder)
    file.write_bytes(content)
    quiet = (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    )
    with contextlib.ExitStack() as stack:
        for each in quiet:
            stack.enter_context(each)
        warnings.simplefilter("ignore")
        try:
            kind.read(file)
        except UserError as error:
            return None if "\n" not in str(error) else f"the message has several lines: {error}"
        except (Exception, SystemExit) as error:
            ours = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(ROOT))]
            places = [f"{Path(f.filename).relative_to(ROOT)}:{f.lineno}" for f in ours if "/fuzz/" not in f.filename]
            return f"{type(error).__name__} at {' < '.join(places[-1:-4:-1])}: {str(error)[:150]}"
    return None


def faults(name: str, count: int, place: Path) -> list[str]:
    found, random = [], Random(f"{SEED} {name}")
    for number in range(count):
        content, folder = damaged(KINDS[name].valid, KINDS[name].form, random), place / str(number % 2)
        shutil.rmtree(folder, ignore_errors=True)
        if fault := fault_of(KINDS[name], content, folder):
            found.append(f"seed {SEED}, {name}, input {number}: {fault} | {content[:300]!r}")
    return found


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_refused_by_one_line(name, tmp_path):
    assert fault_of(KINDS[name], _valid(name), tmp_path / "valid") is None
    assert not faults(name, FEW, tmp_path)


def _valid(name: str) -> bytes:
    kind = KINDS[name]
    return kind.valid if kind.form == "bytes" else written(kind.valid, kind.form)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files_are_read_or_refused_by_one_line(name, tmp_path):
    assert not faults(name, -(-MANY // len(KINDS)), tmp_path)
