"""Shared by every benchmark: options, asking the model, resuming, and writing scores."""
