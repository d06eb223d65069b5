"""Allowed imports. A room is a folder of `ba_lora` or `eval`, or a module beside the folders; imports are read, not executed."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for folder in ("ba_lora", "eval")
    for file in sorted((ROOT / folder).rglob("*.py"))
} | {name: ROOT / f"{name}.py" for name in ("train", "tsne_visualization")}

BASIS = "ba_lora signals errors files folders modes texts"  # every room may import these
BELOW_TRAINING = "packages provenance sharding machine data objective features laboratory models tiny methods card hub"
ASKING = f"{BASIS} packages machine data models methods inference"
ALLOWED = {
    "ba_lora": "signals",
    "signals": "",
    "errors": "signals",
    "files": "errors",
    "folders": "errors files",
    "modes": "",
    "texts": "errors",
    "packages": BASIS,
    "provenance": BASIS,
    "sharding": BASIS,
    "machine": BASIS,
    "canvas": BASIS,
    "objective": BASIS,
    "data": f"{BASIS} packages",
    "features": f"{BASIS} canvas data",
    "models": f"{BASIS} packages data tiny laboratory",
    "laboratory": f"{BASIS} packages data tiny",
    "tiny": f"{BASIS} packages data",
    "methods": f"{BASIS} models sharding",
    "card": f"{BASIS} data objective methods",
    "hub": f"{BASIS} machine data card",
    "training": f"{BASIS} {BELOW_TRAINING}",
    "trl": f"{BASIS} {BELOW_TRAINING} training",
    "inference": f"{BASIS} packages machine data models methods",
    "planning": f"{BASIS} {BELOW_TRAINING} training inference",
    "benchmark": f"{BASIS} {BELOW_TRAINING} training planning",
    "preflight": f"{BASIS} {BELOW_TRAINING} training inference planning eval.execution",
    "commands": f"{BASIS} {BELOW_TRAINING} training inference planning",
    "__main__": BASIS,  # opens the other commands by their names
    "chat": f"{BASIS} packages machine data models methods inference",
    "eval.harness": ASKING,
    **dict.fromkeys(
        ("eval.answers", "eval.choices", "eval.execution", "eval.judging", "eval.classifiers"), f"{ASKING} eval.harness"
    ),
    "eval": f"{ASKING} eval.harness eval.answers eval.choices eval.execution eval.judging eval.classifiers",
    "tsne_visualization": f"{BASIS} features",
}  # experiments and train may import everything, and nothing imports them


def room(module: str) -> str:
    """The room of a module: "data" for "ba_lora.data.glue", "eval.answers" for "eval.answers.latex", "eval" for "eval.gsm8k"."""
    first, *rest = module.split(".")
    if first == "ba_lora":
        return rest[0] if rest else "ba_lora"
    is_folder = first == "eval" and rest and (ROOT / "eval" / rest[0]).is_dir()
    return f"eval.{rest[0]}" if is_folder else first


def imports(module: str, source: str) -> set[str]:
    """The project's modules that `module` imports anywhere in its source, including inside functions."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            inner = {f"{origin}.{name.name}" for name in node.names}
            found |= {name if name in FILES else origin for name in inner}
    return {name for name in found if name.split(".")[0] in ("ba_lora", "eval", "train", "tsne_visualization")}


def forbidden(module: str, source: str) -> list[str]:
    """The imports of `module` that its room must not have."""
    here = room(module)
    found = sorted(imports(module, source) - {module})
    if here in ("experiments", "train"):
        return [name for name in found if room(name) == "train"]
    return [name for name in found if room(name) != here and room(name) not in ALLOWED[here].split()]


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_what_its_room_may(module):
    assert forbidden(module, FILES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("ba_lora.files", "from .data.glue import TASKS"),
        ("ba_lora.folders.ownership", "from ..models import load_model"),
        ("ba_lora.objective.dense", "from ..data.collator import IGNORED"),
        ("ba_lora.objective.chunked", "from ..methods.teacher import teacher"),
        ("ba_lora.data.formats", "from ..objective.settings import Objective"),
        ("ba_lora.features.saver", "from ..training.trainer import BALoRATrainer"),
        ("ba_lora.models", "from ..methods.attach import attach"),
        ("ba_lora.methods.attach", "from ..data.glue import TASKS"),
        ("ba_lora.card", "from ..training.command_line import parse"),
        ("ba_lora.training.run", "from ..planning import plan"),
        ("ba_lora.training.trainer", "from ba_lora import canvas"),
        ("ba_lora.inference.backends", "from eval.harness import scores"),
        ("ba_lora.planning.plan", "import eval.all"),
        ("ba_lora.chat", "from eval.gsm8k import main"),
        ("eval.harness.scores", "from ..answers.numeric import read"),
        ("eval.answers.latex", "from ..execution.sandbox import run"),
        ("eval.gsm8k", "from ba_lora.training.command_line import parse"),
        ("eval.classifiers.metrics", "import ba_lora.experiments.matrix"),
        ("ba_lora.experiments.pool", "import train"),
    ],
)
def test_a_forbidden_import_is_found(module, line):
    assert forbidden(module, f"def later():\n    {line}\n") != []


def test_no_benchmark_imports_another():
    commands = {name for name in FILES if name.count(".") == 1 and name.startswith("eval.") and room(name) == "eval"}
    for module in commands - {"eval.all"}:
        assert imports(module, FILES[module].read_text()) & commands == set(), module


def test_no_import_goes_in_a_circle():
    """Also within a room; `import ba_lora`, which opens nothing, does not count."""
    below = {name: imports(name, file.read_text()) - {name, "ba_lora", "eval"} for name, file in FILES.items()}
    left = dict(below)
    while free := [name for name, found in left.items() if not found & set(left)]:
        for name in free:
            del left[name]
    assert left == {}


def test_the_table_names_every_room():
    assert {room(name) for name in FILES} - {"experiments", "train"} == set(ALLOWED)


def test_the_rooms_are_few():
    rooms = defaultdict(set)
    for name in FILES:
        rooms[name.split(".")[0]].add(room(name))
    beside = [name for name, file in FILES.items() if file.parent == ROOT / "ba_lora" and file.name != "__init__.py"]
    assert len(beside) <= 13
