"""No training is lost at its end: problems with saving are repaired or reported before the first step, and a failure after the
last step leaves trained tensors from which --resume finishes the run."""

import errno
import json
import shutil
import tempfile
from pathlib import Path

import pytest
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, TrainerCallback

from ba_lora.errors import RunFailure, UserError
from ba_lora.files import read_json
from ba_lora.methods.attach import attach
from ba_lora.methods.save import export
from ba_lora.models import load_model, load_tokenizer
from ba_lora.models.generation_config import repair_generation_config
from ba_lora.tiny import MODEL_DIR
from ba_lora.training import ending, run
from ba_lora.training.command_line import parse
from ba_lora.training.run import train
from tests.common import small_llama

WORDS = ["--template", "plain", "--max_length", "96", "--rank", "2", "--max_steps", "2", "--use_cpu"]
WORDS += ["--effective_batch_size", "4", "--progress", "false", "--regularizers", "off", "--limit", "8"]
LORA, FULL = ["--method", "lora"], ["--method", "full"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "M"
    small_llama(vocab_size=768).save_pretrained(folder)
    for file in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def model(base, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(base, tmp_path / "M"))


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """A function from options to the folder of an undisturbed run."""
    made = {}

    def of(words):
        if tuple(words) not in made:
            made[tuple(words)] = tmp_path_factory.mktemp("whole") / "run"
            assert train_on(base, made[tuple(words)], *words) == 2
        return made[tuple(words)]

    return of


class Steps(TrainerCallback):
    """Count the trained steps."""

    def __init__(self):
        self.begun = 0

    def on_step_begin(self, args, state, control, **objects):
        self.begun += 1


def train_on(model, folder, *words, callbacks=()):
    """The number of steps that a run on `model` trains."""
    steps = Steps()
    train(parse([*WORDS, "--model", str(model), "--output_dir", str(folder), *words]), callbacks=[steps, *callbacks])
    return steps.begun


# Generation settings of a base → the settings that are saved, and the content of the warning.
GENERATION = {
    "sampling": ({"temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),
    "one sampling option": ({"top_k": 20}, {"do_sample": True, "top_k": 20}),
    "rare sampling options": ({"min_p": 0.1, "typical_p": 0.9}, {"do_sample": True, "min_p": 0.1, "typical_p": 0.9}),
    "greedy by its flag": ({"do_sample": False, "temperature": 0.9}, {"do_sample": False}),
    "greedy by its temperature": ({"temperature": 0.0, "top_p": 0.9}, {}),
    "a text for a number": ({"temperature": "0.7"}, {}),
    "a share above 1": ({"top_p": 7.0}, {}),
    "beams without beams": ({"early_stopping": True, "length_penalty": 0.8}, {}),
    "outputs that nobody gets": ({"output_scores": True, "max_length": 64}, {"max_length": 64}),
    "a cache that is off": ({"use_cache": False, "cache_implementation": "static"}, {"use_cache": False}),
    "a negative padding token": ({"pad_token_id": -1}, {}),
    "several": (
        {"temperature": 0.7, "early_stopping": True, "pad_token_id": -1, "repetition_penalty": 1.1},
        {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.1},
    ),
}


@pytest.mark.parametrize(("said", "kept"), GENERATION.values(), ids=GENERATION)
def test_a_generation_config_that_opens_is_saved_in_its_sense(tmp_path, caplog, model, said, kept):
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    (model / "generation_config.json").write_text(json.dumps(tokens | said))
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "stock")
    export(attach(load_model(str(model)), "full", rank=1, alpha=1), tmp_path / "saved")
    (line,) = [message for message in caplog.messages if "contradicts itself" in message]
    assert line.startswith(f"the generation config of {model} contradicts itself and is saved with changes: ")
    saved = read_json(tmp_path / "saved" / "generation_config.json")
    saved.pop("transformers_version")
    assert saved == tokens | kept
    GenerationConfig.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "again")


def test_a_generation_config_that_can_be_saved_stays_as_it_is():
    model = small_llama()
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, num_beams=2, early_stopping=True)
    before = model.generation_config.to_dict()
    assert repair_generation_config(model) is None and model.generation_config.to_dict() == before


@pytest.mark.parametrize(("words", "saved"), [(FULL, "model"), ([*LORA, "--merge"], "merged")], ids=["full", "merge"])
def test_a_run_on_a_base_whose_generation_config_contradicts_itself_ends(tmp_path, caplog, model, words, saved):
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, "temperature": 0.9, "top_p": 0.6}))
    folder = tmp_path / "run"
    assert train_on(model, folder, *words) == 2
    assert read_json(folder / "run.json")["status"] == "finished"
    assert read_json(folder / saved / "generation_config.json")["temperature"] == 0.9
    load_model(str(folder / saved)), load_tokenizer(str(folder / saved))
    assert sum("contradicts itself" in message for message in caplog.messages) == 1


def fail(error):
    def raises(*arguments, **options):
        raise error

    return raises


