"""Prepare a classification run: labelled texts, a pre-trained body with a new head, and its adapter."""

import logging
import random
from functools import partial
from pathlib import Path

from torch import nn

from ..data.corruption import corrupt, thin
from ..data.glue import Examples, Task, load_examples
from ..data.pairs import PadPairs, encode_examples
from ..errors import UserError
from ..features.saver import FeatureSaver
from ..models import load_classifier, load_tokenizer
from ..models.pooling import agree_on_padding
from ..objective.settings import Objective
from . import resume
from .arguments import TrainArguments
from .classifier_model import ClassifierModel
from .held_out import HeldOut, facts_of, parted
from .prepare import Prepared, adapt, order_hash, order_of, to_device

logger = logging.getLogger(__name__)


def prepare(arguments: TrainArguments, objective: Objective) -> Prepared:
    """Read the data, open the model and adapt it. Raises UserError for problems the user can fix."""
    examples, tokenizer, samples, held, order, record = _read(arguments)
    task, data = examples.task, arguments.data_path or arguments.data
    steps = arguments.steps(len(samples))
    if arguments.features_steps and max(arguments.features_steps) > steps:
        raise UserError(
            f"--features_steps: there is no step {max(arguments.features_steps)}, the run has {steps}; give earlier ones"
        )
    model, head, base = _open(arguments, task)
    agree_on_padding(model, tokenizer)
    if arguments.model_dropout is not None:
        set_dropout(model, arguments.model_dropout)
    to_device(model, arguments)
    student = adapt(arguments, model, objective, len(samples), head=head)
    described = record["task"] | {"head": list(head), "max_length": arguments.max_length, "data": data}
    described["special_tokens_in_text"] = arguments.special_tokens_in_text
    callbacks = []
    if arguments.features_steps is not None:
        callbacks.append(_feature_saver(arguments, student, tokenizer))
    collate = PadPairs(tokenizer, regression=not task.labels)
    return Prepared(
        student,
        tokenizer,
        samples,
        collate,
        order,
        partial(ClassifierModel, regularize=arguments.regularize),
        record | {"task": described, "base": base},
        tuple(callbacks),
        described,
        None if held is None else HeldOut(held, collate, record["validation"]),
    )


def check(arguments: TrainArguments) -> None:
    """Raise UserError unless data and model match the run that --resume names. Changes nothing."""
    _open(arguments, _read(arguments)[0].task)


def _read(arguments: TrainArguments) -> tuple:
    """(examples, tokenizer, samples, the held-out ones, the order of the others, part of run.json), checked against the run that is
    resumed. The labels of held-out examples are never corrupted."""
    data = arguments.data_path or arguments.data
    examples = load_examples(arguments.task, arguments.data_split, data, arguments.limit)
    examples, held_examples = _held_out(examples, arguments)
    examples, changes = _corrupted(examples, arguments)
    tokenizer = load_tokenizer(arguments.model, trust_remote_code=arguments.trust_remote_code)
    identity = resume.tokenizer_hash(tokenizer)
    samples, encoded = encode_examples(tokenizer, examples, arguments.max_length, arguments.special_tokens_in_text)
    held = None
    if held_examples is not None:
        held, _ = encode_examples(tokenizer, held_examples, arguments.max_length, arguments.special_tokens_in_text)
    order = order_of(arguments, samples)
    task = examples.task
    record = {
        "tokenizer": identity,
        "task": {"name": task.name, "labels": list(task.labels) or None, "columns": list(task.columns)},
        "data": examples.report | encoded | {"corruption": changes},
        "validation": None if held is None else facts_of(arguments, held, samples),
        "order_hash": order_hash(order),
    }
    if arguments.features_steps is not None:
        record["features"] = _shown(arguments, tokenizer)[2]
    resume.refuse_changes(arguments, record)
    return examples, tokenizer, samples, held, order, record


def _held_out(examples: Examples, arguments: TrainArguments) -> tuple[Examples, Examples | None]:
    """(the examples to train on, the held-out ones or None)."""
    if arguments.validation_data:
        place = arguments.validation_split, arguments.validation_data, arguments.validation_limit
        return examples, load_examples(arguments.task, *place)
    parts = parted(arguments, len(examples.ids))
    return (examples, None) if parts is None else (examples.select(parts[0]), examples.select(parts[1]))


def _open(arguments: TrainArguments, task: Task) -> tuple:
    """(model, names of its head's modules, hashes of the model), checked against the run that is resumed."""
    model, head = load_classifier(
        arguments.model,
        task.labels or None,
        seed=arguments.seed,
        dtype=arguments.dtype,
        attn_implementation=arguments.attn_implementation,
        trust_remote_code=arguments.trust_remote_code,
    )
    base = resume.base_of(model)
    resume.refuse_changes(arguments, {"base": base})
    return model, head, base


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give every dropout of the model this rate, including those that its attention reads from the config."""
    for module in model.modules():
        for name in ("p", "drop_prob"):
            if "dropout" in type(module).__name__.lower() and isinstance(getattr(module, name, None), float):
                setattr(module, name, rate)
        if isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = rate
    for name, value in model.config.to_dict().items():
        if (
            ("dropout" in name or name.endswith("_pdrop"))
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        ):
            setattr(model.config, name, rate)


def _corrupted(examples: Examples, arguments: TrainArguments) -> tuple[Examples, list[dict]]:
    """The training examples, with classes thinned and labels changed as the options ask, and a list of the changes."""
    changes = []
    if arguments.class_shares:
        shares = dict(_share(text) for text in arguments.class_shares)
        examples, record = thin(examples, shares, arguments.seed)
        changes.append(record)
    if arguments.label_noise:
        examples, record = corrupt(examples, arguments.label_noise_kind, arguments.label_noise, arguments.seed)
        changes.append(record)
    if changes:
        logger.warning("the fine-tuning labels are corrupted on purpose: %s", changes)
    return examples, changes


def _share(text: str) -> tuple[str, float]:
    name, _, share = text.partition("=")
    try:
        return name, float(share)
    except ValueError:
        raise UserError(f"--class_shares {text}: write LABEL=SHARE, as negative=0.1") from None


def _shown(arguments: TrainArguments, tokenizer) -> tuple:
    """(examples, samples, their hash): a sample of the split named by --features_split, the same for every method and seed.
    The first rows would not do, because some sets are sorted by label."""
    shown = load_examples(arguments.task, arguments.features_split, arguments.data_path or arguments.data)
    count = min(arguments.features_examples, len(shown.ids))
    shown = shown.select(sorted(random.Random("features").sample(range(len(shown.ids)), count)))
    encoded, report = encode_examples(tokenizer, shown, arguments.max_length, arguments.special_tokens_in_text)
    return shown, encoded, report["hash"]


def _feature_saver(arguments: TrainArguments, student, tokenizer) -> FeatureSaver:
    """The callback that saves the last hidden layer on those examples."""
    shown, encoded, _ = _shown(arguments, tokenizer)
    return FeatureSaver(
        student,
        list(encoded),
        PadPairs(tokenizer, regression=not shown.task.labels),
        arguments.features_steps,
        Path(arguments.output_dir) / "features",
        labels=list(shown.task.labels),
    )
