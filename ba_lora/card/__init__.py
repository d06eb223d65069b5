"""The model card of a run: a README.md beside the saved weights, for readers and for the hub.

    python -m ba_lora.card RUN      write it again, for example after an evaluation

Its content comes from run.json, the last line of metrics.jsonl, adapter_config.json and eval/*/score.json. It holds no path of
the machine: a local model or file appears only with the last part of its name.
"""

import json
import re
from pathlib import Path

from ..errors import DamagedFile, UserError
from ..files import REMEDY, atomic_write, check_kinds, read_json, read_json_lines
from ..folders import checksums, kinds
from ..folders.adapter_names import check_header
from ..folders.places import is_named
from ..objective.settings import METRICS, REGULARIZERS, TERMS, of_training
from ..texts import code, markdown
from .facts import hub_id, peft_of, public_name, source, starts_from_pissa
from .metadata import WHOLE, front_matter
from .scores import results, scores_of
from .validation import CHOSEN, VALIDATION, held_out_rows

MERGED = "merged"

LIMITS = """\
All of this belongs to one run: one seed, this data, this prompt template; another prompt format gives other answers. Nothing
was tested for safety, factuality or bias beyond the results listed. The base model's licence and terms of use apply."""

CONFIG = {
    **dict.fromkeys(("rank", "effective_batch_size", "max_length", "seed"), "a whole number"),
    **dict.fromkeys(("alpha", "dropout", "learning_rate", "warmup_ratio", "teacher_share?"), "a number"),
    **dict.fromkeys(("method", "dtype", "lr_scheduler", "data?", "data_path?", "task?"), "a text"),
}
RECORD = {  # kinds of the values of run.json that the card shows
    **{"model": "a text", "config": "an object", **{f"config.{name}": kind for name, kind in CONFIG.items()}},
    **{"objective": "an object", "data": "an object", "data.kept": "a whole number", "data.hash": "a text"},
    **dict.fromkeys(("objective.warmup?", "objective.ramp?", "objective.lambda1_min?"), "a number"),
    **{f"objective.{each.weight}?": "a number" for each in REGULARIZERS},
    **{f"objective.{each.schedule}?": "a text" for each in REGULARIZERS},
    **{
        "template?": "an object",
        "task?": "an object",
        "quantisation?": "an object",
        "validation?": "an object",
        "versions": "an object",
    },
    **{"versions.ba-lora": "a text", "train_seconds": "a number"},
    **dict.fromkeys(("steps", "processes", "trained_parameters"), "a whole number"),
}
TEMPLATE = {"name": "a text", "prompt?": "a text"}
TASK = {"name": "a text", "max_length": "a whole number", "labels?": "a list of texts", "head?": "a list of texts"}
QUANTISED = {"kind": "a text", "relative_error": "a number"}
CITATION = """\
```bibtex
@inproceedings{chang2026balora,
  title     = {BA-LoRA: Bias-Alleviating Low-Rank Adaptation to Mitigate Catastrophic Inheritance in Large Language Models},
  author    = {Chang, Yupeng and Chang, Yi and Wu, Yuan},
  booktitle = {International Conference on Learning Representations},
  year      = {2026},
  note      = {arXiv:2408.04556}
}
```

Paper: [arXiv:2408.04556](https://arxiv.org/abs/2408.04556). Trained with an independent re-implementation of the paper, `ba-lora` VERSION."""


def saved_in(run: str | Path) -> Path:
    """adapter/ or model/ of a finished run folder. Raises UserError if there is none, DamagedFile if it is damaged."""
    run = Path(run)
    if not (run / "run.json").is_file():
        raise UserError(f"{run} is not a run folder (it has no run.json); give the --output_dir of a training run")
    saved = kinds.saved_in(run)
    if not kinds.is_ours(run, "run"):
        raise UserError(f"{run / 'run.json'} is damaged or not from this project; give another run folder")
    checksums.verify(saved)
    return saved


def write_card(run: str | Path) -> Path:
    """Write or rewrite README.md in adapter/ or model/ of a finished run folder, and in merged/ if there is one; return the first's path.

    Raises UserError or RunFailure for an adapter whose weights are incomplete.
    """
    run, saved = Path(run), saved_in(run)
    check_header(saved)
    record = read_json(run / "run.json", kinds=RECORD)
    if not record.get("task"):
        check_kinds(record, str(run / "run.json"), {"template": "an object"})
    for part, of_part in (("template", TEMPLATE), ("task", TASK), ("quantisation", QUANTISED)):
        if record.get(part):
            check_kinds(record[part], f"{run / 'run.json'}: {part}", of_part)
    if validation := record.get("validation"):
        check_kinds(validation, f"{run / 'run.json'}: validation", VALIDATION)
        check_kinds(validation, f"{run / 'run.json'}: validation", CHOSEN if "saved_step" in validation else {})
    checksums.check_of_run(run, "metrics.jsonl")
    scores = scores_of(run)
    for place in (saved, run / MERGED):
        if place.is_dir():
            _write(run, record, scores, place)
    return saved / "README.md"


