"""The verb index: the catalog's files from a world and codes, on the first day and on later ones."""

import json
import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from leadre import tables
from leadre.catalog import trie as tries
from leadre.catalog.config import CatalogConfig
from leadre.catalog.index import index

CONF = Path(__file__).parents[2] / "conf/catalog"
FILES = ("sids.parquet", "retired.parquet", "trie.safetensors", "tokens.json", "catalog.json")
SIZES = [5, 6]


def config(**changed):
    given = {"include": "all", "as_of": None, "spare_extra_codes": 0, "max_extra_codes": 4, "overflow": "error"}
    return CatalogConfig(**{**given, **changed})


def shipped(name="default"):
    values = yaml.safe_load((CONF / "default.yaml").read_text(encoding="utf-8"))
    if name != "default":
        values |= yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
        assert values.pop("defaults") == ["default", "_self_"]
    return TypeAdapter(CatalogConfig).validate_json(json.dumps(values))


def write_world(folder, spans, behaviors=(), split=()):
    folder.mkdir(exist_ok=True)
    ads = [
        {"ad_id": ad, "attributes": [], "start_time": start, "end_time": end, "description": ad}
        for ad, (start, end) in spans.items()
    ]
    tables.write(tables.ADS, pl.DataFrame(ads, schema=tables.ADS.schema), folder / "ads.parquet")
    rows = [{"user_id": "u", "item_id": ad, "domain": "ad", "action": "click", "time": time} for ad, time in behaviors]
    tables.write(tables.BEHAVIORS, pl.DataFrame(rows, schema=tables.BEHAVIORS.schema), folder / "behaviors.parquet")
    tables.write(tables.SPLIT, pl.DataFrame(split, schema=tables.SPLIT.schema, orient="row"), folder / "split.parquet")
    return folder


def write_codes(folder, codes, sizes=SIZES):
    folder.mkdir(exist_ok=True)
    rows = {"ad_id": list(codes), "codes": [list(each) for each in codes.values()]}
    tables.write(tables.CODES, pl.DataFrame(rows, schema=tables.CODES.schema), folder / "codes.parquet")
    (folder / "quantizer.json").write_text(json.dumps({"codebook_sizes": sizes}))
    return folder


class Days:
    """Days of one catalog: each is indexed from the codes of its ads, after the day before."""

    def __init__(self, root):
        self.root = root
        self.codes = {}
        self.last = None
        self.number = 0

    def next(self, codes, *, sizes=SIZES, spans=None, **changed):
        self.number += 1
        folder = self.root / str(self.number)
        folder.mkdir()
        self.codes |= codes
        world = write_world(folder / "world", spans or dict.fromkeys(codes, (None, None)))
        out = folder / "out"
        out.mkdir()
        index(config(**changed), world, write_codes(folder / "codes", self.codes, sizes), self.last, out=out)
        self.last = out
        return sids_of(out), sids_of(out, "retired.parquet"), told_by(out)


def sids_of(out, file="sids.parquet"):
    return {ad: tuple(sid) for ad, sid, _ in tables.read(tables.SIDS, out / file).iter_rows()}


def told_by(out):
    return json.loads((out / "catalog.json").read_text())


def leaves(trie):
    """The S-IDs of a trie, leaf by leaf, from the root down."""
    nodes = [()]
    for codes, first in zip(trie.codes, trie.first_child, strict=True):
        nodes = [
            (*node, int(codes[child])) for row, node in enumerate(nodes) for child in range(first[row], first[row + 1])
        ]
    return nodes


@pytest.fixture
def days(tmp_path):
    return Days(tmp_path)


@pytest.fixture
def folders(tmp_path):
    spans = {"a": (None, None), "b": (0, 101), "c": (50, 100), "d": (101, None)}
    split = [("u", "train", "a", 60), ("u", "valid", "c", 70), ("u", "test", "b", 100)]
    world = write_world(tmp_path / "world", spans, [("a", 60), ("c", 70), ("b", 100)], split)
    codes = write_codes(tmp_path / "codes", {"a": (4, 0), "b": (1, 3), "c": (4, 0), "d": (0, 5)})
    (tmp_path / "out").mkdir()
    return world, codes, tmp_path / "out"


