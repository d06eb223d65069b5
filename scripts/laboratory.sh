#!/bin/sh
# One pair of mirror twins (docs/laboratory.md): pre-train both, fine-tune each with PiSSA, BA-LoRA and LoRA, and show what is left of
# the planted content. At most 20 minutes on two cores; the same command continues after an interruption.
#   sh scripts/laboratory.sh [FILE]        default: configs/experiments/laboratory-quick.yaml
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. scripts/environment.sh
file=${1:-configs/experiments/laboratory-quick.yaml}
"$PYTHON" -m ba_lora.experiments run "$file"
"$PYTHON" -m ba_lora.experiments figure "$file" --results none
