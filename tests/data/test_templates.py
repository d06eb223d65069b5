"""Templates: the known ones, the requirements on a tokenizer's own template, and reading one back from a run's record."""

from copy import deepcopy

import pytest

from ba_lora.data.formats import exchange, question
from ba_lora.data.instruction import encode_prompt, encode_sample
from ba_lora.data.templates import TEMPLATES, Template, default_template, end_id, make_template, template_of, turns
from ba_lora.errors import UserError
from ba_lora.files import write_json

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be kind."}


def with_chat(tokenizer, text):
    tokenizer = deepcopy(tokenizer)
    tokenizer.chat_template = text
    return tokenizer, make_template("chat", tokenizer)


def test_the_recorded_template_is_found_from_run_and_adapter_folder(tmp_path):
    write_json(tmp_path / "run.json", {"template": {"name": "x", "prompt": "<{instruction}>", "separator": "|"}})
    (tmp_path / "adapter").mkdir()
    assert template_of(tmp_path) == template_of(tmp_path / "adapter")
    assert template_of(tmp_path).render("hi") == "<hi>"
    assert template_of(tmp_path / "adapter" / "elsewhere" / "deep") is None


def test_a_record_of_an_older_version_asks_as_it_did(tmp_path, tiny_tokenizer):
    old = {name: getattr(TEMPLATES["plain"], name) for name in ("name", "prompt", "separator")}
    write_json(tmp_path / "run.json", {"template": old})
    recorded, made = template_of(tmp_path), make_template("plain", tiny_tokenizer)
    assert encode_prompt(tiny_tokenizer, recorded, "q") == encode_prompt(tiny_tokenizer, made, "q")
    assert end_id(tiny_tokenizer, recorded) == end_id(tiny_tokenizer, made) == tiny_tokenizer.eos_token_id
    assert recorded.render_later("q") == made.render_later("q")


def test_a_chat_template_is_recorded_whole_and_used_whatever_the_tokenizer_has_become(tmp_path, tiny_tokenizer):
    tokenizer, template = with_chat(tiny_tokenizer, CHATML)
    assert (template.prompt, template.end, template.separator) == (CHATML, "</s>", "")
    write_json(tmp_path / "run.json", {"template": vars(template)})
    before = encode_prompt(tokenizer, template, "q")
    tokenizer.chat_template = "something else"
    assert template_of(tmp_path) == template
    assert encode_prompt(tokenizer, template_of(tmp_path), "q") == before
    assert tokenizer.decode(before) == "<|user|>q</s>\n<|assistant|>"


def test_every_model_has_a_default_template():
    assert default_template("tiny") == "plain" and default_template("anything/else") == "alpaca"


def test_a_beginning_token_that_the_template_writes_stands_once(tiny_tokenizer):
    tokenizer, template = with_chat(tiny_tokenizer, "{{ bos_token }}" + CHATML)
    ids = encode_sample(tokenizer, template, exchange("q", "a"), 100)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


def test_what_a_template_writes_before_every_answer_is_context(tiny_tokenizer):
    thinking = CHATML.replace(
        "{{ m['content'] }}", "{{ '<think></think>' if m['role'] == 'assistant' }}{{ m['content'] }}"
    )
    tokenizer, template = with_chat(tiny_tokenizer, thinking)
    assert template.opening == "<think></think>"
    assert turns(template, tokenizer, exchange("q", "a")) == ["<|user|>q</s>\n<|assistant|><think></think>", "a"]


def test_a_template_that_asks_for_the_date_gets_a_fixed_one(tiny_tokenizer):
    dated = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML
    tokenizer, template = with_chat(tiny_tokenizer, dated)
    assert turns(template, tokenizer, question("q")) == ["26 Jul 2024<|user|>q</s>\n<|assistant|>"]


def test_a_tokenizer_without_a_chat_template_is_refused(tiny_tokenizer):
    with pytest.raises(UserError, match="this tokenizer has no chat template; use --template alpaca"):
        make_template("chat", tiny_tokenizer)


def test_an_unknown_template_is_named_with_its_nearest(tiny_tokenizer):
    with pytest.raises(UserError, match="template 'alpacca' is not known, did you mean 'alpaca'"):
        make_template("alpacca", tiny_tokenizer)


def test_an_end_that_the_tokenizer_does_not_know_is_refused(tiny_tokenizer):
    with pytest.raises(UserError, match=r"ends an answer with '<\|im_end\|>', which this tokenizer does not know"):
        end_id(tiny_tokenizer, Template("chat", CHATML, "", end="<|im_end|>"))


REFUSED = [
    ("{{ raise_exception('never') }}", exchange("q", "a"), r"refuses a conversation of user \(never\)"),
    (CHATML.replace("{% for", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for", 1),
     [SYSTEM, *exchange("q", "a")], r"refuses a conversation of system, user \(no system\)"),
    (CHATML.replace("in messages", "in messages if m['role'] != 'system'"), [SYSTEM, *exchange("q", "a")], "leaves the system message out"),
    (CHATML.replace("m['content']", "m['content'] | upper"), exchange("q", "a"), "does not write an answer's text behind"),
    (CHATML.replace("m['content']", "m['content'] | replace('x', 'y')"), exchange("q", "x"), "does not give the text of an answer"),
    (CHATML.replace("</s>", "<|im_end|>"), exchange("q", "a"), r"ends an answer with '<\|im_end\|>', which is not a token of this tokenizer"),
    (CHATML.replace("m['content']", "m['content'] if loop.last or m['role'] == 'user' else '...'"), exchange("q", "a") * 2, "rewrites earlier turns"),
    ("{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}",
     exchange("q", "a"), "does not write an answer's text behind"),
    ("{% if %}", exchange("q", "a"), "refuses a conversation of user"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "messages", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_a_chat_template_that_cannot_be_trained_on_is_refused_in_one_line(tiny_tokenizer, text, messages, message):
    with pytest.raises(UserError, match=message) as error:
        tokenizer, template = with_chat(tiny_tokenizer, text)
        encode_sample(tokenizer, template, messages, 100)
    assert "\n" not in str(error.value) and "use --template alpaca" in str(error.value)
