"""t-SNE figures: scores against their definitions, the same figure twice, and refused inputs."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ba_lora.errors import UserError
from ba_lora.features.record import read_record, redraw
from ba_lora.features.tsne import (
    features_file,
    labels_file,
    main,
    make_parser,
    project,
    read_features,
    scores,
    visualise,
)
from ba_lora.files import read_json, write_json

pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install -r requirements.txt")

ROOT = Path(__file__).parents[2]
NAMES = ["entailment", "neutral", "contradiction"]


def blobs(count=60, width=8, classes=3, apart=20.0, seed=0):
    """(points, labels): Gaussian clouds of unit width whose centres are about `apart` from each other."""
    random = np.random.default_rng(seed)
    centres = apart / np.sqrt(2) * np.eye(width)[:classes]
    labels = np.arange(count) % classes
    return (random.normal(size=(count, width)) + centres[labels]).astype(np.float32), labels


def save(folder, step="final", points=None, labels=None, facts=True, **options):
    """Write one step as a training does; return the folder."""
    drawn = blobs(**options)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(features_file(folder, step), drawn[0] if points is None else points)
    np.save(labels_file(folder, step), drawn[1] if labels is None else labels)
    if facts:
        write_json(folder / "features.json", {"pooling": "first token", "classes": NAMES})
    return folder


def direct_silhouette(points, labels):
    distances = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    values = []
    for i, label in enumerate(labels):
        own = (labels == label) & (np.arange(len(labels)) != i)
        a = distances[i, own].mean()
        b = min(distances[i, labels == other].mean() for other in set(labels.tolist()) - {label})
        values.append((b - a) / max(a, b))
    return np.mean(values)


def direct_davies_bouldin(points, labels):
    kinds = sorted(set(labels.tolist()))
    centres = [points[labels == kind].mean(0) for kind in kinds]
    spread = [
        np.linalg.norm(points[labels == kind] - centre, axis=1).mean()
        for kind, centre in zip(kinds, centres, strict=True)
    ]
    worst = [
        max((spread[i] + spread[j]) / np.linalg.norm(centres[i] - centres[j]) for j in range(len(kinds)) if j != i)
        for i in range(len(kinds))
    ]
    return np.mean(worst)


def direct_purity(points, labels, k=10):
    hits = []
    for i in range(len(points)):
        distances = ((points - points[i]) ** 2).sum(1)
        distances[i] = np.inf
        hits.append((labels[np.argsort(distances)[:k]] == labels[i]).mean())
    return np.mean(hits)


@pytest.mark.parametrize("apart", [0.5, 2.0, 6.0])
def test_the_scores_are_their_definitions(apart):
    points, labels = blobs(count=47, classes=4, apart=apart, seed=3)  # classes of 12, 12, 12 and 11
    points = points.astype(np.float64)
    found = scores(points, labels)
    assert found["silhouette"] == pytest.approx(direct_silhouette(points, labels), abs=1e-9)
    assert found["davies_bouldin"] == pytest.approx(direct_davies_bouldin(points, labels), rel=1e-9)
    assert found["knn_purity"] == pytest.approx(direct_purity(points, labels), abs=1e-12)


def test_the_purity_never_counts_an_example_as_its_own_neighbour():
    points = np.repeat(np.arange(6.0), 2)[:, None] * [1.0, 0.0]  # every point twice, once in each class
    labels = np.tile([0, 1], 6)
    assert scores(points, labels)["knn_purity"] < 0.5  # 5 of the 11 others have the same class


def test_blobs_far_apart_score_near_1_and_shuffled_labels_near_0():
    points, labels = blobs(count=150, apart=40)
    plane = project(points, perplexity=20)
    for space in (points, plane):
        found = scores(space, labels)
        assert found["silhouette"] > 0.8 and found["knn_purity"] == 1.0 and found["davies_bouldin"] < 0.3
    shuffled = np.random.default_rng(1).permutation(labels)
    found = scores(points, shuffled)
    assert abs(found["silhouette"]) < 0.1 and abs(found["knn_purity"] - 1 / 3) < 0.1 and found["davies_bouldin"] > 2


def test_the_same_figure_and_numbers_twice_and_another_seed_changes_the_sample(tmp_path):
    folder = save(tmp_path / "features", count=80, apart=3)
    for name, seed in (("one", 42), ("two", 42), ("other", 7)):
        visualise([folder], ["final"], tmp_path / name, perplexity=8, seed=seed, limit=40)
    for file in ("scores.json", "coordinates.csv", "tsne_step_final.png", "tsne_step_final.pdf"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    assert (tmp_path / "one/coordinates.csv").read_bytes() != (tmp_path / "other/coordinates.csv").read_bytes()


def test_the_projection_does_not_depend_on_the_number_of_threads():
    from threadpoolctl import threadpool_limits

    points, _ = blobs(count=300, width=64, apart=3)
    with threadpool_limits(1):
        one = project(points, perplexity=20)
    with threadpool_limits(3):
        assert np.array_equal(project(points, perplexity=20), one)


@pytest.mark.slow
def test_two_runs_at_two_steps_give_a_figure_a_step_and_the_evolution(tmp_path):
    for run, apart in (("lora", 3), ("ba-lora", 9)):
        for step in (0, "final"):
            save(tmp_path / run / "features", step, apart=apart if step else 0, seed=len(run))
    out = tmp_path / "out"
    panels = visualise([tmp_path / "lora", tmp_path / "ba-lora/features"], [0, "final"], out, perplexity=10)
    assert [(panel.run, panel.step) for panel in panels] == [
        (run, step) for run in ("lora", "ba-lora") for step in (0, "final")
    ]
    again = visualise([tmp_path / "lora", tmp_path / "ba-lora"], ["all"], tmp_path / "all", perplexity=10)
    assert [(panel.run, panel.step, panel.original) for panel in again] == [
        (panel.run, panel.step, panel.original) for panel in panels
    ]
    figures = [f"tsne_{name}.{ending}" for name in ("evolution", "step_0", "step_final") for ending in ("pdf", "png")]
    assert sorted(path.name for path in out.iterdir()) == sorted([*figures, "coordinates.csv", "scores.json"])
    for name in figures:
        assert (out / name).read_bytes().startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG")
    written = read_json(out / "scores.json")
    assert written["classes"] == NAMES and written["pooling"] == "first token" and written["examples"] == 60
    for panel, record in zip(panels, written["panels"], strict=True):
        folder = tmp_path / record["run"] / "features"
        assert record["original"] == panel.original == scores(*read_features(folder, record["step"]))
        assert record["plane"] == panel.flat == scores(panel.plane, panel.labels)
        assert f"silhouette {record['original']['silhouette']:.3f}".replace("-", "−") in panel.title
    assert panels[3].original["silhouette"] > panels[1].original["silhouette"] > panels[0].original["silhouette"]
    with open(out / "coordinates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 60 and rows[61]["run"] == "lora" and rows[61]["step"] == "final"
    assert rows[61]["label"] == "neutral" and np.float32(rows[61]["x"]) == panels[1].plane[1, 0]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The figures of two runs at two steps."""
    home = tmp_path_factory.mktemp("drawn")
    for run in ("lora", "ba-lora"):
        for step in (0, "final"):
            save(home / run, step, apart=4, seed=len(run))
    words = ["--features_dir", str(home / "lora"), str(home / "ba-lora"), "--step", "all", "--perplexity", "10"]
    main([*words, "--limit", "40", "--output_dir", str(home / "figures")])
    return home / "figures"


