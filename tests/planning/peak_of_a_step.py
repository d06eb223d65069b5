"""Started by test_memory.py with the options of train.py: prints the peak bytes of a training step of that run."""

import gc
import sys
from pathlib import Path

import torch

from ba_lora.methods.attach import attach
from ba_lora.models import load_model
from ba_lora.training.command_line import parse
from ba_lora.training.objective_model import ObjectiveModel


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def use_the_libraries() -> None:
    """Let the libraries allocate their own memory first: it is not part of the run."""
    parameter = torch.nn.Parameter(torch.randn(64, 64))
    torch.nn.functional.scaled_dot_product_attention(
        *[(parameter @ parameter).expand(2, 4, 64, 64)] * 3
    ).sum().backward()
    torch.optim.AdamW([parameter]).step()
    torch.linalg.eigh(torch.eye(64, dtype=torch.float64))


def main(words: list[str]) -> None:
    arguments = parse(words)
    objective = arguments.objective()
    use_the_libraries()
    before = resident("VmRSS")
    model = attach(
        load_model(arguments.model), arguments.method, rank=arguments.rank, alpha=arguments.alpha, init="pissa_niter_2"
    )
    for parameter in model.parameters():
        parameter.data = (
            parameter.data.clone()
        )  # copy away from the file, which stays mapped as long as one tensor lies in it
    model = ObjectiveModel(model, objective).train()
    model.lambdas = objective.maxima()
    optimiser = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    ids = torch.randint(3, model.config.vocab_size, (arguments.micro_batch_size, arguments.max_length))
    for turn in range(3):
        if turn == 1:  # the moments and the gradients exist now
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5")
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1:])
