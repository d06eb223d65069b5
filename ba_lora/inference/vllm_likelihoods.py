"""Log-likelihoods with vLLM's offline engine: the log-probabilities that it gives for the tokens of a prompt."""

from collections.abc import Collection, Iterator, Sequence

from .likelihoods import likelihood
from .pairs import Likelihood, Pair, check_length, encode_pair
from .subject import Subject
from .vllm_engine import engine_of, gather


def vllm_likelihoods(
    args, subject: Subject, pairs: Sequence[Pair], done: Collection[int] = ()
) -> Iterator[tuple[int, Likelihood]]:
    """(number of a pair, its log-likelihood), as they are computed; see `likelihoods.likelihoods`.

    args: the options of a command that opens the engine. vLLM generates a token after each text, which takes one more position. An adapter
    is merged: vLLM 0.32 fails on the log-probabilities of a prompt that is served with LoRA.
    """
    encoded = [encode_pair(subject.tokenizer, pair) for pair in pairs]
    engine = engine_of(args, subject, merged=True)
    for each, pair in zip(encoded, pairs, strict=True):
        check_length(each, pair, engine.positions - 2)
    return _answers(engine, pairs, encoded, frozenset(done))


def _answers(engine, pairs, encoded, done) -> Iterator[tuple[int, Likelihood]]:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = SamplingParams(
        temperature=0.0, max_tokens=1, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False
    )

    async def ask(number: int) -> tuple[int, Likelihood]:
        each, name = encoded[number], f"{id(encoded)}-{number}"
        prompt = {"prompt_token_ids": list(each.ids)}
        async for output in engine.engine.generate(prompt, params, name, lora_request=engine.adapter):
            given = (
                output.prompt_logprobs
            )  # of each token of the prompt: {token: its log-probability}; None for the first
        values = [given[place][token].logprob for place, token in enumerate(each.ids) if place >= each.start]
        return number, likelihood(pairs[number], each, sum(values))

    return gather(engine, [ask(number) for number in range(len(pairs)) if number not in done])
