"""Draw saved features as t-SNE figures: python tsne_visualization.py --features_dir DIR --output_dir OUT; see --help."""

from ba_lora.errors import run_cli


def main() -> None:
    from ba_lora.features.tsne import main as draw

    draw()


if __name__ == "__main__":
    run_cli(main)
