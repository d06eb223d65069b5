"""One copy of the evaluated model: python -m ba_lora.inference.copy_process, started by `copies`.

The first line of its input opens the model; each further line holds prompts, whose completions are its answer. It ends with its
input, also in the middle of a batch.
"""

import json
import os
import queue
import sys
import threading
from typing import TextIO

from ..errors import UserError, one_line, redacted


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print, and stdout carries the answers alone
    questions = queue.SimpleQueue()
    threading.Thread(target=_read, args=(questions,), daemon=True).start()
    try:
        _serve(questions, answers)
    except UserError as error:
        _answer(answers, {"error": str(error), "status": error.status})
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        _answer(answers, {"error": f"{type(error).__name__}: {one_line(redacted(first))}", "status": 1})


def _read(questions: queue.SimpleQueue) -> None:
    """In a thread: queue the lines of the input. At its end the parent is gone, and nobody waits for an answer."""
    for line in sys.stdin:
        questions.put(json.loads(line))
    os._exit(0)


def _serve(questions: queue.SimpleQueue, answers: TextIO) -> None:
    from .local import stream
    from .requests import Sampling
    from .subject import open_subject

    subject = open_subject(**questions.get())
    config = subject.model.config
    _answer(answers, {"positions": getattr(config, "max_position_embeddings", None)})
    while True:
        question = questions.get()
        drawn = Sampling(*question.pop("sampling"))
        question["sampling"] = drawn._replace(stop=tuple(drawn.stop))
        for number, completion in stream(model=subject.model, tokenizer=subject.tokenizer, **question):
            _answer(answers, {"number": number, "completion": completion})
        _answer(answers, {"done": True})


def _answer(answers: TextIO, message: dict) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
