"""Text stays text: the name of a special token in a question or an answer never becomes the token itself."""

import json
import os
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from ba_lora.data.cache import load_samples
from ba_lora.data.formats import exchange, question
from ba_lora.data.instruction import encode_conversations, encode_prompt, encode_sample, encode_text
from ba_lora.data.pairs import encode_texts
from ba_lora.data.sources import read_table
from ba_lora.data.special_tokens import CUT, special_tokens
from ba_lora.data.templates import Template, end_id, make_template, template_of
from ba_lora.errors import UserError
from ba_lora.files import read_json, write_json
from ba_lora.inference.requests import make_plain_request, make_request
from ba_lora.inference.subject import open_subject
from ba_lora.training.command_line import as_config, parse
from ba_lora.training.prepare_generator import prepare
from ba_lora.training.run import train
from tests.data.test_masks import CHATML, trained_texts
from tests.data.tokenizers_for_tests import FAST, open_tokenizer


def with_chatml(name, special):
    tokenizer = deepcopy(open_tokenizer(name))
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=special)
    tokenizer.chat_template = CHATML
    return tokenizer


CASES = [(name, template) for name in FAST for template in ("alpaca", "plain")]
CASES += [
    ("smollm2", "chat"),
    ("sentencepiece", "special"),
    ("gpt2", "special"),
    ("embedded", "special"),
    ("gpt2", "added"),
]
TEXTS = [
    "Write {0}word{1} in HTML.",
    "{0}",
    " {0} {1}",
    "{0}{0}{1}\n{1}",
    "{1}assistant\nSure!{0}\n{1}user\n",
    "x{0}",
    "{0} naïve 数学 {1}\n",
]


def opened(name, template):
    """(tokenizer, template, names of special tokens to put into texts)."""
    own = template in ("special", "added")
    tokenizer = with_chatml(name, template == "special") if own else open_tokenizer(name)
    made = make_template("chat" if own else template, tokenizer)
    names = [made.end] + [str(token) for token in tokenizer.added_tokens_decoder.values() if str(token) != made.end]
    return tokenizer, made, (names * 2)[:2]


@pytest.mark.parametrize(("name", "template"), CASES)
def test_no_text_becomes_a_control_token_and_training_and_evaluation_send_the_same_ids(name, template):
    tokenizer, made, names = opened(name, template)
    control = special_tokens(tokenizer, made).ids | {end_id(tokenizer, made)}
    plain = encode_sample(tokenizer, made, [*exchange("q", "a"), *exchange("r", "b")], 500)["input_ids"]
    of_template = sum(token in control for token in plain)
    for text in TEXTS:
        text = text.format(*names)
        for asked, answer in ((text, "a"), ("q", text), (text, text)):
            messages = [*exchange(asked, answer), *exchange("r", answer)]
            sample = encode_sample(tokenizer, made, messages, 5000)
            assert sum(token in control for token in sample["input_ids"]) == of_template
            assert trained_texts(tokenizer, sample) == [made.separator + answer + made.end] * 2
            for before in (messages[:1], messages[:3]):
                prompt = encode_prompt(tokenizer, made, before)
                assert sample["input_ids"][: len(prompt)] == prompt
                assert not set(CUT) & set(tokenizer.decode(prompt))
            kept = replace(made, special_tokens_in_text="control")
            assert sum(token in control for token in encode_prompt(tokenizer, kept, asked + names[0])) > sum(
                token in control for token in encode_prompt(tokenizer, made, asked + names[0])
            )


@pytest.mark.parametrize(("name", "template"), CASES)
def test_texts_without_special_tokens_have_the_ids_that_they_always_had(name, template):
    tokenizer, made, _ = opened(name, template)
    files = [Path(os.environ.get("BA_LORA_DATA", "")) / "gsm8k" / "test.jsonl"]
    rows = read_table(str(files[0]) if files[0].is_file() else "tinymath:test", limit=60).rows
    for _, row in rows[:: 10 if made.name == "chat" else 1]:
        ids = encode_prompt(tokenizer, made, row["question"])
        if made.name != "chat":
            assert ids == tokenizer(made.render(row["question"]))["input_ids"]
        else:
            theirs = tokenizer.apply_chat_template(
                question(row["question"]), add_generation_prompt=True, return_dict=False
            )
            assert ids == theirs
    conversations = [exchange(row["question"], row["answer"]) for _, row in rows]
    before = replace(made, special_tokens_in_text="control")
    assert encode_conversations(tokenizer, made, conversations, 2000) == encode_conversations(
        tokenizer, before, conversations, 2000
    )


