"""What the user saw, as text: each ad and content with its category and SPU, escaped, and whether it has an S-ID."""

from typing import Literal

import polars as pl

from leadre.prompts.segments import DESCRIPTION_SEPARATORS, escape

_SCHEMA = {
    "domain": pl.String(),
    "item_id": pl.String(),
    "category": pl.String(),
    "spu": pl.String(),
    "shown": pl.String(),
    "listed": pl.Boolean(),
}


def items(
    ads: pl.DataFrame,
    contents: pl.DataFrame,
    *,
    catalog: set[str],
    content_title: Literal["title", "title_spu"],
) -> pl.DataFrame:
    """Word every item of both domains once, however often it is in a history.

    Args:
        ads: The table ADS.
        contents: The table CONTENTS.
        catalog: The ad_ids that have an S-ID.
        content_title: Whether a content is its title alone, or ``<title>/<SPU>`` where it has an SPU.

    Returns:
        Columns ``domain``, ``item_id``, ``category`` and ``spu`` (null if it has none), ``shown``, ``listed``.
    """
    with_spu = content_title == "title_spu"
    rows = [
        ("ad", ad_id, _name(category), _name(spu), escape(description, DESCRIPTION_SEPARATORS), ad_id in catalog)
        for ad_id, category, spu, description in ads.select("ad_id", "first_category", "spu", "description").iter_rows()
    ]
    rows += [
        ("content", item_id, _name(category), _name(spu), _title(title, spu if with_spu else None), False)
        for item_id, title, category, spu in contents.iter_rows()
    ]
    return pl.DataFrame(rows, schema=_SCHEMA, orient="row")


def _name(name: str | None) -> str | None:
    return escape(name) if name else None


def _title(title: str | None, spu: str | None) -> str:
    return escape(title or "") + ("/" + escape(spu) if spu else "")
