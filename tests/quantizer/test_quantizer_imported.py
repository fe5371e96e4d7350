"""Codes made elsewhere: read exactly, or refused with every fault at once."""

import gzip
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leadre.quantizer.config import ImportedConfig
from leadre.quantizer.imported import fingerprint, imported_codes

DATA = Path(os.environ.get("LEADRE_DATA", Path(__file__).parents[3] / "shared" / "data"))
LETTER = DATA / "amazon_beauty" / "LETTER_Beauty.index.json.gz"
CODES = {"0": ["<a_3>", "<b_4>"], "1": ["<a_0>", "<b_12>"], "2": ["<a_3>", "<b_0>"]}


def _written(path, content):
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def _config(path, key_shift=1):
    return ImportedConfig(kind="imported", path=str(path), key_shift=key_shift)


@pytest.mark.parametrize("name", ["index.json", "index.json.gz"])
def test_every_ad_of_the_file_has_its_codes(tmp_path, name):
    path = _written(tmp_path / name, CODES)
    assert imported_codes(path, ["3", "1", "2"], key_shift=1) == {"1": [3, 4], "2": [0, 12], "3": [3, 0]}
    assert imported_codes(path, ["0", "1"], known=["2"]) == {"0": [3, 4], "1": [0, 12], "2": [3, 0]}


def test_without_a_shift_keys_are_ad_ids_whatever_they_look_like(tmp_path):
    path = _written(tmp_path / "index.json", {"b|x": ["<a_1>"], "007": ["<a_2>"]})
    assert imported_codes(path, ["007", "b|x"]) == {"b|x": [1], "007": [2]}


def test_the_stage_writes_codes_sizes_and_diagnostics(tmp_path, run):
    path = _written(tmp_path / "index.json", CODES)
    x, ad_ids = np.zeros((3, 4), np.float32), ["2", "1", "3"]
    ran = run(tmp_path, x, _config(path), ad_ids=ad_ids, texts=["same", "same", "other"])
    assert (ran.ad_ids, ran.codes.tolist()) == (ad_ids, [[0, 12], [3, 4], [3, 0]])  # one text, but codes ad by ad
    assert json.loads((ran.out / "quantizer.json").read_text()) == {
        "kind": "imported",
        "input_dim": 4,
        "codebook_sizes": [4, 13],
    }
    assert not (ran.out / "quantizer.safetensors").exists()
    assert [len(level) for level in ran.report["counts"]] == [4, 13]
    assert ran.report["usage"] == [0.5, pytest.approx(3 / 13)]
    assert (ran.report["collision_rate"], ran.report["reconstruction_error"]) == (0.0, None)


def test_every_fault_is_told_at_once(tmp_path):
    text = """{"0": ["<a_3>", "<b_4>"], "1": ["<b_0>", "<b_1>"], "2": ["<a_0>"], "3": ["a_0", 7],
               "x": ["<a_0>", "<b_0>"], "6": ["<a_0>", "<b_0>"], "06": ["<a_0>", "<b_-1>"], "8": "<a_0>"}"""
    with pytest.raises(ValueError, match="does not fit the ads") as told:
        imported_codes(_written(tmp_path / "index.json", text), ["1", "2", "3", "4", "5", "6"], key_shift=1)
    assert str(told.value).splitlines()[1:] == [
        "  1 keys are no numbers, so that they cannot be shifted: x",
        "  1 ads have more than one key: 7",
        "  1 keys have no list of tokens: 8",
        "  2 ads have no codes: 5, 6",
        "  1 keys are of no ad: 7",
        "  ads have unequal numbers of codes: 1 have 1, 4 have 2",
        "  4 tokens are not <letter_code> with the letter of their level, a for the first: "
        "'<b_0>' at level 1 of 2, 'a_0' at level 1 of 4, 7 at level 2 of 4, '<b_-1>' at level 2 of 7",
        "mend the file, or set quantizer.key_shift (now 1) to what an ad_id is above its key",
    ]


def test_a_code_that_no_codebook_is_as_large_as_is_a_fault(tmp_path):
    path = _written(tmp_path / "index.json", {"x": ["<a_65535>", "<b_65536>"], "y": ["<a_999999999>", "<b_0>"]})
    told = r"2 codes are above 65,535, .*: '<b_65536>' at level 2 of x, '<a_999999999>' at level 1 of y\n"
    with pytest.raises(ValueError, match=told):
        imported_codes(path, ["x", "y"])


def test_many_faults_of_a_sort_are_counted_and_the_first_shown(tmp_path):
    path = _written(tmp_path / "index.json", {"0": ["<a_0>"]})
    with pytest.raises(ValueError, match=r"7 ads have no codes: 1, 2, 3, 4, 5 and 2 more"):
        imported_codes(path, [str(ad) for ad in range(8)])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds no object of codes: it should look like"),
        ("{}", "holds no object of codes"),
        ({"0": []}, "ads have 0 codes each: 1 to 25 are possible"),
        ({"0": [f"<{chr(97 + level)}_0>" for level in range(26)]}, "ads have 26 codes each: 1 to 25"),
    ],
)
def test_a_file_without_codes_is_an_error(tmp_path, content, told):
    with pytest.raises(ValueError, match=told):
        imported_codes(_written(tmp_path / "index.json", content), ["0"])


