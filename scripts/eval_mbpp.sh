#!/bin/sh
# MBPP of one model, into eval/mbpp of its run folder (else runs/eval/MODEL/mbpp); see scripts/eval_all.sh.
#   sh scripts/eval_mbpp.sh MODEL [ADAPTER] [--option value ...]
set -eu
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks mbpp