def test_the_files_tell_of_the_same_catalog(folders):
    world, codes, out = folders
    index(config(spare_extra_codes=1), world, codes, out=out)
    sids = tables.read(tables.SIDS, out / "sids.parquet")
    assert sids["ad_id"].to_list() == ["d", "b", "a", "c"]
    assert sids["sid"].to_list() == [[0, 5, 0], [1, 3, 0], [4, 0, 0], [4, 0, 1]]
    assert sids["name"][3] == "<a_4> <b_0> <c_1>"
    assert leaves(tries.load(out / "trie.safetensors")) == [tuple(sid) for sid in sids["sid"].to_list()]
    tokens = json.loads((out / "tokens.json").read_text())
    assert tokens["levels"] == [5, 6, 3]
    assert (tokens["tokens"][0], tokens["tokens"][-1], len(tokens["tokens"])) == ("<a_0>", "<c_2>", 14)
    assert tables.read(tables.SIDS, out / "retired.parquet").is_empty()
    assert told_by(out) == {
        "version": 1,
        "active": 4,
        "new": 4,
        "returned": 0,
        "retired": 0,
        "spilled": 0,
        "largest_group": 2,
        "extra_codes": 3,
        "extra_codes_used": 2,
    }


def test_a_code_that_no_ad_has_yet_has_its_token(days):
    days.next({"a": (0, 0)}, sizes=[256, 300], spare_extra_codes=2)
    assert json.loads((days.last / "tokens.json").read_text())["levels"] == [256, 300, 3]


def test_active_ads_are_those_whose_life_span_holds_the_last_behavior_and_the_others_are_reserved(folders, caplog):
    world, codes, out = folders
    with caplog.at_level(logging.INFO):
        index(config(include="active"), world, codes, out=out)
    assert list(sids_of(out)) == ["b", "a"]
    assert sids_of(out, "retired.parquet") == {"d": (0, 5, 0), "c": (4, 0, 1)}
    assert "2 of 4 ads are active at 100" in caplog.text
    assert "1 valid targets are ads outside of it" in caplog.text
    assert json.loads((out / "tokens.json").read_text())["levels"] == [5, 6, 2]


@pytest.mark.parametrize(
    ("as_of", "active"), [("1970-01-01T00:01:00", "abc"), ("1970-01-01T08:01:41+08:00", "ad"), ("1970-01-02", "ad")]
)
def test_the_time_to_judge_life_spans_by_may_be_told(folders, as_of, active):
    world, codes, out = folders
    index(config(include="active", as_of=as_of), world, codes, out=out)
    assert sorted(sids_of(out)) == list(active)


def test_a_world_of_ads_alone_needs_a_time_to_tell_which_are_active(folders):
    _, codes, out = folders
    world = write_world(out.parent / "ads_alone", {"a": (None, 5), "b": (None, 9), "c": (None, 9), "d": (6, None)})
    with pytest.raises(ValueError, match=r"the world has no behaviors to tell the time by: give catalog\.as_of"):
        index(config(include="active"), world, codes, out=out)
    with pytest.raises(ValueError, match=r"catalog\.as_of is 'noon', but must be an ISO time"):
        index(config(include="active", as_of="noon"), world, codes, out=out)
    index(config(include="active", as_of="1970-01-01T00:00:06Z"), world, codes, out=out)
    assert sorted(sids_of(out)) == ["b", "c", "d"]


