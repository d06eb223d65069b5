"""How large GLUE's training splits are, and from that how many tokens one of their samples is taken to have."""

from .glue import TASKS

ROWS = {
    **{"cola": 8_551, "sst2": 67_349, "mrpc": 3_668, "stsb": 5_749, "qqp": 363_846},
    **{"mnli": 392_702, "qnli": 104_743, "rte": 2_490, "wnli": 635},
}
BYTES = {  # of the columns in Arrow, as the card of nyu-mll/glue on the hub has them
    **{"cola": 484_869, "sst2": 4_681_603, "mrpc": 943_843, "stsb": 754_791, "qqp": 50_900_820},
    **{"mnli": 74_619_646, "qnli": 25_612_443, "rte": 847_320, "wnli": 107_109},
}
NUMBERS = 8 + 4  # bytes of a row's label and number
OFFSET = 4  # bytes that a text has beside its letters
LETTERS = 4.5  # of a token, assumed
PADDING = 2  # tokens of a micro-batch, padded to its longest sample, over those of its samples, assumed


def mean_tokens(task: str) -> float:
    """Tokens of a sample of the training split, with the special ones: one at the start and one after each text."""
    texts = len(TASKS[task].columns)
    letters = BYTES[task] / ROWS[task] - NUMBERS - OFFSET * texts
    return letters / LETTERS + 1 + texts


def padded_tokens(task: str) -> int:
    """Tokens of a sample with its padding."""
    return round(PADDING * mean_tokens(task))
