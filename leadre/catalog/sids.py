"""S-IDs: the extra code that tells ads with equal codes apart, the order of S-IDs, and their names."""

import re
import string
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray


def extra_codes(codes: NDArray[np.integer]) -> NDArray[np.int32]:
    """Number the rows that have the same codes 0, 1, 2, ... in their order.

    Args:
        codes: ``(N, M)``, 0 or more.

    Returns:
        ``(N,)``: how many earlier rows have the codes of this row.

    Raises:
        ValueError: If a code is negative.

    Example:
        >>> extra_codes(np.array([[3, 1], [0, 2], [3, 1]])).tolist()
        [0, 0, 1]
    """
    order, opens = in_order(codes)
    places = np.arange(len(codes), dtype=np.int32)
    extra = np.empty(len(codes), dtype=np.int32)
    extra[order] = places - np.maximum.accumulate(np.where(opens, places, 0), dtype=np.int32)
    return extra


def in_order(codes: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Sort rows of codes lexicographically; equal rows keep their order.

    A row's codes and its number are packed into one int64 where they fit: plain integers are sorted several times
    faster than rows.

    Args:
        codes: ``(N, M)``, 0 or more.

    Returns:
        The order, ``(N,)``; and for each row in that order whether it differs from the row above.

    Raises:
        ValueError: If a code is negative.
    """
    if codes.min(initial=0) < 0:
        raise ValueError(f"codes holds {codes.min()}, but codes are 0 or more: quantize anew")
    count, levels = codes.shape
    opens = np.zeros(count, dtype=np.bool_)
    opens[:1] = True
    bits = [int(codes[:, level].max(initial=0)).bit_length() for level in range(levels)]
    row_bits = count.bit_length()
    if sum(bits) + row_bits > 63:
        order = np.lexsort(codes.T[::-1])
        opens[1:] = (codes[order[1:]] != codes[order[:-1]]).any(axis=1)
        return order, opens
    packed = np.zeros(count, dtype=np.int64)
    for level in range(levels):
        packed <<= bits[level]
        packed |= codes[:, level]
    packed <<= row_bits
    packed |= np.arange(count)
    packed.sort()
    order = packed & ((1 << row_bits) - 1)
    packed >>= row_bits  # the codes alone
    opens[1:] = packed[1:] != packed[:-1]
    return order, opens


def level_letter(level: int) -> str:
    """The letter that marks the codes of a level, from ``a`` on.

    Raises:
        ValueError: If there is no letter left, after ``z``.

    Example:
        >>> level_letter(1)
        'b'
    """
    if not 0 <= level < len(string.ascii_lowercase):
        raise ValueError(f"level is {level}, but a level needs its own letter a..z: use at most 26 levels")
    return string.ascii_lowercase[level]


def token_name(level: int, code: int) -> str:
    """The name of a code's token.

    Example:
        >>> token_name(0, 51)
        '<a_51>'
    """
    return f"<{level_letter(level)}_{code}>"


def token_names(num_codes: Sequence[int]) -> list[str]:
    """The names of every code of every level, level by level.

    Example:
        >>> token_names([2, 1])
        ['<a_0>', '<a_1>', '<b_0>']
    """
    return [token_name(level, code) for level, count in enumerate(num_codes) for code in range(count)]


def name(sid: Sequence[int]) -> str:
    """The name of an S-ID: its tokens, with spaces between them.

    Example:
        >>> name([51, 10])
        '<a_51> <b_10>'
    """
    return " ".join(token_name(level, code) for level, code in enumerate(sid))


def names(sids: NDArray[np.integer]) -> pl.Series:
    """The names of S-IDs ``(N, L)``, all at once."""
    codes = pl.from_numpy(sids, schema=[str(level) for level in range(sids.shape[1])], orient="row")
    tokens = [pl.format(f"<{level_letter(level)}_{{}}>", str(level)) for level in range(sids.shape[1])]
    return codes.select(pl.concat_str(tokens, separator=" ").alias("name"))["name"]


def parse(text: str, num_codes: Sequence[int]) -> list[int]:
    """Read an S-ID or the beginning of one, as `name` or `display` write it.

    Args:
        text: Such as ``<a_51> <b_10>``.
        num_codes: The number of codes of each level.

    Raises:
        ValueError: If a token is none of its level, or there are more tokens than levels.

    Example:
        >>> parse("<a_51, b_10>", [256, 256, 2])
        [51, 10]
    """
    tokens = re.findall(r"[^\s,<>]+", text)
    if len(tokens) > len(num_codes):
        raise ValueError(f"{text!r} has {len(tokens)} tokens, but an S-ID of this catalog has {len(num_codes)}")
    return [_code(token, level, num_codes[level]) for level, token in enumerate(tokens)]


def display(sid: Sequence[int]) -> str:
    """An S-ID as the paper's prompts show it (LEADRE 4.2).

    Example:
        >>> display([51, 10, 67, 93, 0])
        '<a_51, b_10, c_67, d_93, e_0>'
    """
    return "<" + ", ".join(f"{level_letter(level)}_{code}" for level, code in enumerate(sid)) + ">"


def _code(token: str, level: int, count: int) -> int:
    letter, _, number = token.partition("_")
    if letter != level_letter(level) or re.fullmatch("[0-9]+", number) is None or int(number) >= count:
        raise ValueError(
            f"{token!r} is no token number {level + 1} of an S-ID: these are "
            f"{token_name(level, 0)} to {token_name(level, count - 1)}"
        )
    return int(number)
