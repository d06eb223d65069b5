#!/bin/sh
# Evaluate one model on CrowS-Pairs (docs/bias.md), into eval/crows_pairs of its run folder (or runs/eval/MODEL/crows_pairs); see scripts/eval_all.sh.
#   sh scripts/eval_crows_pairs.sh MODEL [ADAPTER] [--option value ...]
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
exec sh "$(dirname "$0")/eval_all.sh" "$@" --benchmarks crows_pairs
