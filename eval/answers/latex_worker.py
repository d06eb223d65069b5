"""The process that runs math-verify: `eval.answers.latex` asks it through `eval.harness.workers`, and kills it if it is slow.

A question is [reference, answer, whole]. With `whole`, both are read by `eval.answers.formulas`, and the verdict is null if one of them
could not be read completely; without it, math-verify finds the formulas itself and its own verdict counts. math-verify's time limits
use signals: they need the main thread and cannot interrupt a long multiplication. They are off here; the caller sets the limit.
"""

import logging

from ..harness.workers import serve


def prepare():
    """Return the function that answers; math-verify takes seconds to import."""
    logging.disable(logging.CRITICAL)
    from math_verify import parse, verify

    from . import formulas

    def answer(question: list) -> list[bool | None]:
        reference, answer, whole = question
        if whole:
            return [formulas.same(reference, answer)]
        try:
            parsed = [parse(text, parsing_timeout=None) for text in (reference, answer)]
            return [bool(verify(*parsed, timeout_seconds=None))]
        except Exception:  # math-verify catches most of its errors itself; the others are not a match
            return [False]

    return answer


if __name__ == "__main__":
    serve(prepare)
