"""The published numbers: every average recomputed, every known error found by a computation, and no error found that is not listed."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from ba_lora.data.glue import TASKS
from ba_lora.errors import UserError
from ba_lora.experiments.paper.counts import trained_parameters
from ba_lora.experiments.paper.page import page
from ba_lora.experiments.paper.published import METHODS, all_published, names, read_paper
from ba_lora.methods.names import METHODS as TRAINED
from eval.all import BENCHMARKS
from tests.experiments.paper_checks import CHECKS, disagreements, recomputed_average, rounded

ROOT = Path(__file__).parents[2]
OTHER_COLUMNS = {"parameters", "average", "glue", "gluex", "rarest_recall", "memory", "minutes"}
L, M, G, D = "llama-2-7b", "mistral-7b", "gemma-7b", "deberta-v3-base"
ADAPTERS = ("lora", "pissa", "ba-lora")
# The known errors, by the computation that finds them: (file, where).
KNOWN = {
    "average": [("glue-v5", f"{D} full average"), ("glue-v5", f"{D} adalora average")],
    "units": [(name, "average") for name in ("nlg-v5", "nlg-iclr", "nlg-corda")],
    "parameters": [
        *(("nlg-v5", f"{model} {method} parameters") for model in (M, G) for method in ("full", *ADAPTERS)),
        *((name, f"{D} dora parameters") for name in ("glue-v5", "glue-pissa")),
    ],
    "copied": [
        *(("nlg-v5", f"{model} full") for model in (L, M, G)),
        *(("nlg-iclr", f"{L} {method}") for method in ("lora", "pissa")),
        *(("nlg-iclr", f"{L} full {key}") for key in ("gsm8k", "math", "mt_bench")),
        *(("nlg-iclr", f"{L} ba-lora {key}") for key in ("humaneval", "mbpp", "mt_bench")),
        *(("glue-iclr", f"{D} {method}") for method in ("full", "lora", "pissa")),
    ],
    "deviation": [("nlg-v5", f"{G} full mbpp")],
    "differs": [
        *(("ablation", f"{L} {cell}") for cell in ("pissa gsm8k", "ba-lora gsm8k", "ba-lora math")),
        *(("ablation", f"{M} {method} {key}") for method in ("pissa", "ba-lora") for key in ("gsm8k", "math")),
        *(("ranks", cell) for cell in (f"{L} pissa 128 gsm8k", f"{M} pissa 128 math", f"{M} lora 128 gsm8k")),
    ],
    "rank": [("ranks", f"{M} {cell}") for cell in ("lora 128 math", "pissa 128 gsm8k")]
    + [("ranks", f"{M} ba-lora 128 {key}") for key in ("gsm8k", "math")],
    "second": [("glue-v5", f"{D} pissa stsb"), ("glue-v5", f"{D} pissa average")],
    "gain": [("gains-nlg-v2", f"{L} ba-lora math")],
    "behind": [
        ("nlg-v5", f"{L} ba-lora mbpp"),
        *(("nlg-v5", f"{M} ba-lora {key}") for key in ("gsm8k", "math", "humaneval")),
        *(("glue-v5", f"{D} ba-lora {key}") for key in ("cola", "rte")),
        ("glue-iclr", f"{D} ba-lora rte"),
        ("ablation", f"{M} svdr math"),
        ("diversity-iclr", f"{D} ba-lora-entropy mnli"),
    ],
    "teacher": [("cost", f"{L} ba-lora memory")],
}


def mean(table, model, method, column, rank=None):
    return read_paper(table).value(model, method, column, rank).mean


@pytest.mark.parametrize("name", names())
def test_a_file_says_its_version_and_source_and_has_the_columns_of_the_evaluations(name):
    published = read_paper(name)
    assert "arXiv" in published.version or "README" in published.version
    assert len(published.source) > 10 and published.rows
    assert set(published.columns) <= {*BENCHMARKS, *TASKS, *OTHER_COLUMNS}
    assert set(published.columns) == {key for row in published.rows for key in row.cells} | (
        {"sst2", "mrpc", "qnli", "stsb"} if name == "glue-iclr" else set()
    )


def test_every_method_of_this_repository_has_its_name_in_the_papers():
    assert set(TRAINED) <= set(METHODS)


@pytest.mark.parametrize("check", CHECKS)
def test_what_is_found_is_what_is_known_and_what_the_files_list(check):
    found = [(table.name, d.where) for table in all_published() for d in disagreements(table) if d.check == check]
    listed = [(t.name, where) for t in all_published() for e in t.errors if e.check == check for where in e.where]
    assert sorted(found) == sorted(KNOWN[check])
    assert sorted(listed) == sorted(KNOWN[check])


def test_every_error_of_the_files_is_found_by_a_computation_or_names_none():
    assert {error.check for table in all_published() for error in table.errors} == {None, *CHECKS}


def test_every_average_is_recomputed():
    again = [
        row
        for table in all_published()
        for row in table.rows
        if recomputed_average(table, row) and row.cells.get("average")
    ]
    assert len(again) == 12 + 5 + 5 + 10 + 8


def test_corrected_values_are_the_computed_ones():
    table = read_paper("glue-v5")
    for method, apart in (("full", "0.21"), ("adalora", "-0.01")):
        row = table.row(D, method)
        printed = row.cells["average"]
        assert printed.corrected.mean == rounded(recomputed_average(table, row), printed.mean)
        assert printed.mean - printed.corrected.mean == Decimal(apart)
        assert printed.corrected.mean == mean("glue-iclr", D, method, "average")
    for model in (M, G):
        printed = read_paper("nlg-v5").value(model, "full", "parameters")
        assert printed.corrected.mean == rounded(trained_parameters(model, "full", 0) / Decimal(10**6), printed.mean)
    assert read_paper("nlg-v5").value(G, "full", "mbpp").corrected == read_paper("nlg-pissa").value(G, "full", "mbpp")


@pytest.mark.parametrize(
    ("model", "rank", "count"),
    [
        (L, 64, 159_907_840),
        (L, 128, 319_815_680),
        (M, 64, 167_772_160),
        (M, 128, 335_544_320),
        (G, 64, 200_015_872),
        (G, 128, 400_031_744),
        (D, 8, 1_327_104),
    ],
)
def test_trained_parameters_are_rank_times_the_widths(model, rank, count):
    assert trained_parameters(model, "lora", rank) == count


def test_the_headline_gap_of_mbpp_is_one_of_protocols():
    table = read_paper("nlg-iclr")
    assert mean("nlg-iclr", L, "ba-lora", "mbpp") - mean("nlg-iclr", L, "corda++", "mbpp") == Decimal("12.12")
    assert mean("nlg-iclr", L, "ba-lora", "average") - mean("nlg-iclr", L, "corda++", "average") == Decimal("2.96")
    rest = [key for key, column in table.columns.items() if column.averaged and key != "mbpp"]
    ours, theirs = (sum(mean("nlg-iclr", L, method, key) for key in rest) / 4 for method in ("ba-lora", "corda++"))
    assert [rounded(value, Decimal("0.01")) for value in (ours, theirs)] == [Decimal("23.51"), Decimal("22.85")]
    assert rounded(ours - theirs, Decimal("0.01")) == Decimal("0.66")


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [  # statements of the files about their numbers, and gains stated in the texts
        (("nlg-pissa", L, "pissa", "mbpp"), ("nlg-v5", L, "pissa", "mbpp"), "4.15"),
        (("nlg-v5", L, "ba-lora", "mbpp"), ("nlg-v5", L, "pissa", "mbpp"), "3.77"),
        (("glue-v5", D, "ba-lora", "average"), ("glue-pissa", D, "pissa", "average"), "0.08"),
        (("glue-v5", D, "ba-lora", "average"), ("glue-v5", D, "pissa", "average"), "0.44"),
        (("glue-v5", D, "ba-lora", "stsb"), ("glue-v5", D, "pissa", "stsb"), "0.22"),
        (("glue-v5", D, "loha", "average"), ("glue-v5", D, "full", "average"), "0.00"),
        (("ablation", D, "svdr", "average"), ("ablation", D, "pissa", "average"), "0.12"),
        (("ablation", L, "ba-lora", "gsm8k"), ("ablation", L, "pissa", "gsm8k"), "1.82"),
        (("nlg-v5", L, "ba-lora", "gsm8k"), ("nlg-v5", L, "pissa", "gsm8k"), "2.16"),
        (("nlg-v5", G, "ba-lora", "gsm8k"), ("nlg-v5", G, "pissa", "gsm8k"), "0.55"),
        (("nlg-v5", M, "ba-lora", "gsm8k"), ("nlg-v5", M, "pissa", "gsm8k"), "0.92"),
        (("glue-iclr", D, "ba-lora", "average"), ("glue-iclr", D, "pissa", "average"), "1.20"),
        (("glue-iclr", D, "ba-lora", "average"), ("glue-iclr", D, "lora", "average"), "2.11"),
        (
            ("backbones-iclr", "roberta-base", "ba-lora", "average"),
            ("backbones-iclr", "roberta-base", "pissa", "average"),
            "1.11",
        ),
        (
            ("backbones-iclr", "t5-base", "ba-lora", "average"),
            ("backbones-iclr", "t5-base", "pissa", "average"),
            "3.26",
        ),
        (("cost", L, "ba-lora", "memory"), ("cost", L, "pissa", "memory"), "10.75"),
    ],
)
def test_the_differences_that_are_spoken_of_are_in_the_tables(one, other, apart):
    assert mean(*one) - mean(*other) == Decimal(apart)


def test_a_number_prints_as_published():
    table = read_paper("nlg-v5")
    assert str(table.value(M, "lora", "math")) == "19.90 ± 0.25" and str(table.value(L, "lora", "average")) == "20.50"
    assert str(read_paper("cost").value(L, "full", "memory")) == "> 96"
    assert table.value(L, "dora", "math") is None and read_paper("glue-iclr").value(D, "ba-lora", "sst2") is None


def test_a_rank_chooses_the_point_of_a_curve():
    ranks = read_paper("ranks")
    assert [ranks.value(L, "lora", "math", rank).mean for rank in (1, 128)] == [Decimal("3.6"), Decimal("5.6")]
    assert ranks.value(L, "lora", "math") is None and ranks.value(L, "full", "math", 8).mean == Decimal("7.3")
    assert read_paper("nlg-v5").value(L, "lora", "math", 64) is None


FILE = """
title: T
version: arXiv
source: S
columns:
  math: {label: MATH, unit: "%", better: higher}
