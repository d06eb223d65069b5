"""The course of a run and its evaluation."""

from dataclasses import dataclass

from .option import option


@dataclass
class RunOptions:
    """What a run writes, where it runs, and its evaluation."""

    logging_steps: int = option(10, "optimiser steps between lines of metrics.jsonl", group="run")
    save_steps: int = option(
        0, "optimiser steps between checkpoints; 0 = only when a signal stops the run", group="run"
    )
    merge: bool = option(False, "also write merged/, the base model with the adapter merged into it", group="run")
    resume: bool = option(
        False,
        "continue the run in output_dir from its newest complete checkpoint, or from the start if there is none",
        group="run",
    )
    overwrite: bool = option(False, "replace the run in output_dir", group="run")
    progress: bool = option(
        True,
        "show a progress bar on a terminal; without one, a line now and then says step, loss and time left",
        group="run",
    )
    use_cpu: bool = option(False, "train, and evaluate afterwards, on the CPU even if there is a GPU", group="run")
    report_to: list[str] | None = option(
        None, "tensorboard and/or wandb beside metrics.jsonl; their files go to logs/", group="run"
    )
    push_to_hub: str | None = option(
        None, "USER/NAME on the hub that adapter/ or model/ is uploaded to after training", group="run"
    )
    hub_public: bool = option(False, "make the hub's repository public instead of private", group="run")
    dry_run: bool = option(
        False,
        "print the resolved run with its predicted memory and disk use, and stop; needs no weights or hub",
        group="run",
    )
    devices: str | None = option(
        None,
        "with --dry_run: predict fit and time on these devices, such as 8xA40 (configs/devices.yaml)",
        group="run",
    )
    deepspeed: str | None = option(
        None, "DeepSpeed config file, such as configs/deepspeed/zero2.json; start with torchrun", group="run"
    )

    benchmarks: list[str] | None = option(
        None, "evaluations that scripts/ba-lora.sh CONFIG runs at the end", group="evaluation"
    )
    eval_data: list[str] | None = option(
        None,
        "data of the benchmarks as NAME=FILE, or one FILE for one benchmark; none = the benchmark's own",
        group="evaluation",
    )
    eval_limit: int | None = option(None, "number of test problems to use", group="evaluation")
    eval_backend: str = option(
        "auto",
        "what generates the answers: transformers (a process per GPU), vllm, openai (the endpoint $OPENAI_BASE_URL), or auto = "
        "vllm where it can run, else transformers",
        choices=("auto", "transformers", "vllm", "openai"),
        group="evaluation",
    )