def test_the_same_input_gives_the_same_bytes_whatever_the_order_of_rows(folders, tmp_path):
    world, codes, out = folders
    again = tmp_path / "again"
    again.mkdir()
    index(config(), world, codes, out=out)
    rows = tables.read(tables.CODES, codes / "codes.parquet")
    tables.write(tables.CODES, rows.reverse(), codes / "codes.parquet")
    index(config(), world, codes, out=again)
    for name in FILES:
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_an_ad_leaves_and_comes_back_to_its_own_sid_and_none_takes_it_meanwhile(days):
    same = (4, 0)
    first, _, _ = days.next({"a": same, "b": same, "c": (0, 1)}, spare_extra_codes=2)
    assert first == {"c": (0, 1, 0), "a": (4, 0, 0), "b": (4, 0, 1)}
    second, retired, told = days.next({"b": same, "0": same})
    assert second == {"b": (4, 0, 1), "0": (4, 0, 2)}
    assert retired == {"c": (0, 1, 0), "a": (4, 0, 0)}
    assert [told[key] for key in ("version", "active", "new", "returned", "retired")] == [2, 2, 1, 0, 2]
    third, retired, told = days.next({"a": same, "1": same})
    assert third == {"a": (4, 0, 0), "1": (4, 0, 3)}
    assert retired == {"c": (0, 1, 0), "b": (4, 0, 1), "0": (4, 0, 2)}
    assert [told[key] for key in ("version", "active", "new", "returned", "retired")] == [3, 2, 1, 1, 3]


def test_a_day_without_change_gives_the_same_bytes(days):
    days.next({"a": (4, 0), "b": (4, 0), "c": (0, 1)}, spans={"a": (None, None), "b": (5, 7), "c": (0, None)})
    first = days.last
    days.next(days.codes)
    for name in FILES[:-1]:
        assert (first / name).read_bytes() == (days.last / name).read_bytes()


def test_the_extra_code_is_as_large_as_the_data_asks_for_and_some_to_spare():
    with tempfile.TemporaryDirectory() as folder:
        days = Days(Path(folder))
        products = {f"product{number}": (0, 0) for number in range(1005)}
        ready = shipped()
        keep = {name: getattr(ready, name) for name in ("spare_extra_codes", "max_extra_codes", "overflow")}
        sids, _, told = days.next(products, **keep)
    assert sorted(sid[-1] for sid in sids.values()) == list(range(1005))
    assert (told["largest_group"], told["extra_codes_used"], told["extra_codes"]) == (1005, 1005, 1021)


def test_a_group_above_the_limit_stops_indexing_and_the_error_says_what_to_do(days):
    days.next({"a": (4, 0), "b": (4, 0), "c": (4, 1)}, max_extra_codes=2)
    with pytest.raises(
        ValueError,
        match=r"there are 2 extra codes, but 3 ads share the codes <a_4> <b_0> \(one is 'd'\): index without a "
        r"previous catalog and tune the model anew, use catalog\.overflow=spill, or quantize with more levels or codes",
    ):
        days.next({"d": (4, 0)}, max_extra_codes=9)
    days.last = None
    with pytest.raises(
        ValueError, match=r"there are 2 extra codes, but 3 ads .*'d'\): raise catalog\.max_extra_codes to 3, use cat"
    ):
        days.next(days.codes, max_extra_codes=2)


def test_ads_beyond_the_limit_go_to_the_sibling_with_most_room(days, caplog):
    codes = {"a": (1, 2), "b": (1, 2), "c": (1, 2), "d": (1, 2), "e": (1, 0), "f": (1, 1), "g": (1, 1), "h": (2, 2)}
    sids, _, told = days.next(codes, sizes=[3, 4], max_extra_codes=2, overflow="spill")
    kept = {"e": (1, 0, 0), "f": (1, 1, 0), "g": (1, 1, 1), "a": (1, 2, 0), "b": (1, 2, 1), "h": (2, 2, 0)}
    assert sids == kept | {"c": (1, 3, 0), "d": (1, 0, 1)}  # for d two codes have room for one: the smaller
    assert (told["spilled"], told["largest_group"], told["extra_codes"]) == (2, 4, 2)
    assert "2 ads found no extra code and are spilled" in caplog.text
    later, _, told = days.next({"i": (2, 2), "j": (2, 2)} | codes, sizes=[3, 4], overflow="spill")
    assert later == sids | {"i": (2, 2, 1), "j": (2, 0, 0)}
    assert (told["spilled"], told["new"]) == (1, 2)


