"""docs/published.md: python -m ba_lora.experiments.paper.page > docs/published.md"""

from collections.abc import Iterable

from ...errors import run_cli
from .counts import implied_rank, trained_parameters
from .published import KnownError, all_published

HEAD = """\
# The published numbers

`configs/paper/*.yaml` holds every table and figure of the paper whose numbers were available, as printed, and the tables that
its baselines come from. **None of them was measured here.** No complete text of any version of BA-LoRA was readable; each file
says where its numbers were read. This page is generated from the files: `python -m ba_lora.experiments.paper.page > docs/published.md`.
"""
ERRORS = """\
## Known errors

Errors in the printed numbers, and obstacles to comparing them. "Found by" names the computation in
`tests/experiments/paper_checks.py` that finds the error; `tests/experiments/test_paper.py` checks that it finds no others. Errors without
one cannot be computed from the numbers alone.
"""
PARAMETERS = """\
## Trained parameters

Counted from the numbers in `configs/models`: rank · (in + out), summed over all linear layers.
"""
MISSING = """\
## Not recovered

The tables by task of BERT-large and GPT-2-XL (GLUE, GLUE-X) and of RoBERTa-large; SST-2, MRPC, QNLI and STS-B of the ICLR version; its
other baselines for generation, and its standard deviations; the figure of model sizes and types; the sensitivity to the weights, T, K
and k; the runs in 4 bits and the runs of single terms with LoRA's start; ratios and seeds of the imbalanced MNLI. No result on a bias
benchmark (CrowS-Pairs, BBQ, StereoSet) was found in any version.
"""


def page() -> str:
    """Return the page in Markdown."""
    tables = list(all_published())
    files = [(f"`{table.name}`", table.title, table.version, table.source) for table in tables]
    errors = [(f"`{table.name}`", *_error(error)) for table in tables for error in table.errors]
    parts = [HEAD, _table(("file", "what", "version", "read in"), files)]
    parts += [ERRORS, _table(("file", "where", "what", "what follows", "instead", "found by"), errors)]
    parts += [PARAMETERS, _table(*_parameters(tables)), MISSING]
    return "\n".join(parts)


def _error(error: KnownError) -> tuple[str, ...]:
    return (", ".join(error.where), error.what, error.follows, str(error.corrected or ""), error.check or "")


def _parameters(tables: list) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    head = ("file", "model", "rank of the text", "counted", "printed", "rank of the printed", "whole model")
    lines = []
    for table in tables:
        for row in table.rows:
            if row.method == "ba-lora" and "parameters" in row.cells:
                counted = trained_parameters(row.model, row.method, table.rank)
                whole = trained_parameters(row.model, "full", 0)
                printed, rank = f"{row.cells['parameters']}M", implied_rank(table, row)
                lines.append((f"`{table.name}`", row.model, table.rank, f"{counted:,}", printed, rank, f"{whole:,}"))
    return head, lines


def _table(head: tuple[str, ...], lines: Iterable[Iterable]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


if __name__ == "__main__":
    run_cli(lambda: print(page(), end=""))
