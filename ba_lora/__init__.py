"""BA-LoRA: low-rank fine-tuning from a PiSSA start, with three regularizers on the model's outputs.

Public names (loaded on first use, so that `import ba_lora` stays light):
    attach, export, load            adapters: make, save, open
    Objective, ObjectiveModel       task loss plus regularizers, for any trainer
    BALoRATrainer, ObjectiveCallback
    teacher, reference              the pre-trained model behind the adapted one: inside a block, or as a model
"""

import importlib
import logging

from . import signals

__version__ = "0.1.0"

_HOMES = {
    "attach": "methods.attach",
    "export": "methods.save",
    "load": "methods.save",
    "Objective": "objective.settings",
    "ObjectiveModel": "training.objective_model",
    "BALoRATrainer": "training.trainer",
    "ObjectiveCallback": "training.callbacks",
    "teacher": "methods.teacher",
    "reference": "methods.reference",
}
__all__ = ["__version__", *_HOMES]


signals.while_importing()

# transformers imports bitsandbytes, which then warns on some CPUs that an optional kernel is not installed
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'ba_lora' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
