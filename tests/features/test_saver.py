"""Features of the last hidden layer: taken from the right token of each text, without affecting the training."""

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ba_lora.errors import UserError
from ba_lora.features.saver import FeatureSaver, features_of
from ba_lora.features.tsne import features_file, labels_file, read_features
from ba_lora.files import read_json

PAD, VOCABULARY, CLASSES = 1, 61, ["entailment", "neutral", "contradiction"]
COMMON = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "num_labels": 3}
ENCODER = COMMON | {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
}


def small(kind, **changes):
    """A random classifier with dropout, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        if kind == "gpt2":
            options = COMMON | {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 40, "initializer_range": 0.2}
            return GPT2ForSequenceClassification(GPT2Config(**options | changes)).eval()
        config, model = {
            "bert": (BertConfig, BertForSequenceClassification),
            "roberta": (RobertaConfig, RobertaForSequenceClassification),
        }[kind]
        return model(config(**ENCODER | {"initializer_range": 0.2} | changes)).eval()


def examples(count, seed=0):
    """Texts of 2 to 12 ids; the classes 0, 1 and 2 in turn."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 13, (count,), generator=generator).tolist()
    return [
        {"input_ids": torch.randint(3, VOCABULARY, (length,), generator=generator).tolist(), "labels": number % 3}
        for number, length in enumerate(lengths)
    ]


def padded(side):
    def collate(samples):
        width = max(len(sample["input_ids"]) for sample in samples)
        ids = torch.full((len(samples), width), PAD)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(samples):
            length = len(sample["input_ids"])
            place = slice(0, length) if side == "right" else slice(width - length, width)
            ids[row, place], mask[row, place] = torch.tensor(sample["input_ids"]), 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor([sample["labels"] for sample in samples]),
        }

    return collate


def alone(body, sample):
    """The last hidden layer of one text, without padding: (T, d)."""
    with torch.no_grad():
        return body(input_ids=torch.tensor([sample["input_ids"]])).last_hidden_state[0]


@pytest.mark.parametrize(
    ("kind", "side", "token", "pooling"),
    [
        ("bert", "right", 0, "first token"),
        ("roberta", "right", 0, "first token"),
        ("gpt2", "right", -1, "last real token"),
        ("gpt2", "left", -1, "last real token"),
    ],
)
def test_features_in_padded_batches_are_those_of_each_text_alone(kind, side, token, pooling):
    model, texts = small(kind), examples(11)
    features, labels, said = features_of(model, texts, padded(side), batch_size=4)
    expected = np.stack([alone(model.base_model, text)[token].numpy() for text in texts])
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert said == pooling and features.dtype == np.float32
    assert labels.tolist() == [text["labels"] for text in texts]
    wrong = np.stack([alone(model.base_model, text)[-1 - token].numpy() for text in texts])
    assert np.abs(features - wrong).max(axis=1).min() > 0.01  # a wrong token would be noticed


def test_the_features_of_a_decoder_are_what_its_head_reads():
    model, texts = small("gpt2"), examples(9)
    features, _, _ = features_of(model, texts, padded("right"), batch_size=9)
    with torch.no_grad():
        logits = model(**padded("right")(texts)).logits
    np.testing.assert_allclose(features @ model.score.weight.detach().numpy().T, logits, rtol=1e-4, atol=1e-5)


def test_a_last_token_that_looks_like_padding_is_real():
    texts = [{"input_ids": [5, 9, PAD], "labels": 0}, {"input_ids": [5, 9, 4, 7, 8], "labels": 1}]
    model = small("gpt2")
    features, _, _ = features_of(model, texts, padded("right"))
    np.testing.assert_allclose(features[0], alone(model.base_model, texts[0])[-1].numpy(), rtol=1e-4, atol=1e-5)


def test_features_are_of_the_adapted_model_in_evaluation_mode():
    model, texts = small("bert"), examples(6)
    before = features_of(model, texts, padded("right"))[0]
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], task_type="SEQ_CLS")).train()
    same = features_of(adapted, texts, padded("right"))[0]
    np.testing.assert_allclose(same, before, rtol=1e-5, atol=1e-6)  # B = 0, and dropout is off
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.5
    assert np.abs(features_of(adapted, texts, padded("right"))[0] - before).max() > 0.01


def test_modes_gradients_and_random_states_are_as_before():
    model = small("bert").train()
    model.bert.encoder.eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)

    def drawing(samples):
        torch.rand(1), random.random(), np.random.rand()
        return padded("right")(samples)

    features_of(model, examples(5), drawing, batch_size=2)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled() and all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_exception():
    model = small("bert").train()

    def broken(samples):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        features_of(model, examples(3), broken)
    assert model.training and model.bert.encoder.training and torch.is_grad_enabled()


