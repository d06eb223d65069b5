"""Programs from completions, and the sandbox that runs them."""
