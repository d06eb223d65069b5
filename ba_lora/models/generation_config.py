"""Repair a base's generation config so that it can be saved.

transformers opens a generation config that contradicts itself (a temperature without sampling, a beam option without beams)
but refuses to save it. It affects neither training nor this project's evaluations, which set their own options.
"""

import re

from torch import nn

# Options that only affect sampling → test of whether a value allows sampling.
SAMPLING = {
    "temperature": lambda value: value > 0,
    "top_k": lambda value: value >= 0,
    **dict.fromkeys(("top_p", "typical_p"), lambda value: 0 < value <= 1),
    **dict.fromkeys(("min_p", "top_h", "epsilon_cutoff", "eta_cutoff"), lambda value: 0 <= value <= 1),
}


def repair_generation_config(model: nn.Module) -> str | None:
    """Change the generation config of `model` so that transformers saves it; returns a description of the changes, or None.

    Sampling options without do_sample imply sampling, so do_sample becomes True. If do_sample is False, or a value does not
    allow sampling (temperature 0), they are dropped, as is everything else that has no effect.
    """
    config = getattr(model, "generation_config", None)
    if config is None or not model.can_generate():
        return None
    changes = []
    while names := _refused(config):
        values = {name: getattr(config, name) for name in names}
        sampled = {name: value for name, value in values.items() if name in SAMPLING}
        if sampled and config.do_sample is None and all(_may_sample(*each) for each in sampled.items()):
            config.do_sample = True
            changes.append(f"do_sample true, for {_listed(sampled)}")
            continue
        for name in names:
            setattr(config, name, None)
        changes.append(f"without {_listed(values)}, which had no effect")
    return "; ".join(changes) or None


def _refused(config) -> list[str]:
    """The options for which transformers refuses to save `config` as long as they have a value."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return [name for name in re.findall(r"^- `(\w+)`", str(error), re.M) if getattr(config, name, None) is not None]
    return []


def _may_sample(name: str, value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and SAMPLING[name](value)


def _listed(values: dict) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in values.items())
