"""Type a prompt and see the answers of the base model and the tuned model, one after the other."""
