#!/bin/sh
# Classification. Without a config: LoRA, PiSSA and BA-LoRA on the embedded task, in and out of domain, then the table.
#   sh scripts/nlu.sh [--overwrite]                         the comparison
#   sh scripts/nlu.sh CONFIG [--option value ...]           train and evaluate that one run (options of train.py)
# For example configs/nlu/bert-large-sst2.yaml; scripts/glue.sh runs all tasks of one row of the paper's tables.
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/environment.sh"
case "${1:-}" in
"" | -*) exec "$PYTHON" -m ba_lora.experiments run configs/experiments/nlu-main-embedded.yaml \
    --untuned --seeds 1 --methods lora pissa ba-lora "$@" ;;
*) exec "$PYTHON" -m ba_lora.experiments one "$@" ;;
esac
