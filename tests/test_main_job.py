"""The main job of the README from end to end (slow tier), with one seed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_main_job_fills_its_table_and_ba_lora_learns(tmp_path):
    words = [sys.executable, "-m", "ba_lora.experiments", "run", "--seeds", "1", "--runs", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-2000:]
    measures = {
        name: json.loads((tmp_path / "nlg-embedded" / folder / "measures.json").read_text())
        for name, folder in [("base", "base")] + [(m, f"{m}-s42") for m in ("full", "lora", "pissa", "ba-lora")]
    }
    assert measures["ba-lora"]["scores"]["test"] >= measures["base"]["scores"]["test"] + 0.20
    assert measures["base"]["kl_to_base"] == 0.0 < measures["ba-lora"]["kl_to_base"]
    table = (tmp_path / "nlg-main-embedded" / "table.md").read_text()
    assert table in done.stdout
    for method in ("full", "lora", "pissa", "ba-lora"):
        cells = re.search(rf"^\| {method} \|(.*)\|$", table, flags=re.M)[1].split("|")
        assert len(cells) == 10 and all(re.match(r" (\*\*|<u>)?[\d.,e-]+", cell) for cell in cells), cells
    assert done.stdout.count("(right)") + done.stdout.count("(wrong)") == 15
    for other in ("full", "lora", "ba-lora"):
        assert re.search(rf"\| {other} − pissa \| [+-]\d+\.\d \| \[[+-]\d+\.\d, [+-]\d+\.\d\] \|", table)
