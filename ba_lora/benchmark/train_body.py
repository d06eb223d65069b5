"""train.py's function on random weights at the sizes of a model, for the device check: python -m ba_lora.benchmark.train_body.

Only the loader is another one: it makes the weights on the device, so no file holds them. FOLDER gets a config.json, the embedded
model's tokenizer, training data and the run.
"""

import shutil
from pathlib import Path

from ..data.tinymath import generate
from ..errors import Parser, run_cli
from ..files import write_json
from ..folders.ownership import claimed
from ..tiny import MODEL_DIR
from ..training.command_line import parse


def prepare(folder: Path, body: str, rows: int, together: int) -> tuple[Path, Path]:
    """Write what a run at the sizes of `body` reads: `rows` samples of `together` problems; return the base's folder and the data."""
    from safetensors.torch import save_file  # torch takes seconds; --help does without it

    from .bodies import body_config

    base, data = folder / "base", folder / "data.json"
    base.mkdir(parents=True, exist_ok=True)
    body_config(body).save_pretrained(base)
    save_file({}, base / "model.safetensors")  # without a file of weights the folder is not taken for a model
    for file in MODEL_DIR.glob("tokenizer*"):
        shutil.copy(file, base)
    problems = generate("train", rows * together)
    samples = [problems[start : start + together] for start in range(0, len(problems), together)]
    write_json(data, [{key: "\n".join(each[key] for each in sample) for key in sample[0]} for sample in samples])
    return base, data


def main(words: list[str] | None = None) -> None:
    parser = Parser(prog="python -m ba_lora.benchmark.train_body", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder for everything that is read and written")
    parser.add_argument("--body", required=True, help="a model of configs/models")
    parser.add_argument("--device", required=True, help="cpu or cuda")
    parser.add_argument(
        "--together", type=int, default=8, help="problems in a sample, to fill it (default: %(default)s)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args, options = parser.parse_known_args(words)
    with claimed(args.folder, "body", "FOLDER"):
        train(args, options)


def train(args, options: list[str]) -> None:
    """Prepare FOLDER and train in it. options: more of train.py's."""
    from ..training import prepare_generator, run
    from .bodies import body_config, make

    base, data = prepare(args.folder, args.body, 64, args.together)

    def load(name: str, dtype: str, **_):
        return make(body_config(args.body), dtype, args.device)

    prepare_generator.load_model = load
    options += ["--use_cpu"] if args.device == "cpu" else []
    own = ["--model", str(base), "--data_path", str(data), "--output_dir", str(args.folder / "run")]
    run.train(parse([*own, "--method", "ba-lora", "--template", "plain", "--decomposition_cache", "none", *options]))


if __name__ == "__main__":
    run_cli(main)
