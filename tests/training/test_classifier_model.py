"""The objective of a classifier against numpy, finite differences and published formulas; terms without effect on few classes."""

import logging

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from ba_lora.errors import UserError
from ba_lora.methods.attach import attach
from ba_lora.methods.teacher import teacher
from ba_lora.objective.dense import classifier_objective, powerless
from ba_lora.objective.settings import Objective
from ba_lora.training.classifier_model import ClassifierModel
from ba_lora.training.prepare_classifier import set_dropout
from tests.common import VOCABULARY

ICLR, V5 = Objective.preset("iclr", "nlu"), Objective.preset("paper-v5", "nlu")
ON = Objective(0.3, 0.2, 0.1, temperature=2.0, diversity="covariance", svd_k=1)


def draw(rows, classes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, other = (torch.randn(rows, classes, generator=generator, dtype=dtype) for _ in range(2))
    return student.requires_grad_(), other, torch.randint(0, classes, (rows,), generator=generator)


def by_numpy(z, z0, labels, form):
    """The four terms, written directly from the equations."""
    z, z0, labels = (np.asarray(array) for array in (z, z0, labels))
    rows, classes = z.shape

    def log_p(x):
        x = x - x.max(1, keepdims=True)
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    task = -log_p(z)[np.arange(rows), labels].mean()
    if form.consistency == "kl":
        p, q = log_p(z0 / form.temperature), log_p(z / form.temperature)
        consistency = form.temperature**2 * (np.exp(p) * (p - q)).sum(1).mean()
    else:
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, z0)]
        consistency = ((unit[0] - unit[1]) ** 2).mean()
    centred = z - z.mean(0)
    c = centred.T @ centred / (rows - 1)
    diversity = (c**2).sum() / classes - (np.diag(c) ** 2).sum() / classes
    sigma = np.linalg.svd(z, compute_uv=False)
    return task, consistency, diversity, -sigma[: form.svd_k].sum() / sigma.sum()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("form", [ICLR, V5, ON], ids=["iclr", "v5", "k1"])
