#!/bin/sh
# Measure what a tuned model has kept of its base (docs/bias.md), into eval/retention of its run folder (or runs/eval/MODEL/retention).
#   sh scripts/eval_retention.sh RUN [--option value ...]
#   sh scripts/eval_retention.sh BASE ADAPTER [--option value ...]
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/environment.sh"
case "${1:--}" in
-*) exec "$PYTHON" -m eval.retention "$@" ;;
esac
model=$1
shift
case "${1:--}" in
-*) exec "$PYTHON" -m eval.retention --model "$model" "$@" ;;
esac
adapter=$1
shift
exec "$PYTHON" -m eval.retention --model "$model" --adapter "$adapter" "$@"
