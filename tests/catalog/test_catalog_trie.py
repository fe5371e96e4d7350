"""The trie: against nested dictionaries, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leadre.catalog import trie as tries
from leadre.catalog.sids import in_order


def nested(sids):
    """The trie as the paper builds it (A.2): one ad at a time, a dictionary a node."""
    root = {}
    for sid in sids:
        node = root
        for code in sid:
            node = node.setdefault(code, {})
    return root


@st.composite
def catalogs(draw):
    levels = draw(st.integers(1, 4))
    sid = st.tuples(*[st.integers(0, 4)] * levels)
    return sorted(draw(st.sets(sid, min_size=1, max_size=40)))


def walk(trie, level=0, node=0):
    """The arrays, read back as nested dictionaries."""
    if level == len(trie.codes):
        return {}
    low, high = trie.first_child[level][node : node + 2].tolist()
    return {int(trie.codes[level][child]): walk(trie, level + 1, child) for child in range(low, high)}


@given(catalogs())
def test_the_arrays_hold_the_same_tree_as_nested_dictionaries(sids):
    assert walk(tries.build(torch.tensor(sids))) == nested(sids)


@given(catalogs())
def test_a_leaf_is_its_catalog_row(sids):
    trie = tries.build(torch.tensor(sids))
    for row, sid in enumerate(sids):
        node = 0
        for level, code in enumerate(sid):
            low, high = trie.first_child[level][node : node + 2].tolist()
            node = low + trie.codes[level][low:high].tolist().index(code)
        assert node == row


@given(catalogs(), st.data())
def test_children_of_a_batch_are_those_of_each_node(sids, data):
    trie = tries.build(torch.tensor(sids))
    level = data.draw(st.integers(0, len(trie.codes) - 1))
    last = len(trie.first_child[level]) - 2
    nodes = data.draw(st.lists(st.integers(-1, last), max_size=6))
    found = tries.children(trie, level, torch.tensor(nodes, dtype=torch.int64))
    expected = [
        (parent, child)
        for parent, node in enumerate(nodes)
        if node >= 0
        for child in range(*trie.first_child[level][node : node + 2].tolist())
    ]
    assert list(zip(found.parent.tolist(), found.node.tolist(), strict=True)) == expected


def test_a_small_trie_by_hand():
    trie = tries.build(torch.tensor([[0, 1, 0], [0, 1, 1], [0, 4, 0], [7, 1, 0]]))
    assert [codes.tolist() for codes in trie.codes] == [[0, 7], [1, 4, 1], [0, 1, 0, 0]]
    assert [first.tolist() for first in trie.first_child] == [[0, 2], [0, 2, 3], [0, 2, 3, 4]]
    assert {codes.dtype for codes in trie.codes} == {torch.int16}
    assert {first.dtype for first in trie.first_child} == {torch.int32}


@pytest.mark.parametrize(("largest", "dtype"), [(32767, torch.int16), (32768, torch.int32)])
def test_codes_are_as_wide_as_the_largest_needs_on_all_levels(largest, dtype):
    trie = tries.build(torch.tensor([[0, 1], [0, largest], [2, 5]]))
    assert [codes.dtype for codes in trie.codes] == [dtype, dtype]
    assert trie.codes[1].tolist() == [1, largest, 5]


@given(catalogs(), st.randoms(use_true_random=False), st.sampled_from([1, 1000, 10_000]))
def test_rows_in_any_order_make_the_same_tree_once_they_are_sorted(sids, random, scale):
    rows = [[scale * code for code in sid] for sid in sids]
    random.shuffle(rows)
    shuffled = np.array(rows, dtype=np.int32)
    trie = tries.build(torch.from_numpy(shuffled[in_order(shuffled)[0]]))
    assert walk(trie) == nested(rows)
    if rows != sorted(rows):
        with pytest.raises(ValueError, match="sids is not sorted"):
            tries.build(torch.from_numpy(shuffled))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_the_order_of_columns_in_memory_and_the_type_of_codes_do_not_matter(dtype):
    sids = torch.tensor([[0, 1, 0], [0, 4, 0], [7, 1, 0]], dtype=dtype)
    by_column = sids.T.contiguous().T
    assert walk(tries.build(by_column)) == walk(tries.build(sids)) == {0: {1: {0: {}}, 4: {0: {}}}, 7: {1: {0: {}}}}


def test_a_catalog_of_one_ad():
    trie = tries.build(torch.tensor([[3, 0]]))
    assert walk(trie) == {3: {0: {}}}


def test_a_saved_trie_comes_back(tmp_path):
    trie = tries.build(torch.tensor([[0, 1], [0, 2], [5, 0]]))
    tries.save(trie, tmp_path / "trie.safetensors")
    back = tries.load(tmp_path / "trie.safetensors")
    for left, right in zip([*trie.codes, *trie.first_child], [*back.codes, *back.first_child], strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


def test_a_file_of_wider_numbers_is_read_as_the_same_trie(tmp_path):
    trie = tries.build(torch.tensor([[0, 1], [0, 2], [5, 0]]))
    wide = tries.Trie(tuple(x.int() for x in trie.codes), tuple(x.long() for x in trie.first_child))
    tries.save(wide, tmp_path / "trie.safetensors")
    back = tries.load(tmp_path / "trie.safetensors")
    for left, right in zip([*trie.codes, *trie.first_child], [*back.codes, *back.first_child], strict=True):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)


@pytest.mark.parametrize("sids", [[[1, 0], [0, 5]], [[0, 0], [1, 5], [1, 4]]])
def test_unsorted_rows_are_refused(sids):
    with pytest.raises(ValueError, match=r"sids is not sorted at row \d .*: sort it"):
        tries.build(torch.tensor(sids))


def test_rows_that_stand_twice_are_refused():
    with pytest.raises(ValueError, match=r"sids has \[1, 2\] twice \(row 2\): every ad needs its own S-ID"):
        tries.build(torch.tensor([[0, 0], [1, 2], [1, 2], [0, 1]]))


def test_negative_codes_are_refused():
    with pytest.raises(ValueError, match="holds the code -1"):
        tries.build(torch.tensor([[-1, 0], [0, 0]]))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (4,)])
def test_an_empty_catalog_is_refused(shape):
    with pytest.raises(ValueError, match="at least 1 of each"):
        tries.build(torch.zeros(shape, dtype=torch.int64))
