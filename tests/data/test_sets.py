"""Sets that a registry package carries: read as they are, and refused in another version."""

import pytest

from ba_lora.data import sets
from ba_lora.errors import UserError
from eval import bbq, crows_pairs, stereoset, winobias, winogender
from eval.choices.ability import held_out_texts

SIZES = {"crows_pairs": 1508, "stereoset": 4229, "bbq": 58492, "winobias": 3168, "winogender": 720}


def test_a_file_of_another_version_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "fetch", lambda *package: tmp_path)
    with pytest.raises(
        UserError, match=r"crows_pairs_anonymized.csv is another version of crows_pairs \(checksum no file"
    ):
        sets.open_set("crows_pairs")
    file = tmp_path / sets.FOLDER / "CrowS-Pairs/data/crows_pairs_anonymized.csv"
    file.parent.mkdir(parents=True)
    file.write_text("sent_more,sent_less\n")
    with pytest.raises(UserError, match="or name your version with --data"):
        sets.open_set("crows_pairs")
    with pytest.raises(UserError, match="data set 'crows' is not known, did you mean 'crows_pairs'"):
        sets.open_set("crows")


@pytest.mark.slow
def test_the_package_holds_the_sets_that_the_benchmarks_read():
    try:
        sets.open_set("crows_pairs")
    except UserError as error:
        pytest.skip(str(error))
    for module in (bbq, crows_pairs, stereoset, winobias, winogender):
        name = module.CHOICES.name
        items = module.BENCHMARK.load(None, "tiny", None)
        assert len(items) == SIZES[name] and len({item["id"] for item in items}) == len(items)
        assert sets.SETS[name].licence in ("MIT", "CC BY 4.0", "CC BY-SA 4.0")
    texts, source = held_out_texts(None)
    assert len(set(texts)) == 200 and "Wikipedia" in source and min(map(len, texts)) > 10
