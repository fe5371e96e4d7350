import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import figure5_sequence_length as figure5
from experiments.figure5_curves import LOST, curves, draw, read
from experiments.figure5_score import CompareConfig, compare
from experiments.figure5_shorten import DOMAINS, FULL, Cut, ShortenConfig, cut_history, picks, shorten, with_draws
from experiments.result import StudyResult, read_result, write_result
from experiments.run import run_study
from experiments.study import configured, settings_of
from leadre import pipeline, tables
from leadre.artifacts import Store
from leadre.generation.generate import generate
from leadre.lm.extend import extend
from leadre.prompts.compose import compose, ingredients

SETTINGS = ("data/world=tiny", "quantizer=tiny", "lm.hidden_size=32", "lm.layers=1", "lm.intermediate_size=32")
SETTINGS += (
    "lm.text_tokens=600",
    "prompts.max_content_behaviors=6",
    "prompts.max_tokens=1000",
    "decoding.beam_width=10",
    "compute.threads=1",
)
KINDS = Cut.__annotations__["kind"].__args__
COMPARED = CompareConfig(hr_ks=(1, 8), ndcg_ks=(8,), k=8, rbo_p=0.9)


def _history(*sequences, seed=0):
    """Users' sequences as letters: ``a`` an ad, ``c`` a content, oldest first."""
    rows = [
        (target, time, {"a": "ad", "c": "content"}[letter], f"{letter}{target}.{time}", "click", f"s{target}.{time}")
        for target, letters in enumerate(sequences)
        for time, letter in enumerate(letters)
    ]
    names = ["target", "time", "domain", "item_id", "action", "shown"]
    frame = pl.DataFrame(rows, schema=names, orient="row").with_columns(days=pl.lit(1), listed=pl.col("domain") == "ad")
    users = pl.DataFrame({"target": range(len(sequences)), "user_id": [f"u{i}" for i in range(len(sequences))]})
    return with_draws(frame, users, seed=seed)


def _cut(kind, number, of):
    return Cut(kind=kind, number=number, of=of)


def _picked(history, *cut):
    places = history.filter(picks(history, _cut(*cut))).select("target", "time")
    return {target: [time for who, time in places.rows() if who == target] for target in history["target"].unique()}


@pytest.mark.parametrize(
    ("cut", "picked"),
    [
        (("earliest", 2, "ads"), [0, 2]),
        (("earliest", 2, "contents"), [1, 3]),
        (("earliest", 2, "behaviors"), [0, 1]),
        (("replaced", 2, "behaviors"), [0, 1]),
        (("latest", 2, "ads"), [2, 5]),
        (("latest", 3, "behaviors"), [4, 5, 6]),
        (("middle", 2, "contents"), [3, 4]),
        (("middle", 3, "behaviors"), [2, 3, 4]),
        (("latest", 9, "ads"), [0, 2, 5]),
        (("middle", 9, "ads"), [0, 2, 5]),
    ],
)
def test_what_a_cut_picks_by_hand(cut, picked):
    assert _picked(_history("acaccac"), *cut) == {0: picked}


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.text("ac", min_size=1, max_size=9), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from(list(DOMAINS)),
    st.integers(0, 3),
)
def test_every_cut_picks_as_many_as_it_says_and_none_of_another_domain(sequences, number, of, seed):
    history = _history(*sequences, seed=seed)
    for kind in KINDS:
        found = history.filter(picks(history, _cut(kind, number, of)))
        assert set(found["domain"]) <= set(DOMAINS[of])
        for target in range(len(sequences)):
            size = history.filter(pl.col("domain").is_in(DOMAINS[of]), target=target).height
            if kind != "other_side":
                assert found.filter(target=target).height == min(number, size), (kind, target)
    for end in ("earliest", "latest"):
        mixes = [
            history.filter(picks(history, _cut(kind, number, of))).group_by("target", "domain").len()
            for kind in (end, f"as_{end}")
        ]
        assert mixes[0].sort("target", "domain").equals(mixes[1].sort("target", "domain"))


def test_the_sides_of_a_coin_are_equal_parts_of_as_many_ads_as_contents():
    history = _history("aaaaacccccaacc", "acacacaaa")
    sides = [_picked(history, kind, 3, "behaviors") for kind in ("coin", "other_side")]
    for target in (0, 1):
        both = sides[0][target] + sides[1][target]
        assert [len(side[target]) for side in sides] == [3, 3]
        assert len(set(both)) == 6
        domains = history.filter(pl.col("time").is_in(both), target=target)["domain"].to_list()
        assert sorted(domains) == ["ad"] * 3 + ["content"] * 3


