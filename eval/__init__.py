"""Evaluation: one file a benchmark, each a command that generates completions and then scores them from the file.

Every benchmark shares the option names, the two parts and the output files of `eval.harness`, takes its completions from
`ba_lora.inference.backends`, and states its protocol (prompt, stop, extraction, metric, version) in score.json.
"""

import ba_lora  # noqa: F401  its commands' answer to signals holds from here on
