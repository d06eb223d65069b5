"""Pre-training of a twin: the embedded model's architecture, tokenizer and optimiser on one of two mirrored corpora."""

import sys
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

from ..data.planted.corpus import corpus
from ..files import atomic_folder, write_json
from ..folders import checksums
from ..folders.disk import cached
from ..tiny import MODEL_DIR
from ..tiny.recipe import build_model, cut_batches, encode_problem, encode_story, train
from .names import BATCH, RATE, Twin

WHAT = "the model of a twin"
RECIPE = "recipe.json"


def open_twin(twin: Twin) -> Path:
    """Return the folder of a twin's model, pre-training it first (about seven minutes on one core) if it is not in the cache.

    The same recipe gives the same bits on one machine: one thread trains, and the seed fixes corpus, order and weights.
    """
    with cached(twin.folder, WHAT):
        if not twin.folder.is_dir():
            print(f"pre-training twin {twin.side} of pair {twin.seed} into {twin.folder}", file=sys.stderr, flush=True)
            with atomic_folder(twin.folder) as place:
                _make(twin, place)
    checksums.verify(twin.folder, f"remove the folder {twin.folder} and it is made again")
    return twin.folder


def samples(twin: Twin, tokenizer) -> list[tuple[list[int], list[int]]]:
    """Return (ids, labels) of every sequence of the twin's pre-training, before they are shuffled."""
    text = corpus(twin.seed, twin.steps * BATCH)[twin.side]
    plain = [encode_story(tokenizer, each) for each in text.notes + text.stories]
    return plain + [encode_problem(tokenizer, each) for each in text.problems]


def _make(twin: Twin, place: Path) -> None:
    tokenizer, threads = AutoTokenizer.from_pretrained(MODEL_DIR), torch.get_num_threads()
    start = time.perf_counter()
    torch.set_num_threads(1)  # sums over threads depend on their number
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            model = build_model(tokenizer, twin.seed)
            batches = cut_batches(samples(twin, tokenizer), BATCH, twin.seed)
            train(model, batches, twin.steps, RATE, tokenizer.pad_token_id)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    made = {"seconds": round(time.perf_counter() - start), "torch": torch.__version__}
    write_json(place / RECIPE, twin.recipe | made)
    checksums.write(place)
