import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from leadre import tables
from leadre.baselines.features import Tables
from leadre.baselines.names import NO_NAME, name_all
from leadre.baselines.past import NONE, Ragged, past

DAY = 86_400


def _frame(table, rows):
    return pl.DataFrame(rows, schema=table.schema, orient="row")


happenings = st.lists(
    st.tuples(st.sampled_from("uvw"), st.sampled_from("abcx"), st.sampled_from(["ad", "content"]), st.integers(0, 9)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=25, deadline=None)
@given(happenings, st.integers(1, 12))
def test_the_past_holds_exactly_what_the_user_did_strictly_before(rows, window):
    ordered = sorted(((u, i, d, "click", t * DAY) for u, i, d, t in rows), key=lambda row: (row[0], row[4]))
    targets = pl.DataFrame(
        [(u, t) for u in "uvwz" for t in (3 * DAY, 8 * DAY)], schema=["user_id", "time"], orient="row"
    )
    found = past(_frame(tables.BEHAVIORS, ordered), targets, ["a", "b", "c"], domain="ad", window_days=window)
    for row, (user, time) in enumerate(targets.iter_rows()):
        expected = [
            "abc".index(i)
            for u, i, d, _, t in ordered
            if (u, d) == (user, "ad") and time - window * DAY <= t < time and i in "abc"
        ]
        assert found.values[found.offsets[row] : found.offsets[row + 1]].tolist() == expected


def test_rows_without_anything_are_filled_up():
    nothing = Ragged(np.zeros(0, dtype=np.int64), np.zeros(3, dtype=np.int64))
    assert nothing.latest(np.array([0, 1]), most=3).shape == (2, 0)
    some = Ragged(np.array([4]), np.array([0, 0, 1]))
    assert some.latest(np.array([0, 1]), most=3).tolist() == [[NONE], [4]]
    assert some.latest(np.array([0, 1]), most=0).shape == (2, 0)


def test_names_by_hand():
    """Two ads of one category share its number; an ad outside the catalog, and a missing field, have no name."""
    ads = [
        ("a", None, None, "X", None, ["red"], None, None, None, "t"),
        ("b", None, None, "X", None, [], None, None, None, "t"),
        ("z", None, None, "Q", None, [], None, None, None, "t"),
    ]
    world = Tables(
        ads=_frame(tables.ADS, ads),
        users=_frame(tables.USERS, [("u", "18-24", None, None, None, None, None), ("v", *[None] * 6)]),
        contents=_frame(tables.CONTENTS, [("c", "t", "X", None)]),
        behaviors=_frame(tables.BEHAVIORS, []),
    )
    names = name_all(world, ["a", "b"])
    # 1 ad ad a, 2 ad ad b, 3 ad attribute red, 4 ad first_category X, 5 content c, 6 content category X, 7 profile
    assert names.ads.tolist() == [[1, 3, 4], [2, 4, NO_NAME]]
    assert names.contents.tolist() == [[5, 6]]
    assert names.users.tolist() == [[7], [NO_NAME], [NO_NAME]]
    assert names.total == 8
