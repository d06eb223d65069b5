"""Answers that another model rates: questions, prompts, replies and their statistics."""
