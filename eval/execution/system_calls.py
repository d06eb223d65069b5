"""The system calls that a sandboxed program may not make, as the filter that bubblewrap installs (seccomp, classic BPF).

It restricts a program to one process and one thread, so that limits on a process are limits on the program. It blocks most calls
that take memory which no limit counts, sockets, access to other processes, mounts and kernel administration. It also blocks
leases: a lease on a file of the standard library delays every process of the machine that opens the file. A refused call fails
with "not permitted", as without the privilege.

Files, folders, symbolic links and file locks are left, because programs need them: each takes up to a kilobyte of kernel memory,
and a program can make a million of them within its CPU time. The memory is free again when the program ends.
"""

import os
import struct
from functools import cache

SYSTEM_CALLS = """\
clone 56 220
fork 57 -
vfork 58 -
clone3 435 435
socket 41 198
ptrace 101 117
process_vm_readv 310 270
process_vm_writev 311 271
unshare 272 97
setns 308 268
mount 165 40
umount2 166 39
pivot_root 155 41
chroot 161 51
open_tree 428 428
move_mount 429 429
fsopen 430 430
fsmount 432 432
mount_setattr 442 442
memfd_create 319 279
memfd_secret 447 447
shmget 29 194
semget 64 190
msgget 68 186
mq_open 240 180
add_key 248 217
request_key 249 218
keyctl 250 219
bpf 321 280
perf_event_open 298 241
userfaultfd 323 282
io_uring_setup 425 425
io_uring_enter 426 426
io_uring_register 427 427
kcmp 312 272
pidfd_open 434 434
pidfd_getfd 438 438
pidfd_send_signal 424 424
setxattr 188 5
lsetxattr 189 6
fsetxattr 190 7
setxattrat 463 463
open_by_handle_at 304 265
init_module 175 105
finit_module 313 273
delete_module 176 106
kexec_load 246 104
reboot 169 142
swapon 167 224
acct 163 89
"""  # name, number on x86-64, number on aarch64
FCNTL = "fcntl 72 25"
LEASES = {"F_SETLEASE": 1024, "F_SETDELEG": 1040}  # commands of fcntl, its second argument
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


@cache
def system_call_filter() -> bytes:
    """Return a classic BPF program that answers SYSTEM_CALLS and LEASES with "not permitted"; b"" for a machine whose numbers
    are not listed."""
    machine = os.uname().machine
    if machine not in AUDIT_ARCH:
        return b""
    column = 1 + list(AUDIT_ARCH).index(machine)
    numbers = [int(line.split()[column]) for line in SYSTEM_CALLS.splitlines() if line.split()[column] != "-"]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, deny, allow = 0x80000000, 0x00050001, 0x7FFF0000
    call, arch, second = 0, 4, 24  # offsets in seccomp_data; both machines are little-endian
    head = [(load, 0, 0, arch), (equal, 1, 0, AUDIT_ARCH[machine]), (give, 0, 0, kill), (load, 0, 0, call)]
    checks = [(at_least, 0x40000000), *((equal, number) for number in numbers)]  # first the x32 numbers of x86-64
    leases = [(equal, command) for command in LEASES.values()]
    rest = 2 + len(leases)  # after the checks: is it fcntl, which command
    steps = [(kind, len(checks) - place + rest, 0, value) for place, (kind, value) in enumerate(checks)]
    steps += [(equal, 0, 1 + len(leases), int(FCNTL.split()[column])), (load, 0, 0, second)]
    steps += [(kind, len(leases) - place, 0, value) for place, (kind, value) in enumerate(leases)]
    steps = [*head, *steps, (give, 0, 0, allow), (give, 0, 0, deny)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
