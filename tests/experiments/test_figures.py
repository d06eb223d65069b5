"""Figures from handmade results: which are drawn, what they contain, and that the files are identical bytes each time."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.container import BarContainer, ErrorbarContainer

from ba_lora.canvas import Estimate, Lines, Section, looks, make_figure, style, write
from ba_lora.errors import UserError
from ba_lora.experiments.figures import experiment as figures
from ba_lora.experiments.figures.run import draw_terms
from ba_lora.experiments.figures.training_curves import loss_unit
from ba_lora.experiments.matrix import Variant, read_experiment
from ba_lora.experiments.results import Result, Score, read_results
from ba_lora.objective.settings import Objective
from tests.common import command

ROOT = Path(__file__).parents[2]
STEPS = [1, 5, 10, 20, 40]
SMALL = """
name: small
title: A small experiment
config: CONFIG
methods:
  base: {}
  pissa: {method: pissa}
  ba-lora: {method: ba-lora}
  forms: {method: ba-lora, consistency: mse}
seeds: [1, 2, 3]
evaluate:
  test: {data: "tinymath:test", limit: 12}
"""
VARIED = (
    SMALL.replace("pissa: {method: pissa}", "early: {method: ba-lora, lambda1_schedule: constant}")
    + """
vary:
  rank: [1, 4]
  lambda1: [0, 0.25]
  top_k: [5, 0]
  batch: {"8": {effective_batch_size: 8}, "128": {effective_batch_size: 128}}
  start: {"plain": {init: lora}}
