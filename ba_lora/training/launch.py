"""Start a training in a process of its own, or through torchrun or the deepspeed launcher on several processes or machines.

Environment variables set the number, named as in the launchers:
    NPROC                    processes on this machine; default: one per GPU, or one without GPUs or with --use_cpu
    LAUNCHER                 torchrun (default) or deepspeed
    NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT      several machines: run the same command on each with its own NODE_RANK
    HOSTFILE                 DeepSpeed's list of machines, one line "HOST slots=N" each; replaces NNODES, NPROC and MASTER_ADDR
With LAUNCHER=deepspeed, HOSTFILE and no NODE_RANK, the deepspeed launcher starts the other machines itself over ssh.
The batch is split so that an optimiser step always has the config's effective_batch_size.
A signal to the starting process is passed on to the training processes, which write a checkpoint; it waits until they end.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import psutil

from .. import signals
from ..errors import RunFailure, Stopped, UserError, choose, whole_number
from ..machine.devices import gpus
from .arguments import TrainArguments
from .deepspeed_config import check_package, used

LAUNCHERS = ("torchrun", "deepspeed")
TRAIN = Path(__file__).resolve().parents[2] / "train.py"
HOST = re.compile(r"(\S+)\s+slots=([1-9]\d*)(\s+#.*)?")


def processes(use_cpu: bool = False, *, check: bool = True) -> tuple[int, int]:
    """(processes per machine, machines). check=False: for a plan, which may be of another machine.

    Raises UserError for values that are not numbers or contradict each other or, with `check`, the GPUs of this machine.
    """
    there, hosts = gpus(use_cpu, check=check), _hosts()
    found = {"NPROC": next(iter(hosts.values())), "NNODES": len(hosts)} if hosts else {}
    for name, number in found.items():
        if whole_number(name, number) != number:
            raise UserError(f"{name} is {os.environ[name]} and HOSTFILE says {number}; leave {name} out")
    here = found.get("NPROC") or whole_number("NPROC", max(there, 1))
    if check and 0 < there < here:
        source = "the number of slots in HOSTFILE" if hosts else "NPROC"
        raise UserError(
            f"{source} is {here} and {there} can be used of the GPUs here, one for each process; set it to {there}"
        )
    return here, found.get("NNODES") or whole_number("NNODES", 1)


def _hosts() -> dict[str, int]:
    """{machine: its processes} from HOSTFILE, in order; {} without one."""
    file = os.environ.get("HOSTFILE")
    if not file:
        return {}
    if not Path(file).is_file():
        raise UserError(f"HOSTFILE {file} does not exist; write one line 'HOST slots=N' for each machine")
    hosts = {}
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = HOST.fullmatch(line)
        if match is None or match[1] in hosts:
            raise UserError(f"HOSTFILE {file}, line {number} is '{line}'; write 'HOST slots=N', each machine once")
        hosts[match[1]] = int(match[2])
    if not hosts:
        raise UserError(f"HOSTFILE {file} names no machine; write one line 'HOST slots=N' for each")
    if len(set(hosts.values())) > 1:
        raise UserError(f"HOSTFILE {file} gives its machines different slots; give each the same number of processes")
    return hosts


def is_first_machine() -> bool:
    """Return True if this is the only machine or the first of several, which does the work that follows the training."""
    machines = len(_hosts()) or whole_number("NNODES", 1)
    return machines == 1 or whole_number("NODE_RANK", 0, lowest=0) == 0


def _meeting(nodes: int) -> list[str]:
    """The meeting point of several machines as options of both launchers. Raises UserError if it is not known."""
    address = os.environ.get("MASTER_ADDR") or next(iter(_hosts()), None)
    if not address:
        raise UserError(f"NNODES is {nodes} and MASTER_ADDR is not set; give the first machine's address")
    if not os.environ.get("NODE_RANK"):
        raise UserError(f"there are {nodes} machines and NODE_RANK is not set; give 0 on the first, 1 on the next ...")
    rank = whole_number("NODE_RANK", 0, lowest=0)
    if rank >= nodes:
        raise UserError(f"NODE_RANK is {rank} and there are {nodes} machines; the last one has {nodes - 1}")
    return [
        "--node_rank",
        str(rank),
        "--master_addr",
        address,
        "--master_port",
        str(whole_number("MASTER_PORT", 29500)),
    ]


def _torchrun(here: int, nodes: int) -> list[str]:
    where = ["--standalone"] if nodes == 1 else ["--nnodes", str(nodes), *_meeting(nodes)]
    return ["ba_lora.training.torchrun", "--nproc_per_node", str(here), *where]


def _deepspeed(here: int, nodes: int) -> list[str]:
    start, file = ["deepspeed.launcher.runner", "--no_local_rank"], os.environ.get("HOSTFILE")
    if nodes == 1:
        return [*start, "--num_accelerators", str(here)]
    if not file:
        raise UserError(
            f"NNODES is {nodes} with LAUNCHER=deepspeed, which takes its machines from a host file; set HOSTFILE, "
            "or use LAUNCHER=torchrun"
        )
    start += ["--hostfile", file]
    if os.environ.get("NODE_RANK"):
        return [*start, "--no_ssh", *_meeting(nodes)]
    if shutil.which("pdsh") is None:
        raise UserError(
            "LAUNCHER=deepspeed starts the machines of HOSTFILE over ssh with pdsh, which is not installed; install it, "
            "or run this command on each machine with its NODE_RANK"
        )
    start += ["--master_port", str(whole_number("MASTER_PORT", 29500))]
    return start + (["--master_addr", os.environ["MASTER_ADDR"]] if os.environ.get("MASTER_ADDR") else [])


def launcher(arguments: TrainArguments, processes: int) -> str | None:
    """The launcher that starts so many processes, or None if one process needs none. Raises UserError for an unknown one."""
    if processes == 1 and not used(arguments.deepspeed, 1):
        return None
    return choose("LAUNCHER", os.environ.get("LAUNCHER") or "torchrun", LAUNCHERS)


def command(arguments: TrainArguments, words: list[str]) -> list[str]:
    """The command that trains the train.py options `words` on as many processes as the environment sets.

    Raises UserError if the effective batch cannot be divided evenly or a launcher setting is missing.
    """
    here, nodes = processes(arguments.use_cpu)
    arguments.accumulation(here * nodes)
    starter = launcher(arguments, here * nodes)
    check_package(used(arguments.deepspeed, here * nodes))
    if starter is None:
        return [sys.executable, "-u", str(TRAIN), *words]
    start = (_torchrun if starter == "torchrun" else _deepspeed)(here, nodes)
    return [sys.executable, "-m", *start, str(TRAIN), *words]


def start(words: list[str], use_cpu: bool = False) -> None:
    """Run a command from `command` to its end, in the main thread. use_cpu: the option of the run. Raises
    SystemExit with the run's own status if a signal ended it, and UserError or RunFailure, matching the status, if one of its
    processes fails."""
    sys.stdout.flush()  # what was printed comes before what the training prints
    environment = dict(os.environ)
    if (here := processes(use_cpu)[0]) > 1:  # one alone takes torch's own number
        environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // here, 1)))
    if not gpus(use_cpu):
        environment.setdefault("DS_ACCELERATOR", "cpu")
    status, received = signals.run(words, _training, env=environment)
    if status in (Stopped.STATUS, *signals.ENDED):
        raise SystemExit(status)
    if status and received:
        raise SystemExit(128 + received)
    signals.check()
    if status:
        kind = UserError if status == UserError.status else RunFailure
        raise kind(f"the training ended with status {status}; see its own error above")


def _training(starter: int) -> list[psutil.Process]:
    """The train.py processes that a launcher has started; before that, the launcher and its children."""
    tree = signals.tree(starter)
    return [
        each for each in tree if _words(each)[1:3] == ["-u", str(TRAIN)]
    ] or tree  # as `command` and both launchers write it


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []
