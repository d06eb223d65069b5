"""Training data: reading files, writing prompts, generating problems, building batches."""
