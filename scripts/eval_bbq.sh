#!/bin/sh
# Evaluate one model on BBQ (docs/bias.md), into eval/bbq of its run folder (or runs/eval/MODEL/bbq); see scripts/eval_all.sh.
#   sh scripts/eval_bbq.sh MODEL [ADAPTER] [--option value ...]
# --limit 1100 asks 1,100 of its 58,492 questions, 100 of each category.
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks bbq
