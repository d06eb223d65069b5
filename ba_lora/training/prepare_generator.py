"""Prepare a generation run: conversations, a causal language model with its adapter, and optionally a teacher cache."""

import logging

from ..data.cache import load_samples
from ..data.collator import PadRight
from ..data.formats import read_conversations
from ..data.packing import PackRows
from ..data.samples import Samples, Selection
from ..data.sources import read_table
from ..data.templates import make_template
from ..machine.devices import device
from ..methods.quantisation import keep_packing
from ..models import load_model, load_tokenizer
from ..objective.settings import Objective
from . import resume, teacher_cache
from .arguments import TrainArguments
from .held_out import HeldOut, facts_of, parted
from .objective_model import ObjectiveModel
from .packing import check_packing, width_of_rows
from .prepare import Prepared, adapt, order_hash, order_of, to_device

logger = logging.getLogger(__name__)


def prepare(arguments: TrainArguments, objective: Objective) -> Prepared:
    """Read the data, open the model and adapt it. Raises UserError for problems the user can fix."""
    tokenizer, samples, parts, held, order, record = _read(arguments)
    model, base = _open(arguments)
    to_device(model, arguments)
    if arguments.packing:
        check_packing(model, tokenizer)
    plain, cache = PadRight(tokenizer), None
    if arguments.teacher_cache:
        cache = _teacher_cache(arguments, objective, model, samples, record["data"]["hash"], plain)
    if arguments.packing:
        collate = PackRows(tokenizer, cache, width=width_of_rows(model, arguments.max_length))
    else:
        collate = plain if cache is None else PadRight(tokenizer, cache)
    trained = _trained(samples if cache is None else samples.numbered(), parts)
    student = adapt(arguments, model, objective, len(trained))
    record |= {"base": base, "teacher_cache": cache.facts if cache is not None else None}
    held_out = None if held is None else HeldOut(held, plain, record["validation"])
    return Prepared(student, tokenizer, trained, collate, order, ObjectiveModel, record, held_out=held_out)


def check(arguments: TrainArguments) -> None:
    """Raise UserError unless data and model match the run that --resume names. Changes nothing."""
    _read(arguments)
    _open(arguments)


def _read(arguments: TrainArguments) -> tuple:
    """(tokenizer, all samples, their parts, the held-out ones, the order of the others, part of run.json), checked against the run
    that is resumed. The parts, if there are two: the numbers of the trained and of the held-out samples."""
    conversations, report = _conversations(arguments)
    tokenizer = load_tokenizer(arguments.model, trust_remote_code=arguments.trust_remote_code)
    identity = resume.tokenizer_hash(tokenizer)
    template = make_template(arguments.template, tokenizer, arguments.special_tokens_in_text)
    samples, encoded = load_samples(tokenizer, template, conversations, arguments.max_length)
    parts = parted(arguments, len(samples))
    trained, held = _trained(samples, parts), None
    if parts:
        held = Selection(samples, parts[1])
    elif arguments.validation_data:
        held, _ = load_samples(tokenizer, template, _validation(arguments), arguments.max_length)
    order = order_of(arguments, trained)
    record = {
        "tokenizer": identity,
        "template": vars(template),
        "data": report | encoded | {"trained": resume.trained_hash(samples), "kept": len(trained)},
        "validation": None if held is None else facts_of(arguments, held, trained),
        "order_hash": order_hash(order),
    }
    resume.refuse_changes(arguments, record | {"teacher_cache": arguments.uses_teacher_cache()})
    return tokenizer, samples, parts, held, order, record


def _trained(samples: Samples, parts: tuple | None) -> Samples | Selection:
    """The samples that are trained on."""
    return samples if parts is None else Selection(samples, parts[0])


def _open(arguments: TrainArguments) -> tuple:
    """(model, its hashes), checked against the run that is resumed."""
    model = load_model(
        arguments.model,
        arguments.dtype,
        attn_implementation=arguments.attn_implementation,
        trust_remote_code=arguments.trust_remote_code,
    )
    keep_packing(model)  # before a teacher cache is made
    base = resume.base_of(model)
    resume.refuse_changes(arguments, {"base": base})
    return model, base


def _conversations(arguments: TrainArguments) -> tuple[list[list[dict]], dict]:
    """The training data that the options name, and the number of rows read and skipped."""
    table = read_table(
        arguments.data,
        arguments.data_path,
        arguments.data_split,
        arguments.limit,
        shuffle_seed=arguments.seed if arguments.shuffle_data else None,
    )
    return read_conversations(table, arguments.fields, arguments.skip_bad_rows, arguments.ignore_columns or ())


def _validation(arguments: TrainArguments) -> list[list[dict]]:
    """The conversations of --validation_data."""
    table = read_table(arguments.validation_data, None, arguments.validation_split, arguments.validation_limit)
    return read_conversations(table, arguments.fields, arguments.skip_bad_rows, arguments.ignore_columns or ())[0]


def _teacher_cache(arguments: TrainArguments, objective, model, samples, data_hash: str, collate):
    """The teacher's cache, or None if no term needs the teacher. `model`: the original model, frozen here."""
    if not arguments.uses_teacher_cache():
        logger.warning("--teacher_cache does nothing here: lambda1 is 0, so no teacher runs")
        return None
    return teacher_cache.prepare(
        arguments.teacher_cache,
        model,
        samples,
        data_hash,
        temperature=objective.temperature,
        dtype=arguments.teacher_cache_dtype,
        form=arguments.teacher_cache_form,
        entries=arguments.teacher_cache_entries,
        collate=collate,
        **arguments.targets(),
        device=device(arguments.use_cpu),
        progress=arguments.progress,
    )
