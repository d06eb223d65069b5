#!/bin/sh
# Evaluate one model on GSM8K, into eval/gsm8k of its run folder (or runs/eval/MODEL/gsm8k); see scripts/eval_all.sh.
#   sh scripts/eval_gsm8k.sh MODEL [ADAPTER] [--option value ...]
set -eu
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks gsm8k
