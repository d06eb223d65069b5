#!/bin/sh
# Run the benchmarks on one model, then print its row of the paper's table (python -m eval.all --help).
#   sh scripts/eval_all.sh MODEL [ADAPTER] [--benchmarks NAME ...] [--data NAME=FILE ...] [--option value ...]
# eval_gsm8k.sh, eval_math.sh, eval_humaneval.sh, eval_mbpp.sh and eval_mt_bench.sh run one each.
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
exec "$PYTHON" -m eval.all "$@"
