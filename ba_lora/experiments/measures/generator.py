"""Measures a generator beside its training: answers, forgetting, distance from the base."""

import torch
from torch.nn.functional import cross_entropy, log_softmax

from ...data.collator import PadRight, counted
from ...data.formats import exchange
from ...data.instruction import IGNORED, encode_sample
from ...data.templates import default_template, make_template, template_of
from ...data.tinymath import generate, plain_text
from ...files import write_sealed
from ...folders.checksums import weights_of_run
from ...inference.requests import make_request
from ...inference.subject import Subject
from ...laboratory.names import parse
from ...methods.save import load
from ...models import load_model, load_tokenizer
from ..matrix import Evaluation, Run
from .planted import measure_planted
from .spectra import logits_spectrum, update_spectra

TEXTS = 200  # held-out pre-training texts for the loss
KL_PROBLEMS = 200  # test problems with worked responses, for the KL to the base
SPECTRUM_PROBLEMS = 50  # the first of these, for the singular values of the logits
MAX_NEW_TOKENS = 96  # twice the longest worked response


def measure(run: Run, evaluations: list[Evaluation], extra: dict, report=lambda fraction: None) -> dict:
    """Measure a finished run (or the base model), write its measures.json and eval/NAME/, and return the measures.

    extra: figures of the training (seconds, peak memory, trained parameters). report: called with the fraction done.
    """
    from eval import gsm8k
    from eval.harness.ask import complete
    from eval.harness.lines import write_lines
    from eval.harness.scores import GENERATIONS, write_score

    tokenizer = load_tokenizer(run.model)
    base = load_model(run.model)
    model = load(run.folder, load_model(run.model)) if run.arguments else base
    template = template_of(run.folder) or make_template(default_template(run.model), tokenizer)
    subject = Subject(model, tokenizer, template, base=run.model, weights=run.model, adapter=None)
    weights = weights_of_run(run.folder) if run.arguments else None
    scores = {}
    for number, evaluation in enumerate(evaluations):
        folder = run.folder / "eval" / evaluation.name
        problems = gsm8k.load_problems(evaluation.data, evaluation.limit)
        requests = [make_request(subject, each["id"], each["question"], each["reference"]) for each in problems]
        records = complete(subject, requests, max_new_tokens=MAX_NEW_TOKENS, batch_size=128)
        statistics, lines = gsm8k.score_records(records, benchmark=gsm8k.name_of(evaluation.data))
        folder.mkdir(parents=True, exist_ok=True)
        write_lines(folder / GENERATIONS, records)
        scored = [{name: line[name] for name in ("id", "correct")} for line in lines]
        facts = {"model": str(run.folder), "base": run.model, "template": template.name, "data": evaluation.data} | {
            "weights": weights
        }
        write_score(folder, {"benchmark": evaluation.name, "metric": "accuracy", **statistics}, facts, scored)
        scores[evaluation.name] = statistics["score"]
        report((number + 1) / (len(evaluations) + 1))
    measures = {
        "method": run.method,
        "seed": run.seed,
        **run.measured_with(evaluations),
        "scores": scores,
        "weights": weights,
        **extra,
    }
    if twin := parse(run.model):
        measures["planted"] = measure_planted(run, twin, base, model, tokenizer)
    if not run.is_trial:
        measures |= _distances(run, base, model, tokenizer, template)
    write_sealed(run.folder / "measures.json", measures)
    report(1.0)
    return measures


def _distances(run: Run, base, model, tokenizer, template) -> dict:
    """Return how far the model has moved from the base: its loss on pre-training text, its KL, its spectra."""
    problems = generate("test", KL_PROBLEMS)
    exchanges = [exchange(item["question"], item["answer"]) for item in problems]
    samples = [encode_sample(tokenizer, template, conversation, max_length=512) for conversation in exchanges]
    collator, some = PadRight(tokenizer), samples[:SPECTRUM_PROBLEMS]
    distances = {
        "text_loss": text_loss(model, tokenizer, plain_text("pretrain-test", TEXTS)),
        "kl_to_base": kl_to_base(base, model, collator, samples),
    }
    logits = {name: logits_spectrum(each, collator, some) for name, each in (("base", base), ("tuned", model))}
    return distances | {"spectra": {"logits": logits} | (update_spectra(base, model) if run.arguments else {})}


@torch.inference_mode()
def text_loss(model, tokenizer, texts: list[str], batch_size: int = 50) -> float:
    """Return the mean negative log-likelihood of the texts and their end token, in nats per token."""
    samples = []
    for text in texts:
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        samples.append({"input_ids": ids, "labels": ids})
    total, count = 0.0, 0
    for start in range(0, len(samples), batch_size):
        batch = PadRight(tokenizer)(samples[start : start + batch_size])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        targets = batch["labels"][:, 1:]
        total += cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum").item()
        count += int(counted(batch["labels"]).sum())
    return total / count


@torch.inference_mode()
def kl_to_base(base, model, collator, samples: list[dict], batch_size: int = 50) -> float:
    """Return the mean KL(base ‖ model) over the response tokens of `samples`, in nats per token."""
    total, count = 0.0, 0
    for start in range(0, len(samples), batch_size):
        batch = collator(samples[start : start + batch_size])
        mask, inputs = counted(batch["labels"]), {key: batch[key] for key in ("input_ids", "attention_mask")}
        before = log_softmax(base(**inputs).logits[:, :-1][mask].float(), -1)  # (N, V)
        after = log_softmax(model(**inputs).logits[:, :-1][mask].float(), -1)
        total += (before.exp() * (before - after)).sum().item()
        count += int(mask.sum())
    return total / count
