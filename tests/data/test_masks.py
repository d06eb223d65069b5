"""On real tokenizers: the trained tokens decode to exactly the assistants' texts, each with the token that ends it."""

import random

import pytest

from ba_lora.data.instruction import IGNORED, decode_after, encode_conversations, encode_prompt, encode_sample
from ba_lora.data.templates import Template, make_template
from tests.data.tokenizers_for_tests import FAST, SLOW, open_tokenizer

# Common kinds of templates: text unchanged; text trimmed, no system role; blanks around the answer; no end token.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SPACED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }} {{ eos_token }}"
    "{% else %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
ENDLESS = (
    "{% for m in messages %}{{ m['role'] | upper }}:\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:\n{% endif %}"
)
WORDS = (
    [
        "hello",
        "The answer is: 9",
        "12345",
        "3.14",
        "naïve",
        "数学",
        "🙂👩‍🔬",
        "Ünïcödé",
        "don't",
        "it's",
        "…",
        "\u00a0",
        "a\tb",
    ]
    + [
        "def f(x):\n    return x",
        "\n\n",
        "\n",
        "  ",
        "    indented",
        "<b>",
        "{instruction}",
        "{{ x }}",
        "### Response:",
        "[INST]",
    ]
    + ["\\boxed{4}", "!!", "''", "é", "e\u0301", "한국어", "العربية", "x" * 40]
)


def conversations(count, seed=0, system=True):
    """Conversations of 1 to 4 exchanges, with unicode, code, digits, and blanks at either end; some with a system message,
    perhaps empty."""
    chance = random.Random(seed)

    def text(blank=True):
        words = [chance.choice(WORDS) for _ in range(chance.randint(1, 8))]
        body = (
            chance.choice(["", " ", "\n"]) + chance.choice([" ", "", "\n"]).join(words) + chance.choice(["", " ", "\n"])
        )
        return body if blank or body.strip() else body + "x"

    for _ in range(count):
        messages = (
            [{"role": "system", "content": chance.choice(["", text()])}] if system and chance.random() < 0.4 else []
        )
        for _ in range(chance.randint(1, 4)):
            messages += [{"role": "user", "content": text()}, {"role": "assistant", "content": text(blank=False)}]
        yield messages


def trained_texts(tokenizer, sample):
    """The text of each trained stretch, decoded in place."""
    ids, texts, start = sample["input_ids"], [], None
    for place, label in enumerate([*sample["labels"], IGNORED]):
        if label == IGNORED and start is not None:
            texts.append(decode_after(tokenizer, ids[:start], ids[start:place]))
            start = None
        elif label != IGNORED:
            assert label == ids[place]
            start = place if start is None else start
    return texts


def answers(messages):
    return [message["content"] for message in messages if message["role"] == "assistant"]


def check(tokenizer, template, system=True, trimmed=False, count=200):
    many = list(conversations(count, system=system))
    samples, report = encode_conversations(tokenizer, template, many, 100_000)
    assert report["kept"] == count and report["truncated"] == 0
    for messages, sample in zip(many, samples, strict=True):
        texts = [text.strip() if trimmed else text for text in answers(messages)]
        assert trained_texts(tokenizer, sample) == [template.separator + text + template.end for text in texts]
        for turn, message in enumerate(messages):  # the trained ids follow exactly the ids that an evaluation sends
            if message["role"] == "assistant":
                prompt = encode_prompt(tokenizer, template, messages[:turn])
                assert sample["input_ids"][: len(prompt)] == prompt
                assert sample["labels"][len(prompt) - 1] == IGNORED != sample["labels"][len(prompt)]


def cases(names):
    return [(name, template) for name in names for template in ("alpaca", "plain")]


@pytest.mark.parametrize(("name", "template"), cases(FAST))
def test_trained_tokens_decode_to_the_answers_and_their_ends(name, template):
    tokenizer = open_tokenizer(name)
    check(tokenizer, make_template(template, tokenizer))


def test_trained_tokens_decode_to_the_answers_and_their_ends_with_smollm2s_own_chat_template():
    tokenizer = open_tokenizer("smollm2")
    template = make_template("chat", tokenizer)
    assert (template.end, template.separator, template.opening) == ("<|im_end|>", "", "")
    check(tokenizer, template)


@pytest.mark.parametrize("name", ["embedded", "gpt2", "sentencepiece"])
@pytest.mark.parametrize(
    ("text", "separator", "trimmed", "system"),
    [(SPACED, " ", False, True), (ENDLESS, "", False, True), (TRIMMING, "", True, False), (CHATML, "", False, True)],
    ids=["blanks around the answer", "no end token", "trimming", "chatml"],
)
def test_trained_tokens_decode_to_the_answers_and_their_ends_with_chat_templates_of_every_kind(
    name, text, separator, trimmed, system
):
    from copy import deepcopy

    tokenizer = deepcopy(open_tokenizer(name))
    if text in (CHATML, TRIMMING):
        tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"], special_tokens=True)
    tokenizer.chat_template = text
    template = make_template("chat", tokenizer)
    assert template.separator == separator
    check(tokenizer, template, system, trimmed, count=60)


@pytest.mark.slow
@pytest.mark.parametrize("template", ["alpaca", "plain", "chat"])
@pytest.mark.parametrize("name", SLOW)
def test_trained_tokens_decode_to_the_answers_and_their_ends_with_gemma(name, template):
    tokenizer = open_tokenizer(name)
    tokenizer.chat_template = TRIMMING
    made = make_template(template, tokenizer)
    assert template != "chat" or made.end == "<end_of_turn>"
    check(tokenizer, made, system=template != "chat", trimmed=template == "chat")


def test_a_chat_prompt_has_the_ids_of_transformers_own_rendering():
    """First questions only: later, encoding the whole text may merge across the border of two messages, which our code never
    does."""
    tokenizer = open_tokenizer("smollm2")
    template = make_template("chat", tokenizer)
    for messages in conversations(50):
        first = messages[: 2 if messages[0]["role"] == "system" else 1]
        theirs = tokenizer.apply_chat_template(first, add_generation_prompt=True, return_dict=False)
        assert encode_prompt(tokenizer, template, first) == theirs
        whole = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        assert tokenizer.decode(encode_prompt(tokenizer, template, messages[:-1])) == whole


def test_a_sentencepiece_answer_keeps_its_leading_blank_where_it_stands():
    """A leading blank is dropped if the answer is decoded without the ids before it: the decoder takes it for the one that
    SentencePiece puts before every text. Completions are therefore decoded behind their prompt."""
    tokenizer = open_tokenizer("sentencepiece")
    template = Template("plain", "{instruction}:", "", end="</s>")
    for text in ("hello", " hello", "    return x", "\n  x"):
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        sample = encode_sample(tokenizer, template, messages, 100)
        prompt = encode_prompt(tokenizer, template, "q")
        ids = sample["input_ids"][len(prompt) : -1]
        assert decode_after(tokenizer, prompt, ids) == text
        assert tokenizer.decode(ids) == text.removeprefix(" ")
