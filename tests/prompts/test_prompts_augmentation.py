"""Templates, reordered profiles and reuse (LEADRE 4.2.2): what is drawn, by what, and for whom."""

import json
import random
from collections import Counter
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from pydantic import TypeAdapter, ValidationError

from leadre import tables
from leadre.prompts import compose as stage
from leadre.prompts.compose import compose
from leadre.prompts.config import PromptsConfig
from leadre.prompts.draws import draws
from leadre.prompts.segments import render
from leadre.prompts.templates import TEMPLATES, arranged, drawn_templates, templates_of

DAY = 86_400
NOW = 1_700_000_000
ARRANGEMENTS = list(permutations(("profile", "summary", "behaviors")))


def _world(write, seed=0, users=8, ads=9):
    """Users with a profile and many train targets each."""
    draw = random.Random(seed)
    catalog, behaviors, split = [f"ad{n}" for n in range(5)], [], []
    for user in range(users):
        times = sorted(draw.sample(range(60 * 24), ads))
        did = [(f"u{user}", draw.choice(catalog), "ad", "click", NOW + time * 3600) for time in times]
        behaviors += did
        roles = ["train"] * (ads - 2) + ["valid", "test"]
        split += [(row[0], role, row[1], row[4]) for row, role in zip(did, roles, strict=True)]
    profile = {"age": "22", "gender": "male", "region": "X", "education": "Y", "occupation": "Z"}
    return write(
        ads={ad_id: ("cars", f"Ad {ad_id}") for ad_id in catalog},
        sids={ad_id: (n,) for n, ad_id in enumerate(catalog)},
        users=[{"user_id": f"u{user}"} | profile for user in range(users)],
        behaviors=behaviors,
        split=split,
    )


def _composed(folders, config, **changes):
    compose(config(**changes), folders.world, folders.catalog, out=folders.out)
    return {path.stem: tables.read(tables.PAIRS, path) for path in sorted(folders.out.glob("*.parquet"))}


def _shuffle(folders, seed):
    path = folders.world / "split.parquet"
    tables.read(tables.SPLIT, path).sample(fraction=1, shuffle=True, seed=seed).write_parquet(path)


def test_draws_are_those_of_the_keys_alone():
    keys = pl.DataFrame({"user_id": ["u", "v", "u\x00"], "time": [1, 1, 2]})
    drawn = draws(keys, seed=0, of="template")
    assert draws(keys[[2, 0]], seed=0, of="template").tolist() == drawn[[2, 0]].tolist()
    assert drawn.tolist() == [482178279798673302, 2495823210396011360, 13010706914259052031]
    others = [draws(keys, seed=1, of="template"), draws(keys, seed=0, of="profile")]
    assert len({*drawn.tolist(), *(number for other in others for number in other.tolist())}) == 9
    assert draws(keys[:0], seed=0, of="template").tolist() == []


def test_draws_are_even():
    drawn = draws(pl.DataFrame({"n": range(8000)}), seed=0, of="x") % np.uint64(4)
    counts = np.bincount(drawn.astype(np.int64), minlength=4)
    assert ((counts - 2000) ** 2 / 2000).sum() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001


@pytest.mark.parametrize("language", TEMPLATES)
def test_each_language_has_the_papers_template_and_at_least_three_more(language):
    first, *others = templates_of(language)
    assert (first.wording.role, first.profile) == (templates_of(language)[0].wording.role, None)
    assert len(others) >= 3
    for name in ("task", "role", "question", "explicit"):
        assert len({getattr(template.wording, name) for template in (first, *others)}) == 1 + len(others)
    same = set(first.wording._fields) - {"task", "role", "question", "explicit", "explicit_question"}
    for template in others:
        assert {name: getattr(template.wording, name) for name in same} == {
            name: getattr(first.wording, name) for name in same
        }


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("language", TEMPLATES)
def test_a_template_moves_the_profile_and_never_the_summary_past_the_behaviors(language, arrangement):
    seen = {arranged(template, arrangement) for template in templates_of(language)}
    assert len(seen) == 3
    assert arrangement in seen
    order = [component for component in arrangement if component != "profile"]
    for found in seen:
        assert sorted(found) == sorted(arrangement)
        assert [component for component in found if component != "profile"] == order


