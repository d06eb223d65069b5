#!/bin/sh
# Write the tables of assets/ from results/, in Markdown, CSV and LaTeX: assets/NAME/table.*
#   sh scripts/tables.sh [NAME ...]        default: every experiment of results/
# NAME is a file of configs/experiments. To write the results: python -m ba_lora.experiments collect FILE
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. scripts/environment.sh
if [ $# -eq 0 ]; then
    for folder in results/*/; do
        [ -d "$folder" ] || { echo "error: results/ is empty; run: python -m ba_lora.experiments collect FILE" >&2; exit 2; }
        name=$(basename "$folder")
        if [ -f "configs/experiments/$name.yaml" ]; then set -- "$@" "$name"; fi
    done
fi
for name in "$@"; do
    "$PYTHON" -m ba_lora.experiments table "configs/experiments/$name.yaml" --runs none --output_dir "assets/$name" --quiet
done
