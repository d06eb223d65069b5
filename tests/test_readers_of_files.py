"""The readers of YAML, JSON and JSON lines, and messages that hold anything: always one line with file, place and value."""

import pytest

from ba_lora.errors import UserError, redacted, run_cli, short
from ba_lora.files import check_kinds, parse_json, read_json, read_json_lines, read_yaml
from ba_lora.training.command_line import config_words, parse

YAML = {  # text or bytes → what the message says beside the file
    "seed: [": "not valid YAML",
    b"\xff\xfes\x00": "not UTF-8 text; convert",
    "seed: 1\nseed: 2\n": "'seed' is there twice",
    "seed: " + "9" * 5000: "more than 4300 digits",
    "day: 2021-13-45": "put it in quotes",
    "seed: !!float x": "put it in quotes",
    "seed: " + "[" * 200 + "]" * 200: "nested more than 100 deep",
    "seed: " + "[" * 100_000: "nested more than 100 deep",
    "fields: &all [*all]": "'all' contains itself",
    "seed: !!python/name:os.system x": "could not determine a constructor",
}


@pytest.mark.parametrize("content", YAML, ids=lambda content: repr(content[:16]))
def test_yaml_that_cannot_be_read_is_named(tmp_path, content):
    file = tmp_path / "c.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for read in (read_yaml, config_words):
        with pytest.raises(UserError) as caught:
            read(file)
        assert str(caught.value).startswith(f"{file} ") and YAML[content] in str(caught.value)
        assert "\n" not in str(caught.value)


CONFIGS = {
    "seed:": "--seed: it needs a value, and none is not one",
    'seed: ""': "--seed: its value is empty",
    "model: null": "--model: it needs a value",
    "seed: true": "--seed: 'True' is not a whole number",
    "epochs: {a: 1}": "'epochs' is or holds {'a': 1}; a text, a number",
    "fields: [[a], b]": "'fields' is or holds ['a']",
    "fields: [a, --overwrite]": "'fields' lists '--overwrite', which would be read as an option",
    "seed: .inf": "--seed: 'inf' is not a whole number",
    '"two\\nlines": 1': "unknown option 'two\\nlines'",
    "1: 2": "unknown option 1",
    "extends: [a]": "'extends' is ['a']; name one config file",
    "extends: 5": "'extends' is 5",
    "- seed": "holds ['seed']; it must hold 'option: value' lines",
    "5": "holds 5; it must hold",
    "": "is empty; put it back",
    " \n": "is empty; put it back",
}


