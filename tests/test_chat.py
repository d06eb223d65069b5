"""The interactive chat: both answers equal those of the evaluation, the base is the base, and the keys work as documented."""

import builtins
import io
import sys
from pathlib import Path

import pytest
import torch

from ba_lora.chat import __main__ as chat
from ba_lora.chat.__main__ import lines, main
from ba_lora.chat.voices import Chat, Stream
from ba_lora.data.instruction import encode_prompt
from ba_lora.data.templates import template_of
from ba_lora.errors import UserError
from ba_lora.inference.local import generate
from ba_lora.inference.subject import open_subject
from ba_lora.models import load_model
from ba_lora.training.command_line import parse
from ba_lora.training.run import train
from tests.common import command

ROOT = Path(__file__).parent.parent
QUESTION = "A farmer has 3 baskets with 4 apples each. How many apples are there in total?"
SHORT = ["--max_new_tokens", "48"]


def trained(folder: Path, *words: str) -> str:
    short = ["--config", str(ROOT / "configs/nlg/tiny.yaml"), "--limit", "96", "--progress", "false"]
    return str(train(parse([*short, "--output_dir", str(folder), *words])))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("chat") / "run")


def said(output: str) -> list[str]:
    """The answers in a transcript, in order."""
    return [block.partition("\n")[2].partition("\n> ")[0].rstrip("\n") for block in output.split("--- ")[1:]]


def expected(model: str, template, question: str | list = QUESTION) -> str:
    """The answer of the evaluation's backend."""
    subject = open_subject(model)
    prompt = encode_prompt(subject.tokenizer, template, question)
    (done,) = generate([prompt], model=subject.model, tokenizer=subject.tokenizer, max_new_tokens=48, progress=False)
    return done.text.strip()


