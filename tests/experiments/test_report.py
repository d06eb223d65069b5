"""The HTML report: its contents, and in a headless Chromium its filter, its address and that it needs no other file."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ba_lora.errors import UserError
from ba_lora.experiments.__main__ import _report, make_parser
from ba_lora.experiments.matrix import read_experiment
from ba_lora.experiments.report import write_report
from ba_lora.experiments.results import read_results
from ba_lora.experiments.tables.rows import ROWS
from ba_lora.files import write_json
from tests.browser import open_browser

ROOT = Path(__file__).parents[2]
HOSTILE = "\"'></th><script>window.injected = 1</script><img src=x onerror=window.injected=1> & {{ 1 }}"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SMALL = f"""
name: small
title: Small & plain
paper: [ablation]
config: {ROOT}/configs/nlg/tiny.yaml
methods:
  base: {{}}
  lora: {{method: lora}}
  ba-lora: {{method: ba-lora}}
vary:
  rank: [4]
seeds: [42, 1024]
evaluate:
  test: {{data: "tinymath:test", limit: 12}}
"""
LARGE = f"""
name: large
title: Large
paper: [nlg-v5]
config: {ROOT}/configs/nlg/{{model}}-metamath-v5.yaml
models: [llama-2-7b]
methods:
  pissa: {{method: pissa}}
  ba-lora: {{method: ba-lora}}