@pytest.mark.slow
def test_figures_are_redrawn_from_the_points_and_scores_alone_to_the_same_bytes(drawn, tmp_path, capsys):
    kept = tmp_path / "kept"
    kept.mkdir()
    for file in ("coordinates.csv", "scores.json"):
        shutil.copy(drawn / file, kept)
    main(["--redraw", str(kept), "--output_dir", str(tmp_path / "out")])
    figures = sorted(path.name for path in drawn.iterdir() if path.suffix in (".pdf", ".png"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == figures and len(figures) == 6
    for name in figures:
        assert (tmp_path / "out" / name).read_bytes() == (drawn / name).read_bytes(), name
    printed = capsys.readouterr().out
    scored = read_json(kept / "scores.json")["panels"]
    assert [f"{each['original']['silhouette']:.3f}" for each in scored] == [
        line.split()[2] for line in printed.splitlines()[1:5]
    ]
    lines = (kept / "coordinates.csv").read_text().splitlines()
    assert all(len(number.partition(".")[2]) <= 3 for line in lines[1:] for number in line.split(",")[4:])
    lines[7] = "lora,0,7,neutral,0.0,0.0"
    (kept / "coordinates.csv").write_text("\n".join(lines))
    redraw(kept, tmp_path / "moved")
    assert (tmp_path / "moved/tsne_step_0.png").read_bytes() != (drawn / "tsne_step_0.png").read_bytes()


def test_the_committed_points_are_those_of_the_committed_scores():
    panels, record = read_record(ROOT / "results/t-sne")
    steps = [0, 40, 80, "final"]
    assert [(panel.run, panel.step) for panel in panels] == [
        (run, step) for run in ("LoRA", "PiSSA", "BA-LoRA") for step in steps
    ]
    for panel in panels:
        assert scores(panel.plane, panel.labels) == pytest.approx(panel.flat) and len(panel.labels) == 500
    assert record["classes"] == ["negative", "positive"]


@pytest.mark.parametrize(
    ("file", "old", "new", "match"),
    [
        ("scores.json", None, None, "kept holds no scores.json; give a folder that"),
        ("coordinates.csv", None, None, "kept holds no coordinates.csv; give a folder that"),
        ("scores.json", "{", "", "scores.json is not valid JSON .* draw the features again"),
        ("scores.json", "perplexity", "perplexed", "scores.json has no 'perplexity'; draw"),
        ("scores.json", '"step"', '"stop"', "scores.json, panel 1 has no 'step'; draw"),
        ("coordinates.csv", "label", "class", "coordinates.csv, line 2: no run, step, label .of entailment, neutral"),
        ("coordinates.csv", ",neutral,", ",other,", r"coordinates.csv, line \d+: no run, step, label"),
        ("coordinates.csv", ",neutral,", ",neutral,x", r"coordinates.csv, line \d+: no run, step, label"),
        (
            "coordinates.csv",
            "ba-lora,0,",
            "ba-lora,1,",
            "has 39 points of ba-lora at step 0 and scores.json 40 examples",
        ),
    ],
)
def test_what_cannot_be_redrawn_is_refused_in_one_line(drawn, tmp_path, file, old, new, match):
    kept = shutil.copytree(drawn, tmp_path / "kept")
    if old is None:
        (kept / file).unlink()
    else:
        (kept / file).write_text((kept / file).read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=match) as caught:
        redraw(kept, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_every_panel_shows_the_same_sample(tmp_path):
    folder = save(tmp_path / "features", 0, count=90)
    save(folder, 5, count=90, seed=1)
    panels = visualise([folder], [0, 5], tmp_path / "out", perplexity=10, limit=33)
    with open(tmp_path / "out/coordinates.csv", newline="") as file:
        numbers = [int(row["example"]) for row in csv.DictReader(file)]
    assert numbers[:33] == numbers[33:] == sorted(set(numbers)) and len(panels[0].plane) == 33
    assert panels[1].original == scores(*(array[numbers[:33]] for array in read_features(folder, 5)))


def test_one_run_has_the_name_of_its_folder_and_classes_without_names_their_numbers(tmp_path):
    panels = visualise([save(tmp_path / "mine", facts=False)], ["final"], tmp_path / "out", perplexity=10)
    assert panels[0].title.startswith("mine, final\nsilhouette 0.")
    written = read_json(tmp_path / "out/scores.json")
    assert written["classes"] == ["class 0", "class 1", "class 2"] and written["pooling"] is None


def refused(match, folders, out, steps=("final",), **options):
    with pytest.raises(UserError, match=match) as caught:
        visualise(folders, list(steps), out, **{"perplexity": 10} | options)
    assert "\n" not in str(caught.value) and not Path(out).exists()


def test_what_was_not_saved_is_named_with_what_was(tmp_path):
    (tmp_path / "empty").mkdir()
    refused("empty holds no features_step_<n>.npy; give", [tmp_path / "empty"], tmp_path / "out")
    refused("nowhere holds no features_step", [tmp_path / "nowhere"], tmp_path / "out")
    folder = save(tmp_path / "features", "final")
    for step in (1000, 0, 200):
        save(folder, step)
    refused("step 7 was not saved .* one of: 0, 200, 1000, final", [folder], tmp_path / "out", steps=[0, 7])
    labels_file(folder, 0).unlink()
    refused("labels_step_0.npy is missing", [folder], tmp_path / "out", steps=[0])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"points": np.zeros((60, 2, 2))}, r"shape \(60, 2, 2\); numbers of shape \(examples, width\)"),
        ({"points": np.zeros((0, 4)), "labels": np.zeros(0, int)}, r"shape \(0, 4\)"),
        ({"points": np.full((60, 4), "x")}, "numbers of shape"),
        ({"points": np.array([[None, {}]] * 60)}, "without pickled objects"),
        ({"labels": np.zeros(59, int)}, r"shape \(59,\) and features_step_final.npy \(60, 8\)"),
        ({"labels": np.linspace(0, 5, 60)}, "no class numbers .* regression"),
        ({"labels": np.full(60, np.nan)}, "no class numbers"),
        ({"labels": np.full(60, -1)}, "no class numbers .* unlabelled"),
        ({"labels": np.zeros(60, int)}, "all 60 examples are entailment; at least two classes"),
        ({"labels": np.arange(60) % 4}, "is 3 and features.json names 3 classes"),
        ({"points": np.ones((60, 4))}, "same features, so there is nothing to draw"),
    ],
)
def test_features_that_do_not_fit_are_refused_in_one_line(tmp_path, changes, match):
    refused(match, [save(tmp_path / "features", **changes)], tmp_path / "out")


