#!/bin/sh
# The figures of all committed results: assets/NAME for each results/NAME, and under the names of the paper's figures
# assets/ablation and assets/various_ranks, which hold the published values beside ours, and assets/t-sne of the points in results/t-sne.
#   sh scripts/figures.sh [--option value ...]        options of python -m ba_lora.experiments figure
set -eu
cd "$(dirname "$0")/.."
. scripts/environment.sh
for folder in results/*/; do
    [ -d "$folder" ] || { echo "error: results/ is empty; run: python -m ba_lora.experiments collect FILE" >&2; exit 2; }
    name=$(basename "$folder")
    [ -f "configs/experiments/$name.yaml" ] || continue
    "$PYTHON" -m ba_lora.experiments figure "configs/experiments/$name.yaml" --output "assets/$name" "$@"
done
drawn=$(mktemp -d)
trap 'rm -r "$drawn"' EXIT
"$PYTHON" tsne_visualization.py --redraw results/t-sne --output_dir "$drawn"
for ending in pdf png; do
    cp "assets/ablation-embedded/bars.$ending" "assets/ablation.$ending"
    cp "assets/ranks-embedded/curves_rank.$ending" "assets/various_ranks.$ending"
    cp "$drawn/tsne_evolution.$ending" "assets/t-sne.$ending"
done
