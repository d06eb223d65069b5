#!/bin/sh
# The main job. Without a config: base, full fine-tuning, LoRA, PiSSA and BA-LoRA on the embedded model, then the table.
#   sh scripts/ba-lora.sh [--seeds 1]                       the comparison
#   sh scripts/ba-lora.sh CONFIG [--option value ...]       that one run, trained and evaluated
# Without a POSIX shell: pip install -r requirements.txt, then python -m ba_lora.experiments run (or: one CONFIG).
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
case "${1:-}" in
"" | -*) exec "$PYTHON" -m ba_lora.experiments run "$@" ;;
*) exec "$PYTHON" -m ba_lora.experiments one "$@" ;;
esac
