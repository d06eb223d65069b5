#!/bin/sh
# Evaluate one model on StereoSet (docs/bias.md), into eval/stereoset of its run folder (or runs/eval/MODEL/stereoset); see scripts/eval_all.sh.
#   sh scripts/eval_stereoset.sh MODEL [ADAPTER] [--option value ...]
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks stereoset
