"""Training data: reading files, writing prompts, generated problems, batches."""