def test_features_that_are_not_finite_are_refused_with_the_first_example(tmp_path):
    points, _ = blobs()
    points[4, 2], points[9, 0] = np.nan, np.inf
    refused(
        r"2 examples are not finite \(the first is number 4\)", [save(tmp_path / "f", points=points)], tmp_path / "o"
    )


def test_a_broken_file_is_refused(tmp_path):
    folder = save(tmp_path / "features")
    whole = features_file(folder, "final").read_bytes()
    for content in (b"", b"features", whole[:-100]):
        features_file(folder, "final").write_bytes(content)
        refused("features_step_final.npy is not a readable array", [folder], tmp_path / "out")
    with open(features_file(folder, "final"), "wb") as file:
        np.savez(file, one=np.zeros(3))
    refused("archive of arrays", [folder], tmp_path / "out")


def test_too_few_examples_are_refused_with_the_remedy(tmp_path):
    folder = save(tmp_path / "features", count=29)
    refused("29 examples are too few for perplexity 10, which needs 30; give --perplexity 9", [folder], tmp_path / "o")
    refused("20 examples .* give --perplexity 6 or raise --limit", [folder], tmp_path / "o", limit=20)
    refused("10 examples are too few, the scores use 10 neighbours", [folder], tmp_path / "o", limit=10, perplexity=2)


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    one, out = save(tmp_path / "one"), tmp_path / "out"
    refused("different examples", [one, save(tmp_path / "two", labels=np.arange(60)[::-1] % 3)], out)
    refused("different examples", [one, save(tmp_path / "three", count=63)], out)
    other = save(tmp_path / "four")
    write_json(other / "features.json", {"classes": ["no", "yes", "maybe"]})
    refused("different classes", [one, other], out)
    refused("--names with a different name", [one, one], out)
    refused("2 folders have the names a; give --names", [one, other], out, names=["a"])
    for classes in (["no", "yes"], ["no", "yes", "yes"]):
        refused(r"--labels names \d classes .*the features have 3; name each once", [one], out, classes=classes)
    (other / "features.json").write_text("{")
    refused("features.json is not valid JSON", [other], out)


