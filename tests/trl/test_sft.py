"""The mixin in front of TRL's SFTTrainer: BALoRATrainer's steps, TRL's own metrics, packing, masks, checkpointing and four bits."""

import copy

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, MixtralConfig, MixtralForCausalLM

import ba_lora
from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.objective.settings import Objective
from ba_lora.tiny import MODEL_DIR
from ba_lora.training.order import FixedOrder
from ba_lora.training.trainer import BALoRATrainer
from ba_lora.trl.refusals import refuse
from tests.common import SMALL, move, ragged_samples, small_llama
from tests.trl.test_anchored import Largest
from tests.trl.trainers import (
    LORA,
    VOCABULARY,
    AnchoredSFTTrainer,
    SFTTrainer,
    gradient,
    relative,
    sft,
    trained,
    with_adapter,
)

EVERY = {"weight": 0.25, "temperature": 2.0, "diversity": 0.01, "spectrum": 0.02}
REPORTED = ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens")

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}Q: {{ m.content }} {% endif %}{% endfor %}"
)
TALKS = [[("What is 3 + 4?", "It is 7."), ("And 5?", "12.")], [("Is 2 odd?", "No, 2 is even.")]] * 2


def logged(trainer, name="loss"):
    return [row for row in trainer.state.log_history if name in row]


def test_without_weights_the_loss_and_trl_own_metrics_are_those_of_the_stock_trainer(tmp_path, tiny_model):
    found, rows = [], [{"prompt": talk[0][0] + " ", "completion": talk[0][1]} for talk in TALKS]
    for kind, options in ((SFTTrainer, {}), (AnchoredSFTTrainer, {"weight": 0.0})):
        model = copy.deepcopy(tiny_model)
        trainer = sft(tmp_path, rows, model=model, kind=kind, options=options, evaluated=rows[:2], max_steps=4)
        trainer.train()
        found.append((logged(trainer), trainer.evaluate(), trained(trainer.model)))
    (stock, stock_eval, end), (ours, ours_eval, our_end) = found
    assert 0 < stock_eval["eval_mean_token_accuracy"] < 1
    for a, b in zip(stock, ours, strict=True):
        assert [b[name] for name in REPORTED] == pytest.approx([a[name] for name in REPORTED], rel=1e-5)
    names = [f"eval_{name}" for name in REPORTED if name != "grad_norm"]
    assert [ours_eval[name] for name in names] == pytest.approx([stock_eval[name] for name in names], rel=1e-5)
    assert relative(our_end, end) < 1e-5


@pytest.fixture
def own_precision(monkeypatch):
    """Keep bfloat16 to one test: transformers sets a variable of the environment, and accelerate keeps the first value."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class InFixedOrder(AnchoredSFTTrainer):
    """With BALoRATrainer's order of the samples."""

    def _get_train_sampler(self, dataset=None):
        return FixedOrder(len(self.train_dataset), self.args.seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["lora", "pissa", "delta"])
def test_twenty_steps_are_those_of_ba_lora_trainer(start, tmp_path):
    samples = ragged_samples(40)
    form = "delta" if start == "delta" else "residual"

    def attached():
        method = "lora" if start == "lora" else "pissa"
        targets = LORA["target_modules"]
        base = small_llama(vocab_size=VOCABULARY)
        return attach(
            base, method, rank=4, alpha=8, target_modules=targets, start_form=form if start != "lora" else "residual"
        )

    theirs = attached()
    if start == "lora":  # stock PEFT, without an initial copy
        theirs = with_adapter(small_llama(vocab_size=VOCABULARY))
        values = {
            name: value for name, value in attached().state_dict().items() if "lora_" in name and "initial" not in name
        }
        assert not theirs.load_state_dict(values, strict=False).unexpected_keys
    anchored = sft(tmp_path, samples, model=theirs, kind=InFixedOrder, options=EVERY, max_steps=20)
    begin = trained(anchored.model)
    objective = Objective(0.25, 0.01, 0.02, temperature=2.0)
    own = BALoRATrainer(
        attached(),
        objective,
        copy.deepcopy(anchored.args),
        train_dataset=anchored.train_dataset,
        data_collator=anchored.data_collator,
    )
    assert torch.equal(trained(own.model), begin)
    anchored.train()
    own.train()
    update = (trained(own.model) - begin).norm()
    assert update > 0.01 and (trained(anchored.model) - trained(own.model)).norm() / update < 1e-5
    for a, b in zip(logged(anchored), logged(own), strict=True):
        for name in ("loss", "task", "consistency", "diversity", "spectrum"):
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-7), name
    assert logged(anchored)[0]["consistency"] == 0.0


