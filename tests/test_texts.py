"""Names and notes from files show as text in Markdown, LaTeX and CSV: nothing in them takes effect."""

import csv
import io
import json

import pytest
import yaml

from ba_lora.card import write_card
from ba_lora.experiments.examples import examples
from ba_lora.experiments.matrix import read_experiment
from ba_lora.experiments.results import read_results
from ba_lora.experiments.tables.build import build
from ba_lora.experiments.tables.formats import render
from ba_lora.texts import code, csv_cell, latex, latex_comment, markdown
from tests.common import ROOT, finished_run

EXPERIMENT = ROOT / "configs/experiments/nlg-main-embedded.yaml"


def test_a_text_keeps_its_words_and_loses_its_powers():
    assert latex("\\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"
    assert latex("a_b & 5 % #1 $x$ ^~ ± <") == r"a\_b \& 5 \% \#1 \$x\$ \textasciicircum{}\textasciitilde{} $\pm$ $<$"
    assert latex("[5pt]") == "{}[5pt]" and latex("*") == "{}*"
    assert latex_comment("one\ntwo\r\x0bthree\u2028four") == "% one two three four"
    assert markdown("a|b\n# c <img src=x> [t](u) *s* `q` \\|") == (
        "a\\|b # c &lt;img src=x> \\[t\\](u) \\*s\\* \\`q\\` \\\\\\|"
    )
    assert markdown("pissa_niter_4 < 5 & [+0.1]") == "pissa_niter_4 < 5 & \\[+0.1\\]"
    assert markdown("_x_ &lt; </td> <!-- c") == "\\_x\\_ &amp;lt; &lt;/td> &lt;!-- c"
    assert (
        markdown("a\x1b[31m\x07\u202eb") == "a\\\\x1b\\[31m\\\\x07\\\\u202eb"
        and latex("\x1b") == r"\textbackslash{}x1b"
    )
    assert code("\x1b]0;title\x07 é漢") == "`\\x1b]0;title\\x07 é漢`" and latex_comment("a\x1b") == "% a\\x1b"
    assert code("a`b\nc") == "``a`b c``" and code("`") == "`` ` ``"
    for text in ("=1+1", "@SUM(1)", "+cmd|' /C calc'!A0", "-x", " =1", "\t=1"):
        assert csv_cell(text) == f"'{text}"
    for value in ("-5", "+1e-3", "lora", "", 5, None, "a=1"):
        assert csv_cell(value) == value


@pytest.fixture
def table(tmp_path):
    """The table of an experiment with a result whose names are hostile."""
    folder = tmp_path / "nlg-main-embedded"
    folder.mkdir()
    lines = (ROOT / "results/nlg-main-embedded/results.jsonl").read_text().splitlines()
    result = next(made for made in map(json.loads, lines) if made["seed"] == 42)
    result.pop("checksum", None)
    names = {
        "model": "\\input{/etc/passwd}|<script>\n=1",
        "method": "=cmd|'/C calc'!A0 [x](http://evil) \\write18{touch x}",
    }
    (folder / "one.json").write_text(json.dumps(result | names))
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")
    text = EXPERIMENT.read_text().replace(
        "title: ", "title: |\n  T\n  \\\\input{y} <b>\nnote: |\n  N [x](y).\n  \\\\input{z}\n#"
    )
    file = tmp_path / EXPERIMENT.name
    file.write_text(text)
    experiment = read_experiment(file, tmp_path / "runs", results=tmp_path)
    return build(experiment, read_results(experiment, tmp_path))


def test_latex_runs_nothing_and_a_note_of_several_lines_stays_a_comment(table):
    made = render(table, "latex")
    head, _, body = made.partition("\\begin{tabular}")
    assert all(line.startswith("% ") for line in head.splitlines()) and "\\\\input{z}" in head
    assert "\\input" not in body and "\\write" not in body and r"\textbackslash{}input\{/etc/passwd\}" in body
    assert len({row.count(" & ") for row in body.splitlines() if row.endswith("\\\\")}) == 1


def test_markdown_has_no_link_no_html_and_the_same_cells_in_every_row(table):
    made = render(table, "markdown")
    for bad in ("<script>", "<b>", "[x](http", "N [x]("):
        assert bad not in made
    grid = [line.replace("\\|", "") for line in made.splitlines() if line.startswith("| ")]
    first = grid[: next(number for number, line in enumerate(grid) if line.startswith("| column"))]
    assert len({line.count("|") for line in first}) == 1 and made.splitlines()[0].startswith("# T ")


def test_csv_has_no_formula(table):
    cells = [cell for row in csv.reader(io.StringIO(render(table, "csv"))) for cell in row]
    assert any("cmd" in cell for cell in cells) and not any(cell.startswith(("=", "@", "+")) for cell in cells)


def test_answers_of_a_model_show_as_text(tmp_path):
    experiment = read_experiment(EXPERIMENT, tmp_path / "runs", results=tmp_path)
    answers = [
        "# big\n\n| a | b |\n<script>x</script> [t](http://evil)",
        "``` `` \x1b[2J \x1b]8;;http://evil\x07",
        " \n",
    ]
    for run in experiment.runs:
        if run.seed in (None, 42):
            records = [{"prompt": f"**{answer}**", "completion": answer, "reference": "`"} for answer in answers]
            for name, lines in (("generations", records), ("scored", [{"correct": 1}, {"correct": 0}, {"correct": 0}])):
                (folder := run.folder / "eval" / "test").mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = examples(experiment)
    assert "- base (right): `# big | a | b | <script>x</script> [t](http://evil)`" in shown
    assert "- base (wrong): ```` ``` `` \\x1b[2J \\x1b]8;;http://evil\\x07 ````" in shown
    assert "- base (wrong): no text" in shown and shown.count("- reference: `` ` ``") == 3
    assert "\x1b" not in shown and not any(line.startswith(("#", "|", "<")) for line in shown.splitlines())


def test_a_card_shows_hostile_names_as_text(tmp_path):
    run = finished_run(tmp_path / "x](y) <img src=x>", model="a`\n\n# [evil](http://evil)\n`b")
    record = json.loads((run / "run.json").read_text())
    record["config"]["data"] = "x/y\n---\nlicense: mit"
    record["template"]["prompt"] = "```\n\n# Injected\n{instruction}"
    (run / "run.json").write_text(json.dumps(record))
    (run / "eval/e|v").mkdir(parents=True)
    score = {"benchmark": "a|b](x)\n---\nlicense: mit", "metric": "<script>", "score": 0.5, "n": 3, "protocol": "p|q"}
    (run / "eval/e|v/score.json").write_text(json.dumps(score))
    _, front, card = write_card(run).read_text().split("---\n", 2)
    data = yaml.safe_load(front)  # which is no text of the page
    assert data.keys() == {"library_name", "model-index", "pipeline_tag", "tags"} and "evil" not in front
    assert data["model-index"][0]["results"][0]["dataset"]["name"] == "a|b](x) --- license: mit"
    assert "\n# [evil]" not in card and "<script>" not in card and "<img" not in card
    fenced = card[card.index("````text") :].split("````")[1]
    assert "# Injected" in fenced and card.count("# Injected") == 1
    (row,) = [line for line in card.splitlines() if "e\\|v" in line]
    assert row.replace("\\|", "").count("|") == 8
