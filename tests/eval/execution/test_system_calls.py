"""The filter of system calls: evaluated by hand, and in the sandbox."""

import ctypes
import platform
import textwrap

import pytest

from eval.execution.sandbox import Program, judge
from eval.execution.system_calls import AUDIT_ARCH, FCNTL, LEASES, SYSTEM_CALLS, system_call_filter
from tests.eval.execution.sandboxes import box_or_skip

pytestmark = pytest.mark.skipif(
    platform.machine() not in AUDIT_ARCH, reason="no table of system calls for this machine"
)
KILL, DENY, ALLOW = 0x80000000, 0x00050001, 0x7FFF0000


class Step(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("k", ctypes.c_uint32)]


def answer(number: int, arch: int, second: int = 0) -> int:
    """The filter's answer to a system call with this second argument."""
    text = system_call_filter()
    steps = (Step * (len(text) // 8)).from_buffer_copy(text)
    place, value = 0, None
    while True:
        step = steps[place]
        if step.code == 0x06:
            return step.k
        if step.code == 0x20:
            value = {0: number, 4: arch, 24: second}[step.k]
            place += 1
        else:
            holds = value == step.k if step.code == 0x15 else value >= step.k
            place += 1 + (step.yes if holds else step.no)


def test_the_filter_jumps_where_it_should():
    machine = platform.machine()
    arch, column = AUDIT_ARCH[machine], 1 + list(AUDIT_ARCH).index(machine)
    denied = {int(line.split()[column]) for line in SYSTEM_CALLS.splitlines() if line.split()[column] != "-"}
    for number in range(600):
        assert answer(number, arch) == (DENY if number in denied else ALLOW), number
    assert answer(0x40000000 + 57, arch) == DENY
    assert answer(57, 0x40000003) == KILL  # the numbers of another machine
    fcntl = int(FCNTL.split()[column])
    for command in range(1100):
        assert answer(fcntl, arch, command) == (DENY if command in LEASES.values() else ALLOW), command
        assert answer(fcntl + 1, arch, command) == answer(fcntl + 1, arch)


REFUSED = {
    "a lease": "fcntl.fcntl(open(os.__file__), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    "a lease on a file of its own": "fcntl.fcntl(open('new', 'w'), fcntl.F_SETLEASE, fcntl.F_WRLCK)",
    "an extended attribute": "os.setxattr('/tmp', 'user.a', b'x')",
    "an extended attribute of an open file": "os.setxattr(os.open('new', 65), 'user.a', b'x')",
    "an extended attribute of a link": "os.setxattr('/tmp', 'user.a', b'x', follow_symlinks=False)",
    "a descriptor of its first process": "os.pidfd_open(1)",
    "a descriptor of itself": "os.pidfd_open(os.getpid())",
    "a signal through a descriptor": "signal.pidfd_send_signal(0, 9)",
}
ALLOWED = {
    "a lock": "fcntl.lockf(open('new', 'w'), fcntl.LOCK_EX)",
    "a flag of a descriptor": "fcntl.fcntl(0, fcntl.F_GETFD)",
    "the list of attributes": "os.listxattr('/tmp')",
}


@pytest.fixture(scope="module")
def results():
    """{call: the error that it raised in one sandboxed program, "" for none}"""
    source = """
    import fcntl, os, signal
    def f(calls):
        raised = []
        for call in calls:
            try:
                eval(call)
                raised.append("")
            except OSError as error:
                raised.append(os.strerror(error.errno))
        return raised
    """
    calls = REFUSED | ALLOWED
    tests = f"raise Exception(';'.join(f({list(calls.values())})))"
    result = judge(Program(textwrap.dedent(source), tests, ("f",)), box_or_skip())
    said = result.detail.partition(": ")[2].partition(" in raise")[0].split(";")
    assert len(said) == len(calls), result
    return dict(zip(calls, said, strict=True))


@pytest.mark.parametrize("name", REFUSED)
def test_a_program_gets_no(results, name):
    assert results[name] == "Operation not permitted"


@pytest.mark.parametrize("name", ALLOWED)
def test_a_program_may_have(results, name):
    assert results[name] == ""