def test_an_encoder_decoder_is_refused():
    config = T5Config(
        d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=PAD, eos_token_id=2, **COMMON
    )
    texts = [{"input_ids": [5, 6, 2], "labels": 0}]
    with pytest.raises(UserError, match="encoder or a decoder"):
        features_of(T5ForSequenceClassification(config).eval(), texts, padded("right"))


class Losses(TrainerCallback):
    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **objects):
        if "loss" in logs:
            self.seen.append(logs["loss"])


def trained(folder, steps=None):
    """(losses, trained model) of a small LoRA training; features are saved if `steps` is given."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        lora = LoraConfig(r=2, target_modules=["query"], lora_dropout=0.1, task_type="SEQ_CLS")
        model = get_peft_model(small("bert"), lora)
    losses = Losses()
    callbacks = [losses]
    if steps is not None:
        callbacks.append(
            FeatureSaver(
                model, examples(7, seed=1), padded("right"), steps, folder / "features", labels=CLASSES, batch_size=3
            )
        )
    options = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=11,
    )
    trainer = Trainer(model, options, train_dataset=examples(24), data_collator=padded("right"), callbacks=callbacks)
    trainer.train()
    return losses.seen, model


def test_a_training_with_saved_features_is_the_training_without(tmp_path):
    (plain, first), (saving, second) = trained(tmp_path), trained(tmp_path, steps=[0, 1, 3])
    assert len(plain) == 4 and plain == saving
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_steps_asked_for_and_the_end_are_saved_with_what_they_are(tmp_path):
    _, model = trained(tmp_path, steps=[0, 2])
    folder = tmp_path / "features"
    assert sorted(path.name for path in folder.iterdir()) == [
        "checksums.json",
        "features.json",
        *(f"features_step_{step}.npy" for step in (0, 2, "final")),
        *(f"labels_step_{step}.npy" for step in (0, 2, "final")),
    ]
    assert read_json(folder / "features.json") == {
        "layer": "last hidden",
        "pooling": "first token",
        "classes": CLASSES,
        "examples": 7,
        "hidden": 24,
        "dtype": "float32",
        "steps": [0, 2, "final"],
    }
    before, middle, end = (np.load(features_file(folder, step)) for step in (0, 2, "final"))
    assert before.shape == (7, 24) and not np.allclose(before, middle) and not np.allclose(middle, end)
    np.testing.assert_array_equal(before, features_of(small("bert"), examples(7, seed=1), padded("right"), 3)[0])
    np.testing.assert_array_equal(end, features_of(model, examples(7, seed=1), padded("right"), 3)[0])
    features, labels = read_features(folder, "final")
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and np.array_equal(features, end)


def start(folder, step, steps=(0, 2), main=True, max_steps=4):
    """Begin a training at `step` with a FeatureSaver, which is returned."""
    saver = FeatureSaver(small("bert"), examples(7), padded("right"), list(steps), folder, labels=CLASSES)
    state = TrainerState(global_step=step, max_steps=max_steps, is_world_process_zero=main)
    saver.on_train_begin(None, state, TrainerControl())
    return saver, state


def test_a_resumed_run_keeps_what_was_saved_before_and_forgets_the_rest(tmp_path):
    trained(tmp_path, steps=[0, 1, 3])
    folder = tmp_path / "features"
    first = np.load(features_file(folder, 1))
    saver, state = start(folder, step=1, steps=[0, 1, 3])
    assert sorted(path.name for path in folder.glob("*.npy")) == sorted(
        path.name for step in (0, 1) for path in (features_file(folder, step), labels_file(folder, step))
    )
    saver.on_train_end(None, state, TrainerControl())
    assert read_json(folder / "features.json")["steps"] == [0, 1, "final"]
    assert np.array_equal(np.load(features_file(folder, 1)), first)
    start(folder, step=0, steps=[0])  # a new run in the same folder: nothing of the old one remains
    assert read_json(folder / "features.json")["steps"] == [0] and len(list(folder.glob("*.npy"))) == 2


def test_only_the_first_process_saves(tmp_path):
    saver, state = start(tmp_path, step=0, main=False)
    saver.on_step_end(None, state, TrainerControl()), saver.on_train_end(None, state, TrainerControl())
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_refused_before_the_training(tmp_path):
    with pytest.raises(UserError, match="step 9 and the training has 4"):
        start(tmp_path, step=0, steps=[0, 9])
    with pytest.raises(UserError, match="step -1; the first is 0"):
        start(tmp_path, step=0, steps=[-1])
    with pytest.raises(UserError, match="no examples"):
        FeatureSaver(small("bert"), [], padded("right"), [0], tmp_path)
    saver, state = start(tmp_path, step=0, steps=[])
    next(saver.student.parameters()).ds_id = 0  # ZeRO-3 marks a split parameter in this way
    with pytest.raises(UserError, match="use ZeRO-2"):
        saver.on_train_begin(None, state, TrainerControl())
