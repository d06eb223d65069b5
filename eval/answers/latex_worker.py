"""The process in which math-verify runs: `eval.answers.latex` asks it through `eval.harness.workers`, and it is killed when it is slow.

A question is [reference, answer, whole]. With `whole` both are read by `eval.answers.formulas`, and the verdict is null where one of them
could not be read whole; without it math-verify finds the formulas itself and its own verdict stands. math-verify's time limits are
signals: they need the main thread and cannot interrupt a long multiplication. They are off here; whoever asks is the limit.
"""

import logging

from ..harness.workers import serve


def prepare():
    """The function that answers; math-verify takes seconds to import."""
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
        except Exception:  # math-verify catches most of its errors itself; the rest are not a match
            return [False]

    return answer


if __name__ == "__main__":
    serve(prepare)
