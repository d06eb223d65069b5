#!/bin/sh
# One row of the paper's GLUE tables: a model and a method on all tasks, or on the named ones.
#   sh scripts/glue.sh MODEL METHOD [TASK ...] [--option value ...]
# MODEL: deberta-v3-base, roberta-large, bert-large, gpt2-xl. METHOD: full, bitfit, houlsby, pfeiffer, lora, loha, dora, adalora,
# pissa, ba-lora. TASK: mnli sst2 mrpc cola qnli qqp rte stsb. --dry_run prints the plan of each run.
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -lt 2 ]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
. "$root/scripts/environment.sh"
model=$1 method=$2 tasks=
shift 2
while [ $# -gt 0 ]; do
    case "$1" in
    -*) break ;;
    *) tasks="$tasks $1" ;;
    esac
    shift
done
for task in ${tasks:-mnli sst2 mrpc cola qnli qqp rte stsb}; do
    "$PYTHON" -m ba_lora.experiments one "configs/nlu/$model-$task.yaml" --method "$method" "$@"
done