"""
)


@pytest.fixture
def experiment(tmp_path):
    """A function that reads an experiment from its text."""

    def read(text):
        file = tmp_path / "small.yaml"
        file.write_text(text.replace("CONFIG", str(ROOT / "configs/nlg/tiny.yaml")))
        return read_experiment(file)

    return read


def made(variant, seed):
    """A result with everything that a run produces; its score is 51, 52 or 53% by seed, and 50% for the base."""
    number = seed or 0
    scores = {"test": Score(0.5 + number / 100, 12, "accuracy", "p 1", "h")}
    measures = {"text_loss": 0.7, "kl_to_base": 1.0}
    if seed is None:
        return Result("by hand", variant, None, None, scores, measures)
    curves = {"step": STEPS, "loss": [2.0, 1.5, 1.0, 0.5, 0.4 + number / 10], "task": [2.0, 1.5, 1.0, 0.5, 0.4]}
    if variant.method != "pissa":
        curves |= {"consistency": [0.0, 0.2, 0.3, 0.3, 0.3], "diversity": [None, None, -1.0, -1.1, -1.2]}
        curves |= {"lambda1": [0.025, 0.02, 0.01, 0.005, 0.0025], "lambda2": [0, 0, 0.005, 0.005, 0.005]}
    values = [0.9**index for index in range(20)]
    update = [value if index < 16 else 1e-9 for index, value in enumerate(values)]
    measures["spectra"] = {"logits": {"base": values, "tuned": values}, "weights": values, "update": update}
    seconds = (20.0 if variant.method == "pissa" else 30.0) + number
    return Result(
        "by hand", variant, None, seed, scores, measures, {"train_seconds": seconds, "peak_memory": 8e8}, curves
    )


def all_of(experiment):
    return [made(run.variant, run.seed) for run in experiment.runs]


def axes_of(experiment, results, name):
    """The drawn panels of one figure."""
    sections = dict(figures.compose(experiment, results))[name]
    with style():
        figure = make_figure(sections)
    return [axis for axis in figure.axes if axis.axison]


def error_bars(axis):
    """[(mean, low, high)] of every error bar: along x for horizontal bars, along y for curves."""
    found = []
    for container in axis.containers:
        if isinstance(container, ErrorbarContainer) and (container.has_xerr or container.has_yerr):
            along = 0 if container.has_xerr else 1
            for segment, mean in zip(container[2][0].get_segments(), container[0].get_data()[along], strict=True):
                found.append((mean, *sorted(segment[:, along])))
    return found


def names_of(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


@pytest.mark.slow
def test_every_figure_that_the_results_support_is_drawn_in_both_formats(experiment, tmp_path):
    small = experiment(SMALL)
    files = figures.draw(small, all_of(small), tmp_path / "out")
    stems = ("bars", "cost", "schedules", "spectra", "terms")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{stem}.{ending}" for stem in stems for ending in ("pdf", "png")
    ]
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    for file in files:
        assert file.read_bytes().startswith(b"%PDF" if file.suffix == ".pdf" else b"\x89PNG")
    assert figures.draw(small, [], tmp_path / "none") == []
    alone = figures.draw(small, all_of(small)[:1], tmp_path / "alone", ["png"])
    assert alone and sorted(alone) == sorted((tmp_path / "alone").iterdir()) == sorted(
        (tmp_path / "alone").glob("*.png")
    )


def test_the_same_results_give_the_same_bytes_and_others_do_not(experiment, tmp_path):
    small = experiment(SMALL)
    plain = [replace(result, training={}, curves={}, measures={}) for result in all_of(small)]
    drawn = [figures.draw(small, results, tmp_path / str(n)) for n, results in enumerate((plain, plain, plain[:-1]))]
    first, again, other = ([file.read_bytes() for file in files] for files in drawn)
    assert first == again and len(first) == 2
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert b"CreationDate" not in first[0]


def test_bars_have_the_mean_the_deviation_and_the_seeds(experiment):
    small = experiment(SMALL)
    axis, text_loss, _ = axes_of(small, all_of(small), "bars")
    assert axis.get_xlabel() == "test: accuracy, %" and text_loss.get_xlabel() == "text loss,\nnats per token"
    assert names_of(axis) == ["base", "pissa", "ba-lora", "forms"] and set(names_of(text_loss)) == {""}
    widths = [bar.get_width() for group in axis.containers if isinstance(group, BarContainer) for bar in group]
    assert widths == pytest.approx([50, 52, 52, 52])
    assert error_bars(axis) == [pytest.approx((52, 51, 53))] * 3  # the base has none
    dots = [line.get_xdata() for line in axis.lines if line.get_marker() == "o"]
    assert len(dots) == 3 and all(list(each) == pytest.approx([51, 52, 53]) for each in dots)
    assert [text.get_text() for text in axis.texts] == ["50.0"] + ["52.0 ± 1.0"] * 3
    section = dict(figures.compose(small, all_of(small)))["bars"][0]
    assert "3 seeds; error bars: ± 1 standard deviation" in section.caption and "base is one model" in section.caption


def test_captions_say_what_the_error_bars_do_not(experiment):
    small = experiment(SMALL)
    better = [
        replace(result, scores={"test": replace(result.scores["test"], score=0.9 + 0.01 * result.seed**2)})
        if result.variant.method == "forms"
        else result
        for result in all_of(small)
    ]
    section = dict(figures.compose(small, better))["bars"][0]
    assert section.caption.endswith("Against pissa (table.md): test: forms more, 1 of 2 undecided.")
    varied = experiment(VARIED + "reference: ba-lora\n")
    captions = {name: sections[0].caption for name, sections in figures.compose(varied, all_of(varied)) if sections}
    assert captions["curves_rank"].endswith("Against ba-lora (table.md): test: 6 of 6 undecided.")  # 2 others, 3 ranks
    one = [result for result in all_of(small) if result.seed in (None, 1)]
    assert "test: 2 of 2 one seed." in dict(figures.compose(small, one))["bars"][0].caption


def test_an_axis_of_bars_is_cut_only_where_it_is_marked(experiment):
    small = experiment(SMALL)
    near = axes_of(small, all_of(small), "bars")[0]
    assert near.get_xlim()[0] > 40 and any(line.get_transform() == near.transAxes for line in near.lines)
    low = {"test": Score(0.05, 12, "accuracy", "p 1", "h")}
    apart = [replace(result, scores=low) if result.seed is None else result for result in all_of(small)]
    far = axes_of(small, apart, "bars")[0]
    assert far.get_xlim()[0] == 0 and not any(line.get_transform() == far.transAxes for line in far.lines)


def test_one_seed_has_no_error_bar_and_says_so(experiment):
    small = experiment(SMALL)
    one = [result for result in all_of(small) if result.seed in (None, 1)]
    assert not any(error_bars(axis) for axis in axes_of(small, one, "bars"))
    assert dict(figures.compose(small, one))["bars"][0].caption.startswith("1 seed, so no error bars.")
    assert axes_of(small, one, "terms")


def test_a_7b_result_made_by_hand_stands_under_its_model(experiment, tmp_path):
    small = experiment(SMALL)
    score = {"score": 0.545, "n": 12, "metric": "accuracy", "protocol": "p 1", "data_hash": "h"}
    content = {"model": "llama-2-7b", "method": "ba-lora", "seed": 42, "scores": {"test": score}}
    (tmp_path / "results/small").mkdir(parents=True)
    (tmp_path / "results/small/mine.json").write_text(json.dumps(content))
    results = all_of(small) + read_results(small, tmp_path / "results")
    axis = axes_of(small, results, "bars")[0]
    assert names_of(axis) == ["tiny", "base", "pissa", "ba-lora", "forms", "llama-2-7b", "ba-lora"]
    assert axis.texts[-1].get_text() == "54.5"


def test_a_judges_rating_is_no_percentage(experiment):
    rating = Score(5.11, 80, "judge's rating, 1 to 10", "p 1", "h")
    results = [replace(result, scores={"mt_bench": rating}) for result in all_of(experiment(SMALL))]
    axis = axes_of(experiment(SMALL), results, "bars")[0]
    assert axis.get_xlabel() == "mt_bench: judge's rating, 1 to 10" and axis.texts[0].get_text() == "5.11"


def points(axis, method=0):
    container = [each for each in axis.containers if isinstance(each, ErrorbarContainer)][method]
    return list(container[0].get_xdata())


def ticks(axis):
    labels = [label.get_text() for label in axis.get_xticklabels()]
    return dict(zip(labels, axis.get_xticks(), strict=True))


def test_curves_have_the_unvaried_run_at_its_own_value(experiment):
    varied = experiment(VARIED)
    results = all_of(varied)
    axis = axes_of(varied, results, "curves_rank")[0]
    assert points(axis) == [1, 4, 16] and axis.get_xscale() == "log" and axis.get_xlabel() == "rank"
    assert len(error_bars(axis)) == 9
    across = [line for line in axis.lines if list(line.get_ydata()) == pytest.approx([50, 50])]
    assert len(across) == 1  # the base
    batch = axes_of(varied, results, "curves_batch")[0]
    assert points(batch) == [8, 32, 128] and batch.get_xlabel() == "samples per optimiser step"
    assert ticks(axes_of(varied, results, "curves_start")[0]) == {"unvaried": 0, "plain": 1}
    assert len(axes_of(varied, results, "curves")) == 5  # one panel per option
    assert "bars" not in [name for name, sections in figures.compose(varied, results) if sections]


def test_a_label_is_not_taken_for_another_option_of_the_same_value(experiment):
    varied = experiment(SMALL + 'vary:\n  batch: {"16": {effective_batch_size: 16}}\n')  # the rank is 16 in all runs
    assert points(axes_of(varied, all_of(varied), "curves_batch")[0]) == [16, 32]


def test_a_zero_keeps_its_place_on_a_logarithmic_axis(experiment):
    varied = experiment(VARIED)
    axis = axes_of(varied, all_of(varied), "curves_lambda1")[0]
    assert points(axis, method=1) == [0, 0.025, 0.25] and axis.get_xscale() == "symlog"
    places = axis.transData.transform([(value, 50) for value in (0, 0.025, 0.25)])[:, 0]
    assert np.isfinite(places).all() and places[0] < places[1] < places[2]
    assert list(ticks(axis)) == ["0", "0.025", "0.25"]
    left, right = axis.get_xlim()
    assert left < 0 < 0.25 < right


def test_a_zero_that_means_all_stands_right(experiment):
    varied = experiment(VARIED)
    places = ticks(axes_of(varied, all_of(varied), "curves_top_k")[0])
    assert list(places) == ["5", "20", "all"] and places["20"] < places["all"]


def test_two_results_of_a_seed_count_once(experiment):
    varied = experiment(VARIED)
    results = all_of(varied)
    twice = results + [replace(r, variant=Variant("tiny", r.variant.method, ("rank", "16"))) for r in results if r.seed]
    some = [axes_of(varied, each, "curves_rank")[0] for each in (results, twice)]
    assert error_bars(some[0]) == error_bars(some[1])


def test_terms_are_bands_over_the_seeds_and_each_form_has_its_panel(experiment):
    small = experiment(SMALL)
    panels = axes_of(small, all_of(small), "terms")
    titles = [(axis.get_title(), axis.get_ylabel()) for axis in panels]
    assert titles == [
        ("loss", "nats per token"),
        ("task", "nats per token"),
        ("consistency", "T²·KL, nats"),
        ("consistency", "squared error"),
        ("diversity", "−entropy, nats"),
    ]
    assert [len(axis.lines) for axis in panels] == [3, 3, 1, 1, 2]
    loss, consistency = panels[0], panels[2]
    assert list(loss.lines[0].get_xdata()) == STEPS and loss.lines[0].get_ydata()[-1] == pytest.approx(0.6)
    band = loss.collections[0].get_paths()[0].vertices
    assert sorted({round(y, 6) for x, y in band if x == STEPS[-1]}) == [0.5, 0.7]
    assert consistency.get_xlabel() == "optimiser step"
    assert list(panels[4].lines[0].get_xdata()) == STEPS[2:]  # the steps at which it was computed


def test_the_loss_of_a_classification_is_of_an_example():
    reviews = read_experiment(ROOT / "configs/experiments/tsne-embedded.yaml")
    labels = [axis.get_ylabel() for axis in axes_of(reviews, all_of(reviews), "terms")]
    assert labels == ["nats per example"] * 2 + ["T²·KL, nats", "squared covariances"]
    assert loss_unit("stsb") == "squared error"


def test_schedules_show_a_course_once_and_no_weight_that_stays_zero(experiment):
    small = experiment(SMALL)
    (axis,) = axes_of(small, all_of(small), "schedules")
    assert axis.get_title() == "ba-lora, forms" and len(axis.lines) == 2
    assert list(axis.lines[1].get_ydata()) == pytest.approx([0, 0, 0.005, 0.005, 0.005])


def test_spectra_are_logarithmic_and_end_where_rounding_begins(experiment):
    small = experiment(SMALL)
    logits, weights = axes_of(small, all_of(small), "spectra")
    assert logits.get_yscale() == weights.get_yscale() == "log"
    assert [len(line.get_xdata()) for line in weights.lines] == [20, 16, 16, 16]  # before, then three updates


def test_costs_stand_beside_their_ratio_to_pissa(experiment):
    small = experiment(SMALL)
    seconds, memory = axes_of(small, all_of(small), "cost")
    assert [text.get_text() for text in seconds.texts] == ["22 ± 1 (1.00×)"] + ["32 ± 1 (1.45×)"] * 2
    assert memory.get_xlabel() == "peak memory, GB" and memory.texts[0].get_text() == "0.80 ± 0.00 (1.00×)"


def test_published_bars_stand_apart_hollow_and_as_printed(experiment):
    small = experiment(SMALL + "paper: [ablation, cost]\n")
    sections = dict(figures.compose(small, all_of(small)))["bars"]
    assert [section.published for section in sections] == [False, True]
    assert sections[1].heading.startswith("Paper: ") and "As printed in BA-LoRA" in sections[1].caption
    gsm8k, math, glue = axes_of(small, all_of(small), "bars")[-3:]
    assert names_of(gsm8k)[:3] == ["llama-2-7b", "PiSSA", "CR alone"] and names_of(glue)[0] == "deberta-v3-base"
    assert gsm8k.texts[0].get_text() == "52.01" and math.texts[-1].get_text() == "32.25"
    assert all(same_color(bar.get_facecolor(), "white") and bar.get_hatch() for bar in gsm8k.patches)
    ours, theirs = dict(figures.compose(small, all_of(small)))["cost"]
    assert not ours.published and theirs.published
    assert ("Full FT", "> 96") in [(name, bar.text) for name, bar in theirs.panels[0].rows if bar]


def test_published_curves_over_the_rank_are_hollow_with_their_reading_error(experiment):
    varied = experiment(VARIED + "paper: [ranks]\n")
    panels = axes_of(varied, all_of(varied), "curves_rank")
    llama = panels[-4]
    assert (llama.get_title(), llama.get_ylabel()) == ("llama-2-7b", "GSM8K, %")
    assert points(llama) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert error_bars(llama)[0] == pytest.approx((26.3, 26.0, 26.6))
    drawn = [each[0] for axis in panels for each in axis.containers]
    hollow = [same_color(line.get_markerfacecolor(), "white") for line in drawn]
    assert hollow == [False] * 9 + [True] * 12
    assert any(list(line.get_ydata()) == [49.1, 49.1] for line in llama.lines)  # full fine-tuning
    assert dict(figures.compose(varied, []))["curves_rank"][0].published


def test_an_unknown_published_table_is_named(experiment, tmp_path):
    with pytest.raises(UserError, match="nlg-v55"):
        figures.draw(experiment(SMALL + "paper: [nlg-v55]\n"), [], tmp_path)


def test_no_two_lines_of_the_style_share_marker_and_stroke_and_known_methods_keep_theirs():
    with style():
        cycle = list(looks([f"method{number}" for number in range(17)]).values())[:21]
        assert looks(["cr", "ba-lora"])["ba-lora"] == looks(["ba-lora"])["ba-lora"]
    assert len({(look["marker"], look["linestyle"]) for look in cycle}) == len(cycle) == 21
    assert len({(look["color"], look["linestyle"]) for look in cycle[:4]}) == 4


@pytest.mark.parametrize(
    "names", [["lora", "pissa"], [f"ba-lora-x10-counter-{each}" for each in range(12)], ["MMMM" * 9]]
)
def test_a_legend_fits_into_the_figure_and_an_unknown_error_has_no_caps(names):
    lines = {name: [(1.0, Estimate(2.0)), (2.0, Estimate(3.0, 0.5))] for name in names}
    with style():
        figure = make_figure([Section("heading", "caption", [Lines("x", "y", lines)], {name: name for name in names})])
        figure.canvas.draw()
    (legend,) = figure.subfigs[0].legends
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and len(legend.get_texts()) == len(names)
    (bars, *_) = figure.axes[0].containers
    unknown, known = bars[2][0].get_segments()
    assert len(unknown) == 0 and known[:, 1].tolist() == [2.5, 3.5]


def test_a_figure_of_one_run_takes_the_format_of_its_name(tmp_path):
    row = {"step": 1, "loss": 1.0, "task": 1.0, "consistency": 0.1, "diversity": None, "spectrum": None}
    row |= {"lambda1": 0.1, "lambda2": 0.0, "lambda3": 0.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"step": 2}) + "\n")
    assert draw_terms(str(tmp_path), str(tmp_path / "t.pdf")).read_bytes().startswith(b"%PDF")
    with pytest.raises(UserError, match="format of a figure 'gif'"):
        write(None, tmp_path / "t.gif")


def test_the_figure_of_one_run_goes_into_its_folder_another_folder_or_a_file(tmp_path):
    run, other = tmp_path / "run", tmp_path / "v1.5"
    run.mkdir(), other.mkdir()
    names = ("loss", "task", "consistency", "diversity", "spectrum", "lambda1", "lambda2", "lambda3")
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1} | dict.fromkeys(names, 1.0)) + "\n")
    for words, made in (
        ([], run / "terms.png"),
        (["--output_dir", str(tmp_path / "new")], tmp_path / "new" / "terms.png"),
        (["--output_dir", str(other)], other / "terms.png"),
        (["--output", str(tmp_path / "loss.png")], tmp_path / "loss.png"),
    ):
        done = command("-m", "ba_lora.experiments", "figure", str(run), *words)
        assert (done.returncode, done.stdout) == (0, f"Saved as {made}\n"), done.stderr
        assert made.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("task", [None, "reviews"])
def test_a_figure_of_one_run_has_the_units_of_its_objective(tmp_path, monkeypatch, task):
    row = dict.fromkeys(
        ("step", "loss", "task", "consistency", "diversity", "spectrum", "lambda1", "lambda2", "lambda3"), 1.0
    )
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    objective = Objective.preset("iclr", "nlu" if task else "nlg")
    (tmp_path / "run.json").write_text(json.dumps({"config": {"task": task}, "objective": vars(objective)}))
    monkeypatch.setattr("ba_lora.experiments.figures.run.write", lambda figure, file: figure)
    labels = [axis.get_ylabel() for axis in draw_terms(str(tmp_path)).axes[:4]]
    if task:
        assert labels == ["nats per example", "T²·KL, nats", "squared covariances", "−Σσ / nuclear norm"]
    else:
        assert labels == ["nats per token", "T²·KL, nats", "−entropy, nats", "−Σσ / Frobenius norm"]
