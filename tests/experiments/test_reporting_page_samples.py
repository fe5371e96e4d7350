"""Sample users of a study, from a store: who finds the ad, what is listed, what the model read."""

import json
from typing import NamedTuple

import polars as pl
import pytest

from experiments.reporting.samples import NUM_ADS, Source, read_groups
from leadre import tables
from leadre.artifacts import ArtifactError, Result, Store
from leadre.prompts import show as command

VERSION = 1


class Made(NamedTuple):
    """The results of a tiny world by stage, and the ads and the users' targets."""

    results: dict
    store: Store
    ads: list
    targets: dict


@pytest.fixture(scope="module")
def made(small_run):
    """The store is shared with other tests: results are added to it and none is changed."""
    manifests = [(folder, json.loads((folder / "manifest.json").read_text())) for folder in small_run.folders.values()]
    results = {told["stage"]: Result(told["stage"], told["key"], folder, 0.0, True) for folder, told in manifests}
    split = tables.read(tables.SPLIT, results["world"].path / "split.parquet").filter(role="test").sort("user_id")
    ads = pl.read_parquet(results["catalog"].path / "sids.parquet")["ad_id"].to_list()
    return Made(results, Store(small_run.root), ads, dict(split.select("user_id", "ad_id").iter_rows()))


def row(made, rank_of, *, name="LEADRE", pairs=None):
    """A result of stage scores whose lists have the clicked ad at a user's rank, or nowhere."""
    lists, per_user = [], []
    for place, (user, clicked) in enumerate(made.targets.items()):
        rank = rank_of(place)
        others = [ad for ad in made.ads if ad != clicked][:10]
        listed = others if rank is None else [*others[: rank - 1], clicked, *others[rank - 1 : 9]]
        lists += [(user, at, ad, -float(at)) for at, ad in enumerate(listed, start=1)]
        per_user.append((user, name, rank))
    lists = pl.DataFrame(lists, schema=tables.LISTS.schema, orient="row")
    per_user = pl.DataFrame(
        per_user, schema={"user_id": pl.String, "system": pl.String, "rank": pl.Int32}, orient="row"
    )

    def make_lists(config, *folders, out):
        (out / "lists").mkdir()
        lists.write_parquet(out / "lists" / "part-0.parquet" if name == "LEADRE" else out / f"{name}.parquet")

    def make_scores(config, *folders, out):
        per_user.write_parquet(out / "per_user.parquet")

    config = {"ranks": [rank_of(place) for place in range(len(made.targets))], "name": name, "other": pairs is not None}
    inputs = made.results | ({"pairs": pairs} if pairs else {})
    stage = "generations" if name == "LEADRE" else "baselines"
    generated = made.store.make(
        stage, make_lists, config, *(inputs[of] for of in ("catalog", "pairs", "base", "tokens"))
    )
    both = (made.results["world"], made.results["catalog"], generated)
    return Source(name, name, made.store.make("scores", make_scores, config, *both).path)


def test_users_are_grouped_by_the_rows_that_find_their_ad(made):
    """Of every four users both rows find one's ad, the first row another's, and neither those of two: one too late."""
    first = row(made, lambda place: (1, 3, None, 10)[place % 4])
    second = row(made, lambda place: (NUM_ADS, None, NUM_ADS + 1, None)[place % 4])
    groups = read_groups([first._replace(row="first"), second._replace(row="second")], users_each=2)
    assert [(group.finds, group.misses) for group in groups] == [
        (["first", "second"], []),
        (["first"], ["second"]),
        ([], ["first", "second"]),
    ]
    total = len(made.targets)
    assert [group.users for group in groups] == [(total + 3) // 4, (total + 2) // 4, (total + 1) // 4 + total // 4]
    assert sum(group.share for group in groups) == pytest.approx(1)
    assert [len(group.samples) for group in groups] == [2, 2, 2]
    ranks = [[[listed.rank for listed in sample.lists] for sample in group.samples] for group in groups]
    assert ranks[0] == [[1, 8], [1, 8]]
    assert ranks[1] == [[3, None], [3, None]]
    sample = groups[0].samples[0]
    clicked = made.targets[sample.user]
    named = pl.read_parquet(made.results["world"].path / "ads.parquet").filter(ad_id=clicked).row(0, named=True)
    assert (sample.clicked.name, len(sample.lists[0].ads)) == (named["name"], NUM_ADS)
    assert sample.lists[0].ads[0] == sample.clicked == sample.lists[1].ads[7]
    assert [code[0] for code in sample.clicked.codes] == list("abcdefgh"[: len(sample.clicked.codes)])


def test_the_prompt_is_the_one_that_the_model_read(made):
    (group, *_) = read_groups([row(made, lambda place: 1), row(made, lambda place: 2)], users_each=1)
    (sample,) = group.samples
    (prompt,) = sample.prompts  # both rows were asked by the same
    asked = command.Asked(sample.user, "main", "test")
    shown = command.read_prompt(asked, **{stage: result.path for stage, result in made.results.items()})
    assert (prompt.tokens, prompt.max_tokens) == (shown.tokens, shown.max_tokens)
    assert sum(part.tokens for part in prompt.parts) == shown.tokens
    assert prompt.parts[-1].pieces[0].name == sample.clicked.name
    assert prompt.parts[-1].pieces[0].text == shown.display[made.targets[sample.user]]
    assert prompt.dropped == sum(part.tokens is None and part.name == "behavior" for part in shown.parts)


def test_a_baseline_has_lists_and_no_prompt(made):
    baseline = row(made, lambda place: 2, name="popularity")
    (group,) = read_groups([baseline], users_each=1)
    assert group.samples[0].lists[0].rank == 2
    assert group.samples[0].prompts == []


def test_prompts_that_others_were_composed_from_are_not_shown(made):
    """The lists were made from prompts of another stage: those of the tokens' stage are not what the model read."""
    shortened = Result("shortened", "x", made.store.root / "shortened" / "x", 0.0, True)
    (group,) = read_groups([row(made, lambda place: 1, pairs=shortened)], users_each=1)
    assert group.samples[0].prompts == []


def test_a_store_without_the_lists_is_told(made, tmp_path):
    source = row(made, lambda place: 4)
    with pytest.raises(ArtifactError, match=r"has no manifest\.json"):
        read_groups([source._replace(scores=tmp_path / "scores" / "gone")], users_each=1)
    alone = made.store.make("scores", lambda config, world, out: None, {"alone": 1}, made.results["world"])
    with pytest.raises(ArtifactError, match="was not made from any catalog or generations: it has no lists to show"):
        read_groups([source._replace(scores=alone.path)], users_each=1)