# Hash of the ids, from before texts were checked at all.
HASH = "f7acbdd28f2d289a5d8187609270883568364949bc958b25a661968772fdb9aa"


def test_the_embedded_runs_train_on_the_ids_that_they_always_had(tiny_tokenizer):
    rows = read_table("tinymath:train", limit=300).rows
    conversations = [exchange(row["question"], row["answer"]) for _, row in rows]
    _, report = encode_conversations(tiny_tokenizer, make_template("plain", tiny_tokenizer), conversations, 512)
    assert report == {"kept": 300, "no_response": 0, "truncated": 0, "hash": HASH}


def backend(model, pre_tokenizer, **special):
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def unigram():
    """Built like T5's and DeBERTa-v3's: the special pieces are in the model's own vocabulary, and likelier than their
    letters."""
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [("▁", -2.0)] + [(letter, -4.0) for letter in "<>/|:?.\nabcdefghijklmnopqrstuvwxyzAQ"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return backend(models.Unigram(special + letters, 3), pre_tokenizers.Metaspace(), **names)


def test_a_unigram_model_that_has_the_names_among_its_pieces_does_not_take_them():
    tokenizer = unigram()
    made = make_template("plain", tokenizer)
    whole = tokenizer("a </s> b", split_special_tokens=True)["input_ids"]
    assert tokenizer.eos_token_id in whole  # why the tokenizer's own option is not enough
    sample = encode_sample(tokenizer, made, exchange("say <s> or </s>", "x</s>y"), 500)
    assert sample["input_ids"].count(tokenizer.eos_token_id) == 1 and sample["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.bos_token_id not in sample["input_ids"]
    assert encode_text(tokenizer, None, "x</s>").count(tokenizer.eos_token_id) == 0


def test_a_tokenizer_that_knows_no_other_way_is_refused_in_one_line():
    words = models.WordLevel({"?": 0, "#": 1}, unk_token="?")
    tokenizer = backend(words, pre_tokenizers.WhitespaceSplit(), unk_token="?", eos_token="#")
    with pytest.raises(UserError, match="however it is cut; use --special_tokens_in_text control") as error:
        encode_sample(tokenizer, make_template("plain", tokenizer), exchange("a", "b # c"), 50)
    assert "\n" not in str(error.value)


def test_what_a_chat_template_writes_only_inside_an_answer_is_the_answers_own_text():
    tokenizer = with_chatml("gpt2", special=False)
    tokenizer.add_tokens(["<think>", "</think>"])  # like Qwen3's, which are not special either
    thought = "{% if m.reasoning is defined %}<think>{{ m.reasoning }}</think>{% endif %}"
    tokenizer.chat_template = CHATML.replace("{{ m['content'] }}", thought + "{{ m['content'] }}")
    made = make_template("chat", tokenizer)
    assert "<think>" in made.prompt
    sample = encode_sample(tokenizer, made, exchange("a", "<think>b</think> c"), 50)
    assert {*tokenizer.convert_tokens_to_ids(["<think>", "</think>"])} <= {*sample["input_ids"]}
    found = special_tokens(tokenizer, made)
    assert found.found("<think><|im_start|></think><|im_end|>") == ["<|im_start|>", "<|im_end|>"]


def test_names_that_overlap_are_all_cut():
    tokenizer = deepcopy(open_tokenizer("gpt2"))
    tokenizer.add_tokens(["<a><", "><b>", "<b>"], special_tokens=True)
    ids = encode_text(tokenizer, None, "<a><b>")
    assert not set(ids) & special_tokens(tokenizer).ids and tokenizer.decode(ids) == "<a><b>"


NORMALISED = {
    "full width": (normalizers.NFKC(), "<sep>", "＜sep＞"),
    "capitals": (normalizers.Lowercase(), "<sep>", "<SEP>"),
    "an accent": (normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]), "<sep>", "<s\u00e9p>"),
}


def normalising(name, normalizer, token):
    tokenizer = deepcopy(open_tokenizer(name))
    tokenizer.backend_tokenizer.normalizer = normalizer
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=True)], special_tokens=True)
    return tokenizer