def pipe(monkeypatch, capsys, text: str, *words: str) -> str:
    """The command's output for `text` on its standard input."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    main([*words, *SHORT])
    return capsys.readouterr().out


def test_the_command_answers_piped_prompts_as_the_evaluation_does(run):
    done = command("-m", "ba_lora.chat", "--model", run, *SHORT, stdin=f"{QUESTION}\n\n")
    base, tuned = expected("tiny", template_of(run)), expected(run, template_of(run))
    assert done.returncode == 0 and base != tuned
    assert done.stdout == f"> {QUESTION}\n--- base (tiny)\n{base}\n--- tuned\n{tuned}\n> \n> \n"


def test_with_the_adapter_off_the_model_is_the_base(run):
    voices = Chat(chat.parse(["--model", run])).voices
    ids = torch.arange(5, 60)[None]
    assert voices[0].model is voices[1].model
    with voices[0].around():
        torch.testing.assert_close(voices[0].model(ids).logits, load_model("tiny")(ids).logits, rtol=0, atol=0)
    with voices[1].around():
        assert (voices[1].model(ids).logits - load_model("tiny")(ids).logits).abs().max() > 1e-2


def test_full_fine_tuning_loads_its_base_beside_it_and_says_so(tmp_path, caplog, capsys):
    full = trained(tmp_path / "full", "--method", "full")
    main(["--model", full, "--prompt", QUESTION, *SHORT])
    template = template_of(full)
    assert said(capsys.readouterr().out) == [expected("tiny", template), expected(full, template)]
    assert any("its base tiny is loaded as well" in message for message in caplog.messages)


def test_one_model_can_be_asked_alone(run, capsys):
    for words, answers in ((["--model", run, "--only", "tuned"], run), (["--model", run, "--only", "base"], "tiny")):
        main([*words, "--prompt", QUESTION, *SHORT])
        assert said(capsys.readouterr().out) == [expected(answers, template_of(run))]
    main(["--model", "tiny", "--prompt", QUESTION, *SHORT])
    assert said(capsys.readouterr().out) == [expected("tiny", template_of(run))]


def test_multi_turn_keeps_each_models_own_conversation_until_reset(run, monkeypatch, capsys):
    output = pipe(
        monkeypatch, capsys, f"{QUESTION}\nAnd half of it?\n/reset\n{QUESTION}\n", "--model", run, "--multi_turn"
    )
    base, tuned, base_later, tuned_later, base_again, tuned_again = said(output)
    assert (base_again, tuned_again) == (base, tuned)
    for model, first, later in (("tiny", base, base_later), (run, tuned, tuned_later)):
        turns = [QUESTION, first, "And half of it?"]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        assert later == expected(model, template_of(run), messages)
    alone = said(pipe(monkeypatch, capsys, f"{QUESTION}\nAnd half of it?\n", "--model", run))
    assert alone[2:] != [base_later, tuned_later]


def test_exit_ends_help_helps_and_an_unknown_command_is_one_line(run, monkeypatch, capsys):
    output = pipe(monkeypatch, capsys, f"/help\n/exit\n{QUESTION}\n", "--model", "tiny")
    assert "--model runs/v5" in output and "---" not in output.replace("--- ", "")
    with pytest.raises(UserError, match="'/resset' is not a command; the commands are /reset, /help and /exit"):
        pipe(monkeypatch, capsys, "/resset\n", "--model", "tiny")


def test_ctrl_c_stops_an_answer_and_leaves_the_models_as_they_were(run, monkeypatch, capsys):
    asked = Chat(chat.parse(["--model", run, *SHORT]))
    put = Stream.put

    def interrupted(stream, value):
        put(stream, value)
        if len(stream.ids) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "put", interrupted)
        asked.ask(QUESTION)
    stopped = capsys.readouterr().out
    assert stopped.count("(stopped)") == 2
    asked.ask(QUESTION)
    whole = said(capsys.readouterr().out)
    assert whole == [expected("tiny", template_of(run)), expected(run, template_of(run))]
    for answer, part in zip(whole, said(stopped), strict=True):
        assert answer.startswith(part.removesuffix("\n(stopped)"))


def test_at_the_keyboard_ctrl_c_asks_again_and_a_bad_line_is_only_reported(run, monkeypatch, capsys):
    typed = iter([KeyboardInterrupt, "/what", " ", "hello", EOFError])

    def typing(prompt):
        key = next(typed)
        if isinstance(key, str):
            return key
        raise key

    monkeypatch.setattr(builtins, "input", typing)
    chat.converse(Chat(chat.parse(["--model", "tiny", *SHORT])), interactive=True)
    output = capsys.readouterr().out
    assert "(Ctrl-D or /exit ends)" in output and "error: '/what' is not a command" in output and len(said(output)) == 1
    monkeypatch.setattr(builtins, "input", lambda prompt: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(lines(interactive=False))


def test_sampling_follows_the_seed(run, capsys):
    outputs = []
    for seed in ("1", "1", "2"):
        main(
            ["--model", "tiny", "--prompt", "hello", "--temperature", "1.5", "--top_p", "0.95", "--seed", seed, *SHORT]
        )
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_a_character_of_several_tokens_is_shown_once_it_is_whole(capsys):
    class Bytes:
        def decode(self, ids, **options):
            return bytes(ids).decode("utf-8", errors="replace")

    stream = Stream(Bytes(), list(b"Q:"), end=0)
    stream.put(torch.tensor([list(b"Q:")]))
    for number, byte in enumerate("é!".encode()):
        stream.put(torch.tensor([byte]))
        assert capsys.readouterr().out == ["", "é", "!"][number]
    stream.put(torch.tensor([0]))
    stream.end()
    assert capsys.readouterr().out == "\n" and stream.text() == "é!"


BAD = [
    ([], "--model is missing; name a run folder to compare with its base, or a single model"),
    (
        ["--model", "tiny", "--only", "base"],
        "--only base chooses between a run and its base; leave it out with --model tiny",
    ),
    (["--model", "tiny", "--temperature", "-1"], "--temperature must be at least 0, got -1"),
    (["--model", "tiny", "--top_p", "0.5"], "--top_p 0.5 has no effect without sampling; add --temperature 1"),
    (["--model", "tiny", "--top_p", "2"], "--top_p must be above 0 and at most 1, got 2"),
    (["--model", "tiny", "--max_new_tokens", "0"], "--max_new_tokens must be at least 1, got 0"),
    (["--model", "tiny", "--prompt", "word " * 600], "positions of the model; ask for less, or /reset first"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line(words, message):
    with pytest.raises(UserError) as error:
        main(words)
    assert message in str(error.value) and "\n" not in str(error.value)
