#!/bin/sh
# Draw the figures of assets/ from results/: assets/NAME for each results/NAME; also assets/ablation and
# assets/various_ranks, named as the paper's figures, with the published values beside ours, and assets/t-sne.
#   sh scripts/figures.sh [--option value ...]        options of python -m ba_lora.experiments figure
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
. scripts/environment.sh
draw() {
    name=$1 && shift
    "$PYTHON" -m ba_lora.experiments figure "configs/experiments/$name.yaml" --runs none --output_dir "assets/$name" "$@"
}
for folder in results/*/; do
    [ -d "$folder" ] || { echo "error: results/ is empty; run: python -m ba_lora.experiments collect FILE" >&2; exit 2; }
    name=$(basename "$folder")
    if [ -f "configs/experiments/$name.yaml" ]; then draw "$name" "$@"; fi
done
for name in ablation-embedded ranks-embedded; do # only the published values, if nothing was measured
    [ -d "results/$name" ] || draw "$name" "$@"
done
for ending in pdf png; do
    cp "assets/ablation-embedded/bars.$ending" "assets/ablation.$ending"
    cp "assets/ranks-embedded/curves_rank.$ending" "assets/various_ranks.$ending"
done
if [ -d results/t-sne ]; then
    drawn=$(mktemp -d)
    trap 'rm -r "$drawn"' EXIT
    "$PYTHON" tsne_visualization.py --redraw results/t-sne --output_dir "$drawn"
    for ending in pdf png; do cp "$drawn/tsne_evolution.$ending" "assets/t-sne.$ending"; done
fi
