import json
from pathlib import Path
from zlib import crc32

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import tables
from leadre.baselines import tiger
from leadre.baselines.config import TigerConfig
from leadre.baselines.learn import learn
from leadre.baselines.past import NONE, past, read_known
from leadre.baselines.tiger import prepare_tiger, step_plan, telling_levels
from leadre.baselines.tiger_network import Tiger, leaves, nodes_of_ads
from leadre.baselines.tiger_readings import batch, readings
from leadre.baselines.tiger_search import Inputs, search
from leadre.catalog import trie

LEVELS = (3, 4, 2)
DAY = 86_400


def _sids(num_ads=14):
    every = torch.cartesian_prod(*map(torch.arange, LEVELS))
    chosen = np.random.default_rng(0).choice(len(every), num_ads, replace=False)
    return every[np.sort(chosen)]


def _network(sids):
    torch.manual_seed(0)
    network = Tiger(
        trie=trie.build(sids),
        codes=LEVELS,
        user_tokens=5,
        max_ads=6,
        width=16,
        heads=2,
        head_width=4,
        inner=32,
        encoder_layers=2,
        decoder_layers=2,
        dropout=0.0,
    ).eval()
    torch.nn.init.normal_(network.nearness.weight)
    return network


def _prompts(sids, seen):
    ads = torch.randint(len(sids), (len(seen), max(seen)), generator=torch.Generator().manual_seed(0))
    ads[torch.arange(max(seen)) >= torch.tensor(seen)[:, None]] = NONE
    return torch.arange(len(seen)) % 5, ads, torch.tensor(seen)


def _every_ad(network, users, ads, seen):
    """The log-probability ``(B, N)`` of each ad of the catalog, one target a reading at a time."""
    columns = [network(users, ads, seen[:, None], torch.full_like(users, ad)[:, None]) for ad in range(14)]
    return torch.cat(columns, 1)


NOTHING = torch.zeros(2, 0, dtype=torch.int64)


@torch.no_grad()
def test_a_wide_beam_finds_what_scoring_every_ad_finds():
    sids = _sids()
    network, prompts = _network(sids), _prompts(sids, [4, 1, 0, 6])
    found = search(network, Inputs(*prompts[:2]), NOTHING, size=14, beam_width=14)
    scores = _every_ad(network, *prompts)
    assert torch.equal(found.ads, scores.argsort(1, descending=True))
    torch.testing.assert_close(found.scores, scores.gather(1, found.ads))
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(4))  # every S-ID that can be written is an ad's


@torch.no_grad()
def test_a_beam_never_goes_where_all_ads_are_spent():
    sids = _sids()
    network = _network(sids)
    users, ads, seen = _prompts(sids, [4, 1, 6])
    left_out = torch.stack([torch.repeat_interleave(torch.arange(3), seen), ads[ads != NONE]])
    left_out = torch.cat([left_out, left_out[:, :3]], 1)  # an ad may be told twice
    scores = _every_ad(network, users, ads, seen)
    scores[left_out[0], left_out[1]] = -torch.inf
    found = search(network, Inputs(users, ads), left_out, size=14, beam_width=14)
    real = found.scores > -torch.inf
    assert real.sum(1).tolist() == (scores > -torch.inf).sum(1).tolist()
    assert torch.equal(found.ads[real], scores.argsort(1, descending=True)[real])
    assert bool((found.ads[~real] == -1).all())
    # As narrow as can be, it still ends at an ad: it was not led below codes whose ads are all spent.
    all_but_one = torch.tensor([[0, ad] for ad in range(14) if ad != 9]).T
    assert search(network, Inputs(users[:1], ads[:1]), all_but_one, size=1, beam_width=1).ads.tolist() == [[9]]


@torch.no_grad()
def test_a_narrow_beam_scores_as_the_network_does_and_no_ad_stands_twice():
    sids = _sids()
    network, prompts = _network(sids), _prompts(sids, [2, 5, 3])
    found = search(network, Inputs(*prompts[:2]), NOTHING, size=4, beam_width=4)
    torch.testing.assert_close(found.scores, _every_ad(network, *prompts).gather(1, found.ads))
    assert all(len(set(row)) == 4 for row in found.ads.tolist())
    assert bool((found.scores.diff(dim=1) <= 0).all())
    shorter = search(network, Inputs(*prompts[:2]), NOTHING, size=3, beam_width=4)
    assert torch.equal(shorter.ads, found.ads[:, :3])
    assert torch.equal(shorter.scores, found.scores[:, :3])


