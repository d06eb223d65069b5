"""The system calls that a sandboxed program may not make, as the filter that bubblewrap installs (seccomp, classic BPF).

It restricts a program to one process and one thread, so that limits on a process are limits on the program, and to memory that
the limit counts. It blocks sockets, access to other processes, mounts and kernel administration. A refused call fails with "not
permitted", as without the privilege.
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
open_by_handle_at 304 265
init_module 175 105
finit_module 313 273
delete_module 176 106
kexec_load 246 104
reboot 169 142
swapon 167 224
acct 163 89
"""  # name, number on x86-64, number on aarch64
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


@cache
def system_call_filter() -> bytes:
    """Return a classic BPF program that answers SYSTEM_CALLS with "not permitted"; b"" for a machine whose numbers are not listed."""
    machine = os.uname().machine
    if machine not in AUDIT_ARCH:
        return b""
    column = 1 + list(AUDIT_ARCH).index(machine)
    numbers = [int(line.split()[column]) for line in SYSTEM_CALLS.splitlines() if line.split()[column] != "-"]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, deny, allow = 0x80000000, 0x00050001, 0x7FFF0000
    steps = [(load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCH[machine]), (give, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(at_least, len(numbers) + 1, 0, 0x40000000)]  # the x32 numbers of x86-64
    steps += [(equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    steps += [(give, 0, 0, allow), (give, 0, 0, deny)]
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
