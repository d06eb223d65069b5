"""From prompts to completions: transformers here, vLLM, or an OpenAI-compatible endpoint. No score is computed here."""
