"""What a fine-tuned model has kept of its base, on texts that it was not tuned on. Both models are open at once.

forgetting      the loss after tuning minus the loss of the base, as PEFT's method comparison defines it since its pull request 3419: mean nats per
                token over all tokens of all texts, each token against the logits before it, texts cut at 768 tokens. The first token counts only if the
                tokenizer puts one before it. The base is the model that was there before: never the tuned one with its adapter switched off,
                which for PiSSA is what the factors left over.
kl_to_base      mean KL(base ‖ tuned) over the same tokens of the prompts (--prompts; default: the same texts), nats per token

Both with a standard error and a 95% interval by a bootstrap over texts. What was computed is appended to losses.jsonl, so that a killed run
can continue. Benchmarks before and after: evaluate base and run, then python -m eval.compare BASE RUN.
"""

import argparse
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ba_lora.errors import Parser, UserError, run_cli
from ba_lora.files import digest
from ba_lora.folders.checksums import write_record
from ba_lora.folders.ownership import claimed
from ba_lora.inference.pairs import Encoded, Pair, batches, check_length, ids_of, twins_of
from ba_lora.inference.subject import Subject, find_base, open_subject, settings_hash, weights_hash

from .choices.ability import held_out_texts
from .harness.ask import model_facts
from .harness.generations import MEASURED, grown
from .harness.lines import write_lines
from .harness.options import check_models, default_folder
from .harness.paired import resampled_means
from .harness.scores import LOSSES, SCORE, SCORED

MAX_LENGTH = 768  # tokens of a text, as in PEFT's method comparison
BASE, TUNED, KL = "base", "tuned", "kl"  # what is measured of a text
BENCHMARK, VERSION = "retention", "1"