@pytest.mark.slow
def test_packing_has_the_gradient_of_the_unpacked_rows(tmp_path):
    samples, options = ragged_samples(8), {"weight": 0.5, "temperature": 2.0, "diversity": 0.01}
    packed = sft(tmp_path, samples, options=options, packing=True, max_length=64, per_device_train_batch_size=1)
    apart = sft(tmp_path, samples, options=options, per_device_train_batch_size=8)
    batches = list(packed.get_train_dataloader())
    assert 1 < len(batches) < 8 and "attention_mask" not in batches[0]
    for trainer in (packed, apart):
        move(trainer.model)
    whole = gradient(apart, list(apart.get_train_dataloader()))
    found = gradient(packed, batches)
    assert relative(found, whole) < 1e-5
    assert packed.objective_model.sums["consistency"] > 0.01
    packed.train()
    assert logged(packed)[0]["num_tokens"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_has_the_gradient_without_it(use_reentrant, tmp_path):
    found = []
    for changes in (
        {},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}},
    ):
        trainer = sft(tmp_path, options=EVERY, **changes)
        if changes:
            trainer.model.gradient_checkpointing_enable(changes["gradient_checkpointing_kwargs"])
        move(trainer.model)
        found.append(gradient(trainer, list(trainer.get_train_dataloader())[:2]))
        trainer.train()
    assert trainer.model.is_gradient_checkpointing
    assert relative(found[1], found[0]) < 1e-5


@pytest.mark.slow
def test_on_four_bits_with_checkpointing_and_bfloat16_it_trains_from_a_consistency_of_0(tmp_path, own_precision):
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, quantization_config=four_bits)
    options = {"weight": 0.25, "temperature": 2.0}
    trainer = sft(
        tmp_path, model=model, options=options, bf16=True, gradient_checkpointing=True, max_steps=6, learning_rate=5e-3
    )
    before = trained(trainer.model)
    trainer.train()
    rows = logged(trainer)
    assert rows[0]["consistency"] == 0.0 and rows[-1]["consistency"] > 1e-4
    assert not torch.is_autocast_enabled("cpu"), "autocast stays on after the step"
    assert rows[-1]["loss"] < rows[0]["loss"] and not torch.equal(before, trained(trainer.model))


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["completion", "assistant"])
def test_only_the_completion_or_the_assistants_words_count(mask, tmp_path):
    if mask == "assistant":
        roles = ("user", "assistant")
        rows = [
            {
                "messages": [
                    {"role": role, "content": text} for pair in talk for role, text in zip(roles, pair, strict=True)
                ]
            }
            for talk in TALKS
        ]
        changes = {"assistant_only_loss": True}
    else:
        rows = [{"prompt": talk[0][0] + " ", "completion": talk[0][1]} for talk in TALKS]
        changes = {"completion_only_loss": True}
    options = {"weight": 0.25, "chat_template": TEMPLATE}
    trainer = sft(tmp_path, rows, options=options, **changes)
    (batch,) = list(trainer.get_train_dataloader())[:1]
    kept = batch["labels"][batch["labels"] != -100]
    text = trainer.processing_class.decode(kept)
    assert "What" not in text and "Is" not in text and "Q:" not in text
    assert any(word in text for word in ("7", "even"))
    gradient(trainer, [batch])
    assert trainer.objective_model.observed["rows"] == (batch["labels"][:, 1:] != -100).sum()
    trainer.train()
    assert logged(trainer)[0]["consistency"] == 0.0 < logged(trainer)[1]["consistency"]


