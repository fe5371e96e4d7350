"""The three tasks as prompt-response pairs: explicit and implicit alignment, and the main task (LEADRE 4.2, 4.3.1)."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import polars as pl

from leadre import tables
from leadre.prompts import components
from leadre.prompts.config import PromptsConfig
from leadre.prompts.segments import DESCRIPTION_SEPARATORS, column, escape, soft, text
from leadre.prompts.templates import Template, arranged
from leadre.prompts.wording import Wording

_EMPTY = pl.lit(pl.Series([[]], dtype=pl.List(tables.SEGMENT))).first()
_ALONE = pl.lit(pl.Series([[]], dtype=tables.PAIRS.columns["following"].dtype)).first().alias("following")


def explicit(ads: pl.DataFrame, templates: Sequence[Template], *, soft_tokens: int) -> pl.DataFrame:
    """Ask for each ad by its description (LEADRE 4.3.1).

    Our choice: the learnable tokens, which the paper gives to "all fine-tuning tasks", come first; the rest is
    the paper's sample. The description is the last segment of ``head``: the encoder may cut its end.

    Args:
        ads: Columns ``ad_id``, ``description`` and ``template`` (its place in ``templates``), one row a pair.
        templates: Of one language; only their wording is used.
        soft_tokens: Number of learnable tokens.
    """
    return _by_template(ads, templates, lambda some, template: _explicit(some, template.wording, soft_tokens))


def next_ad(
    targets: pl.DataFrame,
    history: pl.DataFrame,
    templates: Sequence[Template],
    config: PromptsConfig,
    *,
    ads: Literal["sid", "description"],
) -> pl.DataFrame:
    """Ask for the next ad of each target: the main task, or the implicit task if ads are shown by description.

    The pairs stand in the order of the targets.

    Args:
        targets: Columns ``target`` (any number that names the prompt), ``user_id``, ``ad_id``, ``profile`` and
            ``summary`` (segments or null), and ``template`` (its place in ``templates``).
        history: The behaviors that are shown, as `components` describes them.
        templates: Of one language.
        config: Which components, in which order.
        ads: How ads are shown.
    """
    wording = templates[0].wording
    if config.times == "since_last":
        ends = components.last(history, wording)
        history, wording = components.since_last(history), wording._replace(behavior=wording.later)
    else:
        ends = targets.select("target", last=_EMPTY)
    told = components.behaviors(history, wording, ads=ads)
    frame = targets.join(told, on="target", how="left", maintain_order="left")
    frame = frame.join(ends, on="target", how="left", maintain_order="left")
    return _by_template(frame, templates, lambda some, template: _arrange(some, template, config))


def _by_template(
    rows: pl.DataFrame, templates: Sequence[Template], make: Callable[[pl.DataFrame, Template], pl.DataFrame]
) -> pl.DataFrame:
    """Make the pairs of each template; put them into the order of the rows."""
    of = rows["template"].to_numpy()
    made = [make(rows.filter(of == number), template) for number, template in enumerate(templates)]
    return pl.concat(made)[np.argsort(np.argsort(of, kind="stable"))]


def _explicit(ads: pl.DataFrame, wording: Wording, soft_tokens: int) -> pl.DataFrame:
    opening = [*[soft() for _ in range(soft_tokens)], text(wording.explicit)]
    described = [escape(description, DESCRIPTION_SEPARATORS) for description in ads["description"]]
    return ads.select(
        pl.lit(None, pl.String).alias("user_id"),
        "ad_id",
        pl.concat_list(
            column(opening),
            pl.struct(kind=pl.lit("text"), value=pl.Series(described, dtype=pl.String)),
        ).alias("head"),
        _EMPTY.alias("lead"),
        pl.lit(pl.Series([[]], dtype=tables.PAIRS.columns["behaviors"].dtype)).first().alias("behaviors"),
        column([text(wording.explicit_question)]).alias("tail"),
        _ALONE,
    )


def _arrange(frame: pl.DataFrame, template: Template, config: PromptsConfig) -> pl.DataFrame:
    """Put the components in order: those before the behaviors into the head, those after into the tail."""
    wording, arrangement = template.wording, arranged(template, config.arrangement)
    parts = {
        "profile": pl.col("profile") if config.profile else _EMPTY,
        "summary": pl.col("summary") if config.summary else _EMPTY,
    }
    place = arrangement.index("behaviors")
    before = [parts[name].fill_null(_EMPTY) for name in arrangement[:place]]
    after = [parts[name].fill_null(_EMPTY) for name in arrangement[place + 1 :]]
    opening = column(components.instruction(wording, soft_tokens=config.soft_tokens))
    return frame.select(
        "user_id",
        "ad_id",
        pl.concat_list(opening, *before).alias("head"),
        pl.when(pl.col("behaviors").is_null()).then(_EMPTY).otherwise(column([text(wording.behaviors)])).alias("lead"),
        pl.col("behaviors").fill_null([]),
        pl.concat_list(pl.col("last").fill_null(_EMPTY), *after, column([text(wording.question)])).alias("tail"),
        _ALONE,
    )
