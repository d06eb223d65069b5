"""Save the last hidden layer of fixed examples at chosen steps of a training, for the t-SNE figures.

FOLDER/features_step_<n>.npy (examples, hidden), float32, and labels_step_<n>.npy (examples,); n is an optimiser step, 0 before
training, or "final". FOLDER/features.json says how they were computed. Computing them does not affect the training.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..data.padding import last_real
from ..errors import UserError
from ..files import atomic_write, read_json, write_json
from ..folders import checksums
from ..folders.ownership import refuse_foreign
from ..modes import evaluating
from .tsne import FACTS, FINAL, features_file, labels_file

FIRST_TOKEN, LAST_TOKEN = "first token", "last real token"


class FeatureSaver(TrainerCallback):
    """Save the features of `examples` at `steps` and at the end.

    student: a classifier, adapted or not. examples: encoded (input_ids, labels, ...), the same ones at every step. collate:
    list of examples → padded batch with labels (B,). steps: optimiser steps; 0 is before the first. labels: names of the
    classes, None for a regression. Only rank 0 saves; the others do not wait, so rank 0 must hold the whole model. Raises
    UserError under ZeRO-3, and for a step that the training does not reach.
    """

    def __init__(
        self,
        student: nn.Module,
        examples: Sequence[dict],
        collate: Callable[[list[dict]], dict],
        steps: Sequence[int],
        folder: str | Path,
        *,
        labels: Sequence[str] | None = None,
        batch_size: int = 32,
    ):
        if not len(examples):
            raise UserError("there are no examples to compute features from; give at least one")
        if steps and min(steps) < 0:
            raise UserError(f"features cannot be saved at step {min(steps)}; the first is 0, before the training")
        self.student, self.examples, self.steps, self.folder = student, examples, set(steps), Path(folder)
        self.collate, self.labels, self.batch_size = collate, labels, batch_size
        self.saved: list[int | str] = []

    def on_train_begin(self, args, state, control, **objects):
        if self.steps and max(self.steps) > state.max_steps:
            raise UserError(
                f"features are requested at step {max(self.steps)} and the training has {state.max_steps}; give earlier steps"
            )
        if any(hasattr(parameter, "ds_id") for parameter in self.student.parameters()):
            raise UserError("features cannot be saved under ZeRO-3, which cuts the model into pieces; use ZeRO-2")
        if not state.is_world_process_zero:
            return
        refuse_foreign(self.folder, "features", "the folder of the features,")
        self._forget_after(state.global_step)
        if state.global_step == 0 and 0 in self.steps:
            self._save(0)

    def on_step_end(self, args, state, control, **objects):
        if state.is_world_process_zero and state.global_step in self.steps:
            self._save(state.global_step)

    def on_train_end(self, args, state, control, **objects):
        if state.is_world_process_zero:
            self._save(FINAL)

    def _forget_after(self, step: int) -> None:
        """When the run begins or continues, keep features saved up to `step`; remove later ones and those of another run."""
        if step and self.folder.is_dir():
            checksums.verify(self.folder, "put it back from a copy, or start the run again with --overwrite")
        known = read_json(self.folder / FACTS)["steps"] if step and (self.folder / FACTS).is_file() else []
        self.saved = [saved for saved in known if saved != FINAL and saved <= step]
        kept = {name(self.folder, saved) for saved in self.saved for name in (features_file, labels_file)}
        for pattern in (features_file, labels_file):
            for path in self.folder.glob(pattern("", "*").name):
                if path not in kept:
                    path.unlink()
        if not self.saved:
            for name in (FACTS, checksums.FILE):
                (self.folder / name).unlink(missing_ok=True)
        elif step:
            checksums.write(self.folder)

    def _save(self, step: int | str) -> None:
        features, labels, pooling = features_of(self.student, self.examples, self.collate, self.batch_size)
        for path, array in ((labels_file(self.folder, step), labels), (features_file(self.folder, step), features)):
            with atomic_write(path) as file:
                np.save(file.buffer, array, allow_pickle=False)  # bytes, so below the text file
        self.saved = [saved for saved in self.saved if saved != step] + [step]
        facts = {
            "layer": "last hidden",
            "pooling": pooling,
            "classes": list(self.labels) if self.labels else None,
            "examples": len(features),
            "hidden": features.shape[1],
            "dtype": str(features.dtype),
            "steps": self.saved,
        }
        write_json(self.folder / FACTS, facts)
        checksums.write(self.folder)


def features_of(
    model: nn.Module, examples: Sequence[dict], collate: Callable[[list[dict]], dict], batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray, str]:
    """(features (examples, hidden) float32, labels (examples,), pooling) of a classifier, in the order of `examples`.

    pooling: which token of the last hidden layer is used, see `pooling_of`. Runs in evaluation mode without gradients; modes and
    random states are restored afterwards. Raises UserError for an encoder-decoder.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"{model.config.model_type} has two stacks of hidden layers; features are those of an encoder or a decoder"
        )
    device = next(model.parameters()).device
    rows, labels = [], []
    with _unnoticed(model):
        pooling = pooling_of(model, examples[0]["input_ids"][0])
        for start in range(0, len(examples), batch_size):
            batch = dict(collate([examples[i] for i in range(start, min(start + batch_size, len(examples)))]))
            labels.append(batch.pop("labels").reshape(-1))
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            mask = batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
            # padded on the left: positions count from the start of the text
            if pooling == LAST_TOKEN and not mask[:, 0].all():
                batch["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
            rows.append(_pool(last_hidden(model, batch), mask, pooling).float().cpu())
    return torch.cat(rows).numpy(), torch.cat(labels).cpu().numpy(), pooling


def pooling_of(model: nn.Module, token: int) -> str:
    """ "last real token" for a decoder, "first token" for an encoder; `token`: any id that can begin a text.

    Determined by behaviour: with causal attention, the first token's state does not depend on the second token.
    """
    device = next(model.parameters()).device
    states = []
    for other in (0, 1):
        ids = torch.tensor([[int(token), other]], device=device)
        states.append(last_hidden(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})[:, 0])
    return LAST_TOKEN if torch.allclose(*states, rtol=1e-5, atol=1e-6) else FIRST_TOKEN


def last_hidden(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The last hidden layer, (B, T, d), after the final norm if there is one."""
    return model(**batch, output_hidden_states=True).hidden_states[-1]


def _pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One state per example, (B, d), with padding on either side. hidden: (B, T, d); mask: (B, T), 1 at a real token."""
    at = last_real(mask) if pooling == LAST_TOKEN else (mask != 0).int().argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), at]


@contextmanager
def _unnoticed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; every mode and random state is restored afterwards."""
    states = random.getstate(), np.random.get_state()
    try:
        with evaluating(model), torch.random.fork_rng(), torch.no_grad():
            yield
    finally:
        random.setstate(states[0]), np.random.set_state(states[1])
