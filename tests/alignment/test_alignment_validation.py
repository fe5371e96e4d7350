"""The fixed sample of validation users, and what is told of their lists."""

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from leadre import tables
from leadre.alignment.validation import BATCH, Sample, measure, sample

ADS = ["x", "y", "z"]
SIDS = pl.DataFrame([(ad, [code], "") for code, ad in enumerate(ADS)], schema=tables.SIDS.schema, orient="row")
SAMPLES = [[5, 6, 7, 11], [5, 12], [5, 6, 10], [8, 10]]
USERS = pl.Series("user_id", ["u", "v", None, "w"])
SPLIT = pl.DataFrame(
    [(user, role, "x", time) for user, time in (("u", 7), ("v", 8), ("w", 9)) for role in ("train", "valid")],
    schema=tables.SPLIT.schema,
    orient="row",
)
LABELS = pl.DataFrame(
    [("v", 2, "x", 0.1), ("v", 1, "z", 0.2), ("w", 1, "gone", 0.3)], schema=tables.LISTS.schema, orient="row"
)


@pytest.fixture
def tokens(tmp_path):
    path = tmp_path / "main.valid.safetensors"
    save_file(
        {
            "ids": np.concatenate(SAMPLES).astype(np.int32),
            "kinds": np.concatenate([[0] * (len(row) - 1) + [2] for row in SAMPLES]).astype(np.uint8),
            "offsets": np.cumsum([0, *map(len, SAMPLES)]).astype(np.int64),
            "targets": np.array([row[-1] - 10 for row in SAMPLES], dtype=np.int32),
        },
        path,
    )
    return path


def drawn(tokens, num_users=9, seed=0):
    return sample(tokens, USERS, SPLIT, LABELS, SIDS, num_users=num_users, seed=seed)


def test_a_sample_by_hand(tokens):
    chosen = drawn(tokens)
    assert sorted(chosen.users.rows()) == [("u", 7), ("v", 8), ("w", 9)]  # a pair without a user has no time
    (ids, mask), places = chosen.prompts[0], {user: row for row, user in enumerate(chosen.users["user_id"])}
    assert ids[places["u"]].tolist() == [5, 6, 7]
    assert ids[places["w"]].tolist() == [0, 0, 8]
    assert mask[places["w"]].tolist() == [False, False, True]
    assert chosen.targets[[places[user] for user in "uvw"], 0].tolist() == [1, 2, 0]
    assert chosen.labels[[places[user] for user in "uvw"]].tolist() == [[-1, -1], [2, 0], [-1, -1]]


def test_a_sample_is_fixed_by_its_seed_and_as_large_as_asked(tokens):
    assert drawn(tokens, 2).users.equals(drawn(tokens, 2).users)
    assert len({tuple(drawn(tokens, 1, seed).users["user_id"]) for seed in range(9)}) == 3
    assert drawn(tokens, 0).prompts == []


def ecpms(users, ads):
    """Worth: 10 for x, 20 for y, 30 for z, and the user's time on top."""
    return np.array([[10 * (ADS.index(ad) + 1) + time for ad in ads] for time in users["time"]], dtype=np.float32)


def test_lists_by_hand(tokens):
    chosen = drawn(tokens)
    lists = {"u": [1, 2], "v": [0, 2], "w": [2, -1]}  # the targets are y, z, x; v's labels are z and x
    rows = np.array([lists[user] for user in chosen.users["user_id"]])
    figures = measure(rows, chosen, ADS, ecpms, ks=(1, 2))
    assert figures == pytest.approx(
        {
            "hr@1": 1 / 3,
            "hr@2": 2 / 3,
            "ndcg@1": 1 / 3,
            "ndcg@2": (1 + 1 / np.log2(3)) / 3,
            "ltrr@1": 1 / 2,  # of v alone
            "ltrr@2": 1,
            "value@1": (27 + 18 + 39) / 3,
            "value@2": (27 + 37 + 18 + 38 + 39 + 0) / 6,
        }
    )


def test_no_labels_are_no_ltrr(tokens):
    chosen = sample(tokens, USERS, SPLIT, LABELS.clear(), SIDS, num_users=3, seed=0)
    assert "ltrr@1" not in measure(np.zeros((3, 1), dtype=np.int64), chosen, ADS, ecpms, ks=(1,))


def test_only_ads_of_some_users_lists_are_estimated_at_a_time():
    asked, users = [], 2 * BATCH + 3
    rng = np.random.default_rng(0)
    worth = rng.random((users, 500)).astype(np.float32)
    lists = rng.integers(-1, 500, (users, 4))
    chosen = sample_of(users)

    def estimate(some, ads):
        asked.append((some.height, len(ads)))
        return worth[np.ix_(some["time"].to_numpy(), [int(ad) for ad in ads])]

    found = measure(lists, chosen, [str(ad) for ad in range(500)], estimate, ks=(4,))
    plain = [[worth[user, ad] if ad >= 0 else 0 for ad in row] for user, row in enumerate(lists)]
    assert found["value@4"] == pytest.approx(np.mean(plain))
    assert [height for height, _ in asked] == [BATCH, BATCH, 3]
    assert all(number <= 4 * BATCH for _, number in asked)


def test_empty_lists_are_worth_nothing():
    figures = measure(np.full((3, 2), -1), sample_of(3), ["a"], lambda users, ads: pytest.fail("asked"), ks=(2,))
    assert figures == {"hr@2": 0, "ndcg@2": 0, "value@2": 0}


def sample_of(users):
    frame = pl.DataFrame({"user_id": [str(n) for n in range(users)], "time": np.arange(users)})
    nothing = np.full((users, 1), -1)
    return Sample([], frame, np.zeros((users, 1), dtype=np.int64), nothing)
