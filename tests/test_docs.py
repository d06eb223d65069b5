"""The pages keep their promises: the examples of docs/api.md run, and the messages of docs/errors.md are in the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GAP = "…"  # stands for the values in a message


@pytest.mark.slow
def test_the_examples_of_the_api_page_run_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page, names = (ROOT / "docs/api.md").read_text(encoding="utf-8"), {}
    for example in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(example, names)


def texts() -> set[str]:
    """Every string of the code, with a gap for each value in an f-string."""
    found = set()
    for file in (ROOT / "train.py", *(ROOT / "ba_lora").rglob("*.py"), *(ROOT / "eval").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def holds(text: str, parts: list[str]) -> bool:
    """True if the parts stand in the text in this order."""
    place = 0
    for part in parts:
        found = text.find(part, place)
        if found < 0:
            return False
        place = found + len(part)
    return True


def test_every_message_of_the_page_of_errors_is_in_the_code():
    known, page = texts(), (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)
    assert len(messages) > 30
    missing = [message for message in messages if not any(holds(text, message.split(GAP)) for text in known)]
    assert not missing, "docs/errors.md has to quote these as the code has them"
