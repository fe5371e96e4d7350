"""The three tasks as prompt-response pairs: explicit and implicit alignment, and the main task (LEADRE 4.2, 4.3.1)."""

from typing import Literal

import polars as pl

from leadre import tables
from leadre.prompts import components
from leadre.prompts.config import PromptsConfig
from leadre.prompts.segments import DESCRIPTION_SEPARATORS, column, escape, soft, text
from leadre.prompts.wording import Wording

_EMPTY = pl.lit(pl.Series([[]], dtype=pl.List(tables.SEGMENT))).first()
_ALONE = pl.lit(pl.Series([[]], dtype=tables.PAIRS.columns["following"].dtype)).first().alias("following")


def explicit(ads: pl.DataFrame, wording: Wording, *, soft_tokens: int) -> pl.DataFrame:
    """Ask for each ad by its description (LEADRE 4.3.1).

    Our choice: the learnable tokens, which the paper gives to "all fine-tuning tasks", come first; the rest is
    the paper's sample. The description is the last segment of ``head``: the encoder may cut its end.

    Args:
        ads: Columns ``ad_id`` and ``description``, one row a pair.
        wording: The fixed texts.
        soft_tokens: Number of learnable tokens.
    """
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


def next_ad(
    targets: pl.DataFrame,
    history: pl.DataFrame,
    profiles: pl.DataFrame,
    wording: Wording,
    config: PromptsConfig,
    *,
    ads: Literal["sid", "description"],
) -> pl.DataFrame:
    """Ask for the next ad of each target: the main task, or the implicit task if ads are shown by description.

    The pairs stand in the order of the targets.

    Our choice: the summary counts the behaviors of the domains that are shown, and of the whole window, also those
    that are too old to be shown.

    Args:
        targets: Columns ``target`` (any number that names the prompt), ``user_id``, ``ad_id``.
        history: The behaviors, as `components` describes them.
        profiles: Columns ``user_id`` and ``profile``, of `components.profiles`.
        wording: The fixed texts.
        config: Which components, in which order.
        ads: How ads are shown.
    """
    shown = [
        domain for domain, wanted in (("ad", config.ad_behaviors), ("content", config.content_behaviors)) if wanted
    ]
    history = history.filter(pl.col("domain").is_in(shown))
    # No more behaviors than tokens fit in any case: so one very busy user does not fill the memory.
    recent = components.newest(
        history,
        ads=min(config.max_ad_behaviors or config.max_tokens, config.max_tokens),
        contents=min(config.max_content_behaviors or config.max_tokens, config.max_tokens),
    )
    frame = targets.join(components.behaviors(recent, wording, ads=ads), on="target", how="left", maintain_order="left")
    summary = components.interest_summary(history, wording, categories=config.summary_categories)
    frame = frame.join(summary, on="target", how="left", maintain_order="left")
    frame = frame.join(profiles, on="user_id", how="left", maintain_order="left")
    return _arrange(frame, wording, config)


def _arrange(frame: pl.DataFrame, wording: Wording, config: PromptsConfig) -> pl.DataFrame:
    """Put the components in order: those before the behaviors into the head, those after into the tail."""
    parts = {
        "profile": pl.col("profile") if config.profile else _EMPTY,
        "summary": pl.col("summary") if config.summary else _EMPTY,
    }
    place = config.arrangement.index("behaviors")
    before = [parts[name].fill_null(_EMPTY) for name in config.arrangement[:place]]
    after = [parts[name].fill_null(_EMPTY) for name in config.arrangement[place + 1 :]]
    opening = column(components.instruction(wording, soft_tokens=config.soft_tokens))
    return frame.select(
        "user_id",
        "ad_id",
        pl.concat_list(opening, *before).alias("head"),
        pl.when(pl.col("behaviors").is_null()).then(_EMPTY).otherwise(column([text(wording.behaviors)])).alias("lead"),
        pl.col("behaviors").fill_null([]),
        pl.concat_list(*after, column([text(wording.question)])).alias("tail"),
        _ALONE,
    )