def test_a_language_without_templates_is_refused():
    with pytest.raises(ValueError, match=r"language is 'fr' in world.json, but prompts are worded in en, zh"):
        templates_of("fr")


def test_train_pairs_draw_templates_and_others_keep_the_papers(write, config):
    folders = _world(write)
    plain, drawn = _composed(folders, config), _composed(folders, config, template_seed=0, next_n=3)
    for name in ("main.valid", "main.test", "implicit.valid", "implicit.test"):
        assert drawn[name].equals(plain[name])
    template_of = {template.wording.task: n for n, template in enumerate(templates_of("en"))}
    places = {name: [template_of[head[0]["value"]] for head in pairs["head"].to_list()] for name, pairs in drawn.items()
              if name != "explicit.train"}  # fmt: skip
    assert set(Counter(places["main.train"])) == {0, 1, 2, 3}
    assert places["main.train"] == places["implicit.train"] == places["next_n.train"]
    assert set(places["main.test"]) == {0}
    for pair, number in zip(drawn["main.train"].to_dicts(), places["main.train"], strict=True):
        assert pair["tail"][-1]["value"] == templates_of("en")[number].wording.question
    same = drawn["main.train"].filter(pl.Series(places["main.train"]) == 0)
    assert same.select(pl.exclude("following")).rows() == [
        row for row, number in zip(plain["main.train"].select(pl.exclude("following")).rows(), places["main.train"],
                                   strict=True) if number == 0]  # fmt: skip
    explicit = [head[1]["value"] for head in drawn["explicit.train"]["head"].to_list()]
    assert set(explicit) <= {template.wording.explicit for template in templates_of("en")}
    assert len(set(explicit)) > 1


def test_drawn_profiles_stand_in_train_pairs_alone(write, config):
    folders = _world(write)
    plain, drawn = _composed(folders, config), _composed(folders, config, profile_seed=0)
    for name in plain:
        if name not in ("main.train", "implicit.train"):
            assert drawn[name].equals(plain[name])
    orders = set()
    for was, found in zip(plain["main.train"].to_dicts(), drawn["main.train"].to_dicts(), strict=True):
        shown = render(found["head"], {})
        orders.add(shown.partition("system. ")[2].partition("The categories")[0])
        assert sorted(shown.replace(". ", ", ")) == sorted(render(was["head"], {}).replace(". ", ", "))
        assert found | {"head": 0} == was | {"head": 0}
    assert len(orders) > 10
    assert drawn["main.train"]["head"].to_list() == drawn["implicit.train"]["head"].to_list()


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_drawn_does_not_depend_on_the_order_of_rows_or_chunks(write, config, monkeypatch, seed):
    folders = _world(write)
    seeds = {"template_seed": 3, "profile_seed": 4, "reuse_seed": 5, "reuse_every": 3}
    whole = _composed(folders, config, **seeds)
    _shuffle(folders, seed)
    monkeypatch.setattr(stage, "ROWS", 2)
    monkeypatch.setattr(stage, "BEHAVIORS", 1)
    found = _composed(folders, config, **seeds)
    for name, pairs in whole.items():
        assert found[name].equals(pairs)


def test_a_users_draws_do_not_depend_on_other_users(write, config):
    folders = _world(write)
    seeds = {"template_seed": 3, "profile_seed": 4, "reuse_seed": 5, "reuse_every": 3}
    whole = _composed(folders, config, **seeds)["main.train"].filter(pl.col("user_id") == "u3")
    path = folders.world / "split.parquet"
    tables.read(tables.SPLIT, path).filter(pl.col("user_id") == "u3").write_parquet(path)
    assert _composed(folders, config, **seeds)["main.train"].equals(whole)


def test_a_seed_changes_what_it_draws_and_nothing_else(write, config):
    folders = _world(write)
    found = [_composed(folders, config, profile_seed=seed, template_seed=7) for seed in (0, 1)]
    heads = [pairs["main.train"]["head"].to_list() for pairs in found]
    assert heads[0] != heads[1]
    assert [head[0] for head in heads[0]] == [head[0] for head in heads[1]]


