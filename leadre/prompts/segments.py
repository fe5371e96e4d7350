"""A prompt is a list of segments: free text, ads and learnable tokens, never one string.

Text that others wrote (titles, names, jobs) stays a text segment of its own, so the encoder can never read an
S-ID or a control token out of it. A string exists for the eyes only: `render`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypedDict

import numpy as np
import polars as pl

from leadre import tables

SEPARATORS = "^;/:<"
"""What separates the parts of a prompt; in a title, a category or a profile each gets a backslash before it."""

DESCRIPTION_SEPARATORS = "^<"
"""What gets a backslash in an ad's description, whose own template already uses ``;``. It is enough: a behavior
begins with ``; 3 days ago^``, and no escaped text holds a ``^`` without its backslash."""

LEARNABLE = "<Learnable Token>"
"""How the learnable token is shown (LEADRE 4.2.1)."""


class Segment(TypedDict):
    """A piece of a prompt: its ``kind``, and its text, its ad_id, or nothing for a learnable token."""

    kind: Literal["text", "ad", "soft"]
    value: str


def text(value: str) -> Segment:
    """Free text."""
    return {"kind": "text", "value": value}


def ad(ad_id: str) -> Segment:
    """An ad, to be written as its S-ID."""
    return {"kind": "ad", "value": ad_id}


def soft() -> Segment:
    """A learnable token."""
    return {"kind": "soft", "value": ""}


def escape(untrusted: str, separators: str = SEPARATORS) -> str:
    r"""Put a backslash before each separator and each backslash, so that the text ends where it ends.

    Our choice: a backslash is the simplest rule that can be undone. Look-alikes (``；`` for ``;``) cannot be,
    since Chinese titles hold them already.

    Example:
        >>> print(escape("3:0 / AC^DC"))
        3\:0 \/ AC\^DC
    """
    return re.sub("[" + re.escape("\\" + separators) + "]", lambda found: "\\" + found[0], untrusted)


def unescape(escaped: str) -> str:
    r"""Undo `escape`.

    Example:
        >>> unescape(escape("a^b\\c"))
        'a^b\\c'
    """
    return re.sub(r"\\(.)", r"\1", escaped, flags=re.DOTALL)


def display_name(name: str) -> str:
    """Turn the tokens of an S-ID into the form that the paper shows.

    Example:
        >>> display_name("<a_51> <b_10> <e_0>")
        '<a_51, b_10, e_0>'
    """
    return name.replace("> <", ", ")


def render(segments: Iterable[Segment], display: Mapping[str, str]) -> str:
    """Show a prompt as a string, with ``display[ad_id]`` for each ad: for logs, docs and tests.

    Example:
        >>> render([text("click on ad^"), ad("7"), text(". ")], {"7": "<a_1, b_2>"})
        'click on ad^<a_1, b_2>. '
    """
    return "".join(_show(segment, display) for segment in segments)


def column(segments: Sequence[Segment]) -> pl.Expr:
    """Give every row of a frame the same segments."""
    return pl.lit(pl.Series([list(segments)], dtype=pl.List(tables.SEGMENT))).first()


def in_turn(*columns: pl.Series) -> pl.Series:
    """Put S columns of N segments together as N lists of S segments (14 times as fast as ``pl.concat_list``).

    Args:
        columns: Series of structs, all of one length.
    """
    num_rows, width = len(columns[0]), len(columns)
    if num_rows == 0:
        return pl.Series(dtype=pl.List(tables.SEGMENT))
    stacked = pl.concat([series.alias("segments") for series in columns])  # (S * N,)
    order = np.arange(width * num_rows).reshape(width, num_rows).T.ravel()
    return stacked.gather(order).reshape((num_rows, width)).arr.to_list()


def _show(segment: Segment, display: Mapping[str, str]) -> str:
    match segment["kind"]:
        case "text":
            return segment["value"]
        case "ad":
            return display[segment["value"]]
        case "soft":
            return LEARNABLE