@torch.no_grad()
def test_a_beam_wider_than_the_catalog_is_filled_up():
    sids = _sids(num_ads=3)
    found = search(_network(sids), Inputs(*_prompts(sids, [2])[:2]), NOTHING, size=5, beam_width=5)
    assert sorted(found.ads[0, :3].tolist()) == [0, 1, 2]
    assert found.ads[0, 3:].tolist() == [-1, -1]
    assert found.scores[0, 3:].tolist() == [-torch.inf] * 2


def test_leaves_are_the_catalog_rows_below_a_node():
    built = trie.build(torch.tensor([[0, 1], [0, 2], [1, 0], [3, 1], [3, 2], [3, 3]]))
    assert [ends.tolist() for ends in leaves(built)] == [[0, 2, 3, 6], [0, 1, 2, 3, 4, 5, 6]]
    assert nodes_of_ads(built).tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [2, 4], [2, 5]]


@torch.no_grad()
def test_the_network_is_the_t5_of_transformers():
    sids = _sids()
    network = _network(sids)
    torch.nn.init.zeros_(network.nearness.weight)  # T5 has no bias across
    users, ads, seen = _prompts(sids, [4, 4])
    targets = torch.tensor([3, 8])
    ours = network(users, ads, seen[:, None], targets[:, None])[:, 0]
    offsets = torch.tensor([0, 3, 7])
    read = torch.cat([9 + users[:, None], (sids[ads] + offsets).flatten(1)], 1)
    ad = torch.tensor([0, *[1] * 3, *[2] * 3, *[3] * 3, *[4] * 3])
    mask = torch.where(ad[None, :] <= ad[:, None], 0.0, -torch.inf).expand(2, 1, -1, -1)
    written = torch.cat([torch.full((2, 1), 14), (sids[targets] + offsets)[:, :2]], 1)
    encoded = network.t5.encoder(read, attention_mask=mask)
    states = network.t5(encoder_outputs=encoded, decoder_input_ids=written).last_hidden_state
    logits = states @ network.t5.shared.weight.T / 4  # the root of the width
    for row, target in enumerate(targets):
        theirs = 0.0
        for level, first in enumerate(offsets):
            alike = (sids[:, :level] == sids[target, :level]).all(1)
            codes = sids[alike, level].unique()
            theirs += logits[row, level, first + sids[target, level]] - logits[row, level, first + codes].logsumexp(0)
        torch.testing.assert_close(ours[row], theirs)


@torch.no_grad()
def test_targets_that_share_a_reading_are_as_probable_as_alone():
    sids = _sids()
    network = _network(sids)
    users, ads, _ = _prompts(sids, [6, 6])
    seen = torch.tensor([[1, 3, 6], [2, 2, 5]])
    targets = torch.tensor([[0, 5, 7], [9, 1, 13]])
    together = network(users, ads, seen, targets)
    for user in range(2):
        for place in range(3):
            here, number = slice(user, user + 1), int(seen[user, place])
            alone = network(users[here], ads[here, :number], seen[here, place, None], targets[here, place, None])
            torch.testing.assert_close(together[user, place], alone[0, 0])


@torch.no_grad()
def test_which_ad_was_the_latest_matters():
    sids = _sids()
    network = _network(sids)
    users, ads, seen = _prompts(sids, [3])
    one, other = (network(users, order, seen[:, None], torch.tensor([[0]])) for order in (ads, ads.flip(1)))
    assert not torch.allclose(one, other)


def _tables(histories):
    """Behaviors a day apart and, of each user with 3, the split of `leave_one_out`; ads are named by numbers."""
    rows = [
        (user, f"{ad:02}", "ad", "click", day * DAY) for user, ads in histories.items() for day, ad in enumerate(ads)
    ]
    behaviors = pl.DataFrame(rows, schema=tables.BEHAVIORS.schema, orient="row")
    targets = [
        (user, "train" if day < len(ads) - 2 else "valid" if day == len(ads) - 2 else "test", f"{ad:02}", day * DAY)
        for user, ads in histories.items()
        for day, ad in enumerate(ads)
    ]
    return behaviors, pl.DataFrame(targets, schema=tables.SPLIT.schema, orient="row")


