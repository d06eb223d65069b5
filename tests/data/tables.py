"""Rows in a file of any format that the project reads."""

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet


def write_table(path: Path, rows: list[dict]) -> Path:
    """Write the rows in the format of the file's ending; a name that ends with list.json holds one list, any other JSON file lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.name.endswith("list.json"):
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