def test_every_term_is_that_of_the_equation(classes, form):
    z, z0, labels = draw(12, classes)
    lambdas = (form.lambda1, form.lambda2, form.lambda3)
    loss, terms = classifier_objective(z, z0, labels, form, lambdas)
    expected = by_numpy(z.detach(), z0, labels, form)
    for name, value in zip(("task", "consistency", "diversity", "spectrum"), expected, strict=True):
        assert terms[name].item() == pytest.approx(value, rel=1e-9, abs=1e-12), name
    assert loss.item() == pytest.approx(expected[0] + np.dot(lambdas, expected[1:]), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("form", [V5, ON], ids=["v5", "k1"])
def test_the_gradient_is_that_of_finite_differences(classes, form):
    z, z0, labels = draw(6, classes, seed=3)
    assert torch.autograd.gradcheck(lambda x: classifier_objective(x, z0, labels, form, (0.3, 0.2, 0.1))[0], (z,))


def test_a_regression_has_the_squared_error_and_no_acting_term():
    z, z0, _ = draw(7, 1)
    labels = torch.linspace(0, 5, 7)
    for form in (ICLR, V5):
        _loss, terms = classifier_objective(z, z0, labels, form, (0.3, 0.2, 0.1), regression=True)
        assert terms["task"].item() == pytest.approx(
            ((z.detach().numpy()[:, 0] - labels.numpy()) ** 2).mean(), rel=1e-6
        )
        for name in ("consistency", "diversity", "spectrum"):
            (gradient,) = torch.autograd.grad(terms[name], z, retain_graph=True, allow_unused=True)
            assert gradient is None or gradient.abs().max() < 1e-12, name
        assert terms["spectrum"].item() == -1.0 and terms["diversity"].item() == 0.0
    assert classifier_objective(z, z0, labels, ICLR, (0.3, 0.2, 0.1), regression=True)[1]["consistency"].item() == 0.0
    value = classifier_objective(z, z0, labels, V5, (0.3, 0.2, 0.1), regression=True)[1]["consistency"].item()
    signs = np.sign(z.detach().numpy()) != np.sign(z0.numpy())
    assert value == pytest.approx(4 * signs.mean(), rel=1e-9)  # each row is 0 or 4


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_published_spectrum_is_the_constant_minus_one_with_zero_gradient_on_every_glue_task(classes, dtype):
    for seed in range(5):
        z, z0, labels = draw(32, classes, seed, dtype)
        terms = classifier_objective(z, z0, labels, ICLR, (0.15, 0.03, 0.03), regression=classes == 1)[1]
        assert terms["spectrum"].item() == -1.0
        (gradient,) = torch.autograd.grad(terms["spectrum"], z)
        assert (gradient == 0).all()


def test_a_smaller_k_and_the_features_have_a_gradient():
    z, z0, labels = draw(16, 2)
    small = classifier_objective(z, z0, labels, ON, (0.0, 0.0, 1.0))[1]["spectrum"]
    assert torch.autograd.grad(small, z)[0].norm() > 1e-3
    features = torch.randn(16, 24, dtype=torch.float64, requires_grad=True)
    _loss, terms = classifier_objective(z, z0, labels, ICLR, (0.0, 0.1, 0.1), features=features)
    assert -1 < terms["spectrum"].item() < 0
    assert torch.autograd.grad(terms["spectrum"], features, retain_graph=True)[0].norm() > 1e-4
    assert torch.autograd.grad(terms["diversity"], features)[0].norm() > 1e-4


def test_task_and_consistency_do_not_depend_on_how_the_batch_is_cut():
    z, z0, labels = draw(12, 3)
    whole, _terms = classifier_objective(z, z0, labels, ON, (0.3, 0.0, 0.0))
    cut = sum(
        classifier_objective(z[part], z0[part], labels[part], ON, (0.3, 0.0, 0.0), num_items=12, share=1 / 3)[0]
        for part in (slice(0, 2), slice(2, 7), slice(7, 12))
    )
    assert cut.item() == pytest.approx(whole.item(), rel=1e-12)


def test_the_statistics_are_averaged_over_the_micro_batches():
    z, z0, labels = draw(12, 3)
    parts = [slice(0, 6), slice(6, 12)]
    each = [classifier_objective(z[p], z0[p], labels[p], ON, (0.0, 1.0, 1.0), num_items=12, share=0.5) for p in parts]
    expected = [by_numpy(z.detach()[p], z0[p], labels[p], ON) for p in parts]
    loss = sum(loss.item() for loss, _ in each)
    task = by_numpy(z.detach(), z0, labels, ON)[0]
    assert loss == pytest.approx(task + sum(0.5 * (d + s) for _, _, d, s in expected), rel=1e-9)


def test_what_cannot_act_is_named_with_a_remedy():
    assert powerless(ICLR, rows=32, classes=2, width=2).keys() == {"spectrum"}
    assert "--svd_k 1, or --regularize features" in powerless(ICLR, rows=32, classes=2, width=2)["spectrum"]
    assert powerless(ON, rows=32, classes=2, width=2) == {}
    assert powerless(ICLR, rows=32, classes=2, width=384) == {}
    assert powerless(ICLR, rows=32, classes=1, width=1).keys() == {"consistency", "diversity", "spectrum"}
    assert powerless(V5, rows=32, classes=1, width=384).keys() == {"consistency"}
    assert powerless(ON, rows=1, classes=3, width=3).keys() == {"diversity", "spectrum"}


# The model


def small_bert(labels=3, seed=0, dropout=0.0, **options):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        num_labels=labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **options,
    )
    return BertForSequenceClassification(config).eval()


def small_gpt2(labels=3):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2, num_labels=labels, pad_token_id=0
    )
    return GPT2ForSequenceClassification(config).eval()


def batch(rows=10, labels=3, width=7):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(2, width + 1, (rows,), generator=generator)
    lengths[0] = width
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.randint(1, 60, (rows, width), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.randint(0, labels, (rows,), generator=generator)}


