#!/bin/sh
# Run the benchmarks on one model, then print its row of the paper's table (python -m eval.all --help).
#   sh scripts/eval_all.sh MODEL [ADAPTER] [--benchmarks NAME ...] [--data NAME=FILE ...] [--option value ...]
# eval_gsm8k.sh, eval_math.sh, eval_humaneval.sh, eval_mbpp.sh and eval_mt_bench.sh run one each, and so do those of the benchmarks of
# bias: eval_crows_pairs.sh, eval_stereoset.sh, eval_bbq.sh, eval_winobias.sh, eval_winogender.sh.
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/environment.sh"
exec "$PYTHON" -m eval.all "$@"
