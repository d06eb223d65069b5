"""Lines and rows of a set's files, with the columns that a benchmark needs."""

from collections.abc import Sequence
from pathlib import Path

from ba_lora.data.readers import read_csv
from ba_lora.data.sources import read_table
from ba_lora.errors import UserError, short

TAB = ".tsv"


def lines_of(file: Path) -> list[str]:
    """The lines of a text file that are not blank. Raises UserError if it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text; convert the file") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    return [line for line in text.splitlines() if line.strip()]


def rows_of(files: Sequence[Path], columns: Sequence[str]) -> list[tuple[str, dict]]:
    """(its place, the row) of JSON, CSV, Parquet or tab-separated files; every row has `columns`, which are texts.

    Raises UserError naming the row that lacks a column or has no text in it.
    """
    found = []
    for file in files:
        if file.suffix == TAB:
            found += list(read_csv(file, "\t")[1])
        else:
            found += [(f"{file}, row {number}", row) for number, row in read_table(str(file)).rows]
    for place, row in found:
        for column in columns:
            if column not in row:
                raise UserError(
                    f"{place} has no column '{column}' (it has: {', '.join(row)}); this benchmark needs {', '.join(columns)}"
                )
            if not isinstance(row[column], str) or not row[column].strip():
                raise UserError(f"{place}: '{column}' is {short(row[column])}, a text is needed")
    return found
