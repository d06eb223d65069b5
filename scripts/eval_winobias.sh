#!/bin/sh
# Evaluate one model on WinoBias (docs/bias.md), into eval/winobias of its run folder (or runs/eval/MODEL/winobias); see scripts/eval_all.sh.
#   sh scripts/eval_winobias.sh MODEL [ADAPTER] [--option value ...]
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks winobias