def test_a_file_that_is_missing_or_not_compressed_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"quantizer.path is .* but there is no such file"):
        imported_codes(tmp_path / "index.json", ["0"])
    (tmp_path / "index.json.gz").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot be read as JSON .* give an index.json or index.json.gz"):
        imported_codes(tmp_path / "index.json.gz", ["0"])


def test_new_ads_come_from_todays_file_and_old_ones_stay(tmp_path, run):
    path = _written(tmp_path / "index.json", CODES)
    before = run(tmp_path / "before", np.zeros((3, 4), np.float32), _config(path), ad_ids=["1", "2", "3"])
    path = _written(tmp_path / "today.json", {**CODES, "0": ["<a_0>", "<b_0>"], "3": ["<a_1>", "<b_1>"]})
    x = np.zeros((2, 4), np.float32)
    today = run(tmp_path / "today", x, _config(path), ad_ids=["4", "1"], previous=before.out)
    assert today.ad_ids == ["1", "2", "3", "4"]
    assert today.codes.tolist() == [*before.codes.tolist(), [1, 1]]
    assert (today.out / "quantizer.json").read_bytes() == (before.out / "quantizer.json").read_bytes()
    with pytest.raises(ValueError, match="1 ads have no codes: 9"):
        run(tmp_path / "lacks", x, _config(path), ad_ids=["9", "1"], previous=before.out)
    beyond = _written(tmp_path / "beyond.json", {**CODES, "3": ["<a_4>", "<b_1>"]})
    with pytest.raises(ValueError, match=r"codes up to \[4, 1\], but .* has \[4, 13\] codes a level"):
        run(tmp_path / "more", x, _config(beyond), ad_ids=["4", "1"], previous=before.out)
    path = _written(tmp_path / "same.json", CODES)
    same = run(tmp_path / "same", x, _config(path), ad_ids=["3", "1"], previous=before.out)
    assert same.codes.tolist() == before.codes.tolist()


def test_a_known_ad_with_other_codes_in_todays_file_keeps_its_own_and_is_told(tmp_path, run, caplog):
    path, ad_ids = _written(tmp_path / "index.json", CODES), ["1", "2", "3"]
    before = run(tmp_path / "before", np.zeros((3, 4), np.float32), _config(path), ad_ids=ad_ids)
    assert "other codes" not in caplog.text
    path = _written(tmp_path / "today.json", {**CODES, "1": ["<a_0>", "<b_0>"]})
    today = run(tmp_path / "today", np.zeros((1, 4), np.float32), _config(path), ad_ids=["1"], previous=before.out)
    assert today.codes.tolist() == before.codes.tolist()
    assert f"1 ads have other codes in {path} than when they were coded and keep theirs (one is '2')" in caplog.text


@pytest.mark.parametrize("ad_ids", [["1", "2", "3"], ["1", "4"]])
def test_another_number_of_levels_on_a_later_day_is_refused(tmp_path, run, ad_ids):
    x, path = np.zeros((3, 4), np.float32), _written(tmp_path / "index.json", CODES)
    before = run(tmp_path / "before", x, _config(path), ad_ids=["1", "2", "3"])
    path = _written(tmp_path / "today.json", {str(key): ["<a_0>", "<b_0>", "<c_0>"] for key in range(int(ad_ids[-1]))})
    with pytest.raises(ValueError, match=r"today\.json has 3 codes an ad, but .* has 2: give new ads as many"):
        run(tmp_path / "today", x[: len(ad_ids)], _config(path), ad_ids=ad_ids, previous=before.out)


def test_the_fingerprint_is_the_files_and_of_no_other_kind(tmp_path, configured):
    path = _written(tmp_path / "index.json", CODES)
    assert fingerprint(_config(path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert fingerprint(configured("tiny")) == fingerprint(configured("random")) == ""
    with pytest.raises(ValueError, match="there is no such file"):
        fingerprint(_config(tmp_path / "nothing.json"))


@pytest.mark.skipif(not LETTER.exists(), reason="the published file is not there")
def test_the_published_codes_of_amazon_beauty(tmp_path, run, configured):
    """12,101 items, .11 % of which share their codes (LETTER's own figure)."""
    config = replace(configured("letter"), path=str(LETTER))
    ad_ids = [str(item) for item in range(1, 12_102)]
    ran = run(tmp_path, np.zeros((12_101, 2), np.float32), config, ad_ids=ad_ids)
    assert ran.report["codebook_sizes"] == [256] * 4
    assert (ran.report["num_ads"], round(ran.report["collision_rate"], 4)) == (12_101, 0.0011)
    assert ran.codes[0].tolist() == [183, 70, 232, 6]