def _write(run: Path, record: dict, scores: list[dict], saved: Path) -> None:
    """Write the card of the folder `saved`."""
    sections = {
        "Method": _method(record, saved),
        "Objective": _objective(record["objective"]),
        "Data": _data(record),
        "Training": _training(record, run / "metrics.jsonl"),
        **({"Held-out rows": held_out_rows(record["validation"])} if record.get("validation") else {}),
        "Results": results(scores),
        "How to load it": _loading(record, saved),
        "Limits": LIMITS,
        "Citation": CITATION.replace("VERSION", record["versions"]["ba-lora"]),
    }
    with atomic_write(saved / "README.md") as file:
        file.write(f"---\n{front_matter(run, record, saved, scores)}\n---\n\n# {markdown(run.resolve().name)}\n")
        for title, text in sections.items():
            file.write(f"\n## {title}\n\n{text}\n")


def _method(record: dict, saved: Path) -> str:
    config = record["config"]
    base = f"Base model: {code(public_name(record['model']))}."
    if saved.name == "model":
        return (
            f"{base} Full fine-tuning: all {record['trained_parameters']:,} parameters were trained and are saved here."
        )
    is_merged = saved.name == MERGED
    kept, head = peft_of(saved.with_name("adapter") if is_merged else saved), (record.get("task") or {}).get("head")
    with_head = f", those of the head ({', '.join(head)}) among them" if head else ""
    if kept is None:
        width = "" if config["method"] == "bitfit" else f", width {config['rank']}"
        return (
            f"{base} Method: {config['method']}{width}; {record['trained_parameters']:,} trained parameters{with_head}."
        )
    targets = kept["target_modules"]
    targets = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    if config.get("layers"):
        targets += f" of layers {config['layers']}"
    stabilised = " (divided by the root of the rank)" if config.get("rslora") else ""
    if config.get("modules_to_save"):
        targets += f"; trained whole: {', '.join(config['modules_to_save'])}"
    lines = [
        f"{base} Method: {config['method']}, rank {config['rank']}, alpha {config['alpha']:g}{stabilised}, dropout {config['dropout']:g},",
        f"{record['trained_parameters']:,} trained parameters{with_head}, on {markdown(targets)}.",
    ]
    if is_merged:
        lines += ["The trained adapter is folded into the weights of the base here, so that no adapter is needed."]
    elif starts_from_pissa(record, saved):
        lines += [
            f"Training started from the leading singular directions of the base (PiSSA). The adapter here has rank {kept['r']} and",
            f"alpha {kept['lora_alpha']:g}: it holds {_content(config)}, so that it is",
            "plain LoRA for the **original** base, whose weights need no change.",
        ]
    if quantised := record.get("quantisation"):
        lines += [
            f"In training the frozen linear layers of the base were in {quantised['kind'].upper()} (4 bits); with the start they differed from",
            f"the base's by {quantised['relative_error']:.4f} of their norm. The adapter is for the base in full precision.",
        ]
    return "\n".join(lines)


def _content(config: dict) -> str:
    """The content of an adapter that was exported after a PiSSA start."""
    if config.get("start_form") == "delta":
        return "the initial factors and their changes"
    return "the trained factors and, with the opposite sign, the initial ones"


def _objective(objective: dict) -> str:
    known = [each for each in REGULARIZERS if each.weight in objective]  # a run of an earlier version may lack one
    if not any(objective[each.weight] for each in known):
        return "The task's loss alone; the regularizers were off."
    lines = ["The task's loss plus:", "", "| term | form | weight | schedule |", "|---|---|---:|---|"]
    words = objective | {"classes": _classes(objective.get("top_k"))}
    for each in known:
        try:
            form, weight = each.forms[objective[each.option]].text.format(**words), objective[each.weight]
            schedule = _schedule(objective, objective[each.schedule]) if weight else "off"
        except (KeyError, TypeError, ValueError) as error:
            raise DamagedFile(
                f"run.json: the objective's {each.name} cannot be described ({error!r}); {REMEDY}"
            ) from None
        lines.append(f"| {each.name} | {form} | {weight:g} | {schedule} |")
    return "\n".join(lines)


def _classes(top_k: int | None) -> str:
    return f"the {top_k} likeliest tokens" if top_k else "the whole vocabulary"


