"""The process in which math-verify runs: `eval.latex` starts it, and kills it when it is slow.

It says "ready", then reads a JSON list [reference, answer] a line and writes "true" or "false" a line. math-verify's own time
limits are signals: they need the main thread and cannot interrupt a long multiplication. They are off here; whoever started
this process is the limit. Should that one be gone, an alarm ends the process some seconds later (its argument). Its memory is
limited, where the system does that.
"""

import json
import logging
import signal
import sys

MEMORY = 2 << 30  # bytes of address space


def main() -> None:
    """Answer until the input ends."""
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no verdict
    _limit_memory()
    from math_verify import parse, verify

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        reference, answer = json.loads(line)
        _set_alarm(int(sys.argv[1]))
        try:
            parsed = [parse(text, parsing_timeout=None) for text in (reference, answer)]
            equal = bool(verify(*parsed, timeout_seconds=None))
        except Exception:
            equal = False
        _set_alarm(0)
        print(json.dumps(equal), file=answers, flush=True)


def _set_alarm(seconds: int) -> None:
    """Nobody handles this signal, so that it ends the process whatever it computes."""
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(seconds)


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # Windows; a system without this limit
        pass


if __name__ == "__main__":
    main()
