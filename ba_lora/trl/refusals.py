"""The options of `Anchored` as an Objective, and the trainers that it cannot be put in front of."""

from peft import PeftModel

from ..errors import UserError, choose
from ..objective.settings import REGULARIZERS, Objective

FORMS = REGULARIZERS[0].forms


def objective_of(
    objective: Objective | None, anchor: str, weight: float, temperature: float, diversity: float, spectrum: float
) -> Objective:
    """The Objective of these options. Raises UserError, with the option's name, for a wrong value and for both ways at once."""
    if objective is not None:
        if (anchor, weight, temperature, diversity, spectrum) != ("kl", 0.25, 1.0, 0.0, 0.0):
            raise UserError(
                "objective replaces anchor, weight, temperature, diversity and spectrum; give the objective alone"
            )
        return objective
    choose("anchor", anchor, FORMS)
    for name, value in (("weight", weight), ("diversity", diversity), ("spectrum", spectrum)):
        if not 0 <= value < float("inf"):
            raise UserError(f"{name} must be a number of at least 0, got {value}")
    return Objective(weight, diversity, spectrum, consistency=anchor, temperature=temperature)


def refuse(trainer) -> None:
    """Raise UserError for a model or option of `trainer` that the objective does not cover."""
    model, args = trainer.model, trainer.args
    if not isinstance(model, PeftModel):
        raise UserError(
            f"the model is a {type(model).__name__}, which has no adapter; give peft_config or a PeftModel, or train all weights "
            "with ba_lora.BALoRATrainer"
        )
    if any(config.is_prompt_learning for config in model.peft_config.values()):
        raise UserError("the adapter adds virtual tokens, which the objective does not count; use LoRA")
    parallel = trainer.accelerator.parallelism_config
    for is_set, line in (
        (args.label_smoothing_factor, "label_smoothing_factor {} changes the task loss; set it to 0"),
        (
            trainer.compute_loss_func is not None,
            "compute_loss_func replaces the loss that Anchored computes; leave it out",
        ),
        (getattr(args, "loss_type", "nll") != "nll" and args.loss_type, "loss_type {} is not covered; use nll"),
        (
            getattr(trainer, "aux_loss_enabled", False) and trainer.router_aux_loss_coef,
            "router_aux_loss_coef {} adds a loss of the routers, which is not covered; set it to 0.0",
        ),
        (args.torch_compile, "torch_compile was not tried with the teacher's passes; leave it out"),
        (getattr(trainer, "_is_vision_dataset", False), "a dataset with images is not covered; give texts"),
        (getattr(trainer, "is_fsdp_enabled", False), "FSDP is not covered; use DeepSpeed ZeRO-2 or torchrun alone"),
        (
            parallel is not None and (parallel.cp_enabled or parallel.sp_enabled or parallel.tp_enabled),
            "a sequence or layer that is split over processes is not covered; leave parallelism_config out",
        ),
    ):
        if is_set:
            raise UserError(line.format(is_set))