@pytest.mark.slow
def test_no_tensor_of_the_rows_times_the_vocabulary_is_made_in_a_step_of_trl(tmp_path):
    vocabulary = 32_000
    model = small_llama(vocab_size=vocabulary, hidden_size=8, num_hidden_layers=1)
    samples = [{"input_ids": row, "labels": row} for row in torch.randint(3, 700, (4, 115)).tolist()]
    trainer = sft(
        tmp_path, samples, model=model, options=EVERY, per_device_train_batch_size=4, gradient_accumulation_steps=1
    )
    with Largest() as largest:
        trainer.train()
    assert 8 * vocabulary <= largest.values < 4 * 114 * vocabulary


@pytest.mark.slow
def test_a_pissa_start_by_peft_config_is_anchored_at_the_original_base_and_exports_for_it(tmp_path):
    base = small_llama(vocab_size=VOCABULARY)
    options = {"peft_config": LoraConfig(**LORA, init_lora_weights="pissa"), "weight": 0.25}
    trainer = sft(tmp_path, model=copy.deepcopy(base), options=options, learning_rate=0.01, max_steps=3)
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert logged(trainer)[0]["consistency"] == 0.0 < logged(trainer)[1]["consistency"]
    with ba_lora.teacher(trainer.model):
        torch.testing.assert_close(trainer.model(**ids).logits, base(**ids).logits, rtol=1e-4, atol=1e-4)
    ba_lora.export(trainer.model, tmp_path / "adapter")
    opened = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(opened(**ids).logits, trainer.model.eval()(**ids).logits, rtol=1e-4, atol=1e-4)


def test_other_losses_of_trl_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="loss_type dft is not covered; use nll"):
        sft(tmp_path, loss_type="dft")


SPLIT = "a sequence or layer that is split over processes is not covered; leave parallelism_config out"
SETTINGS = [
    (
        {"aux_loss_enabled": True, "router_aux_loss_coef": 0.02},
        "router_aux_loss_coef 0.02 adds a loss of the routers, which is not covered; set it to 0.0",
    ),
    ({"_is_vision_dataset": True}, "a dataset with images is not covered; give texts"),
    ({"torch_compile": True}, "torch_compile was not tried with the teacher's passes; leave it out"),
    ({"is_fsdp_enabled": True}, "FSDP is not covered; use DeepSpeed ZeRO-2 or torchrun alone"),
    ({"parallelism_config": {"cp_size": 2}}, SPLIT),
    ({"parallelism_config": {"sp_size": 2}}, SPLIT),
    ({"parallelism_config": {"tp_size": 2}}, SPLIT),
]


@pytest.fixture(scope="module")
def accepted(tmp_path_factory):
    return sft(tmp_path_factory.mktemp("accepted"))


@pytest.mark.parametrize(("settings", "line"), SETTINGS)
def test_what_the_objective_does_not_cover_is_refused_in_one_line(settings, line, accepted, monkeypatch):
    """One attribute of an accepted trainer is set, as TRL, transformers or accelerate set it."""
    refuse(accepted)
    for name, value in settings.items():
        owners = {"parallelism_config": type(accepted.accelerator), "torch_compile": accepted.args}
        value = ParallelismConfig(**value) if name == "parallelism_config" else value
        monkeypatch.setattr(owners.get(name, accepted), name, value)
    with pytest.raises(UserError) as error:
        refuse(accepted)
    assert str(error.value) == line


def test_a_mixture_of_experts_is_covered_without_the_routers_loss(tmp_path):
    sizes = {**SMALL, "vocab_size": VOCABULARY, "num_local_experts": 2, "num_experts_per_tok": 1}
    model = MixtralForCausalLM(MixtralConfig(**sizes, router_aux_loss_coef=0.02))
    options = {"peft_config": LoraConfig(**LORA | {"target_modules": ["q_proj", "v_proj"]})}
    with pytest.raises(UserError, match="router_aux_loss_coef 0.02 adds a loss of the routers"):
        sft(tmp_path, model=copy.deepcopy(model), options=options)
    sft(tmp_path, model=model, options=options, router_aux_loss_coef=0.0)
