"""A worker whose answers end its process, never arrive, or arrive with noise: started by test_workers.py."""

import os
import sys
import time

from eval.harness.workers import serve


def answer(question: str):
    if question == "abort":
        os.abort()
    if question == "leave":
        os._exit(0)
    if question == "sleep":
        time.sleep(600)
    if question == "half":
        os.write(1, b'["ha')
        os._exit(0)
    if question == "print":
        print('"noise"')
        sys.stdout.flush()
    if question == "memory":
        bytearray(3 << 30)
    return [question]


if __name__ == "__main__":
    serve(lambda: answer)
