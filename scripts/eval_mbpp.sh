#!/bin/sh
# Evaluate one model on MBPP, into eval/mbpp of its run folder (or runs/eval/MODEL/mbpp); see scripts/eval_all.sh.
#   sh scripts/eval_mbpp.sh MODEL [ADAPTER] [--option value ...]
set -eu
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks mbpp
