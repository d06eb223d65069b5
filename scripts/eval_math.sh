#!/bin/sh
# Evaluate one model on MATH, into eval/math of its run folder (or runs/eval/MODEL/math); see scripts/eval_all.sh.
#   sh scripts/eval_math.sh MODEL [ADAPTER] [--option value ...]
set -eu
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks math
