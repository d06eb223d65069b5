"""The `openai` backend: any endpoint with OpenAI's completions interface, with concurrent requests.

Prompts are sent as token ids (vLLM's server takes and returns them, so that text and ends match the other backends) or, with
--send text, as plain text for endpoints that accept nothing else; those add their own beginning-of-sequence token.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from ..data.templates import end_id
from ..errors import UserError, redacted
from .completions import Completion, cut_at, end_ids, finish, room
from .requests import Job, Sampling
from .subject import Subject

RETRIES = 8  # after connection errors and statuses 408, 409, 429 and 5xx, with growing pauses: about a minute in all
TIMEOUT = 600  # seconds for one completion
STOPS = 4  # OpenAI's limit; the others are searched for in the answer


def complete(args, subject: Subject, jobs: Sequence[Job], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
    """A backend; see `backends.get_backend`. --batch_size is the number of concurrent requests."""
    import openai

    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = openai.OpenAI(base_url=args.base_url, api_key=key, max_retries=RETRIES, timeout=TIMEOUT)
    model, positions = _served(client, args)
    ends = end_ids(subject.tokenizer, end_id(subject.tokenizer, subject.template), sampling.stop)
    rooms = [room(job.ids, args.max_new_tokens, positions) for job in jobs]

    def ask(number: int) -> Completion:
        job = jobs[number]
        options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": job.seed}
        options |= {"model": model, "max_tokens": rooms[number], "stop": list(sampling.stop) or None}
        if args.send == "text":
            options["stop"] = list(sampling.stop[:STOPS]) or None
            return _completion_of_text(client.completions.create(prompt=job.text, **options), sampling.stop)
        extra = {"stop_token_ids": ends, "ignore_eos": True, "return_token_ids": True}
        extra |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # instead of the model's generation_config
        answer = client.completions.create(prompt=list(job.ids), extra_body=extra, **options)
        tokens = getattr(answer.choices[0], "token_ids", None)
        if not tokens:
            return _completion_of_text(answer, sampling.stop)
        return finish(subject.tokenizer, job.ids, tokens, ends, sampling.stop)

    return _concurrently(ask, len(jobs), args)


def _concurrently(ask, count: int, args) -> Iterator[tuple[int, Completion]]:
    with ThreadPoolExecutor(min(args.batch_size, count)) as pool:
        futures = {pool.submit(ask, number): number for number in range(count)}
        try:
            for future in as_completed(futures):
                yield futures[future], _result(future, args)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _result(future, args) -> Completion:
    import openai

    try:
        return future.result()
    except openai.OpenAIError as error:
        raise _refused(error, args) from None


def _served(client, args) -> tuple[str, int | None]:
    """(the model's name at the endpoint, its positions if the endpoint gives them). Raises UserError if the model is not there."""
    import openai

    try:
        there = {model.id: model for model in client.models.list()}
    except openai.NotFoundError:  # an endpoint without a model list
        there = {}
    except openai.OpenAIError as error:
        raise _refused(error, args) from None
    name = args.served_model or (next(iter(there)) if len(there) == 1 else None)
    if name is None or (there and name not in there):
        raise UserError(
            f"--served_model is {name or 'not given'}; the endpoint {args.base_url} has: {', '.join(there) or 'no list of models'}"
        )
    return name, getattr(there.get(name), "max_model_len", None)


def _completion_of_text(answer, stop: Sequence[str]) -> Completion:
    choice = answer.choices[0]
    text = (choice.text or "").encode("utf-8", "replace").decode()
    place = cut_at(text, stop)
    tokens = answer.usage.completion_tokens if answer.usage else 0
    ended = place is not None or choice.finish_reason == "stop"
    return Completion(text[:place], "stop" if ended else "length", tokens)


def _refused(error: Exception, args) -> UserError:
    reason = " ".join(redacted(str(error)).split())[:300]  # before it is cut, which could leave half a key
    remedy = "see that it runs and takes the key in OPENAI_API_KEY, then run the same command again: it continues where it stopped"
    return UserError(f"--base_url {args.base_url}: {type(error).__name__}: {reason}; {remedy}")