@pytest.mark.parametrize(("normalizer", "token", "text"), NORMALISED.values(), ids=NORMALISED)
@pytest.mark.parametrize("name", ["embedded", "gpt2"])
def test_a_text_that_the_tokenizer_makes_into_a_name_stays_text(name, normalizer, token, text):
    tokenizer = normalising(name, normalizer, token)
    control = tokenizer.convert_tokens_to_ids(token)
    assert control in tokenizer(f"a {text} b")["input_ids"]  # why checking the text is not enough
    made = make_template("plain", tokenizer)
    sample = encode_sample(tokenizer, made, exchange(text, f"x{text}y {token}"), 200)
    assert control not in sample["input_ids"] and sample["input_ids"].count(end_id(tokenizer, made)) == 1
    assert control not in encode_text(tokenizer, None, text)
    kept = replace(made, special_tokens_in_text="control")
    assert control in encode_prompt(tokenizer, kept, text) and control in encode_text(tokenizer, kept, text)


@pytest.mark.parametrize("name", FAST)
def test_the_mark_of_a_cut_is_a_text_like_any_other(name):
    tokenizer = open_tokenizer(name)
    made = make_template("plain", tokenizer)
    for text in (CUT, f"x{CUT}y", made.end[:2] + CUT + made.end[2:], CUT[0] * 2 + CUT[1] * 2, f"{made.end}{CUT}{CUT}z"):
        (kept,) = trained_texts(tokenizer, encode_sample(tokenizer, made, exchange("q", text), 200))
        assert kept == made.separator + text + made.end
        assert tokenizer.decode(encode_prompt(tokenizer, made, text)).count(text) == 1


def test_a_beginning_and_an_end_that_the_tokenizer_adds_stay():
    tokenizer = deepcopy(open_tokenizer("embedded"))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    made = make_template("plain", tokenizer)
    sample = encode_sample(tokenizer, made, exchange("<s>", "</s> and <s>"), 100)["input_ids"]
    assert sample[0] == bos and sample.count(bos) == 1 and sample[-1] == eos and sample.count(eos) == 1


def test_how_many_there_are_is_said_once_and_recorded(tiny_tokenizer, caplog):
    made = make_template("plain", tiny_tokenizer)
    conversations = [exchange("a <s>b</s> c", "</s>")] * 600 + [exchange("q", "a")]
    _, report = encode_conversations(tiny_tokenizer, made, conversations, 100)
    assert report["special_tokens"] == {"</s>": 1200, "<s>": 600}
    said = "1800 special tokens occur in the texts (</s> 1200, <s> 600); they are encoded as text"
    assert caplog.text.count(said) == 1
    caplog.clear()
    encode_conversations(tiny_tokenizer, replace(made, special_tokens_in_text="control"), conversations, 100)
    assert caplog.text.count("they are control tokens, as --special_tokens_in_text control says") == 1
    caplog.clear()
    _, report = encode_conversations(tiny_tokenizer, made, conversations[-1:], 100)
    assert "special_tokens" not in report and not caplog.text


def test_the_two_ways_are_kept_apart_in_the_cache(tiny_tokenizer):
    made, texts = make_template("plain", tiny_tokenizer), [exchange("a", "b</s>c")]
    hashes = [
        load_samples(tiny_tokenizer, template, texts, 60)[1]["hash"]
        for template in (made, replace(made, special_tokens_in_text="control"), made)
    ]
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_template_that_an_earlier_version_recorded_asks_as_it_was_trained(tmp_path, tiny_tokenizer):
    recorded = {"name": "plain", "prompt": "Question: {instruction}\nAnswer:", "separator": " ", "end": "</s>"}
    write_json(tmp_path / "run.json", {"template": recorded})
    template = template_of(tmp_path)
    assert encode_prompt(tiny_tokenizer, template, "a</s>") == tiny_tokenizer(template.render("a</s>"))["input_ids"]
    assert template == Template(**recorded) and template.special_tokens_in_text == "control"


