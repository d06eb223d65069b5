"""Programs that attack the sandbox. Each must satisfy f(2) == 4 and f(3) == 9, and answers correctly only if its attack works.

`right` stands for the right answer, `{canary}` for a folder of the test outside the sandbox, `{port}` for a server of the test
on the loopback. test_sandbox.py asserts what an attack must not do outside the sandbox.
"""

import textwrap

from tests.eval.execution.hostile_outside import OUTSIDE

VERDICT = {
    "leaves at once with os._exit(0)": "import os; os._exit(0)",
    "leaves at once with sys.exit(0)": "import sys; sys.exit(0)",
    "leaves with os._exit(0) when called": "import os\ndef f(x): os._exit(0)",
    "leaves with sys.exit(0) when called": "import sys\ndef f(x): sys.exit(0)",
    "raises SystemExit in place of an answer": "def f(x): raise SystemExit(0)",
    "raises KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "raises GeneratorExit": "def f(x): raise GeneratorExit",
    "raises StopIteration": "def f(x): raise StopIteration(x * x)",
    "kills itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)",
    "crashes the interpreter": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "returns an object that equals everything": """
        class Yes:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 0
        def f(x): return Yes()""",
    "returns an int that equals everything": """
        class Yes(int):
            def __eq__(self, other): return True
            __hash__ = int.__hash__
        def f(x): return Yes(0)""",
    "returns a str that equals everything": """
        class Yes(str):
            def __eq__(self, other): return True
            __hash__ = str.__hash__
        def f(x): return Yes("4")""",
    "returns a list that equals everything": """
        class Yes(list):
            def __eq__(self, other): return True
            def __iter__(self): return iter([4])
        def f(x): return Yes()""",
    "returns a float that equals everything": """
        class Yes(float):
            def __eq__(self, other): return True
            def __float__(self): return 4.0
        def f(x): return Yes(1.0)""",
    "claims to be of another class": """
        class Yes:
            __class__ = property(lambda self: int)
            def __index__(self): return 4
            def __eq__(self, other): return True
        def f(x): return Yes()""",
    "returns a function that equals everything": """
        class Meta(type):
            def __eq__(self, other): return True
            __hash__ = type.__hash__
        class Yes(metaclass=Meta): pass
        def f(x): return Yes""",
    "prints that it passed": "def f(x): print('passed', flush=True); return 0",
    "writes what may be a verdict to every descriptor": """
        import os
        for fd in range(3, 64):
            for text in (b"passed", b"passed \\n", b'{"status": "passed"}\\n'):
                try: os.write(fd, text)
                except OSError: pass
        def f(x): return 0""",
    "writes something that is not a reply to the reply's descriptor": """
        import os
        def f(x):
            for fd in range(3, 64):
                try: os.write(fd, b'{"value": ["list", ["list"')
                except OSError: pass
            return 0""",
    "replies with a pickle": """
        import os, pickle
        class Evil:
            def __reduce__(self): return (os.system, ("true",))
        def f(x):
            for fd in range(3, 64):
                try: os.write(fd, pickle.dumps(Evil()) + b"\\n")
                except OSError: pass
            return 0""",
    "replies with code": """
        import os
        def f(x):
            for fd in range(3, 64):
                try: os.write(fd, b'__import__("os")._exit(0)\\n')
                except OSError: pass
            return 0""",
    "replies with a type that no value has": """
        import json
        json.dumps = lambda message: '{"value": ["object", "passed"]}'
        def f(x): return 0""",
    "replies with JSON nested too deep": """
        import json
        json.dumps = lambda message: '{"value": ' + '["list", ' * 100000 + ']' * 100000 + '}'
        def f(x): return 0""",
    "replies with an error that is a class of the checker": """
        import json
        json.dumps = lambda message: '{"error": "ProgramError", "text": "passed"}'
        def f(x): return 0""",
    "closes its pipes": "import os\ndef f(x): os.closerange(3, 64)",
    "replaces AssertionError": "import builtins\nbuiltins.AssertionError = Warning\ndef f(x): return 0",
    "replaces the functions that tests call": """
        import builtins
        builtins.isinstance = lambda *_: True
        builtins.abs = lambda _: 0
        builtins.len = lambda _: 1
        def f(x): return 0""",
    "replaces the helpers of unittest": """
        import unittest
        unittest.TestCase.assertEqual = lambda *_: None
        def f(x): return 0""",
    "replaces its own runner's functions": """
        import sys
        main = sys.modules["__main__"]
        for name in ("send", "pack", "describe", "unpack"):
            setattr(main, name, lambda *a, **k: {"value": 4})
        def f(x): return 0""",
    "looks for the tests in the frames above": """
        import sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
                    if "assert" + " f(" in str(value): return x * x
                frame = frame.f_back
            return 0""",
    "looks for the tests among all objects": """
        import gc
        def f(x):
            for thing in gc.get_objects():
                if isinstance(thing, dict) and "tests" in thing and "assert" in str(thing["tests"]): return x * x
            return 0""",
    "looks for the tests in its descriptors": """
        import os
        def f(x):
            for fd in range(64):
                try: text = os.pread(fd, 100000, 0)
                except OSError: continue
                if b"assert f(" in text: return x * x
            return 0""",
    "looks for the tests in its input": "import sys\ndef f(x): return x * x if sys.stdin.read() else 0",
    "looks for the tests in its arguments": "import sys\ndef f(x): return x * x if len(sys.argv) > 1 else 0",
    "passes in an atexit handler": """
        import atexit, os
        atexit.register(lambda: [os.write(fd, b"passed") for fd in range(1, 4)])
        def f(x): raise SystemExit(0)""",
    "becomes another program": """
        import os, sys
        def f(x): os.execv(sys.executable, [sys.executable, "-c", "print('passed')"])""",
    "returns a value nested without end": """
        def f(x):
            endless = []
            endless.append(endless)
            return endless""",
    "returns an iterator without end": "import itertools\ndef f(x): return itertools.count()",
}

