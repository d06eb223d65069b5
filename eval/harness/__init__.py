"""What every benchmark shares: options, asking the model, resuming, and writing scores."""