@pytest.mark.parametrize("every", [2, 3, 50])
def test_reuse_draws_one_target_of_each_run_and_as_many_as_counting_back(write, config, every):
    folders = _world(write, ads=13)
    drawn, runs = {}, {}
    for seed in (None, 0, 1):
        compose(config(reuse_every=every, reuse_seed=seed), folders.world, folders.catalog, out=folders.out)
        drawn[seed] = [len(row) for row in folders.pairs("main.train")["behaviors"].to_list()]  # its place in the log
        runs[seed] = [(user, (10 - place) // every) for user, place in zip(
            folders.pairs("main.train")["user_id"], drawn[seed], strict=True)]  # fmt: skip
        assert len(set(runs[seed])) == len(runs[seed])
    made = [folders.about()["pairs"]["train"]]
    assert made[0]["pairs"] + made[0]["without_history"] == 8 * -(-11 // every)
    assert drawn[0] != drawn[1] != drawn[None]


@pytest.mark.parametrize("every", [1, None])
def test_a_reuse_seed_without_anything_to_draw_is_refused(config, every):
    values = TypeAdapter(PromptsConfig).dump_python(config(), mode="json") | {"reuse_every": every, "reuse_seed": 0}
    told = f"reuse_seed is 0, but reuse_every is {json.dumps(every)}, so there is nothing to draw: set prompts.reuse_e"
    with pytest.raises(ValidationError, match=told):
        TypeAdapter(PromptsConfig).validate_json(json.dumps(values), strict=True)


def _papers_sequence(write):
    """[c1, a2, a3, c4, a5] of LEADRE 4.2.2; two more ads follow, so that a2, a3 and a5 are train targets."""
    names = ("c1", "a2", "a3", "c4", "a5", "a6", "a7")
    times = {name: NOW + n * DAY for n, name in enumerate(names)}
    ads = [name for name in names if name[0] == "a"]
    return write(
        ads={name: (f"about {name}", f"Ad {name}", f"SPU {name}") for name in ads},
        sids={name: (int(name[1]),) for name in ads},
        contents=[(name, f"title {name}", f"about {name}", f"SPU {name}") for name in ("c1", "c4")],
        users=[{"user_id": "u", "age": "22", "region": "X"}],
        behaviors=[("u", name, "ad" if name in ads else "content", "click", times[name]) for name in names],
        negatives=[("u", name, "ad", "no_click", times[name]) for name in ads],
        split=[
            ("u", role, name, times[name]) for role, name in zip(["train"] * 3 + ["valid", "test"], ads, strict=True)
        ],
    )


EVERYTHING = {
    "template_seed": 0,
    "profile_seed": 0,
    "summary_by": ("category", "spu"),
    "summary_negatives": True,
    "times": "since_last",
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS[::3])
@pytest.mark.parametrize(
    "changes",
    [{}, EVERYTHING, {"next_n": 2} | EVERYTHING, *({"reuse_every": 2, "reuse_seed": seed} for seed in range(4))],
)
def test_no_sample_of_the_papers_sequence_holds_its_own_target(write, config, changes, arrangement):
    """The paper's `<[c1, a2, a3, c4, a5], a3>` is never made; `<[c1, a2], a3>` and `<[c1], a2>` are."""
    folders = _papers_sequence(write)
    pairs = _composed(folders, config, arrangement=arrangement, **changes)
    before = {"a2": ["c1"], "a3": ["c1", "a2"], "a5": ["c1", "a2", "a3", "c4"]}
    before |= {"a6": [*before["a5"], "a5"], "a7": [*before["a5"], "a5", "a6"]}
    asked = set()
    for name, rows in pairs.items():
        for pair in rows.to_dicts() if name != "explicit.train" else ():
            shown = [behavior[1]["value"].split(" ")[-1].split("/")[0] for behavior in pair["behaviors"]]
            assert shown == before[pair["ad_id"]]
            told = render([*pair["head"], *pair["tail"]], {})
            for name_of in ("about", "SPU"):
                assert not [item for item in ("c1", *before) if f"{name_of} {item}" in told
                            and item not in before[pair["ad_id"]]]  # fmt: skip
            asked.add(pair["ad_id"])
    assert asked >= {"a6", "a7"}
    if changes.get("reuse_every", 1) == 1:
        assert asked == set(before)
    main = pairs["main.train"]["ad_id"].to_list()
    assert len(main) == (3 if changes.get("reuse_every", 1) == 1 else 2)


def test_drawn_templates_without_a_seed_are_the_first():
    assert drawn_templates(pl.DataFrame({"user_id": ["u", "v"]}), templates=4, seed=None).tolist() == [0, 0]