@pytest.mark.parametrize("text", CONFIGS, ids=repr)
def test_a_config_with_a_wrong_value_is_refused_in_one_line(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        parse(["--config", str(file), "--output_dir", "out"])
    assert CONFIGS[text] in str(caught.value) and "\n" not in str(caught.value)


def test_a_value_that_looks_like_an_option_is_the_value(tmp_path):
    (tmp_path / "c.yaml").write_text("data: --help")
    assert parse(["--config", str(tmp_path / "c.yaml"), "--output_dir", "out"]).data == "--help"


def test_configs_that_extend_each_other_in_a_circle_are_named(tmp_path):
    for name, parent in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {parent}.yaml\n")
    with pytest.raises(UserError, match=r"c.yaml extends .*a.yaml, which extends it; name another config"):
        config_words(tmp_path / "a.yaml")
    (tmp_path / "own").mkdir()
    (tmp_path / "own.yaml").write_text("extends: own/../own.yaml\n")
    with pytest.raises(UserError, match=r"own.yaml extends itself; name another config"):
        config_words(tmp_path / "own.yaml")


JSON = {
    b"": "it is empty",
    b"\n": "it is empty",
    b"{": "Expecting property name",
    b"[1]": "holds no object",
    b"\xff{}": "not UTF-8 text",
    b'{"a": ' + b"1" * 5000 + b"}": "more than 4300 digits",
    b'{"a": ' + b"[" * 100_000: "nested too deeply",
    b'{"a": 1}': "'a' is 1, a text is needed",
    b'{"b": 1}': "has no 'a'",
    b'{"a": "two\\nlines", "b": 5}': "'b' is 5, an object is needed",
}


@pytest.mark.parametrize("content", JSON, ids=lambda content: repr(content[:16]))
def test_json_that_cannot_be_read_is_named(tmp_path, content):
    file, kinds = tmp_path / "x\n.json", {"a": "a text", "b?": "an object"}
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json(file, kinds=kinds, remedy="do this")
    assert JSON[content] in str(caught.value) and str(caught.value).endswith("; do this")
    assert "\n" not in str(caught.value) and "x\\n.json" in str(caught.value)
    if content.strip():
        file.write_bytes(b'{"a": "right"}\n\n' + content.replace(b"\n", b"") + b"\n")
        with pytest.raises(UserError, match="line 3"):
            read_json_lines(file, kinds)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    for read in (read_json, read_json_lines, read_yaml):
        with pytest.raises(UserError, match=rf"{tmp_path} cannot be read \(Is a directory\); "):
            read(tmp_path)


def test_inner_values_are_checked_by_their_path():
    check_kinds(
        {"a": {"b": 1.5, "c": None}}, "f", {"a.b": "a number", "a.c?": "a text", "a.d?": "a list", "e.f?": "a text"}
    )
    for kinds, message in (
        ({"a.b": "a whole number"}, "f: 'a.b' is 1.5, a whole number is needed"),
        ({"a.d": "a text"}, "f: 'a.d' is None|f has no 'a.d'"),
        ({"a.b.c": "a text"}, "f has no 'a.b.c'"),
    ):
        with pytest.raises(UserError, match=message):
            check_kinds({"a": {"b": 1.5, "c": None}}, "f", kinds)
    for value in (float("nan"), float("inf"), True, "1", 10**400):
        with pytest.raises(UserError, match="a number is needed"):
            check_kinds({"a": value}, "f", {"a": "a number"})


def test_a_strict_reader_refuses_numbers_and_names_that_json_has_not():
    assert parse_json('{"a": NaN}', "f") != {}
    for text in ('{"a": NaN}', '{"a": -Infinity}', '{"a": 1, "a": 2}'):
        with pytest.raises(UserError, match="f: not valid JSON"):
            parse_json(text, "f", strict=True)


def test_a_message_is_one_printable_line_whatever_it_holds():
    shown = str(UserError("a\nb\r\x1b[2J\x00\u2028\u202e\x85\ud800 é 字"))
    assert shown == "a\\nb\\r\\x1b[2J\\x00\\u2028\\u202e\\x85\\ud800 é 字"
    shared = ["x"] * 10
    for _ in range(40):  # as aliases in YAML: 10^41 values in a few objects
        shared = [shared] * 10
    assert len(short(shared)) <= 60 and len(short("y" * 10**6)) <= 60 and len(short({"k": shared})) <= 60
    assert short({"b": 1, "a": [2, None]}) == "{'b': 1, 'a': [2, None]}" and short(10**5000).startswith(
        "a whole number"
    )


def test_keys_and_credentials_are_hidden_in_every_message(monkeypatch, capsys):
    key = "sk/secret+key-123"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    for text, shown in (
        (f"Incorrect API key provided: Bearer {key}", "Incorrect API key provided: Bearer [hidden]"),
        (f"(Bearer {key}); try again", "(Bearer [hidden]); try again"),
        ("key provided: Basic dXNlcjpQQVNTV09SRDk5); see", "key provided: Basic [hidden]); see"),
        ("Basic Authentication is needed", "Basic Authentication is needed"),
        ("authorization: bearer abc.def-12_3~x", "authorization: bearer [hidden]"),
        ("at http://user:pass@host:8000/v1 now", "at http://[hidden]@host:8000/v1 now"),
        ("https://user:p@ss/word@host/v1", "https://[hidden]@host/v1"),
        ("https://token@host", "https://[hidden]@host"),
        ("key=sk%2Fsecret%2Bkey-123", "key=[hidden]"),
        ("key sk-abcd***********wxyz", "key [hidden]"),
        ("http://host:8000/v1 by a@b.org", "http://host:8000/v1 by a@b.org"),
        ("data/hf_models/sk-small", "data/hf_models/sk-small"),
    ):
        assert redacted(text) == shown and str(UserError(text)) == shown
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert redacted("none of these") == "none of these"

    def main():
        raise RuntimeError("http://user:pass@host")

    with pytest.raises(SystemExit):
        run_cli(main)
    assert "pass" not in capsys.readouterr().err