def _schedule(objective: dict, name: str) -> str:
    """A schedule in words; see schedules.py."""
    warmup, ramp = f"{objective['warmup']:.0%}", f"{objective['ramp']:.0%}"
    lowest = objective["lambda1_min"] if objective["lambda1_min"] is not None else objective["lambda1"] / 10
    details = {
        "cosine": "down to 10%",
        "linear_warmup": f"over {warmup} of the steps",
        "quadratic_warmup": f"over {warmup} of the steps",
        "two_phase": f"off for {warmup} of the steps, then a ramp over {ramp}",
        "adaptive": f"by the teacher's confidence, at least {lowest:g}",
    }
    return f"{name}: {details[name]}" if name in details else name


def _data(record: dict) -> str:
    config, data, template = record["config"], record["data"], record.get("template")
    if record.get("task"):
        task, changes = record["task"], data["corruption"]
        kind = f"classes {', '.join(task['labels'])}" if task["labels"] else "a regression"
        broken = f" The labels were corrupted on purpose: {changes}." if changes else ""
        return (
            f"{task['name']} ({kind}) from {source(config)}: {data['kept']:,} samples of at most {task['max_length']} tokens; "
            f"SHA-256 of their token ids and labels\n{code(data['hash'])}.{broken}"
        )
    share = (record.get("validation") or {}).get("share")
    whose = "their and the held-out samples'" if share else "their"
    return (
        f"{source(config)}: {data['kept']:,} samples of at most {config['max_length']} tokens; SHA-256 of {whose} token ids\n"
        f"{code(data['hash'])}. Prompt template {code(template['name'])}" + _prompt(template)
    )


def _prompt(template: dict) -> str:
    text = template["prompt"] if template["name"] != "chat" else None  # a chat template is a program
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text or "")), default=0))
    return f", written out:\n\n{fence}text\n{text}\n{fence}" if text else "."


def _training(record: dict, metrics: Path) -> str:
    config = record["config"]
    share = config.get("teacher_share") or 1.0  # earlier versions had no such option
    rows = [
        ("optimiser steps", record["steps"]),
        ("effective batch", f"{config['effective_batch_size']} samples"),
        ("learning rate", f"{config['learning_rate']:g}, {config['lr_scheduler']}, warm-up {config['warmup_ratio']:g}"),
        ("seed", config["seed"]),
        ("precision", config["dtype"]),
        ("processes", record["processes"]),
        *([("teacher", f"on {share:g} of the sequences of a step, drawn by the seed")] if share < 1 else ()),
        ("training time", f"{record['train_seconds']:.0f} s"),
    ]
    lines = of_training(read_json_lines(metrics, METRICS)) if metrics.is_file() else []
    if lines:
        last = lines[-1]
        terms = [name for name in ("loss", *TERMS) if last.get(name) is not None]
        rows.append((f"at step {last['step']}", ", ".join(f"{name} {last[name]:.4g}" for name in terms)))
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {markdown(value)} |" for name, value in rows)


def _loading(record: dict, saved: Path) -> str:
    if record.get("task"):
        base = record["model"] if record["model"].startswith("package:") else public_name(record["model"])
        given = "" if saved.name == "model" else f", base={_literal(base)}"
        loaded = code(f'ba_lora.load("THIS_FOLDER"{given})')
        return f"With this project: {loaded}, a sequence classifier with its trained head."
    if saved.name in WHOLE:
        return _python('model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER_OR_ITS_HUB_ID")')
    if not peft_of(saved):
        loaded = code('ba_lora.load("THIS_FOLDER", base=' + _literal(public_name(record["model"])) + ")")
        return f"With this project: {loaded}."
    name, rank = record["model"], read_json(saved / "adapter_config.json")["r"]
    place = (
        "ba_lora/tiny/model" if name == "tiny" else hub_id(name) or f"path/to/{public_name(name).rpartition(':')[2]}"
    )
    stock = _python(
        f"base = AutoModelForCausalLM.from_pretrained({_literal(place)})",
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER_OR_ITS_HUB_ID")',
        imports="from peft import PeftModel\n",
    )
    known = name if is_named(name) else place
    loaded = code(f'ba_lora.load("THIS_FOLDER", base={_literal(known)})')
    return (
        f"{stock}\n\nWith this project: {loaded}. vLLM: `--enable-lora` with\n"
        f"`--max-lora-rank` of at least {rank}, the rank saved here."
    )


def _literal(name: str) -> str:
    """A name as a string of Python, on one line."""
    return json.dumps(name, ensure_ascii=False)


def _python(*lines: str, imports: str = "") -> str:
    return "\n".join([f"```python\n{imports}from transformers import AutoModelForCausalLM\n", *lines, "```"])