def _readings(behaviors, targets, catalog, *, max_ads, user_tokens=1):
    columns = pl.col("ad_id").replace_strict({ad: row for row, ad in enumerate(catalog)}, return_dtype=pl.Int64)
    targets = targets.sort("user_id", "time", maintain_order=True).select("user_id", "time", column=columns)
    before = past(behaviors, targets, catalog, domain="ad")
    return readings(before, targets, max_ads=max_ads, user_tokens=user_tokens)


def _pairs(of):
    """What each target sees: user's place in the readings left out, its ads and then itself."""
    owner, starts = np.repeat(np.arange(len(of.users)), of.sizes), of.ads.offsets
    return [
        (of.ads.values[starts[r] : starts[r] + of.seen[m]].tolist(), int(of.targets.values[m]))
        for m, r in enumerate(owner)
    ]


def test_readings_by_hand():
    behaviors, split = _tables({"ann": [1, 2, 3, 4, 5, 6, 7], "bob": [2, 0, 1]})
    catalog = [f"{ad:02}" for ad in range(8)]
    train = split.filter(pl.col("role") == "train")
    shared = _readings(behaviors, train, catalog, max_ads=2, user_tokens=3)
    # Every target is seen once; with room for two ads, a reading begins anew after each.
    assert _pairs(shared) == [([1], 2), ([1, 2], 3), ([2, 3], 4), ([3, 4], 5)]
    assert shared.sizes.tolist() == [2, 1, 1]
    roomy = _readings(behaviors, train, catalog, max_ads=4, user_tokens=3)
    assert roomy.sizes.tolist() == [4]
    assert roomy.lengths.tolist() == [4]  # what follows the latest target is not read
    assert [*shared.users, *roomy.users] == [crc32(b"ann") % 3] * 4


def test_ads_outside_of_the_catalog_are_neither_read_nor_counted():
    behaviors, split = _tables({"ann": [1, 9, 3, 4, 5]})
    test = split.filter(pl.col("role") == "test")
    of = _readings(behaviors, test, ["01", "03", "04", "05"], max_ads=3)
    assert _pairs(of) == [([0, 1, 2], 3)]


