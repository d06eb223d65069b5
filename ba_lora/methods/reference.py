"""The pre-trained model as a model of its own, which computes with the weights of the adapted one: a reference for DPO or a loss of yours."""

from peft import PeftModel
from torch import Tensor, nn

from ..errors import UserError
from .teacher import has_teacher, keep_initial_copy, teacher


class Reference(nn.Module):
    """The pre-trained model behind the adapted `model`: no second copy of the weights, no gradient, evaluation mode.

    A call returns what transformers' model returns for the same arguments. For TRL's DPOTrainer it is a `ref_model`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.student = model

    @property
    def config(self):
        return self.student.config

    def forward(self, *args, **inputs):
        """transformers' output for these inputs: logits (B, T, V), and what else they ask for."""
        with teacher(self.student):
            return self._causal()(*args, **inputs)

    def base_model(self, *args, **inputs):
        """The output of the model below the head, as transformers calls it: last_hidden_state (B, T, d)."""
        with teacher(self.student):
            causal = self._causal()
            return causal.base_model(*args, **inputs)

    def hidden(self, *args, **inputs) -> Tensor:
        """(B, T, d): the hidden states that the head turns into logits."""
        return self.base_model(*args, **inputs).last_hidden_state

    def get_output_embeddings(self) -> nn.Module:
        """The head, which TRL multiplies itself. Raises UserError for one that is trained or adapted: its values are the student's."""
        head = self._causal().get_output_embeddings()
        if not isinstance(head, nn.Linear) or any(parameter.requires_grad for parameter in head.parameters()):
            raise UserError(
                f"the head ({type(head).__name__}) is trained, so TRL would take the student's for the reference's; leave the "
                "head out of modules_to_save and target_modules"
            )
        return head

    def train(self, mode: bool = True) -> "Reference":
        """Leave the student's modules in their mode: a reference is always evaluated."""
        return self

    def _causal(self) -> nn.Module:
        return self.student.get_base_model() if isinstance(self.student, PeftModel) else self.student


def reference(model: nn.Module) -> Reference:
    """A callable for the logits, and by `.hidden` the hidden states, of the pre-trained model behind `model`.

    model: from `attach`, or a PeftModel. If its start changed the base's weights (PiSSA by PEFT) and it keeps no initial copy, a copy
    of the trained tensors is taken now, so call this before training. Raises UserError for a model without an adapter and without a
    copy, which would be its own reference.
    """
    if not has_teacher(model):
        if not isinstance(model, PeftModel) or any(each.is_prompt_learning for each in model.peft_config.values()):
            raise UserError(
                f"this {type(model).__name__} has no pre-trained model behind it; give a PeftModel of LoRA's kind, or a model from "
                "ba_lora.attach with keep_initial=True"
            )
        keep_initial_copy(model)
    return Reference(model)
