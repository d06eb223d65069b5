"""What a fine-tuned model has kept of its base, on texts that it was not tuned on. Both models are open at once.

forgetting      the loss after tuning minus the loss of the base, as PEFT's method comparison defines it since its pull request 3419: mean nats per
                token over all tokens of all texts, each token against the logits before it, texts cut at 768 tokens. The first token counts only if the
                tokenizer puts one before it. The base is the model that was there before: never the tuned one with its adapter switched off,
                which for PiSSA is what the factors left over.
kl_to_base      mean KL(base ‖ tuned) over the same tokens of the prompts (--prompts; default: the same texts), nats per token

Both with a standard error and a 95% interval by a bootstrap over texts. Benchmarks before and after: evaluate base and run, then
python -m eval.compare BASE RUN.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ba_lora.errors import Parser, UserError, run_cli
from ba_lora.files import digest
from ba_lora.folders.checksums import weights_of_run, write_record
from ba_lora.folders.ownership import claimed
from ba_lora.inference.pairs import Encoded, Pair, batches, twins_of

from .choices.ability import held_out_texts
from .harness.lines import write_lines
from .harness.options import check_models
from .harness.paired import resampled_means
from .harness.scores import SCORE, SCORED

MAX_LENGTH = 768  # tokens of a text, as in PEFT's method comparison
BENCHMARK, VERSION = "retention", "1"

EXAMPLES = """\
examples:
  a training run, on 200 sentences of Wikipedia that a registry package carries
    python -m eval.retention --model runs/ba-lora --output_dir runs/ba-lora/eval/retention
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
    add("--output_dir", metavar="D", help=f"folder for {SCORED} and {SCORE}")
    add("--overwrite", action="store_true", help="replace the results there")
    add("--batch_size", type=int, default=16, help="texts computed at once (default: %(default)s)")
    add("--dtype", default="float32", help="float32, bfloat16, float16, or auto: as saved (default: %(default)s)")
    add("--trust_remote_code", action="store_true", help="run Python code that comes with the model; read it first")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0 when everything is written; raises UserError otherwise."""
    args = make_parser().parse_args(argv)
    if not args.model or not args.output_dir:
        raise UserError("give --model RUN, what was tuned, and --output_dir D, the folder for the results")
    if args.batch_size < 1:
        raise UserError(f"--batch_size is {args.batch_size}; it must be at least 1")
    check_models(args.model, args.adapter)
    for option in ("held_out", "prompts"):
        file = getattr(args, option)
        if file and not Path(file).is_file():
            raise UserError(f"--{option} {file} does not exist; give a file of texts")
    with claimed(Path(args.output_dir), "evaluation"):
        if (Path(args.output_dir) / SCORE).exists() and not args.overwrite:
            raise UserError(
                f"--output_dir {args.output_dir} already holds {SCORE}; add --overwrite or name another folder"
            )
        return _evaluate(args, Path(args.output_dir))


def _evaluate(args: argparse.Namespace, folder: Path) -> int:
    from ba_lora.inference.likelihoods import width_of
    from ba_lora.inference.subject import find_base, open_subject
    from ba_lora.machine.devices import device
    from ba_lora.models import load_model

    name = args.base or (args.model if args.adapter else find_base(args.model))
    if name == args.model and not args.adapter:
        raise UserError(f"--model {args.model} is no training run, so its base is not known; name it with --base")
    subject = open_subject(args.model, adapter=args.adapter, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    base = load_model(name, args.dtype, trust_remote_code=args.trust_remote_code).to(device())
    texts, source = held_out_texts(args.held_out)
    if width_of(base.config) != width_of(subject.model.config):
        raise UserError(
            f"{name} has another vocabulary than {args.model}, so it cannot be its base; name the base with --base"
        )
    losses = [losses_of(model, subject.tokenizer, texts, args.batch_size) for model in (base, subject.model)]
    prompts, prompts_source = held_out_texts(args.prompts) if args.prompts else (texts, source)
    kl = kl_of(base, subject.model, subject.tokenizer, prompts, args.batch_size)
    (before, tokens), (after, _) = losses
    score = {
        "benchmark": BENCHMARK,
        "metric": "forgetting",
        **per_token(after - before, tokens),
        "loss_before": float(before.sum() / tokens.sum()),
        "loss_after": float(after.sum() / tokens.sum()),
        "kl_to_base": per_token(*kl),
        "protocol": "peft-3419",
        "protocol_version": VERSION,
        "model": args.model,
        "adapter": args.adapter,
        "base": name,
        "weights": weights_of_run(args.adapter or args.model),
        "dtype": args.dtype,
        "held_out_source": source,
        "data_hash": digest([texts, prompts]),
        "prompts_source": prompts_source,
    }
    change = (after - before) / tokens
    lines = [
        {"id": number, "loss_change": value, "tokens": int(n)}
        for number, (value, n) in enumerate(zip(change.tolist(), tokens, strict=True))
    ]
    (folder / SCORE).unlink(missing_ok=True)
    write_lines(folder / SCORED, lines)
    write_record(folder / SCORE, score, (SCORED,))
    low, high = score["interval"]
    print(
        f"forgetting {score['score']:+.4f} nats a token (95% {low:+.4f} to {high:+.4f}; loss {score['loss_before']:.4f} before, "
        f"{score['loss_after']:.4f} after, {score['n']:,} texts), KL to the base {score['kl_to_base']['score']:.4f} → {folder / SCORE}"
    )
    return 0


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


def encode(tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """Token ids of texts, cut at MAX_LENGTH, each predicted from its second token on. Raises UserError for a text of one token."""
    made = [Encoded(tuple(tokenizer(text)["input_ids"][:MAX_LENGTH]), 1) for text in texts]
    for number, each in enumerate(made, 1):
        if len(each.ids) < 2:
            raise UserError(
                f"text {number}, {texts[number - 1][:40]!r}, has one token, so nothing is predicted; leave it out"
            )
    return made


def losses_of(model, tokenizer, texts: Sequence[str], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(sum of the negative log-probabilities of each text, its number of predicted tokens), each (N,)."""
    from ba_lora.inference.likelihoods import of_ids

    encoded = encode(tokenizer, texts)
    pairs = [Pair("", text, f"text {number}") for number, text in enumerate(texts, 1)]
    found = dict(of_ids(pairs, encoded, model=model, pad=_pad(tokenizer), batch_size=batch_size))
    results = [found[number] for number in range(len(texts))]
    return np.array([-each.logprob for each in results]), np.array([each.tokens for each in results])


def kl_of(base, model, tokenizer, texts: Sequence[str], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(sum over the predicted tokens of each text of KL(base ‖ model), their number), each (N,)."""
    import torch

    from ba_lora.inference.likelihoods import LOGITS, padded, width_of
    from ba_lora.modes import evaluating

    encoded, sums = encode(tokenizer, texts), np.zeros(len(texts))
    width = 2 * width_of(base.config)
    with torch.inference_mode(), evaluating(base), evaluating(model):
        for rows in batches(encoded, batch_size, width, LOGITS):
            ids, mask = padded([encoded[row] for row in rows], _pad(tokenizer), next(base.parameters()).device)
            logs = [
                each(input_ids=ids, attention_mask=mask, use_cache=False).logits.double().log_softmax(-1)
                for each in (base, model)
            ]
            each = ((logs[0].exp() * (logs[0] - logs[1])).sum(-1) * mask).sum(-1)
            sums[rows] = each.cpu().numpy()
    for first, numbers in twins_of(encoded).items():
        sums[numbers] = sums[first]
    return sums, np.array([len(each.ids) - 1 for each in encoded])


def _pad(tokenizer) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


if __name__ == "__main__":
    run_cli(main)