def steps_of(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


class FailsAtTheEnd(TrainerCallback):
    """A reporter or saver that fails after the last step."""

    def on_step_end(self, args, state, control, **objects):
        if state.global_step == state.max_steps:
            raise OSError(errno.EIO, "Input/output error")


# Failures after the last step: (options of the run, name in run.py or None for a callback, error, content of the message)
FAILURES = {
    "the export of an adapter": (LORA, "export", ValueError("a\nb"), "ValueError: a b"),
    "the export of a model": (FULL, "export", RuntimeError("shared"), "RuntimeError: shared"),
    "a full disk": (FULL, "export", OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk"),
    "the merge": ([*LORA, "--merge"], "export_merged", UserError("model folder M does not exist"), "M does not exist"),
    "memory": ([*LORA, "--merge"], "export_merged", MemoryError(), "out of memory"),
    "a callback": (LORA, None, None, "OSError: [Errno 5] Input/output error"),
    "a callback, with checkpoints": ([*LORA, "--save_steps", "1"], None, None, "OSError: [Errno 5] Input/output error"),
}


@pytest.mark.parametrize(("words", "what", "error", "said"), FAILURES.values(), ids=FAILURES)
def test_what_fails_after_the_last_step_leaves_a_run_that_resume_ends(
    tmp_path, monkeypatch, base, whole, words, what, error, said
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(RunFailure) as failed:
        if what:
            patch.setattr(run, what, fail(error))
        train_on(base, folder, *words, callbacks=[] if what else [FailsAtTheEnd()])
    line, kept = str(failed.value), folder / "checkpoints" / "checkpoint-2"
    assert line.startswith(f"all 2 steps are done and the trained tensors are in {kept}, but a later part failed (")
    assert (
        said in line and line.endswith("finish the run with --resume, which repeats no training") and "\n" not in line
    )
    assert (kept / "trained.safetensors").is_file() and read_json(folder / "run.json")["status"] == "running"
    assert train_on(base, folder, *words, "--resume") == 0
    record = read_json(folder / "run.json")
    assert (record["status"], record["steps"]) == ("finished", 2)
    assert record["train_seconds"] > 0.01  # includes the first life
    for part in ("adapter", "model", "merged"):
        for file in (whole(words) / part).glob("*.safetensors"):
            assert (folder / part / file.name).read_bytes() == file.read_bytes(), file
    assert steps_of(folder) == steps_of(whole(words)) == [1, 2]
    assert (folder / "checkpoints").exists() == ("--save_steps" in words)


def test_a_card_that_cannot_be_written_leaves_a_finished_run(tmp_path, monkeypatch, model):
    folder = tmp_path / "run"
    with (
        monkeypatch.context() as patch,
        pytest.raises(RunFailure, match="is finished and saved, but for its model card"),
    ):
        patch.setattr(run, "write_card", fail(KeyError("steps")))
        train_on(model, folder, *LORA)
    assert read_json(folder / "run.json")["status"] == "finished"
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def save_nothing(self, *arguments, **options):
    raise TypeError("Object of type set is not JSON serializable")


@pytest.mark.parametrize(
    ("words", "owner", "said"),
    [
        (FULL, "tokenizer", "the tokenizer could not be saved at the end of this run, so it is not started: TypeError"),
        ([*LORA, "--merge"], "tokenizer", "the tokenizer could not be saved"),
        (FULL, "config", "what was trained could not be saved"),
        ([*LORA, "--merge"], "config", "the merged model could not be saved"),
    ],
)
def test_what_cannot_be_saved_is_told_before_the_first_step(tmp_path, monkeypatch, model, words, owner, said):
    owners = {"tokenizer": load_tokenizer(str(model)), "config": load_model(str(model)).config}
    monkeypatch.setattr(type(owners[owner]), "save_pretrained", save_nothing)
    with pytest.raises(UserError, match=said) as told:
        train_on(model, tmp_path / "run", *words)
    assert str(model) in str(told.value) and told.value.status == 2
    assert not (tmp_path / "run").exists()


def test_an_adapter_needs_neither_the_tokenizer_nor_the_config_of_its_base_to_be_saved(tmp_path, monkeypatch, model):
    for owner in (load_tokenizer(str(model)), load_model(str(model)).config):
        monkeypatch.setattr(type(owner), "save_pretrained", save_nothing)
    assert train_on(model, tmp_path / "run", *LORA) == 2


def test_parameters_in_one_memory_are_refused_before_the_first_step(tmp_path):
    model = attach(small_llama(), "full", rank=1, alpha=1)
    model.lm_head.weight = nn.Parameter(model.model.embed_tokens.weight.data)
    arguments = parse([*WORDS, *FULL, "--output_dir", str(tmp_path / "run")])
    with pytest.raises(
        UserError, match="model.embed_tokens.weight and lm_head.weight are two parameters that share memory"
    ):
        ending.try_out(arguments, model, load_tokenizer("tiny"), None, {})


def test_a_disk_without_room_for_the_end_is_told_before_the_first_step(tmp_path, monkeypatch, model):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(ending.shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(RunFailure, match=r"the end of the run needs 0\.\d+ GB and the disk has 0\.000 GB free"):
        train_on(model, tmp_path / "run", *FULL)
    assert not (tmp_path / "run").exists()


def test_a_temporary_folder_that_cannot_be_made_is_told_before_the_first_step(tmp_path, monkeypatch, model):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(
        RunFailure, match="no temporary folder can be made .*; set TMPDIR to a folder that can be written"
    ):
        train_on(model, tmp_path / "run", *LORA)
    assert not (tmp_path / "run").exists()


def test_trained_values_that_are_not_finite_are_no_finished_run(tmp_path, model):
    class Poison(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **objects):
            if state.global_step == 1:
                next(p for p in model.parameters() if p.requires_grad).data.view(-1)[0] = float("nan")

    with pytest.raises(RunFailure, match="is not finite"):
        train_on(model, tmp_path / "run", *LORA, callbacks=[Poison()])
    assert not (tmp_path / "run" / "adapter").exists()


def test_nothing_but_the_results_is_left_of_a_run(tmp_path, model):
    train_on(model, tmp_path / "run", *LORA)
    assert sorted(path.name for path in Path(tmp_path / "run").iterdir()) == ["adapter", "metrics.jsonl", "run.json"]
