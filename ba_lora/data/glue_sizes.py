"""Sizes of GLUE's training splits, and an estimate of the tokens per sample derived from them."""

from .glue import TASKS

ROWS = {
    **{"cola": 8_551, "sst2": 67_349, "mrpc": 3_668, "stsb": 5_749, "qqp": 363_846},
    **{"mnli": 392_702, "qnli": 104_743, "rte": 2_490, "wnli": 635},
}
BYTES = {  # size of the columns in Arrow, from the card of nyu-mll/glue on the hub
    **{"cola": 484_869, "sst2": 4_681_603, "mrpc": 943_843, "stsb": 754_791, "qqp": 50_900_820},
    **{"mnli": 74_619_646, "qnli": 25_612_443, "rte": 847_320, "wnli": 107_109},
}
NUMBERS = 8 + 4  # bytes of a row's label and number
OFFSET = 4  # bytes per text in addition to its letters
LETTERS = 4.5  # per token, assumed
PADDING = 2  # tokens of a micro-batch padded to its longest sample / tokens of its samples, assumed


def mean_tokens(task: str) -> float:
    """Mean tokens per sample of the training split, with special tokens: one at the start and one after each text."""
    texts = len(TASKS[task].columns)
    letters = BYTES[task] / ROWS[task] - NUMBERS - OFFSET * texts
    return letters / LETTERS + 1 + texts


def padded_tokens(task: str) -> int:
    """Tokens per sample, including padding."""
    return round(PADDING * mean_tokens(task))
