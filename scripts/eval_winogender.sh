#!/bin/sh
# Evaluate one model on Winogender (docs/bias.md), into eval/winogender of its run folder (or runs/eval/MODEL/winogender); see scripts/eval_all.sh.
#   sh scripts/eval_winogender.sh MODEL [ADAPTER] [--option value ...]
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks winogender