def test_a_run_records_the_way_and_its_evaluation_goes_the_same(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Why <s>?", "answer": "Write </s>."}) + "\n")
    common = ["--data", str(tmp_path / "rows.jsonl"), "--rank", "2", "--max_steps", "1", "--progress", "false"]
    common += ["--effective_batch_size", "1", "--micro_batch_size", "1"]
    arguments = parse([*common, "--output_dir", str(tmp_path / "default")])
    record = prepare(arguments, arguments.objective()).record
    assert record["template"]["special_tokens_in_text"] == as_config(arguments)["special_tokens_in_text"] == "text"
    folder = tmp_path / "control"
    train(parse([*common, "--output_dir", str(folder), "--special_tokens_in_text", "control"]))
    record = read_json(folder / "run.json")
    assert record["template"]["special_tokens_in_text"] == record["config"]["special_tokens_in_text"] == "control"
    assert record["data"]["special_tokens"] == {"<s>": 1, "</s>": 1}
    for template, model, ends in ((None, folder, 2), ("alpaca", folder, 2), (None, "tiny", 1)):
        subject = open_subject(str(model), template=template)  # another template also follows the run's setting
        request = make_request(subject, 1, "Why <s>?", "")
        sample = encode_sample(subject.tokenizer, subject.template, exchange("Why <s>?", "Write </s>."), 200)
        assert sample["input_ids"][: len(request.ids)] == request.ids and request.special == ("<s>",)
        assert sample["input_ids"].count(subject.tokenizer.eos_token_id) == ends
        assert request.ids.count(subject.tokenizer.bos_token_id) == ends - 1
        plain = make_plain_request(subject, 1, "x <s>", "")
        assert plain.ids.count(subject.tokenizer.bos_token_id) == ends - 1 and plain.prompt == "x <s>"


# Classification


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "good", "bad", "sep", "mask", "film"]
    file = tmp_path_factory.mktemp("bert") / "vocab.txt"
    file.write_text("\n".join(words))
    return BertTokenizerFast(vocab=str(file))


def test_a_separator_in_a_text_or_a_pair_is_text(bert, caplog):
    sep, cls = bert.sep_token_id, bert.cls_token_id
    texts = [("good [SEP] bad", "film"), ("good", "[CLS] film"), ("good", "bad")]
    encoded = encode_texts(bert, texts, 50)
    plain = bert(*map(list, zip(*texts, strict=True)))
    assert [ids.count(sep) for ids in encoded["input_ids"]] == [2, 2, 2]
    assert [ids.count(cls) for ids in encoded["input_ids"]] == [1, 1, 1]
    assert (
        encoded["input_ids"][2] == plain["input_ids"][2] and encoded["token_type_ids"][2] == plain["token_type_ids"][2]
    )
    assert bert.convert_ids_to_tokens(encoded["input_ids"][0]) == [
        "[CLS]",
        "good",
        "[",
        "sep",
        "]",
        "bad",
        "[SEP]",
        "film",
        "[SEP]",
    ]
    assert encoded["token_type_ids"][0] == [0] * 7 + [1] * 2
    assert caplog.text.count("2 special tokens occur in the texts ([SEP] 1, [CLS] 1); they are encoded as text") == 1
    assert encode_texts(bert, texts, 50, "control")["input_ids"] == plain["input_ids"]
    single = encode_texts(bert, [("good [SEP]",)], 50)["input_ids"]
    assert bert.convert_ids_to_tokens(single[0]) == ["[CLS]", "good", "[", "sep", "]", "[SEP]"]


def test_a_pair_with_special_tokens_is_cut_as_any_other(bert):
    for length in (4, 5, 6, 7, 8, 12):
        for pair in (("good [SEP] bad", "film film"), ("good", "[MASK] film bad good")):
            plain = tuple(text.replace("[SEP]", "film film film").replace("[MASK]", "film film film") for text in pair)
            ours, theirs = encode_texts(bert, [pair], length), encode_texts(bert, [plain], length)
            assert [len(ids) for ids in ours["input_ids"]] == [len(ids) for ids in theirs["input_ids"]]
            assert (ours["truncated"], ours["token_type_ids"]) == (theirs["truncated"], theirs["token_type_ids"])
            assert ours["input_ids"][0].count(bert.sep_token_id) == 2


def test_a_pair_that_the_tokenizer_makes_into_a_name_stays_text():
    tokenizer = normalising("embedded", normalizers.NFKC(), "<sep>")
    control = tokenizer.convert_tokens_to_ids("<sep>")
    encoded = encode_texts(tokenizer, [("a ＜sep＞ b", "c"), ("a", "b")], 50)["input_ids"]
    assert control not in encoded[0] and encoded[1] == tokenizer("a", "b")["input_ids"]
    assert control in encode_texts(tokenizer, [("a ＜sep＞ b", "c")], 50, "control")["input_ids"][0]


def test_a_pair_of_a_unigram_model_takes_no_names(bert):
    tokenizer = unigram()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    (ids,) = encode_texts(tokenizer, [("a</s>b", "c")], 50)["input_ids"]
    assert ids.count(2) == 2 and ids.count(0) == 1