def test_all_sids_below_a_prefix_may_be_taken(days):
    crowd = {f"ad{number}": (1, 2) for number in range(6)}
    sids, _, told = days.next(crowd, sizes=[3, 3], max_extra_codes=2, overflow="spill")
    assert sorted(sids.values()) == [(1, code, extra) for code in range(3) for extra in range(2)]
    assert (told["spilled"], told["largest_group"], told["extra_codes_used"]) == (4, 6, 2)
    with pytest.raises(
        ValueError, match=r"begin with '<a_1>', but all 3 x 2 S-IDs that begin so are taken: index without a previous"
    ):
        days.next({"late": (1, 0)}, sizes=[3, 3], overflow="spill")


def test_ads_of_one_level_spill_over_all_of_its_codes(days):
    sids, _, _ = days.next(dict.fromkeys("abcd", (1,)), sizes=[3], max_extra_codes=2, overflow="spill")
    assert sids == {"c": (0, 0), "a": (1, 0), "b": (1, 1), "d": (2, 0)}
    with pytest.raises(ValueError, match=r"7 ads have codes that begin with '', .* taken: raise catalog\.max_extra"):
        Days(days.root / "1").next(dict.fromkeys("abcdefg", (1,)), sizes=[3], max_extra_codes=2, overflow="spill")


def test_one_ad_makes_a_catalog(days):
    sids, retired, told = days.next({"only": (3, 5)})
    assert (sids, retired, told["extra_codes"]) == ({"only": (3, 5, 0)}, {}, 1)


def test_all_ads_may_have_equal_codes(days):
    assert days.next(dict.fromkeys("dcba", (0, 0)))[0] == {ad: (0, 0, at) for at, ad in enumerate("abcd")}


def test_no_ads_are_refused(days):
    with pytest.raises(ValueError, match="the world has no ads: a catalog needs at least one"):
        days.next({})


def test_no_active_ad_is_refused(folders):
    world, codes, out = folders
    write_world(world, dict.fromkeys("abcd", (0, 1)), [("a", 100)])
    with pytest.raises(ValueError, match=r"include is 'active', but no ad's life span holds the time 100: give"):
        index(config(include="active"), world, codes, out=out)


def test_ads_without_codes_are_refused(folders):
    world, codes, out = folders
    write_codes(codes, {"a": (4, 0), "b": (1, 3), "c": (4, 0)})
    with pytest.raises(ValueError, match=r"1 ads without codes .one is 'd'."):
        index(config(), world, codes, out=out)


def test_codes_of_no_ad_are_refused_on_the_first_day_and_left_alone_later(folders, tmp_path):
    world, codes, out = folders
    index(config(), world, codes, out=out)
    write_world(world, dict.fromkeys("ab", (None, None)))
    later = tmp_path / "later"
    later.mkdir()
    with pytest.raises(ValueError, match=r"2 codes of no ad .one is 'c'."):
        index(config(), world, codes, out=later)
    write_codes(codes, {"a": (4, 0), "b": (1, 3), "never seen": (0, 0)})
    index(config(), world, codes, out, out=later)
    assert sids_of(later) == {"b": (1, 3, 0), "a": (4, 0, 0)}
    assert sids_of(later, "retired.parquet") == {"d": (0, 5, 0), "c": (4, 0, 1)}


def test_an_ad_that_stands_twice_is_refused(folders):
    world, codes, out = folders
    rows = tables.read(tables.CODES, codes / "codes.parquet")
    tables.write(tables.CODES, pl.concat([rows, rows.head(1)]), codes / "codes.parquet")
    with pytest.raises(ValueError, match="the ad 'a' more than once"):
        index(config(), world, codes, out=out)


@pytest.mark.parametrize("wrong", [(-1, 0), (5, 0), (0, 6), (0, None)])
def test_a_code_outside_its_codebook_is_refused(days, wrong):
    told = str(list(wrong)).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ValueError, match=rf"codes has {told} for the ad 'b', but the codebook sizes are \[5, 6\]"):
        days.next({"a": (4, 5), "b": wrong})


def test_ads_with_another_number_of_codes_are_refused(days):
    with pytest.raises(ValueError, match=r"ads with \[1, 2\] codes, but quantizer\.json tells of 2 levels"):
        days.next({"a": (1,), "b": (1, 2)})


