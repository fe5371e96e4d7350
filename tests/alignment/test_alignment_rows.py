"""A preference row is the user's last training prompt and two S-IDs as tokens."""

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file

from leadre import tables
from leadre.alignment.preferences import PREFERENCES
from leadre.alignment.rows import last_rows, preference_rows

SIDS = pl.DataFrame(
    [("x", [0, 1], "<a_0> <b_1>"), ("y", [2, 0], "<a_2> <b_0>")], schema=tables.SIDS.schema, orient="row"
)
PAIRS = pl.DataFrame(
    [("u", "y", "x", 4.0, 2.0, 0), ("v", "x", "y", 3.0, 1.0, 0)], schema=PREFERENCES.schema, orient="row"
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
    batch = rows._replace(reference=np.array([[1, 2], [3, 4]], dtype=np.float32)).batch(np.array([1, 0]))
    assert batch.prompts.tolist() == [[7, 8, 9], [6, 7, 0]]
    assert batch.lengths.tolist() == [3, 2]
    assert batch.answers.tolist() == [[[10, 21], [12, 20]], [[12, 20], [10, 21]]]
    assert batch.ecpms.tolist() == [[3, 1], [4, 2]]
    assert batch.reference.tolist() == [[3, 4], [1, 2]]
    assert batch.answers.dtype == batch.prompts.dtype == torch.int64


def test_a_reference_that_was_not_computed_is_no_number(tmp_path):
    rows = preference_rows(PAIRS, SIDS, USERS, write_tokens(tmp_path / "t.safetensors"), sid_offsets=(10, 20))
    assert rows.batch(np.array([0])).reference.isnan().all()


def test_tokens_of_other_pairs_are_refused(tmp_path):
    path = write_tokens(tmp_path / "t.safetensors", SAMPLES[:3])
    with pytest.raises(ValueError, match=r"with 3 rows, but there are 4 pairs: .* encode the pairs again"):
        preference_rows(PAIRS, SIDS, USERS, path, sid_offsets=(10, 20))


def test_a_catalog_of_another_model_is_refused(tmp_path):
    path = write_tokens(tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="2 codes an ad, but the model has tokens for 3 levels"):
        preference_rows(PAIRS, SIDS, USERS, path, sid_offsets=(10, 20, 30))