EXAMPLES = """\
examples:
  a training run, on 200 sentences of Wikipedia that a registry package carries; into runs/ba-lora/eval/retention
    python -m eval.retention --model runs/ba-lora
  on texts of one's own, and the KL on the prompts of another file
    python -m eval.retention --model runs/ba-lora --held_out texts.txt --prompts prompts.jsonl --output_dir out"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the options."""
    parser = Parser(
        prog="python -m eval.retention",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", help="the folder of a training run, or a base to load --adapter on")
    add("--adapter", help="adapter folder or run folder to load on --model")
    add("--base", help="the model before tuning (default: the run's, or --model with an --adapter)")
    add(
        "--held_out",
        metavar="FILE",
        help="texts: lines of text, or a table with a column text (default: of a registry package)",
    )
    add("--prompts", metavar="FILE", help="texts for the KL, in the same form (default: those of --held_out)")
    add(
        "--output_dir",
        metavar="D",
        help=f"folder for {LOSSES}, {SCORED} and {SCORE} (default: eval/retention of a run, else runs/eval/MODEL/retention)",
    )
    add("--overwrite", action="store_true", help="replace the results there (default: continue an unfinished run)")
    add("--batch_size", type=int, default=16, help="texts computed at once (default: %(default)s)")
    add("--dtype", default="float32", help="float32, bfloat16, float16, or auto: as saved (default: %(default)s)")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the model; read it first")
    add("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(backend="transformers")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0 when everything is written; raises UserError otherwise."""
    args = make_parser().parse_args(argv)
    if not args.model:
        raise UserError("--model is missing; name what was tuned, a training run or a base with its --adapter")
    if args.batch_size < 1:
        raise UserError(f"--batch_size is {args.batch_size}; it must be at least 1")
    check_models(args.model, args.adapter)
    for option in ("held_out", "prompts"):
        file = getattr(args, option)
        if file and not Path(file).is_file():
            raise UserError(f"--{option} {file} does not exist; give a file of texts")
    if not args.base and not args.adapter and find_base(args.model) == args.model:
        raise UserError(f"--model {args.model} is no training run, so its base is not known; name it with --base")
    folder = Path(args.output_dir or default_folder(args.model, args.adapter) / BENCHMARK)
    with claimed(folder, "evaluation"):
        if (folder / SCORE).exists() and not args.overwrite:
            raise UserError(f"--output_dir {folder} already holds {SCORE}; add --overwrite or name another folder")
        return _evaluate(args, folder)


class Asked(NamedTuple):
    """What is computed of a text: its loss with one of the two models, or the KL between them."""

    id: str
    measure: str
    text: str


def _evaluate(args: argparse.Namespace, folder: Path) -> int:
    from ba_lora.inference.likelihoods import width_of
    from ba_lora.machine.devices import device
    from ba_lora.models import load_model

    name = args.base or (args.model if args.adapter else find_base(args.model))
    options = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    subject = open_subject(args.model, adapter=args.adapter, **options)
    base = load_model(name, **options).to(device())
    if width_of(base.config) != width_of(subject.model.config):
        raise UserError(
            f"{name} has another vocabulary than {args.model}, so it cannot be its base; name the base with --base"
        )
    texts, source = held_out_texts(args.held_out)
    prompts, prompts_source = held_out_texts(args.prompts) if args.prompts else (texts, source)
    facts = model_facts(args, subject, source) | {
        "base": name,
        "base_hash": weights_hash(name),
        "batch_size": args.batch_size,
        "held_out_source": source,
        "held_out_hash": digest(texts),
        "prompts_source": prompts_source,
        "prompts_hash": digest(prompts),
    }
    wanted = [Asked(str(n), measure, text) for measure in (BASE, TUNED) for n, text in enumerate(texts)]
    wanted += [Asked(str(n), KL, text) for n, text in enumerate(prompts)]
    grew = grown(
        folder,
        facts | {"settings_hash": settings_hash(subject)},
        {(each.id, each.measure): each for each in wanted},
        MEASURED,
        lambda known: _stream(base, subject, texts, prompts, args.batch_size, frozenset(known)),
        lambda number, result: wanted[number]._asdict() | {"nats": result[0], "tokens": result[1]},
        afresh=args.overwrite,
    )
    score, lines = score_of(grew.records)
    score |= facts | {"data_hash": digest([texts, prompts]), "resumed": grew.resumed, "seconds": grew.seconds}
    (folder / SCORE).unlink(missing_ok=True)
    write_lines(folder / SCORED, lines)
    write_record(folder / SCORE, score, (LOSSES, SCORED))
    low, high = score["interval"]
    print(
        f"forgetting {score['score']:+.4f} nats a token (95% {low:+.4f} to {high:+.4f}; loss {score['loss_before']:.4f} before, "
        f"{score['loss_after']:.4f} after, {score['n']:,} texts), KL to the base {score['kl_to_base']['score']:.4f} → {folder / SCORE}"
    )
    return 0


def _stream(
    base, subject: Subject, texts: Sequence[str], prompts: Sequence[str], batch_size: int, known: Collection[int]
) -> Iterator[tuple[int, tuple[float, int]]]:
    """(number of a line, its result) of the lines that are not `known`: the losses of both models, then the KL."""
    model, tokenizer, count = subject.model, subject.tokenizer, len(texts)
    ids, ids_of_prompts = encode(tokenizer, texts, base.config), encode(tokenizer, prompts, base.config)

    def found():
        for place, each in enumerate((base, model)):
            done = {number - place * count for number in known}
            for number, result in losses(each, tokenizer, texts, ids, batch_size, done):
                yield place * count + number, result
        done = {number - 2 * count for number in known}
        for number, result in divergences(base, model, tokenizer, ids_of_prompts, batch_size, done):
            yield 2 * count + number, result

    return found()


def score_of(records: Sequence[dict]) -> tuple[dict, list[dict]]:
    """(score.json, the lines of scored.jsonl) from the lines of losses.jsonl."""
    columns = {measure: [each for each in records if each["measure"] == measure] for measure in (BASE, TUNED, KL)}
    before, after, kl = (np.array([each["nats"] for each in column]) for column in columns.values())
    tokens, tokens_of_prompts = (np.array([each["tokens"] for each in columns[measure]]) for measure in (BASE, KL))
    score = {
        "benchmark": BENCHMARK,
        "metric": "forgetting",
        **per_token(after - before, tokens),
        "loss_before": float(before.sum() / tokens.sum()),
        "loss_after": float(after.sum() / tokens.sum()),
        "kl_to_base": per_token(kl, tokens_of_prompts),
        "item_measure": "loss_change",
        "protocol": "peft-3419",
        "protocol_version": VERSION,
    }
    change = (after - before) / tokens
    lines = [
        {"id": number, "loss_change": value, "tokens": int(n)}
        for number, (value, n) in enumerate(zip(change.tolist(), tokens, strict=True))
    ]
    return score, lines


def per_token(sums: np.ndarray, tokens: np.ndarray) -> dict:
    """The mean per token of sums over texts, with the bootstrap over texts of this ratio."""
    share = tokens / tokens.mean()
    both = resampled_means(np.stack([sums / tokens.mean(), share]).T)  # (resamples, 2)
    drawn = both[:, 0] / both[:, 1]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "score": float(sums.sum() / tokens.sum()),
        "stderr": float(drawn.std(ddof=1)),
        "interval": [float(low), float(high)],
        "n": len(sums),
        "tokens": int(tokens.sum()),
    }


def encode(tokenizer, texts: Sequence[str], config=None) -> list[Encoded]:
    """Token ids of texts, cut at MAX_LENGTH, each predicted from its second token on.

    Raises UserError for a text of one token, and for one that is longer than the model of this config.
    """
    from ba_lora.inference.likelihoods import positions_of

    made = [Encoded(tuple(ids_of(tokenizer, text)[:MAX_LENGTH]), 1) for text in texts]
    for number, (each, text) in enumerate(zip(made, texts, strict=True), 1):
        if len(each.ids) < 2:
            raise UserError(f"text {number}, {text[:40]!r}, has one token, so nothing is predicted; leave it out")
        check_length(each, Pair("", text, f"text {number}"), positions_of(config) if config else None)
    return made


def losses(
    model, tokenizer, texts: Sequence[str], encoded: Sequence[Encoded], batch_size: int, done: Collection[int] = ()
) -> Iterator[tuple[int, tuple[float, int]]]:
    """(number of a text, (the sum of its negative log-probabilities, its number of predicted tokens)) of all that are not `done`."""
    from ba_lora.inference.likelihoods import of_ids

    pairs = [Pair("", text, f"text {number}") for number, text in enumerate(texts, 1)]
    for number, found in of_ids(pairs, encoded, model=model, pad=_pad(tokenizer), batch_size=batch_size, done=done):
        yield number, (-found.logprob, found.tokens)


def divergences(
    base, model, tokenizer, encoded: Sequence[Encoded], batch_size: int, done: Collection[int] = ()
) -> Iterator[tuple[int, tuple[float, int]]]:
    """(number of a text, (the sum over its predicted tokens of KL(base ‖ model), their number)) of all that are not `done`."""
    import torch

    from ba_lora.inference.likelihoods import LOGITS, padded, width_of
    from ba_lora.modes import evaluating

    done, groups, width = frozenset(done), twins_of(encoded), 2 * width_of(base.config)
    with evaluating(base), evaluating(model):
        for rows in batches(encoded, batch_size, width, LOGITS, done):
            ids, mask = padded([encoded[row] for row in rows], _pad(tokenizer), next(base.parameters()).device)
            with torch.inference_mode():
                logs = [
                    each(input_ids=ids, attention_mask=mask, use_cache=False).logits.double().log_softmax(-1)
                    for each in (base, model)
                ]
                sums = ((logs[0].exp() * (logs[0] - logs[1])).sum(-1) * mask).sum(-1).tolist()
            for first, nats in zip(rows, sums, strict=True):
                for number in groups[first]:
                    if number not in done:
                        yield number, (nats, len(encoded[number].ids) - 1)


def _pad(tokenizer) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


if __name__ == "__main__":
    run_cli(main)
