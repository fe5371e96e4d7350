"""S-IDs: the extra code that tells ads with equal codes apart, and the names of codes."""

import string
from collections.abc import Sequence

import polars as pl


def extend(codes: pl.DataFrame, *, max_extra_codes: int) -> pl.DataFrame:
    """Append the extra code, so that no two ads share an S-ID (LEADRE 3.3).

    Ads with equal codes get the extra codes 0, 1, 2, ... in the order of their ad_id; an ad that shares its
    codes with none gets 0. Our choice: the paper names no order; by ad_id the S-IDs do not depend on the
    order of the rows.

    Args:
        codes: Columns ``ad_id`` and ``codes`` (M codes an ad).
        max_extra_codes: The most ads that may share their codes.

    Returns:
        Columns ``ad_id`` and ``sid`` (M+1 codes), sorted by ``sid``.

    Raises:
        ValueError: If there is no ad, if ads have different numbers of codes or no code, if a code is negative,
            if an ad stands twice, or if more than ``max_extra_codes`` ads share their codes.
    """
    levels = _levels(codes)
    columns = [f"c{level}" for level in range(levels)]
    flat = codes.select("ad_id", *(pl.col("codes").list.get(i).alias(c) for i, c in enumerate(columns)))
    flat = flat.sort("ad_id").with_columns(pl.int_range(pl.len(), dtype=pl.Int32).over(columns).alias("extra"))
    _check_groups(flat, columns, max_extra_codes)
    flat = flat.sort(*columns, "extra")
    return flat.select("ad_id", pl.concat_list(*columns, "extra").alias("sid"))


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


def display(sid: Sequence[int]) -> str:
    """An S-ID as the paper's prompts show it (LEADRE 4.2).

    Example:
        >>> display([51, 10, 67, 93, 0])
        '<a_51, b_10, c_67, d_93, e_0>'
    """
    return "<" + ", ".join(f"{level_letter(level)}_{code}" for level, code in enumerate(sid)) + ">"


def _levels(codes: pl.DataFrame) -> int:
    if codes.is_empty():
        raise ValueError("codes has no ad: a catalog needs at least one; see what the world holds")
    lengths = codes["codes"].list.len().unique().sort().to_list()
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(f"codes has ads with {lengths} codes: every ad needs the same number, at least one")
    wrong = codes.filter(pl.col("codes").list.eval(pl.element().is_null() | (pl.element() < 0)).list.any())
    if wrong.height:
        raise ValueError(
            f"codes has {wrong['codes'][0].to_list()} for the ad {wrong['ad_id'][0]!r}: "
            "codes are 0 or more; quantize anew"
        )
    if codes["ad_id"].is_duplicated().any():
        twice = codes.filter(pl.col("ad_id").is_duplicated())["ad_id"][0]
        raise ValueError(f"codes has the ad {twice!r} more than once: an ad has one S-ID; quantize anew")
    return int(lengths[0])


def _check_groups(flat: pl.DataFrame, columns: list[str], max_extra_codes: int) -> None:
    last = flat.sort("extra", "ad_id").row(-1, named=True)
    size = last["extra"] + 1
    if size > max_extra_codes:
        shared = " ".join(token_name(level, last[column]) for level, column in enumerate(columns))
        raise ValueError(
            f"max_extra_codes is {max_extra_codes}, but {size} ads share the codes {shared} (one is "
            f"{last['ad_id']!r}): raise catalog.max_extra_codes to {size}, or quantize with more levels or codes"
        )
