#!/bin/sh
# The main job. Without a config: base, full fine-tuning, LoRA, PiSSA and BA-LoRA on the embedded model, then the table.
#   sh scripts/ba-lora.sh [--seeds 1]                       the comparison
#   sh scripts/ba-lora.sh CONFIG [--option value ...]       train and evaluate that one run (options of train.py)
#   sh scripts/ba-lora.sh CONFIG --dry_run                  print the plan, without weights or data
# lora.sh, pissa.sh and full.sh run a CONFIG with that method. Environment variables (ba_lora/training/launch.py):
#   NPROC=2                                                 processes; default: one per GPU, or one without GPUs
#   LAUNCHER=deepspeed                                      instead of torchrun
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine          several machines: the same command on each with its NODE_RANK;
#                                                           set MASTER_PORT if 29500 is taken
#   HOSTFILE=hosts                                          one line "HOST slots=PROCESSES" each; replaces NNODES, NPROC and
#                                                           MASTER_ADDR; LAUNCHER=deepspeed then starts them all over ssh
#   BA_LORA_VLLM=folder                                     an environment that has vLLM, for the evaluation, if this one has not
# docs/nodes.md has examples. --install (any script) installs requirements.txt into an active environment of other versions.
# Without a POSIX shell: pip install -r requirements.txt, then python -m ba_lora.experiments run (or: one CONFIG).
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/environment.sh"
case "${1:-}" in
"" | -*) exec "$PYTHON" -m ba_lora.experiments run "$@" ;;
*) exec "$PYTHON" -m ba_lora.experiments one "$@" ;;
esac
