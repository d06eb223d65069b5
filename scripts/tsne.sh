#!/bin/sh
# The paper's figures 5 to 8: t-SNE of the last hidden layer during training, for LoRA, PiSSA (the same start as BA-LoRA) and
# BA-LoRA (which adds the terms).
#   sh scripts/tsne.sh [CONFIG] [--option value ...]        default: the embedded task; options of train.py
# For example configs/nlu/tsne-bert-large.yaml or tsne-gpt2-xl.yaml, which need a GPU. The figure goes to runs/NAME/figure.
set -eu
case "${1:-}" in -h | --help) exec sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/environment.sh"
config=configs/nlu/tsne-reviews.yaml
case "${1:-}" in
"" | -*) ;;
*) config=$1 && shift ;;
esac
folder=runs/$(basename "$config" .yaml)
for method in lora pissa ba-lora; do
    "$PYTHON" -m ba_lora.experiments one "$config" --method $method --output_dir "$folder/$method" --overwrite "$@"
done
exec "$PYTHON" "$root/tsne_visualization.py" --features_dir "$folder/lora" "$folder/pissa" "$folder/ba-lora" \
    --names LoRA PiSSA BA-LoRA --step all --output_dir "$folder/figure"
