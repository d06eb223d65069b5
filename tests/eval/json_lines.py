"""Files of JSON lines for the benchmarks' commands, and the score that --rescore gives for one."""

import json


def write(path, lines) -> str:
    """Write one line for each object; a text is written as it stands."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rescore(main, folder, lines, *options) -> dict:
    """Return score.json of a benchmark's `main` for a file of these lines."""
    source = write(folder / "given.jsonl", lines)
    assert main(["--rescore", source, "--output_dir", str(folder / "out"), *options]) == 0
    return json.loads((folder / "out" / "score.json").read_text())