def test_draws_differ_by_seed_and_draw_and_belong_to_the_user_alone():
    history = _history("a" * 30, "a" * 30)
    drawn = [_picked(history, kind, 10, "ads") for kind in ("random", "again")]
    other_seed = _picked(_history("a" * 30, "a" * 30, seed=1), "random", 10, "ads")
    found = [tuple(picked[0]) for picked in (*drawn, other_seed)] + [tuple(drawn[0][1])]
    assert len(set(found)) == 4
    assert _picked(_history("a" * 30), "random", 10, "ads")[0] == list(found[0])


def test_a_cut_takes_its_behaviors_away_and_leaves_the_rest_as_it_was():
    history = _history("acaccac", "ccaa")
    left = cut_history(history, _cut("earliest", 2, "ads"))
    assert left["item_id"].to_list() == ["c0.1", "c0.3", "c0.4", "a0.5", "c0.6", "c1.0", "c1.1"]
    assert left.columns == history.columns


def test_replaced_behaviors_are_another_users_of_the_same_domain_at_the_same_time():
    history = _history("aacca", "ca", "ccc")
    changed = cut_history(history, _cut("replaced", 4, "behaviors"))
    assert changed.select("target", "time", "domain", "days").equals(history.select("target", "time", "domain", "days"))
    givers = {}
    for before, after in zip(history.iter_rows(named=True), changed.iter_rows(named=True), strict=True):
        giver = int(after["item_id"][1])
        assert after["shown"][1:] == after["item_id"][1:], "what is shown is of the item"
        assert after["item_id"][0] == before["item_id"][0], "ads stay ads, contents contents"
        if before["time"] == 4:
            assert after == before
        elif giver != before["target"]:
            givers.setdefault(before["target"], set()).add(giver)
    assert givers.keys() == {0, 1, 2}
    assert all(len(of) == 1 for of in givers.values())
    assert set.union(*givers.values()) == {0, 1, 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The smallest simulated world with its catalog, its prompts and an untrained model."""
    root = tmp_path_factory.mktemp("figure5")
    run = configured(SETTINGS, 0)
    store = Store(root / "store")
    indexed = pipeline.index_ads(run, store)
    pairs = store.make("pairs", compose, run.prompts, indexed.world, indexed.catalog)
    base = store.make("base", extend, run.lm, indexed.catalog, pairs)
    folders = {"world": indexed.world.path, "catalog": indexed.catalog.path, "pairs": pairs.path, "base": base.path}
    return SimpleNamespace(run=run, root=root, **folders)


CUTS = tuple(_cut(*cut) for cut in [("earliest", 1, "behaviors"), ("latest", 1, "ads"), ("replaced", 2, "contents")])


def _shortened(world, out, *, users=12, cuts=CUTS, **prompts):
    out.mkdir()
    changed = world.run.prompts.__class__(**(vars(world.run.prompts) | prompts))
    shorten(
        ShortenConfig(prompts=changed, users=users, seed=0, cuts=cuts), world.world, world.catalog, world.base, out=out
    )
    return pl.read_parquet(out / "shortened.parquet"), tables.read(tables.PAIRS, out / "main.test.parquet")


def test_ingredients_are_what_test_prompts_are_composed_of(world):
    (part,) = ingredients(world.run.prompts, world.world, world.catalog)
    whole = tables.read(tables.PAIRS, world.pairs / "main.test.parquet")
    assert part.targets["user_id"].to_list() == whole["user_id"].to_list()
    chosen = whole["user_id"][3:5]
    (some,) = ingredients(world.run.prompts, world.world, world.catalog, users=chosen)
    assert some.targets["user_id"].to_list() == chosen.to_list()


def test_whole_prompts_are_those_of_the_model_and_shortened_ones_lack_what_was_cut(world, tmp_path):
    asked, prompts = _shortened(world, tmp_path / "out")
    whole = tables.read(tables.PAIRS, world.pairs / "main.test.parquet")
    users = asked.filter(system=FULL)
    assert users["prompt"].to_list() == users["user_id"].to_list()
    assert users.height == 12
    same = whole.filter(pl.col("user_id").is_in(users["user_id"].implode()))
    assert prompts.head(12).sort("user_id").equals(same.sort("user_id"))
    assert prompts["user_id"].n_unique() == prompts.height
    named = dict(zip(prompts["user_id"], prompts.iter_rows(named=True), strict=True))
    for user, prompt in asked.filter(system="earliest 1 behaviors").select("user_id", "prompt").rows():
        assert named[prompt]["behaviors"] == named[user]["behaviors"][1:]
        assert named[prompt]["tail"] == named[user]["tail"]
    for user, prompt in asked.filter(system="latest 1 ads").select("user_id", "prompt").rows():
        kinds = [behavior[1]["kind"] for behavior in named[user]["behaviors"]]
        last = len(kinds) - 1 - kinds[::-1].index("ad")
        left = [behavior[1] for place, behavior in enumerate(named[user]["behaviors"]) if place != last]
        assert [behavior[1] for behavior in named[prompt]["behaviors"]] == left


def test_the_users_are_the_same_whatever_is_cut_of_those_who_have_enough(world, tmp_path):
    one, _ = _shortened(world, tmp_path / "one", cuts=(_cut("earliest", 2, "ads"),), users=8)
    again, _ = _shortened(world, tmp_path / "again", cuts=(_cut("random", 2, "ads"), _cut("latest", 1, "ads")), users=8)
    assert one["user_id"].unique().sort().equals(again["user_id"].unique().sort())
    assert one["ads"].min() >= 2
    everyone, _ = _shortened(world, tmp_path / "all", cuts=(_cut("earliest", 1, "ads"),), users=10_000)
    about = json.loads((tmp_path / "all" / "prompts.json").read_text())["shortened"]
    assert everyone["user_id"].n_unique() == about["users"] == about["eligible"] <= about["test_users"]


def test_too_much_to_remove_is_refused(world, tmp_path):
    with pytest.raises(ValueError, match=r"0 of \d+ test users have behaviors enough .*: remove fewer, or show more"):
        _shortened(world, tmp_path / "out", cuts=(_cut("earliest", 400, "ads"),))


def test_behaviors_that_never_entered_the_prompt_leave_a_dice_of_exactly_one(world, tmp_path, compute):
    """With room for few tokens, the oldest behaviors are in no prompt: removed or not, the lists are the same."""
    cuts = (_cut("earliest", 1, "behaviors"), _cut("latest", 1, "behaviors"))
    asked, prompts = _shortened(world, tmp_path / "out", cuts=cuts, max_tokens=230)
    same = asked.filter(system="earliest 1 behaviors").filter(pl.col("prompt") == pl.col("user_id"))
    assert same.height >= 10
    assert prompts.height < 30
    (tmp_path / "lists").mkdir()
    generate(world.run.decoding, world.base, world.catalog, tmp_path / "out", out=tmp_path / "lists", compute=compute)
    (tmp_path / "dice").mkdir()
    compare(COMPARED, world.world, world.catalog, tmp_path / "out", tmp_path / "lists", out=tmp_path / "dice")
    told = pl.read_parquet(tmp_path / "dice" / "per_user.parquet")
    untouched = told.join(same.select("user_id", "system"), on=["user_id", "system"])
    assert untouched["Dice@8"].to_list() == [1.0] * same.height
    assert told.filter(system="latest 1 behaviors")["Dice@8"].mean() < 1
    scores = json.loads((tmp_path / "dice" / "scores.json").read_text())
    assert scores["users"] == 12
    assert scores["systems"][FULL]["Dice@8"] == scores["systems"][FULL]["RBO@8"] == 1


def _lists_and_prompts(root, asked, lists):
    """Two users, both of whom clicked ad A, with lists of letters by the name of their prompt."""
    for name in ("world", "catalog", "shortened", "lists", "out"):
        (root / name).mkdir()
    split = [
        (user, role, ad, 1) for user in "uvw" for role, ad in (("train", "B"), ("test", "A" if user != "w" else "Z"))
    ]
    frame = pl.DataFrame(split, schema=tables.SPLIT.schema, orient="row")
    tables.write(tables.SPLIT, frame, root / "world" / "split.parquet")
    sids = pl.DataFrame({"ad_id": list("ABCD"), "sid": [[i] for i in range(4)], "name": list("abcd")})
    tables.write(tables.SIDS, sids.cast(tables.SIDS.schema), root / "catalog" / "sids.parquet")
    names = ["user_id", "system", "prompt", "ads", "contents"]
    pl.DataFrame(asked, schema=names, orient="row").write_parquet(root / "shortened" / "shortened.parquet")
    rows = [(name, rank, ad, 0.0) for name, ads in lists.items() for rank, ad in enumerate(ads, 1)]
    (root / "lists" / "lists").mkdir()
    frame = pl.DataFrame(rows, schema=tables.LISTS.schema, orient="row")
    tables.write(tables.LISTS, frame, root / "lists" / "lists" / "part-0000000.parquet")
    return [root / name for name in ("world", "catalog", "shortened", "lists")]


def test_lists_are_compared_as_by_hand(tmp_path):
    """The cut changes half of u's list and moves A from place 1 to 2; v's prompt is the same, and misses A."""
    asked = [
        ("u", FULL, "u", 2, 1),
        ("v", FULL, "v", 1, 1),
        ("u", "x 1 ads", "u #2", 2, 1),
        ("v", "x 1 ads", "v", 1, 1),
    ]
    folders = _lists_and_prompts(tmp_path, asked, {"u": "AB", "v": "CD", "u #2": "CA"})
    compare(CompareConfig(hr_ks=(1, 2), ndcg_ks=(2,), k=2, rbo_p=0.9), *folders, out=tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["users"] == 2
    assert scores["excluded"] == {"not_drawn": 0, "target_outside_catalog": 1}
    assert scores["systems"][FULL] == {
        "HR@1": 0.5,
        "HR@2": 0.5,
        "NDCG@2": 0.5,
        "Dice@2": 1.0,
        "RBO@2": pytest.approx(1),
    }
    cut = scores["systems"]["x 1 ads"]
    assert (cut["HR@1"], cut["HR@2"], cut["Dice@2"]) == (0.0, 0.5, 0.75)
    assert cut["NDCG@2"] == pytest.approx(0.5 / np.log2(3))
    assert cut["RBO@2"] == pytest.approx((1 + 0.45) / 2)  # depth 1 has nothing; from depth 2 on, half: .9 / 2
    told = pl.read_parquet(tmp_path / "out" / "per_user.parquet").sort("system", "user_id")
    assert told["user_id"].to_list() == ["u", "v", "u", "v"]
    assert told["rank"].to_list() == [1, None, 2, None]
    assert told["Dice@2"].to_list() == [1, 1, 0.5, 1]
    assert told["ads"].to_list() == [2, 1, 2, 1]


def _per_user(folder, dice, hits):
    """Six users, by how many ads they have, and two systems."""
    folder.mkdir(parents=True)
    ads = [2, 2, 3, 3, 9, 9]
    parts = [
        pl.DataFrame(
            {
                "user_id": list("uvwxyz"),
                "system": [system] * 6,
                "rank": ranks,
                "Dice@8": dice,
                "RBO@8": dice,
                "ads": ads,
            }
        )
        for system, ranks, dice in ((FULL, [1] * 6, [1.0] * 6), ("earliest 2 ads", hits, dice))
    ]
    pl.concat(parts, how="vertical_relaxed").write_parquet(folder / "per_user.parquet")


def test_curves_are_means_over_seeds_and_users_by_bucket(tmp_path):
    _per_user(tmp_path / "dice" / "a", [0.0, 0.5, 1.0, 1.0, 0.5, 0.5], [1, None, 8, 9, 2, 2])
    _per_user(tmp_path / "dice" / "b", [0.5, 0.5, 1.0, 1.0, 0.5, 0.5], [1, None, 8, 9, 2, None])
    found = curves(read([tmp_path / "dice" / "a", tmp_path / "dice" / "b"]))
    cut = found.filter(kind="earliest", removed=2, of="ads")
    dice = {row["ads"]: (row["users"], row["mean"]) for row in cut.filter(score="Dice@8").iter_rows(named=True)}
    assert dice == {"all": (6, pytest.approx(3.75 / 6)), "2": (2, 0.375), "3": (2, 1.0), "9": (2, 0.5)}
    hits = dict(cut.filter(score="HR@8").select("ads", "mean").rows())
    assert hits == {"all": pytest.approx(3.5 / 6), "2": 0.5, "3": 0.5, "9": 0.75}
    lost = dict(cut.filter(score=LOST).select("ads", "mean").rows())
    assert lost == {"all": pytest.approx(-2.5 / 6), "2": -0.5, "3": -0.5, "9": -0.25}
    assert found.select((pl.col("low") <= pl.col("mean")) & (pl.col("mean") <= pl.col("high"))).to_series().all()
    whole = found.filter(kind="whole", score="Dice@8")
    assert whole.select("removed", "mean", "low", "high").unique().rows() == [(0, 1.0, 1.0, 1.0)]


def _write_rows(folder, *runs):
    about = {"control": False, "system": FULL, "overrides": [], "paper": {}, "not_run": None}
    about |= {"mean": {}, "interval": {}, "change": {}}
    rows = [about | {"name": f"row {number}", "runs": of_row} for number, of_row in enumerate(runs)]
    told = {"study": "figure5", "title": "", "question": "", "command": "", "date": "2026-11-21T20:15:00Z"}
    told |= {"git": None, "dirty": False, "seconds": 1.0, "seeds": [0], "users": 6, "data": {"name": "by hand"}}
    told |= {"columns": [], "compared": [], "confidence": 0.95, "claims": [], "builds": {"asked": 1, "built": 1}}
    write_result(folder, StudyResult.model_validate(told | {"rows": rows, "notes": []}))


def test_curves_are_drawn_from_what_a_study_names(tmp_path):
    _per_user(tmp_path / "dice" / "a", [0.5] * 6, [1] * 6)
    folder = tmp_path / "studies"
    folder.mkdir()
    run = {"seed": 0, "key": "a", "path": "dice/a", "scores": {}, "steps": None, "tokens": None}
    _write_rows(folder, [], [run])
    draw(folder, tmp_path)
    assert pl.read_csv(folder / "curves.csv").height == 2 * 4 * 4
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    _write_rows(folder, [])
    with pytest.raises(ValueError, match="has no row that was run: there is nothing to draw"):
        draw(folder, tmp_path)


def test_results_of_other_users_are_not_averaged(tmp_path):
    _per_user(tmp_path / "a", [0.5] * 6, [1] * 6)
    _per_user(tmp_path / "b", [0.5] * 6, [1] * 6)
    other = pl.read_parquet(tmp_path / "b" / "per_user.parquet").with_columns(ads=pl.lit(1))
    other.write_parquet(tmp_path / "b" / "per_user.parquet")
    with pytest.raises(ValueError, match="are not of the same users and systems"):
        read([tmp_path / "a", tmp_path / "b"])


def test_every_row_is_a_cut_and_every_claim_and_control_is_a_pair_of_rows():
    study = figure5.STUDY
    systems = {FULL, *(cut.name for cut in figure5.CUTS)}
    assert len(systems) == len(figure5.CUTS) + 1
    rows = {row.name: row for row in study.rows}
    assert len(rows) == len(study.rows)
    assert {row.system for row in study.rows} <= systems
    assert study.rows[0].system == FULL
    for claim in study.claims:
        assert claim.control is not None
        assert {claim.better, claim.worse, *claim.control} <= rows.keys()
        assert any(rows[name].control for name in claim.control)
    assert len({row.overrides for row in study.rows}) == 1, "one model a seed"
    chosen = settings_of(study._replace(rows=study.rows[1:2]), ["compute.threads=1"])
    assert chosen == {study.rows[1].name: ["compute.threads=1", "alignment=none"]}


@pytest.mark.slow
def test_the_whole_study_runs_and_goes_on_after_a_kill(tmp_path, capsys):
    """On the smallest world: all systems from one model a seed; a second run builds nothing."""
    overrides = [*SETTINGS[:-1], "compute.threads=1", "sft.stages=[{explicit: 1},{main: 1}]", f"store.root={tmp_path}"]
    overrides = [text.replace("behaviors=6", "behaviors=12") for text in overrides]
    study = figure5.STUDY._replace(run=partial(figure5.shortened, users=6))
    run_study(study, ["seeds=0,1", *overrides])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    folder = Path(told["folder"])
    result = read_result(folder)
    assert [row.not_run for row in result.rows] == [None] * len(figure5.ROWS)
    assert len({run.path for row in result.rows for run in row.runs}) == 2
    assert result.rows[0].mean["Dice@8"] == 1
    assert all((folder / name).is_file() for name in ("table.md", "report.html", "curves.csv", "figure.png"))
    figure5._shortened.cache_clear()
    before = sorted(tmp_path.glob("*/*/manifest.json"))
    run_study(study, ["seeds=0,1", *overrides])
    assert sorted(tmp_path.glob("*/*/manifest.json")) == before
