"""One training run: its options, data and model made ready, the trainer, checkpoints, and the launch on several GPUs."""
