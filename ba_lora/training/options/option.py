"""One option of a training run as a dataclass field."""

from dataclasses import field


def option(default, help, **more):
    """A dataclass field with a help text; `choices` and `group` as in argparse."""
    return field(default=default, metadata={"help": help, **more})
