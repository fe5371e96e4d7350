"""The trie of a million ads: its size, how fast it is built, and its steps against Transformers' prefix function.

    python -m benchmarks.trie            # every figure, in two minutes
    python -m benchmarks.trie --quick    # fewer repetitions

Seconds are those of one thread on a CPU. "The dictionary" is a Python dictionary a node, as LC-Rec and LETTER have it.
A tenth of the ads have an extra code above 0.
"""

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.measure import Figure, Setting, main, race

if TYPE_CHECKING:  # a measurement imports what it needs, so that a wrong option is told at once
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from leadre.catalog.trie import Trie
    from leadre.decoding.beam_search import Beams

ADS = 1_000_000
USERS = 8
GOALS = {20: 20, 100: 40}
"""Beams: how many times as fast as Transformers' prefix function."""


class Sids(NamedTuple):
    """S-IDs in no order, and the same as lists of token ids."""

    array: "NDArray[np.int32]"
    tokens: list[list[int]]


class Built(NamedTuple):
    """A trie, and the row of each leaf."""

    trie: "Trie"
    rows: "NDArray[np.int64]"


def building(setting: Setting) -> Iterator[Figure]:
    """From S-IDs in no order to the trie. The dictionary gets them as token ids, and the garbage collector is off."""
    from benchmarks.beam_peers import nested

    variants: dict[str, Callable[[Sids], Any]] = {"ours": _arrays, "dictionary": lambda sids: nested(sids.tokens)}
    gc.disable()
    try:
        seconds = race(variants, _some_or_all, repeats=2 if setting.quick else 5, check=_check_same_tree)
    finally:
        gc.enable()
    note = f"{ADS:,} S-IDs in no order; "
    yield Figure("build: s", seconds["ours"], "<=", 0.3, note + "sorted and built")
    yield Figure("build: dictionary / ours", seconds["dictionary"] / seconds["ours"], ">=", 8, note + "same tree")


def size(setting: Setting) -> Iterator[Figure]:
    """Bytes an ad. The dictionary's are those of its own objects, without the numbers of the tokens."""
    from benchmarks.beam_peers import nested

    sids = _sids(ADS // 10 if setting.quick else ADS, 0)
    trie = _arrays(sids).trie
    ours = sum(array.nbytes for level in trie for array in level) / len(sids.tokens)
    tracemalloc.start()
    try:
        root = nested(sids.tokens)
        theirs = tracemalloc.get_traced_memory()[0] / len(sids.tokens)
    finally:
        tracemalloc.stop()
    assert len(root) == len(trie.codes[0]), "the first levels differ"
    yield Figure("size: bytes an ad", ours, "<=", 20, f"{len(sids.tokens):,} ads")
    yield Figure("size: dictionary / ours", theirs / ours, ">=", 25, f"the dictionary: {theirs:.0f} bytes an ad")


def steps(setting: Setting) -> Iterator[Figure]:
    """Five steps of mask and choice from given log-probabilities, without a model, as one of Transformers' searches."""
    from benchmarks import beam_peers as peers

    trie, root = peers.catalog(ADS)
    for width, goal in GOALS.items():
        variants: dict[str, Callable[[Sequence[Tensor]], Beams]] = {
            "ours": partial(peers.steps_over_arrays, trie=trie, users=USERS, beam_width=width),
            "theirs": partial(peers.steps_of_transformers, root=root, users=USERS, beam_width=width),
        }
        seconds = race(
            variants, partial(_log_probs, width), repeats=5 if setting.quick else 15, check=_check_same_lists
        )
        note = f"batch {USERS}, {ADS:,} ads; same ads in the same order"
        yield Figure(f"five steps, {width} beams: ms", 1000 * seconds["ours"])
        what = f"five steps, {width} beams: prefix function of Transformers / ours"
        yield Figure(what, seconds["theirs"] / seconds["ours"], ">=", goal, note)


def _some_or_all(turn: int) -> Sids:
    """Fresh S-IDs; a few to warm up."""
    return _sids(ADS if turn else ADS // 100, turn)


def _sids(count: int, seed: int) -> Sids:
    import torch

    from benchmarks.beam_peers import as_tokens
    from benchmarks.inputs import zipf_sids

    array = zipf_sids(count, seed=seed)
    return Sids(array, as_tokens(torch.from_numpy(array)))


def _arrays(sids: Sids) -> Built:
    import torch

    from leadre.catalog.sids import in_order
    from leadre.catalog.trie import build

    order = in_order(sids.array)[0]
    return Built(build(torch.from_numpy(sids.array.take(order, axis=0))), order)


def _check_same_tree(_: Sids, results: Mapping[str, Any]) -> None:
    """All nodes of all levels, their codes, their children, and the rows of the leaves."""
    from benchmarks.beam_peers import SID_TOKENS

    ours: Built = results["ours"]
    level: list[Any] = [results["dictionary"]]
    for codes, first, tokens in zip(ours.trie.codes, ours.trie.first_child, SID_TOKENS, strict=True):
        names = [sorted(node) for node in level]
        assert list(chain.from_iterable(names)) == (codes.int() + tokens.start).tolist(), "codes differ"
        assert list(map(len, names)) == first.diff().tolist(), "children differ"
        level = [node[name] for node, of_node in zip(level, names, strict=True) for name in of_node]
    assert level == ours.rows.tolist(), "leaves are of other ads"


def _log_probs(width: int, turn: int) -> "list[Tensor]":
    """Log-probabilities ``(USERS * width, V)`` of each level, the same for all beams of a user."""
    import torch

    from benchmarks.beam_peers import SID_TOKENS, VOCABULARY

    generator = torch.Generator().manual_seed(turn)
    levels = 2 * torch.randn(len(SID_TOKENS), USERS, VOCABULARY, generator=generator)
    return [level.log_softmax(1).repeat_interleave(width, 0) for level in levels]


def _check_same_lists(_: "Sequence[Tensor]", results: "Mapping[str, Beams]") -> None:
    from benchmarks.beam_peers import assert_same_lists

    assert_same_lists(results["ours"], results["theirs"])


MEASUREMENTS = (building, size, steps)

if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
