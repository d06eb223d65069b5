#!/bin/sh
# Evaluate one model on MT-Bench, into eval/mt_bench of its run folder (or runs/eval/MODEL/mt_bench); see scripts/eval_all.sh.
#   sh scripts/eval_mt_bench.sh MODEL [ADAPTER] [--option value ...]
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks mt_bench