LIMITS = {
    "loops without end": "def f(x):\n    while True: pass",
    "loops without end before it defines anything": "while True: pass",
    "loops in a call that holds the interpreter": "def f(x): return 9 ** 9 ** 9",
    "ignores every signal and loops": """
        import signal
        def f(x):
            for number in range(1, 65):
                try: signal.signal(number, lambda *_: None)
                except (OSError, ValueError): pass
            while True: pass""",
    "sleeps": "import time\ndef f(x): time.sleep(1000); return x * x",
    "stops itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP); return x * x",
    "waits for input": "def f(x): input(); return x * x",
    "prints without end": "def f(x):\n    while True: print('x' * 100000)",
    "takes memory without end": """
        def f(x):
            held = []
            while len(held) < 40: held.append(bytearray(100 << 20))
            return x * x""",
    "takes memory in a number": "def f(x): return len(str(1 << (8 << 33))) * 0 + x * x",
    "takes memory in a mapping": """
        import mmap
        def f(x):
            held = mmap.mmap(-1, 4 << 30)
            return x * x""",
    "takes memory in a file without a name": """
        import os
        def f(x):
            held = [os.memfd_create(str(i)) for i in range(40)]
            for fd in held: os.truncate(fd, 100 << 20)
            return x * x""",
    "takes memory in shared segments": """
        import ctypes
        def f(x): return x * x if ctypes.CDLL(None).shmget(0, 1 << 30, 0o1600) >= 0 else 0""",
    "returns a result without measure": "def f(x): return 'x' * (40 << 20)",
    "recurses without end": """
        import sys
        sys.setrecursionlimit(1 << 30)
        def f(x): return f([x])""",
    "writes a large file": """
        def f(x):
            with open("/tmp/large", "wb") as file:
                for _ in range(100): file.write(bytes(1 << 20))
            return x * x""",
    "writes many files": """
        def f(x):
            for number in range(100):
                with open(f"/tmp/{number}", "wb") as file: file.write(bytes(1 << 20))
            return x * x""",
    "opens many files": """
        def f(x):
            held = [open("/inside.py") for _ in range(1000)]
            return x * x""",
    "raises its limits": """
        import resource
        def f(x):
            for kind in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE):
                resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            return x * x""",
    "raises its priority": "import os\ndef f(x): os.nice(-5); return x * x",
    "asks for real-time scheduling": """
        import os
        def f(x): os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); return x * x""",
}

PROCESSES = {
    "forks": "import os\ndef f(x): return x * x if os.fork() else 0",
    "forks without end": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "forks by the system call": """
        import ctypes
        def f(x):
            if ctypes.CDLL(None).syscall({fork}, 17, 0, 0, 0, 0) < 0: return 0
            return x * x""",
    "forks twice and stays": """
        import os, time
        child = os.fork()
        if child == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        def f(x): return x * x if child else 0""",
    "starts a shell": """
        import subprocess
        def f(x): subprocess.run(["/bin/sh", "-c", "sleep 1000 &"], check=True); return x * x""",
    "starts its interpreter": """
        import subprocess, sys
        def f(x): subprocess.run([sys.executable, "-c", "pass"], check=True); return x * x""",
    "starts workers": """
        import multiprocessing
        def f(x):
            with multiprocessing.Pool(2) as pool: return pool.apply(pow, (x, 2))""",
    "starts threads without end": """
        import _thread, time
        def f(x):
            for _ in range(1000): _thread.start_new_thread(time.sleep, (1000,))
            return x * x""",
    "leaves its session": """
        import os
        def f(x):
            try: os.setsid()
            except OSError: os.setpgid(0, 0)
            while True: pass""",
    "kills all that it can reach": """
        import os, signal
        def f(x):
            for pid in (-1, 1, os.getppid()):
                try: os.kill(pid, signal.SIGKILL)
                except OSError: pass
            return 0""",
    "signals processes by number": """
        import os
        def f(x):
            for pid in range(3, 100000):
                try: os.kill(pid, 0)
                except ProcessLookupError: continue
                except PermissionError: return x * x
                if pid != os.getpid(): return x * x
            return 0""",
    "traces its parent": """
        import ctypes, os
        def f(x): return x * x if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 else 0""",
    "traces the first process": """
        import ctypes
        def f(x): return x * x if ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0 else 0""",
}

KINDS = {"verdict": VERDICT, "limits": LIMITS, "processes": PROCESSES, "outside": OUTSIDE}
PROGRAMS = {name: textwrap.dedent(source).strip() for kind in KINDS.values() for name, source in kind.items()}


def fill(source: str, **values) -> str:
    """Insert the test's canaries into a program."""
    for name, value in values.items():
        source = source.replace("{" + name + "}", str(value))
    return source
