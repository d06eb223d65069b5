"""From prompts to completions: local transformers, vLLM, or an OpenAI-compatible endpoint. No score is computed here."""
