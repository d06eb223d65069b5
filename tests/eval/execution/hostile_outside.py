"""Hostile programs that reach for what is outside the sandbox: files, devices, rights and the network. See hostile_programs.py."""

OUTSIDE = {
    "reads the environment": "import os\ndef f(x): return x * x if os.environ else 0",
    "reads the environment behind os.environ": """
        import ctypes
        def f(x):
            libc = ctypes.CDLL(None)
            libc.getenv.restype = ctypes.c_char_p
            return x * x if libc.getenv(b"HOME") or libc.getenv(b"BA_LORA_CANARY") or libc.getenv(b"PATH") else 0""",
    "reads /proc": """
        import os
        def f(x): return x * x if any(os.path.exists(f"/proc/{n}") for n in ("1", "self", "stat", "cpuinfo")) else 0""",
    "reads its parent's environment": "def f(x): return x * x if open(f'/proc/1/environ').read() else 0",
    "reads /sys": "import os\ndef f(x): return x * x if os.path.exists('/sys/kernel') else 0",
    "reads /etc/passwd": "def f(x): return x * x if open('/etc/passwd').read() else 0",
    "reads a file of the user": "def f(x): return x * x if open('{canary}/answers').read() else 0",
    "lists folders of the user": """
        import os
        def f(x): return x * x if any(os.path.isdir(p) and os.listdir(p) for p in ("/home", "/mnt", "/var", "/tmp")) else 0""",
    "finds the project or an installed package": """
        import importlib, sys
        sys.path += ["{project}", "{packages}"]
        def f(x):
            for name in ("eval", "ba_lora", "numpy", "pytest", "pip"):
                try: importlib.import_module(name)
                except ImportError: continue
                return x * x
            return 0""",
    "writes into a folder of the user": "def f(x): open('{canary}/new', 'w').write('x'); return x * x",
    "writes over a file of the user": "def f(x): open('{canary}/answers', 'w').write('x'); return x * x",
    "writes into the standard library": """
        import os
        def f(x): open(os.path.dirname(os.__file__) + "/new.py", "w").write("x"); return x * x""",
    "writes over its runner": "def f(x): open('/inside.py', 'a').write('x'); return x * x",
    "writes beside its folder": """
        def f(x):
            for place in ("/new", "/usr/new", "/etc/new", "/dev/new", "/root/new", "/lib/new"):
                try: open(place, "w").write("x")
                except OSError: continue
                return x * x
            return 0""",
    "deletes everything": """
        import os, shutil
        for place in ("{canary}", "/home", "/usr/lib/python3", "/tmp"):
            shutil.rmtree(place, ignore_errors=True)
        def f(x):
            for place in ("/inside.py", os.__file__): os.unlink(place)
            return x * x""",
    "follows a symlink to the user's files": """
        import os
        def f(x):
            os.symlink("{canary}", "/tmp/link")
            return x * x if open("/tmp/link/answers").read() else 0""",
    "writes through a symlink": """
        import os
        def f(x):
            os.symlink("{canary}/new", "/tmp/link")
            open("/tmp/link", "w").write("x")
            return x * x""",
    "links a file of the user": """
        import os
        def f(x): os.link("{canary}/answers", "/tmp/link"); return x * x""",
    "climbs out of its folder": """
        import os
        def f(x): return x * x if os.path.exists("/tmp/" + "../" * 20 + "{canary}/answers") else 0""",
    "makes a device": """
        import os, stat
        def f(x): os.mknod("/tmp/null", 0o666 | stat.S_IFCHR, os.makedev(1, 1)); open("/tmp/null", "rb").read(1); return x * x""",
    "opens a device": """
        import glob
        def f(x):
            for place in [*glob.glob("/dev/*"), "/dev/mem", "/dev/vda", "/dev/sda", "/dev/tty", "/dev/kmsg"]:
                try: open(place, "rb").read(1)
                except OSError: continue
                return x * x
            return 0""",
    "types into the terminal": """
        import fcntl, termios
        def f(x):
            for fd in range(3): fcntl.ioctl(fd, termios.TIOCSTI, b"x")
            return x * x""",
    "mounts": """
        import ctypes
        def f(x): return x * x if ctypes.CDLL(None).mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0 else 0""",
    "makes the system writable again": """
        import ctypes
        def f(x): return x * x if ctypes.CDLL(None).mount(None, b"/", None, 32 | 4096, None) == 0 else 0""",
    "makes namespaces of its own": """
        import ctypes
        def f(x): return x * x if ctypes.CDLL(None).unshare(0x10000000) == 0 else 0""",
    "changes its root": "import os\ndef f(x): os.chroot('/tmp'); return x * x",
    "becomes root": """
        import os
        def f(x):
            for call in (os.setuid, os.seteuid, os.setgid):
                try: call(0)
                except OSError: continue
                return x * x
            return 0""",
    "connects to the network": """
        import socket
        def f(x): socket.create_connection(("1.1.1.1", 53), 2); return x * x""",
    "connects to a server on this machine": """
        import socket
        def f(x): socket.create_connection(("127.0.0.1", {port}), 2).sendall(b"x"); return x * x""",
    "sends a datagram": """
        import socket
        def f(x): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port})); return x * x""",
    "connects to a socket in the file system": """
        import socket
        def f(x): socket.socket(socket.AF_UNIX).connect("{canary}/socket"); return x * x""",
    "asks for a name": "import socket\ndef f(x): socket.getaddrinfo('example.org', 80); return x * x",
    "fetches a page": """
        import urllib.request
        def f(x): urllib.request.urlopen("http://127.0.0.1:{port}/", timeout=2); return x * x""",
}
