"""What the published runs would take on GPUs, as the table of docs/gpu.md: python -m ba_lora.plan_table [CONFIG ...]

A cell is the first placement that fits: "c" with --gradient_checkpointing, "z" with ZeRO-3, both where both are needed, with the
bytes a device and the hours.
"""

import sys
from pathlib import Path

from .arguments import parse
from .capacity import room
from .errors import run_cli
from .plan import plan

FOLDER = Path(__file__).resolve().parent.parent / "configs" / "nlg"
DEVICES = ("1xA40", "2xA40", "4xA40", "8xA40", "1xH100-80")
ORDER = [  # (placement, form, mark)
    ("a replica each", "as planned", ""),
    ("a replica each", "with --gradient_checkpointing", " c"),
    ("ZeRO-3", "as planned", " z"),
    ("ZeRO-3", "with --gradient_checkpointing", " cz"),
]


def published() -> list[Path]:
    """A config for each model, version and rank; the three data sets of one are alike here."""
    return sorted(file for file in FOLDER.glob("*-metamath-*.yaml"))


def row(config: Path) -> str:
    """One line of the table, in Markdown."""
    cells = []
    for devices in DEVICES:
        made = plan(parse(["--config", str(config), "--dry_run", "--devices", devices]))["devices"]
        cells.append(_cell(made))
    work = made["forms"]["as planned"]["flops"]
    return f"| {config.stem.replace('-metamath', '')} | {work:.2e} | {' | '.join(cells)} |"


def _cell(made: dict) -> str:
    for placement, name, mark in ORDER:
        form = made["forms"][name]
        size = form["placements"][placement]
        if size <= room(made["memory"]) and (made["count"] > 1 or placement == "a replica each"):
            return "{:.1f} GB{}, {:.1f}–{:.1f} h".format(size / 1e9, mark, *form["hours"])
    return "does not fit"


def main() -> None:
    configs = [Path(word) for word in sys.argv[1:]] or published()
    print(f"| run | FLOPs | {' | '.join(name.replace('x', ' × ', 1) for name in DEVICES)} |")
    print("| --- | ---: |" + " ---: |" * len(DEVICES))
    for config in configs:
        print(row(config), flush=True)


if __name__ == "__main__":
    run_cli(main)