seeds: [42]
"""
PROVENANCE = {
    "commit": "c0ffee",
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "machine": {"system": "Linux", "cores": 2, "gpus": ["A40", "A40"]},
}


def result(model: str, method: str, seed: int, score: float, column: str = "test", varied: list | None = None) -> dict:
    """A handmade result file."""
    scored = {"score": score, "n": 12, "metric": "accuracy", "protocol": "ba-lora 2", "data_hash": "d" * 64}
    training = {"learning_rate": 2e-5, "tuned": True, "steps": 80, "train_seconds": 12.4, "peak_memory": 1.5e9}
    made = {"model": model, "method": method, "varied": varied, "data": None, "seed": seed, "scores": {column: scored}}
    return made | {"training": training, "provenance": PROVENANCE}


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """Two experiments and their results: the small one includes a model with a hostile name, the large one a 7B run."""
    folder = tmp_path_factory.mktemp("report")
    made = {
        "small": [
            *(result("tiny", "lora", seed, score) for seed, score in ((42, 0.56), (1024, 0.60))),
            *(result("tiny", "ba-lora", seed, 0.095, varied=["rank", "4"]) for seed in (42, 1024)),
            result(HOSTILE, HOSTILE, 42, 0.33),
        ],
        "large": [{**result("llama-2-7b", "ba-lora", 42, 0.5449, "gsm8k"), "data": None}],
    }
    pairs = []
    for text in (SMALL, LARGE):
        name = re.search("name: (.*)", text)[1]
        (folder / f"{name}.yaml").write_text(text)
        for number, content in enumerate(made[name]):
            write_json(folder / "results" / name / f"{number}.json", content)
        experiment = read_experiment(folder / f"{name}.yaml", folder / "runs", results=folder / "results")
        pairs.append((experiment, read_results(experiment, folder / "results")))
    return pairs


@pytest.fixture(scope="module")
def page(experiments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "figures" / "small").mkdir(parents=True)
    (folder / "figures" / "small" / "curves_rank.png").write_bytes(PIXEL)
    return write_report(experiments, folder / "report.html", folder / "figures")


def test_page_holds_means_paper_rows_figures_and_provenance(page):
    text = page.read_text(encoding="utf-8")
    assert ">58.0 ± 2.8<" in text and ">54.49<" in text  # two seeds of tiny, one of 7B
    assert text.count("not run here</td>") == 4  # base, lora at rank 4, unvaried ba-lora, 7B's pissa
    assert ">54.53 ± 0.41<" in text and "paper: BA-LoRA, arXiv v3 to v5" in text
    assert "The paper&#39;s, not measured here: Each term alone" in text
    assert f'src="data:image/png;base64,{base64.b64encode(PIXEL).decode()}" alt="Scores over rank: Small' in text
    assert "<li>commit: c0ffee</li>" in text and "gpus A40, A40" in text.replace("\n", "")
    assert text.count('<p class="quiet">Environment') == 2 and "2e-05 (tuned)" in text
    assert "test: accuracy on 12 items, protocol ba-lora 2, data hash dddd" in text


def test_page_is_alone_and_escapes_what_results_say(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href|action)="(?!#|data:image/png;base64,)', text) and "@import" not in text
    assert "<script>window" not in text and "&lt;script&gt;window.injected" in text
    assert text.count("<script") == 1


def test_nothing_to_report_is_refused_by_name(experiments, tmp_path):
    small = replace(experiments[0][0], paper=[])
    with pytest.raises(UserError, match=r"empty.html: nothing to report; first run: python -m"):
        write_report([(small, [])], tmp_path / "empty.html")
    assert not list(tmp_path.iterdir())


SPEAKING = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
VISIBLE = """[...document.querySelectorAll("table.results tbody tr")].filter(row => row.checkVisibility())
    .map(row => [row.dataset.model, row.dataset.method])"""
COUNT = 'document.querySelector("output").textContent'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def shown(browser, page):
    """The report opened without a fragment in its address; in the end it must have reported nothing."""
    browser.open(page.as_uri())
    yield browser
    said = [event for event in browser.events if event[0] in SPEAKING]
    assert not said
    requested = {each["request"]["url"].partition("#")[0] for each in browser.told("Network.requestWillBeSent")}
    assert {url for url in requested if not url.startswith("data:image/png")} == {page.as_uri()}


def test_opens_without_a_message_or_request_and_shows_every_row(shown):
    rows = shown.evaluate(VISIBLE)
    assert shown.evaluate(COUNT) == f"{len(rows)} of {len(rows)} rows" and len(rows) == 6 + 20 + 4
    assert shown.evaluate("document.images[0].naturalWidth") == 1


def test_fits_a_phone(shown):
    shown.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    shown.open(shown.evaluate("location.href"))
    assert shown.evaluate("innerWidth") == shown.evaluate("document.documentElement.scrollWidth") == 390
    assert not shown.evaluate('document.querySelector("form details").open')
    shown.call("Emulation.clearDeviceMetricsOverride")


def test_a_name_from_a_result_injects_nothing_and_can_be_filtered(shown):
    assert shown.evaluate("typeof window.injected") == "undefined"
    shown.evaluate(f"location.hash = new URLSearchParams({{model: {json.dumps(HOSTILE)}}}).toString()")
    shown.wait_for(f'{COUNT} == "1 of 30 rows"')
    assert shown.evaluate(VISIBLE) == [[HOSTILE, HOSTILE]]


def test_filter_by_mouse_and_keyboard_hides_the_other_rows_of_all_tables(shown):
    every = shown.evaluate(VISIBLE)
    shown.click('input[value="ba-lora"]')
    assert {row[1] for row in shown.evaluate(VISIBLE)} == {"ba-lora"}
    assert {row[0] for row in shown.evaluate(VISIBLE)} >= {"tiny", "llama-2-7b", "mistral-7b"}
    shown.evaluate('document.querySelector("input[value=tiny]").focus()')
    shown.press(" ", 32, " ")
    assert shown.evaluate(VISIBLE) == [["tiny", "ba-lora"]] * 2
    assert shown.evaluate(COUNT) == f"2 of {len(every)} rows"
    assert shown.evaluate("location.hash") == "#model=tiny&method=ba-lora"
    assert not shown.evaluate('document.getElementById("large").checkVisibility()')
    provenance = '[...document.querySelectorAll("#small .provenance tbody tr")].filter(row => !row.hidden).length'
    assert shown.evaluate(provenance) == 2
    shown.click('button[type="reset"]')
    shown.wait_for("!location.hash")
    assert shown.evaluate(VISIBLE) == every and shown.evaluate(COUNT) == "30 of 30 rows"


def test_filter_that_no_row_fits_says_so(shown):
    shown.click('input[value="mistral-7b"]')
    shown.click('input[value="base"]')
    assert shown.evaluate(VISIBLE) == [] and shown.evaluate(COUNT).startswith("0 of ")


def test_address_restores_the_filter_and_a_section_leaves_it(shown, page):
    shown.open(page.as_uri() + "#model=llama-2-7b&method=pissa&method=nothing")
    rows = shown.evaluate(VISIBLE)
    assert rows == [["llama-2-7b", "pissa"]] * 3
    ticked = '[...document.querySelectorAll("input:checked")].map(box => box.value)'
    assert shown.evaluate(ticked) == ["llama-2-7b", "pissa"]
    shown.click('nav a[href="#large"]')
    shown.wait_for('location.hash == "#model=llama-2-7b&method=pissa"')
    assert shown.evaluate(VISIBLE) == rows
    shown.evaluate('location.hash = "#method=base"')
    shown.wait_for(f'{COUNT} == "1 of 30 rows"')
    assert shown.evaluate(VISIBLE) == [["tiny", "base"]]


def test_click_on_a_heading_sorts_by_its_numbers(shown):
    scores = '[...document.querySelector(".results").tBodies[0].rows].map(row => row.cells[5].textContent)'
    heading = ".results th:nth-child(6) button"
    shown.click(heading)
    assert shown.evaluate(scores) == ["9.5 ± 0.0", "33.0", "58.0 ± 2.8", "", "", ""]
    shown.click(heading)
    assert shown.evaluate(scores)[:3] == ["58.0 ± 2.8", "33.0", "9.5 ± 0.0"]
    assert shown.evaluate('document.querySelector("#small [aria-sort=descending]").textContent') == "test %"


def test_rows_are_explained_as_in_the_glossary(page):
    text = page.read_text()
    assert "What the rows are" in text and "<li><b>pissa</b>: factors that start as the leading" in text
    rows = (ROOT / "docs/glossary.md").read_text().partition("## Columns")[0].splitlines()
    cells = [line.split("|")[1] for line in rows if line.startswith("| ") and not line.startswith("| row ")]
    assert sorted(name.strip("* ") for cell in cells for name in cell.split(",")) == sorted(ROWS)


def test_results_of_no_experiment_are_left_out(tmp_path):
    (tmp_path / "t-sne").mkdir()
    with pytest.raises(UserError, match="holds no results; run an experiment"):
        _report(make_parser().parse_args(["report", "--results", str(tmp_path)]))