def test_ads_of_the_very_time_of_a_target_are_not_seen():
    rows = [("ann", f"{ad:02}", "ad", "click", time) for ad, time in [(0, 10), (1, 20), (2, 20), (3, 30)]]
    behaviors = pl.DataFrame(rows, schema=tables.BEHAVIORS.schema, orient="row")
    targets = behaviors.select("user_id", role=pl.lit("train"), ad_id="item_id", time="time")
    of = _readings(behaviors, targets, ["00", "01", "02", "03"], max_ads=4)
    assert _pairs(of) == [([0], 1), ([0], 2), ([0, 1, 2], 3)]


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 17), min_size=1, max_size=4), max_ads=st.integers(1, 6))
def test_a_target_sees_the_latest_ads_before_it_and_nothing_else(lengths, max_ads):
    rng = np.random.default_rng(sum(lengths))
    histories = {f"u{n}": rng.integers(0, 30, size).tolist() for n, size in enumerate(lengths)}
    behaviors, split = _tables(histories)
    of = _readings(behaviors, split, [f"{ad:02}" for ad in range(30)], max_ads=max_ads, user_tokens=2)
    found = _pairs(of)
    expected = [(ads[:day], ad) for ads in histories.values() for day, ad in enumerate(ads) if day]
    assert len(found) == len(expected)
    for (seen, target), (before, ad) in zip(found, expected, strict=True):
        assert target == ad
        assert seen == before[len(before) - len(seen) :]
        assert len(seen) <= max_ads
        assert len(seen) >= min(len(before), max_ads // 2 + 1)
    assert bool((of.lengths <= max_ads).all())


def test_a_batch_pads_and_weighs():
    behaviors, split = _tables({"ann": [1, 2, 3, 0], "bob": [2, 0]})
    of = _readings(behaviors, split, ["00", "01", "02", "03"], max_ads=4)
    made = batch(of, np.array([1, 0]), np.array([0, 1]))
    assert made.ads.tolist() == [[2, NONE, NONE], [1, 2, 3]]
    assert made.seen.tolist() == [[1, 0, 0], [1, 2, 3]]
    assert made.weights.tolist() == [[1, 0, 0], [1, 1, 1]]
    assert made.targets[made.weights > 0].tolist() == [0, 2, 3, 0]
    assert made.total == 4
    empty = batch(of, np.array([], dtype=np.int64), np.array([0, 1]))
    assert (empty.weights.sum(), empty.total) == (0, 4)


def test_the_plan_has_its_steps_and_about_as_many_targets_a_step():
    behaviors, split = _tables({f"u{n:02}": list(range(2 + n % 9)) for n in range(40)})
    of = _readings(behaviors, split, [f"{ad:02}" for ad in range(12)], max_ads=12)
    plan = step_plan(of, batch_size=20, steps=25, seed=0)
    assert len(plan) == 25
    targets = [int(of.sizes[rows].sum()) for rows in plan]
    assert max(targets) <= 20 + 10
    assert np.mean(targets) > 15
    seen = np.bincount(np.concatenate(plan), minlength=len(of.users))
    assert seen.max() - seen.min() <= 1


def test_the_plan_has_its_steps_also_where_a_reading_holds_many_times_a_batch():
    behaviors, split = _tables({f"u{n}": list(range(20)) for n in range(3)})
    of = _readings(behaviors, split, [f"{ad:02}" for ad in range(20)], max_ads=20)
    assert of.sizes.tolist() == [19] * 3
    plan = step_plan(of, batch_size=2, steps=50, seed=0)
    assert [len(rows) for rows in plan] == [1] * 50
    assert step_plan(of, batch_size=2, steps=7, seed=0) == plan[:7]


@pytest.mark.parametrize(
    ("sids", "told"), [([[1, 0, 4], [2, 0, 4]], [0]), ([[1, 0, 4], [1, 2, 5]], [1, 2]), ([[3, 1]], [0])]
)
def test_a_level_that_tells_nothing_is_left_out(sids, told):
    assert telling_levels(np.array(sids)) == told


def _config(**changes):
    numbers = {
        "kind": "tiger",
        "width": 16,
        "heads": 2,
        "head_width": 8,
        "inner": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "dropout": 0.1,
        "max_ads": 4,
        "user_tokens": 0,
        "learning_rate": 0.01,
        "min_learning_rate": 0.001,
        "warmup_share": 0.1,
        "weight_decay": 0.01,
        "batch_size": 32,
        "steps": 6,
        "beam_width": 6,
        "list_length": 5,
        "validations": 2,
        "valid_users": 50,
        "exclude_seen": False,
        "seed": 0,
    }
    return TigerConfig(**(numbers | changes))


def _write_world(world, behaviors, split):
    for name in ("ads", "users", "contents"):
        table = getattr(tables, name.upper())
        tables.write(table, pl.DataFrame(schema=table.schema), world / f"{name}.parquet")
    tables.write(tables.BEHAVIORS, behaviors, world / "behaviors.parquet")
    tables.write(tables.SPLIT, split, world / "split.parquet")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A world where ad n is followed by ad n + 1 of 12, and a catalog with a level and an extra code of no use."""
    world, catalog = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("catalog")
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(12, size=60), rng.integers(3, 9, size=60)
    histories = {
        f"u{n:02}": [(start + day) % 12 for day in range(length)]
        for n, (start, length) in enumerate(zip(starts, lengths, strict=True))
    }
    behaviors, split = _tables(histories)
    _write_world(world, behaviors, split)
    sids = [[ad // 4, 1, ad % 4, 0] for ad in range(12)]
    listed = pl.DataFrame(
        {"ad_id": [f"{ad:02}" for ad in range(12)], "sid": sids, "name": [str(sid) for sid in sids]},
        schema=tables.SIDS.schema,
    )
    tables.write(tables.SIDS, listed, catalog / "sids.parquet")
    (catalog / "tokens.json").write_text(json.dumps({"levels": [3, 2, 4, 17]}))
    return world, catalog


def _learn(folders, out, config, compute, logger):
    out.mkdir(exist_ok=True)
    learn(config, *folders, out=out, compute=compute, logger=logger)
    return tables.read(tables.LISTS, out / "lists.parquet")


def _curve(out, name):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def test_it_learns_which_ad_follows_which(folders, tmp_path, compute, logger):
    lists = _learn(
        folders, tmp_path, _config(steps=60, learning_rate=0.02, dropout=0.0, exclude_seen=True), compute, logger
    )
    split = tables.read(tables.SPLIT, folders[0] / "split.parquet").filter(pl.col("role") == "test")
    first = lists.filter(pl.col("rank") == 1).join(split, on="user_id", suffix="_true")
    assert first.height == split.height == 60
    assert (first["ad_id"] == first["ad_id_true"]).mean() > 0.9
    assert _curve(tmp_path, "valid/hr@1")[-1] > 0.9
    # Lists are whole, in the order of the users, and hold no ad of the history.
    assert lists["user_id"].unique(maintain_order=True).to_list() == sorted(split["user_id"])
    assert lists["rank"].to_list() == [*range(1, 6)] * 60 or lists.height < 300
    behaviors = tables.read(tables.BEHAVIORS, folders[0] / "behaviors.parquet").join(
        split.select("user_id", now="time"), on="user_id"
    )
    before = behaviors.filter(pl.col("time") < pl.col("now")).select("user_id", ad_id="item_id")
    assert lists.join(before, on=["user_id", "ad_id"]).is_empty()


def test_a_training_that_was_killed_ends_as_the_unbroken_one(folders, tmp_path, compute, logger, monkeypatch):
    config = _config(user_tokens=7)
    whole = _learn(folders, tmp_path / "whole", config, compute, logger)
    calls = []

    def broken(*given):
        calls.append(given)
        if len(calls) > 4:
            raise RuntimeError("killed")
        return batch(*given)

    with monkeypatch.context() as patched:
        patched.setattr(tiger, "batch", broken)
        with pytest.raises(RuntimeError, match="killed"):
            _learn(folders, tmp_path / "broken", config, compute, logger)
    again = _learn(folders, tmp_path / "broken", config, compute, logger)
    assert whole.equals(again)
    names = ("metrics.jsonl", "budget.json")
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes() for name in names)


def test_lists_are_made_from_the_latest_ads_and_the_token_of_the_user(folders):
    known = read_known(*folders)
    learner = prepare_tiger(_config(max_ads=2, user_tokens=7), known, folders[1])
    targets = pl.DataFrame({"user_id": ["ann", "u00", "u00"], "time": [DAY, 4 * DAY, DAY // 2]})
    made = learner.inputs(targets)(np.arange(3))
    clicked = known.tables.behaviors.filter(pl.col("user_id") == "u00")["item_id"].cast(pl.Int64)
    assert made.ads.tolist() == [[NONE, NONE], clicked[2:4].to_list(), [clicked[0], NONE]]
    assert made.users.tolist() == [crc32(user.encode()) % 7 for user in targets["user_id"]]


def test_only_cut_offs_that_the_beam_reaches_are_measured(folders, tmp_path, compute, logger):
    _learn(folders, tmp_path, _config(steps=1, beam_width=7), compute, logger)
    told = [len(_curve(tmp_path, f"valid/hr@{k}")) for k in (1, 4, 8, 10)]
    assert told == [1, 1, 0, 0]


@torch.no_grad()
def test_lists_are_made_also_where_nobody_has_a_history():
    sids = _sids()
    network, users = _network(sids), torch.tensor([0, 3])
    found = search(network, Inputs(users, torch.zeros(2, 0, dtype=torch.int64)), NOTHING, size=14, beam_width=14)
    padded = torch.full((2, 1), NONE)
    scores = _every_ad(network, users, padded, torch.zeros_like(users))
    torch.testing.assert_close(found.scores, scores.gather(1, found.ads))


def test_lists_longer_than_the_beam_is_wide_are_refused(folders, tmp_path, compute, logger):
    with pytest.raises(ValueError, match="list_length is 7, but a beam of beam_width 6 finds no more ads"):
        _learn(folders, tmp_path, _config(list_length=7), compute, logger)


def test_without_anything_to_learn_it_is_told(folders, tmp_path, compute, logger):
    behaviors, split = _tables({"ann": [1, 2, 3], "bob": [4, 5, 6]})
    _write_world(tmp_path, behaviors, split)
    with pytest.raises(ValueError, match="0 train targets have an ad behavior before them: TIGER needs some"):
        _learn((tmp_path, folders[1]), tmp_path / "out", _config(), compute, logger)