rows:
  - {model: llama-2-7b, method: lora, math: [1.0, 0.1]}
errors:
  - {where: [llama-2-7b lora math], what: wrong}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("source: S", "sauce: S", r"t.yaml: unknown key 'sauce', did you mean 'source'"),
        ("source: S", "source:", r"t.yaml: 'source' is missing or empty; add it"),
        ("label: MATH, ", "", r"column math: 'label' is missing"),
        ("better: higher", "better: more", r"better 'more' is not known"),
        ("lora, math", "llora, math", r"method 'llora' is not known, did you mean 'lora'"),
        ("{model: llama-2-7b,", "{model: llama-2,", r"model 'llama-2' is not known, did you mean 'llama-2-7b'"),
        ("math: [", "maths: [", r"llama-2-7b lora: column 'maths' is not known, did you mean 'math'"),
        ("[1.0, 0.1]", "about 1", r"llama-2-7b lora, math: 'about 1' is not a number; write a mean"),
        ("[1.0, 0.1]", "[1.0, 0.1, 3]", r"is not a number; write a mean"),
        ("[1.0, 0.1]", "nan", r"'nan' is not a number"),
        ("[1.0, 0.1]}", "1.0, rank: r}", r"rank 'r' is not a whole number"),
        ("[1.0, 0.1]}", "1.0, second: [gsm8k]}", r"second: column 'gsm8k' is not known"),
        ("errors:", "  - {model: llama-2-7b, method: lora}\nerrors:", r"the row llama-2-7b lora is there twice"),
        ("[llama-2-7b lora math]", "[llama-2-7b math]", r"where 'llama-2-7b math' is not known, did you mean"),
        ("[llama-2-7b lora math]", "llama-2-7b lora math", r"is not a list; write \[llama-2-7b lora math\]"),
        ("  - {model: llama-2-7b, method: lora, math: [1.0, 0.1]}", "  - lora", r"'lora' is not a row"),
        ("rows:\n  - ", "rows: ", r"'rows' is {.*; write lines of"),
        ("title: T", "title: [T", r"is not valid YAML"),
        (FILE, "numbers", r"'numbers' is not a mapping of title"),
    ],
)
def test_a_wrong_file_is_refused_by_place(tmp_path, old, new, words):
    assert old in FILE
    (tmp_path / "t.yaml").write_text(FILE.replace(old, new))
    with pytest.raises(UserError, match=words):
        read_paper("t", tmp_path)


def test_the_file_without_a_fault_is_read(tmp_path):
    (tmp_path / "t.yaml").write_text(FILE)
    assert str(read_paper("t", tmp_path).value(L, "lora", "math")) == "1.0 ± 0.1"


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="published table 'nlg-v6' is not known, did you mean 'nlg-v5'"):
        read_paper("nlg-v6")


def test_the_page_is_what_the_command_prints():
    assert (ROOT / "docs" / "published.md").read_text(encoding="utf-8") == page()


def test_reading_takes_no_torch():
    code = "import sys, ba_lora.experiments.paper.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
