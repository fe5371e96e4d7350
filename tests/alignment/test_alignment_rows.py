"""A preference row is the user's last training prompt and two S-IDs as tokens."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from leadre import tables
from leadre.alignment.rows import last_rows, preference_rows

SIDS = pl.DataFrame(
    [("x", [0, 1], "<a_0> <b_1>"), ("y", [2, 0], "<a_2> <b_0>")], schema=tables.SIDS.schema, orient="row"
)
SOURCES = ("shown", "beam")
PAIRS = pl.DataFrame(
    [("u", "y", "x", 4.0, 2.0, *SOURCES, 0), ("v", "x", "y", 3.0, 1.0, *SOURCES, 0)],
    schema=tables.PREFERENCES.schema,
    orient="row",
)
USERS = pl.Series("user_id", ["u", "v", None, "u"])
SAMPLES = [[5, 6, 10, 21], [7, 8, 9, 11, 20], [5, 10, 20], [6, 7, 12, 21]]  # each ends with a response of 2 tokens


def write_tokens(path, samples=SAMPLES):
    kinds = [[0] * (len(sample) - 2) + [2, 2] for sample in samples]
    kinds[0][1] = 1  # an S-ID in the history is prompt, too
    save_file(
        {
            "ids": np.concatenate(samples).astype(np.int32),
            "kinds": np.concatenate(kinds).astype(np.uint8),
            "offsets": np.cumsum([0, *map(len, samples)]).astype(np.int64),
            "targets": np.zeros(len(samples), dtype=np.int32),
        },
        path,
    )
    return path


def test_the_last_row_of_each_user_counts():
    assert last_rows(USERS).rows() == [("u", 3), ("v", 1)]


def test_rows_by_hand(tmp_path):
    rows = preference_rows(PAIRS, SIDS, USERS, write_tokens(tmp_path / "t.safetensors"), sid_offsets=(10, 20))
    rows = rows._replace(reference=np.array([[1, 2], [3, 4]], dtype=np.float32))
    batch = rows.batch(np.array([1, 0]), np.array([1, 0]))
    assert batch.prompts.tolist() == [[7, 8, 9], [6, 7, 0]]
    assert batch.lengths.tolist() == [3, 2]
    assert batch.answers.tolist() == [[[10, 21], [12, 20]], [[12, 20], [10, 21]]]
    assert batch.weights.tolist() == [0.5, 0.5]
    assert batch.rejected.tolist() == [[True], [True]]
    assert batch.reference.tolist() == [[3, 4], [1, 2]]
    assert batch.answers.dtype == batch.prompts.dtype == torch.int64


def test_a_reference_that_was_not_computed_is_no_number(tmp_path):
    rows = preference_rows(PAIRS, SIDS, USERS, write_tokens(tmp_path / "t.safetensors"), sid_offsets=(10, 20))
    assert rows.batch(np.array([0]), np.array([0])).reference.isnan().all()


def test_what_ranks_and_micro_batches_weigh_adds_up_to_the_mean_over_the_step(tmp_path):
    rows = preference_rows(PAIRS, SIDS, USERS, write_tokens(tmp_path / "t.safetensors"), sid_offsets=(10, 20))
    whole = np.array([1, 0, 1])
    parts = [rows.batch(whole[part], whole) for part in (slice(0, 2), slice(2, 3), slice(3, 4))]
    assert [len(part.weights) for part in parts] == [2, 1, 1]
    assert torch.cat([part.weights for part in parts]).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    torch.testing.assert_close(parts[2].prompts, rows.batch(whole[:1], whole).prompts)  # it keeps the rank busy


def grouped(tmp_path, chosen_and_rejected, negatives):
    """Rows of user v, whose prompt is 7 8 9, over a catalog of six ads of one code."""
    sids = [(name, [code], "") for code, name in enumerate("abcdef")]
    pairs = [("v", *pair, 2.0, 1.0, *SOURCES, 0) for pair in chosen_and_rejected]
    return preference_rows(
        pl.DataFrame(pairs, schema=tables.PREFERENCES.schema, orient="row"),
        pl.DataFrame(sids, schema=tables.SIDS.schema, orient="row"),
        USERS,
        write_tokens(tmp_path / "t.safetensors"),
        sid_offsets=(10,),
        negatives=negatives,
    )


def test_rejected_ads_of_one_chosen_ad_share_rows_and_none_is_lost(tmp_path):
    rows = grouped(tmp_path, ["fa", "fb", "ab", "fc", "ac", "fd", "fe"], negatives=3)
    assert rows.answers[..., 0].tolist() == [[10, 11, 12, -1], [15, 10, 11, 12], [15, 13, 14, -1]]
    assert rows.reference.shape == (3, 4)
    assert rows.lengths.tolist() == [3, 3, 3]
    batch = rows.batch(np.arange(3), np.arange(3))
    assert batch.rejected.tolist() == [[True, True, False], [True, True, True], [True, True, False]]


@given(
    st.sets(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")).filter(lambda pair: pair[0] != pair[1])),
    st.integers(1, 4),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_of_several_hold_the_very_pairs_that_they_were_made_of(tmp_path, pairs, negatives):
    pairs = {"ab", *("".join(pair) for pair in pairs)}
    rows = grouped(tmp_path, sorted(pairs), negatives)
    names = np.array(list("abcdef"))
    held = [names[row[0, 0] - 10] + names[ad - 10] for row in rows.answers for ad in row[1:, 0] if ad >= 0]
    assert sorted(held) == sorted(pairs)
    assert rows.answers.shape[1] <= negatives + 1
    ads = [sum(chosen == pair[0] for pair in pairs) for chosen in "abcdef"]
    assert len(rows.answers) == sum(-(-number // negatives) for number in ads)


def test_a_user_without_a_prompt_is_told(tmp_path):
    pairs = PAIRS.with_columns(user_id=pl.Series(["u", "w"]))
    with pytest.raises(ValueError, match=r"names the user 'w', who has no training prompt: .* make them again"):
        preference_rows(pairs, SIDS, USERS, write_tokens(tmp_path / "t.safetensors"), sid_offsets=(10, 20))


def test_tokens_of_other_pairs_are_refused(tmp_path):
    path = write_tokens(tmp_path / "t.safetensors", SAMPLES[:3])
    with pytest.raises(ValueError, match=r"with 3 rows, but there are 4 pairs: .* encode the pairs again"):
        preference_rows(PAIRS, SIDS, USERS, path, sid_offsets=(10, 20))


def test_a_catalog_of_another_model_is_refused(tmp_path):
    path = write_tokens(tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="2 codes an ad, but the model has tokens for 3 levels"):
        preference_rows(PAIRS, SIDS, USERS, path, sid_offsets=(10, 20, 30))
