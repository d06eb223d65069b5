"""Answers rated by another model: questions, prompts, replies and their statistics."""
