"""The trie as a search with static shapes reads it: a level, and the most children that a node has."""

from typing import NamedTuple

from torch import Tensor

from leadre.catalog.trie import Trie


class Branches(NamedTuple):
    """One level of the trie.

    Attributes:
        level: Which one.
        codes: ``(n,)`` integers, the code of each node.
        first_child: ``(n_above + 1,)`` integers, as in `leadre.catalog.trie.Trie`.
        most: M, the most children that a node of the level above has: a static number.
    """

    level: int
    codes: Tensor
    first_child: Tensor
    most: int


def branches(trie: Trie) -> tuple[Branches, ...]:
    """The levels of a trie, with their largest numbers of children; it looks at them on the host, once."""
    levels = zip(trie.codes, trie.first_child, strict=True)
    return tuple(
        Branches(level, codes, first, int((first[1:] - first[:-1]).max()))
        for level, (codes, first) in enumerate(levels)
    )
