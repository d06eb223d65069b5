#!/bin/sh
# Check the project on a GPU: exactness, the objective alone, steps of 7B and 8B models, train.py, the start. About 7 minutes on an H100.
#   sh scripts/gpu_check.sh                                 every part, into results/gpu/
#   sh scripts/gpu_check.sh --device cpu --smoke --out DIR  try the script without a GPU
#   sh scripts/gpu_check.sh --only exactness train-tiny     some parts (--help-options lists all options)
# It installs nothing and uses the active environment's python (or $PYTHON; without torch there, that of the project's .venv), which needs
# torch, transformers, peft, accelerate, safetensors and filelock. python -m ba_lora.benchmark.device_table then writes the tables of docs/gpu.md.
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
PYTHONSAFEPATH=1
export PYTHONPATH PYTHONSAFEPATH
if [ "${1:-}" = --help-options ]; then set -- --help; fi
python=${PYTHON:-python3}
has_torch() { "$1" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2>/dev/null; }
if ! has_torch "$python"; then
    own=$root/.venv/bin/python
    if [ -n "${PYTHON:-}" ] || ! has_torch "$own"; then
        echo "error: $python has no torch; activate an environment that has it, or name its python: PYTHON=... sh scripts/gpu_check.sh" >&2
        exit 2
    fi
    python=$own
fi
exec "$python" -m ba_lora.benchmark.device_check "$@"