def test_options_that_cannot_be_are_refused(tmp_path):
    base = ["--features_dir", str(save(tmp_path / "f")), "--output_dir", str(tmp_path / "o")]
    for words, match in (
        (["--step", "finl"], "did you mean 'final'"),
        (["--step", "-1"], "neither a number nor 'final'"),
        (["--perplexity", "0.5"], "--perplexity is 0.5; it must be at least 1"),
        (["--perplexity", "nan"], "--perplexity is nan"),
        (["--limit", "0"], "--limit is 0; it must be at least 1"),
        (["--seed", "-4"], "--seed is -4; it must be at least 0 and at most 4294967295"),
    ):
        with pytest.raises(UserError, match=match):
            main([*base, *words])
    redrawn = ["--redraw", str(tmp_path / "f"), "--output_dir", str(tmp_path / "o"), "--limit", "20"]
    with pytest.raises(UserError, match="leave --limit out or give --features_dir"):
        main(redrawn)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; name a folder"):
        main([*base[:2], "--output_dir", str(tmp_path / "file")])


@pytest.mark.slow
def test_the_command_draws_prints_the_scores_and_ends_with_the_right_status(tmp_path):
    for run in ("lora", "ba-lora"):
        save(tmp_path / run / "features")
    words = [sys.executable, str(ROOT / "tsne_visualization.py"), "--output_dir", str(tmp_path / "out")]
    words += ["--perplexity", "10", "--names", "LoRA", "BA-LoRA", "--labels", "no", "maybe", "yes"]
    words += ["--features_dir", str(tmp_path / "lora"), str(tmp_path / "ba-lora")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    shown = read_json(tmp_path / "out/scores.json")
    assert shown["classes"] == ["no", "maybe", "yes"] and len(lines) == 4
    for line, panel in zip(lines[1:3], shown["panels"], strict=True):
        assert line.split()[:3] == [panel["run"], "final", f"{panel['original']['silhouette']:.3f}"]
    failed = subprocess.run([*words, "--step", "9"], capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2 and failed.stderr.startswith("error: step 9 was not saved")
    assert len(failed.stderr.splitlines()) == 1


def test_the_help_teaches():
    text = make_parser().format_help()
    for word in ("--names LoRA BA-LoRA", "features_step_<n>.npy", "no unit", "lower is better", "scores.json"):
        assert word in text
