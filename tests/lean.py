"""An environment that holds some distributions and what they require, and nothing else, made of links to the present one."""

import os
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SIX = ("torch", "transformers", "peft", "accelerate", "safetensors", "filelock")  # what a GPU machine is known to have


def required(names) -> dict[str, metadata.Distribution]:
    """{name: distribution} of `names` and everything that they require without extras."""
    found, left = {}, list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        needs = map(Requirement, found[name].requires or ())
        left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def make(folder: Path, names=SIX) -> Path:
    """Make a virtual environment in `folder` with links to the files of these distributions; return its Python."""
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    base = Path(os.path.realpath(sys.executable))
    python.symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    for distribution in required(names).values():
        root = Path(distribution.locate_file(""))
        for first in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (packages / first).exists():
                (packages / first).symlink_to(root / first)
    return python