@pytest.mark.parametrize(("codes", "sizes"), [((1, 2), [5, 7]), ((1, 2, 3), [5, 6, 4])])
def test_codes_of_another_shape_than_the_previous_catalogs_are_refused(days, codes, sizes):
    days.next({"a": (1, 2)})
    days.codes = {}
    with pytest.raises(ValueError, match=r"previous has \[5, 6\] codes a level, but the codes were made with \[5, "):
        days.next({"a": codes}, sizes=sizes)


def test_codes_that_changed_are_refused(days):
    days.next({"a": (1, 2), "b": (1, 2)})
    with pytest.raises(ValueError, match=r"1 ads have other .*'b': its codes are <a_0> <b_2>, its S-ID is <a_1> <b_2>"):
        days.next({"a": (1, 2), "b": (0, 2)})


@pytest.mark.parametrize(("old", "new", "sizes"), [((1, 2), (1, 3), [5, 6]), ((2,), (3,), [6])])
def test_a_last_code_that_changed_is_refused_too_unless_its_group_was_full(days, old, new, sizes):
    """The group of ``new`` has one ad and room for another: nobody can have been spilled from it."""
    days.next({"a": old, "b": old, "c": new}, sizes=sizes)
    with pytest.raises(ValueError, match=r"1 ads have other codes than in the previous catalog \(one is 'b'"):
        days.next({"b": new}, sizes=sizes)
    days.codes["b"] = old
    days.next({"d": new}, sizes=sizes)
    days.next({"b": new}, sizes=sizes)  # now it is full, and who was spilled when is not told


def test_a_previous_folder_that_is_no_catalog_is_refused(days):
    days.next({"a": (1, 2)})
    (days.last / "retired.parquet").unlink()
    (days.last / "catalog.json").unlink()
    with pytest.raises(ValueError, match=r"but it has no retired\.parquet, catalog\.json: name the folder of a catal"):
        days.next({"a": (1, 2)})


def test_a_previous_folder_that_lost_ads_is_refused(days):
    days.next({"a": (1, 2), "b": (1, 2)})
    rows = tables.read(tables.SIDS, days.last / "sids.parquet")
    tables.write(tables.SIDS, rows.tail(1), days.last / "sids.parquet")
    with pytest.raises(ValueError, match=r"extra codes that are not 0, 1, 2, \.\.\. in a group"):
        days.next({"a": (1, 2)})


class Ledger:
    """What days of a catalog must come to, kept in plain dictionaries."""

    def __init__(self):
        self.given = {}
        self.limit = None

    def add(self, codes, *, sizes, spare, most):
        """Give S-IDs to the new ads; False if there is no room."""
        new = sorted(set(codes) - set(self.given))
        group = Counter(sid[:-1] for sid in self.given.values())
        homeless = []
        asked = {}
        for ad in new:
            asked[ad] = (*codes[ad], group[codes[ad]])
            group[codes[ad]] += 1
        self.limit = self.limit or min(max(group.values()) + spare, most)
        for ad, sid in asked.items():
            if sid[-1] < self.limit:
                self.given[ad] = sid
            else:
                homeless.append(ad)
        for ad in homeless:
            prefix = codes[ad][:-1]
            taken = Counter(sid[-2] for sid in self.given.values() if sid[:-2] == prefix)
            code = min(range(sizes[-1]), key=lambda code: (taken[code], code))
            if taken[code] >= self.limit:
                return False
            self.given[ad] = (*prefix, code, taken[code])
        return True


