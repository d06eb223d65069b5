"""The regularizers for other people's trainers: a mixin that goes in front of TRL's SFTTrainer or any transformers.Trainer.

TRL is needed only by the class that the mixin is put in front of.
"""

from .anchored import Anchored

__all__ = ["Anchored"]
