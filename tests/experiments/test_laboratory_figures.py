"""The figures of an experiment with twins, from handmade records: the points, their errors, and what is left out."""

import numpy as np
import pytest
from scipy import stats

from ba_lora.experiments.figures.laboratory import compose, draw
from ba_lora.experiments.tables.trace_records import per_pair
from tests.experiments.test_laboratory_table import CLASSES, record, study, with_path


def dosed(pairs=3):
    """T grows with the dose, to 80 points in the base and 60 after PiSSA."""
    random = np.random.default_rng(1)
    return [
        record(pair, method, "wrong facts", top * dose + random.normal(), 1.0, dose=dose)
        for pair in range(pairs)
        for method, top in (("base", 80), ("pissa", 60))
        for dose in (0.0, 0.25, 0.5, 1.0)
    ]


def half_width(values):
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return (high - low) / 2


def test_the_dose_response_has_a_line_before_and_one_for_each_method():
    records = dosed()
    (panel,) = dict(compose(records))["dose_response"].panels
    assert list(panel.lines) == ["before", "pissa"] and panel.title == "wrong facts"
    for name, method in (("before", "base"), ("pissa", "pissa")):
        assert [dose for dose, _ in panel.lines[name]] == [0.0, 0.25, 0.5, 1.0]
        values = list(per_pair(records, method, "wrong facts", 0.5).values())
        point = dict(panel.lines[name])[0.5]
        assert (point.mean, point.error) == pytest.approx((np.mean(values), half_width(values)))


def test_methods_over_the_dose_can_be_chosen_and_the_others_are_still_bars():
    records = dosed() + [each | {"method": "lora"} for each in dosed() if each["method"] == "pissa"] + study(pairs=3)
    sections = dict(compose(records, over_dose=["lora"]))
    assert list(sections["dose_response"].panels[0].lines) == ["before", "lora"]
    assert "pissa" in dict(sections["traces"].panels[0].rows)


def test_the_bars_are_of_whole_classes_and_one_pair_has_no_error():
    sections = dict(compose(study() + dosed()))
    assert set(sections) == {"dose_response", "traces"} and len(sections["traces"].panels) == len(CLASSES)
    rows = dict(sections["traces"].panels[0].rows)
    values = list(per_pair(study(), "lora", "stereotype").values())
    assert list(rows) == ["base", "pissa", "ba-lora", "lora"]
    assert (rows["lora"].mean, rows["lora"].error) == pytest.approx((np.mean(values), half_width(values)))
    assert rows["lora"].text == f"{np.mean(values):.1f} ± {half_width(values):.1f}"
    less = [record for record in study() if record["method"] != "lora" or record["pair"] < 3]
    assert list(dict(dict(compose(less))["traces"].panels[0].rows)) == ["base", "pissa", "ba-lora"]
    one = dict(compose(study(pairs=1)))["traces"].panels[0].rows
    assert all(estimate.error is None for _, estimate in one)


def test_paths_go_from_the_base_to_the_tuned_model_and_other_methods_are_points(tmp_path):
    records = with_path(study(spread=0.0))
    panel = dict(compose(records))["paths"].panels[0]
    assert list(panel.lines) == ["pissa", "ba-lora", "lora"]
    xs, ys = zip(*((x, each.mean) for x, each in panel.lines["pissa"]), strict=True)
    assert xs == pytest.approx((3.0, 1.9, 1.0), abs=0.002) and ys == pytest.approx((70.0, 63.0, 56.0))
    assert [each.error is None for _, each in panel.lines["pissa"]] == [True, True, False]  # along a path errors repeat
    assert panel.ticks[2] == "2" and panel.x_scale == {"value": "log"}
    ((loss, point),) = panel.lines["lora"]
    assert loss == pytest.approx(1.2, abs=0.002) and point.mean == pytest.approx(63.0)
    assert "paths" not in dict(compose(study()))
    files = draw(records, tmp_path, ["png"])
    assert [file.name for file in files] == ["traces.png", "paths.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
