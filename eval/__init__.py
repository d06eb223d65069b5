"""Evaluation: one file per benchmark, each a command that generates completions and then scores them from the file.

All benchmarks share the option names, the two steps and the output files of `eval.harness`, get their completions from
`ba_lora.inference.backends`, and state their protocol (prompt, stop, extraction, metric, version) in score.json.
"""

import ba_lora  # noqa: F401  installs the signal handling of its commands
