"""One training run: options, preparation of data and model, trainer, checkpoints, and the launch on several GPUs."""