@st.composite
def stories(draw):
    """Codes of some ads, and for each day who is there and who of these may be generated."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    pool = {f"ad{number}": tuple(draw(st.integers(0, size - 1)) for size in sizes) for number in range(12)}
    some = st.lists(st.sampled_from(sorted(pool)), min_size=1, max_size=12, unique=True)
    days = [(there, draw(st.sampled_from(there)), draw(some)) for there in draw(st.lists(some, min_size=1, max_size=4))]
    return sizes, pool, days


@pytest.mark.parametrize("examples", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_any_days_keep_every_sid_with_its_ad_and_agree_with_plain_dictionaries(examples):
    of_any_days = given(stories(), st.integers(0, 2), st.integers(1, 6))(check_days)
    settings(max_examples=examples, deadline=None)(of_any_days)()


def check_days(story, spare, most):
    sizes, pool, story_days = story
    ledger, ever = Ledger(), {}
    with tempfile.TemporaryDirectory() as folder:
        days = Days(Path(folder))
        for there, one, others in story_days:
            codes = {ad: pool[ad] for ad in there}
            active = {one, *others} & set(there)
            spans = {ad: (None, None if ad in active else 1) for ad in there}
            knobs = {"include": "active", "as_of": "1970-01-02", "spare_extra_codes": spare, "max_extra_codes": most}
            if not ledger.add(codes, sizes=sizes, spare=spare, most=most):
                with pytest.raises(ValueError, match="that begin so are taken"):
                    days.next(codes, sizes=sizes, spans=spans, overflow="spill", **knobs)
                return
            listed, retired, told = days.next(codes, sizes=sizes, spans=spans, overflow="spill", **knobs)
            assert listed == {ad: ledger.given[ad] for ad in active}
            assert retired == {ad: sid for ad, sid in ledger.given.items() if ad not in active}
            assert list(listed.values()) == sorted(set(listed.values()))
            assert leaves(tries.load(days.last / "trie.safetensors")) == list(listed.values())
            everyone = listed | retired
            assert ever.items() <= everyone.items()
            assert len(set(everyone.values())) == len(everyone)
            assert told["new"] == len(everyone) - len(ever)
            ever = everyone


@pytest.mark.slow
def test_a_clustered_million_is_indexed_and_carried_on(tmp_path):
    generator = np.random.default_rng(0)
    codes = generator.integers(1, 1024, (1_000_000, 4), dtype=np.int32)
    crowded = generator.permutation(1_000_000)[:290_000]
    codes[crowded] = codes[crowded[np.arange(290_000) // 2]]  # 29 % share their codes with others
    codes[crowded[:275]] = 0
    ids = [f"ad{number:07d}" for number in range(1_000_000)]
    folders = [tmp_path / name for name in ("world", "codes", "one", "two")]
    world, coded, one, two = folders
    for folder in folders:
        folder.mkdir()
    empty = {name: pl.lit(None, column.dtype) for name, column in tables.ADS.columns.items()}
    frame = pl.DataFrame({"ad_id": ids}).with_columns(
        **{**empty, "ad_id": pl.col("ad_id"), "attributes": pl.lit([], pl.List(pl.String())), "description": pl.lit("")}
    )
    tables.write(tables.ADS, frame, world / "ads.parquet")
    tables.write(tables.SPLIT, pl.DataFrame(schema=tables.SPLIT.schema), world / "split.parquet")
    rows = pl.DataFrame({"ad_id": ids, "codes": pl.Series(codes).arr.to_list()})
    tables.write(tables.CODES, rows, coded / "codes.parquet")
    (coded / "quantizer.json").write_text(json.dumps({"codebook_sizes": [1024] * 4}))
    index(shipped(), world, coded, out=one)
    assert told_by(one)["largest_group"] == 275
    tables.write(tables.ADS, frame.tail(-10_000), world / "ads.parquet")
    index(shipped(), world, coded, one, out=two)
    assert [told_by(two)[key] for key in ("active", "retired", "new")] == [990_000, 10_000, 0]
    before, active, gone = (
        tables.read(tables.SIDS, path) for path in (one / "sids.parquet", two / "sids.parquet", two / "retired.parquet")
    )
    assert pl.concat([active, gone]).sort("sid").equals(before.sort("sid"))
    assert tries.load(two / "trie.safetensors").codes[-1].numel() == 990_000
    assert int(tries.load(two / "trie.safetensors").first_child[-1][-1]) == 990_000


def test_the_shipped_configurations_are_valid():
    assert shipped().include == "all"
    assert shipped("active").include == "active"


def test_unknown_choices_are_refused():
    for wrong in ({"include": "some"}, {"max_extra_codes": 0}, {"spare_extra_codes": -1}, {"overflow": "drop"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            config(**wrong)