def wrapped(objective, model=None, head=("classifier",), method="ba-lora", **options):
    student = attach(model or small_bert(), method, rank=2, alpha=2, head=head, keep_initial=True)
    return ClassifierModel(student, objective, **options).train()


def test_without_dropout_consistency_starts_at_exactly_zero_and_with_it_does_not():
    made = wrapped(ON)
    made(**batch())
    assert made.sums["consistency"].item() == 0.0
    noisy = wrapped(ON, small_bert(dropout=0.3))
    noisy(**batch())
    assert noisy.sums["consistency"].item() > 1e-6


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta", "gpt2"])
def test_the_models_own_dropout_can_be_taken_away(kind):
    """For every kind of model, wherever it keeps its rates, two forwards in training mode are then equal."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 32, "num_labels": 3, "pad_token_id": 0}
    noisy = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    made = {
        "bert": lambda: small_bert(dropout=0.3),
        "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**sizes, **noisy)),
        "deberta": lambda: DebertaV2ForSequenceClassification(
            DebertaV2Config(**sizes, **noisy, pooler_dropout=0.3, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ),
        "gpt2": small_gpt2,  # 0.1 by default
    }[kind]().train()
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    assert not torch.equal(made(**inputs).logits, made(**inputs).logits)
    set_dropout(made, 0.0)
    assert torch.equal(made(**inputs).logits, made(**inputs).logits)
    set_dropout(made, 0.5)
    assert not torch.equal(made(**inputs).logits, made(**inputs).logits)


def test_the_teacher_is_the_pretrained_body_with_the_heads_first_values_after_steps_too():
    model = small_bert()
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    before = model(**inputs).logits.detach().clone()
    made = wrapped(ON, model)
    optimiser = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        made(**batch()).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        assert not torch.allclose(made.student(**inputs).logits, before, atol=1e-3)
        with teacher(made.student):
            assert torch.allclose(made.student(**inputs).logits, before, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_features_are_what_the_heads_last_layer_gets(kind):
    model, head = (small_bert(), "classifier") if kind == "bert" else (small_gpt2(), "score")
    made = wrapped(ON, model, (head,), regularize="features")
    inputs = {key: value for key, value in batch().items() if key != "labels"}
    logits, features = made.eval()._forward(inputs)
    last = getattr(made.student.get_base_model(), head)
    assert features.shape == (10, 32)
    assert torch.allclose(last(features), logits, atol=1e-6)
    for row in range(10):  # one at a time, without padding
        length = int(inputs["attention_mask"][row].sum())
        alone, _ = made._forward({key: value[row : row + 1, :length] for key, value in inputs.items()})
        assert torch.allclose(alone[0], logits[row], atol=1e-5)


def test_a_logged_step_has_each_terms_gradient_norm_and_it_is_zero_where_the_term_cannot_act(caplog):
    made = wrapped(ICLR, small_bert(labels=2))
    made.begin_step(0, 10, logged=True)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made(**batch(labels=2)).loss.backward()
    assert made.sums["output_gradient_spectrum"].item() == 0.0
    assert made.sums["output_gradient_task"].item() > 0 and made.sums["output_gradient_diversity"].item() > 0
    said = [record.message for record in caplog.records if "spectrum" in record.message]
    assert len(said) == 1 and "has no gradient" in said[0] and "--svd_k 1" in said[0]


def test_a_small_micro_batch_is_warned_of_once(caplog):
    made = wrapped(ON)
    with caplog.at_level(logging.WARNING):
        made(**batch(rows=4)), made(**batch(rows=4))
    assert sum("raise --micro_batch_size" in record.message for record in caplog.records) == 1


def test_a_model_without_an_initial_copy_is_refused_where_the_teacher_is_needed():
    student = attach(small_bert(), "full", rank=1, alpha=1)
    with pytest.raises(UserError, match="needs the teacher"):
        ClassifierModel(student, ON)
