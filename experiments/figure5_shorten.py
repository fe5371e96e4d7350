"""The stage of Figure 5 that composes test prompts again with some behaviors removed (LEADRE 5.2.5).

What is removed is taken from the sequence that the prompt shows; nothing older moves up in its place but for what the
token budget had kept out. Our choice: the profile and the interest summary stay as they were, so what changes a list is
the sequence alone.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from leadre import tables
from leadre.lm.encode import Prompts, encode_prompts
from leadre.lm.fragments import Fragments
from leadre.lm.vocabulary import load_vocabulary
from leadre.prompts import tasks
from leadre.prompts.compose import Ingredients, arrow, ingredients, write_about, writer
from leadre.prompts.config import PromptsConfig
from leadre.prompts.draws import draws
from leadre.settings import settings

VERSION = 1
FULL = "LEADRE"
"""The system whose prompts are whole; the ids of its prompts are those of the users."""
Kind = Literal[
    "earliest", "latest", "middle", "random", "again", "as_earliest", "as_latest", "replaced", "coin", "other_side"
]
Of = Literal["ads", "contents", "behaviors"]
DOMAINS = {"ads": ["ad"], "contents": ["content"], "behaviors": ["ad", "content"]}

log = logging.getLogger(__name__)


@settings
class Cut:
    """What is removed from each user's sequence.

    Attributes:
        kind: Which behaviors.

            - ``earliest``, ``latest``: those at an end; ``middle``: a window, as far from one end as from the other.
            - ``random``, ``again``: two independent draws.
            - ``as_earliest``, ``as_latest``: a draw that has as many of each domain as those at that end.
            - ``replaced``: the earliest, each of which becomes one of another user's, of its domain and at its time.
            - ``coin``, ``other_side``: of as many ads and as many contents, drawn, the half that a coin picks, and
              the other half.
        number: How many.
        of: What is counted and removed.
    """

    kind: Kind
    number: Annotated[int, Field(ge=1)]
    of: Of

    @property
    def name(self) -> str:
        """The system as ``scores.json`` names it.

        Example:
            >>> Cut(kind="as_latest", number=4, of="behaviors").name
            'as latest 4 behaviors'
        """
        return f"{self.kind.replace('_', ' ')} {self.number} {self.of}"


@settings
class ShortenConfig:
    """What the prompts of this study are.

    Attributes:
        prompts: The settings that the model's own prompts were composed with.
        users: How many test users, drawn from those of whom every cut finds enough behaviors; all if there are fewer.
        seed: Draws the users, and what is removed at random.
        cuts: What is removed, one system each.
    """

    prompts: PromptsConfig
    users: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0)]
    cuts: Annotated[tuple[Cut, ...], Field(min_length=1)]


def shorten(config: ShortenConfig, world: Path, catalog: Path, base: Path, *, out: Path) -> None:
    """Write the prompts of all cuts as ``main.test.parquet``, each distinct one once.

    ``user_id`` names a prompt there: the user's own id for the whole prompt, another for each that differs from those
    before it. Prompts are the same where their tokens are: a behavior that the token budget had kept out changes
    nothing. ``shortened.parquet`` tells which ``prompt`` belongs to a user and a system, and how many ``ads`` and
    ``contents`` the user's whole sequence has.

    Raises:
        ValueError: If fewer than two test users have behaviors enough, or as for `leadre.prompts.compose.compose`.
    """
    counts = pl.concat([_counts(part) for part in ingredients(config.prompts, world, catalog)])
    chosen = _sample(counts, config)
    parts = list(ingredients(config.prompts, world, catalog, users=chosen["user_id"]))
    targets, history = _joined(parts)
    history = with_draws(history, targets.select("target", "user_id"), seed=config.seed)
    sids = tables.read(tables.SIDS, catalog / "sids.parquet")
    fragments = Fragments(load_vocabulary(base), sids)
    seen: dict[bytes, str] = {}
    found = []
    with writer(tables.PAIRS, out / "main.test.parquet") as file:
        for name, changed in _variants(history, config):
            pairs = tasks.next_ad(targets, changed, parts[0].templates, config.prompts, ads="sid")
            batch = arrow(pairs).combine_chunks().to_batches()[0]
            ids = _named(pairs["user_id"], encode_prompts(batch, fragments, max_tokens=config.prompts.max_tokens), seen)
            named = pairs.with_columns(prompt=ids["prompt"])
            file.write_table(arrow(_pairs(named.filter(ids["new"]))))
            found.append(named.select("user_id", "prompt", system=pl.lit(name)))
    told = pl.concat(found).join(chosen, on="user_id", maintain_order="left")
    told.select("user_id", "system", "prompt", "ads", "contents").write_parquet(out / "shortened.parquet")
    language = json.loads((world / "world.json").read_text(encoding="utf-8"))["language"]
    about = {"users": chosen.height, "eligible": _eligible(counts, config).height, "test_users": counts.height}
    write_about(out, config.prompts, language, shortened={**about, "prompts": len(seen)})
    log.info("%s users of %s, %s prompts", chosen.height, counts.height, len(seen))


def cut_history(history: pl.DataFrame, cut: Cut) -> pl.DataFrame:
    """The history without what a cut removes.

    Args:
        history: What `leadre.prompts.components` describes, with three draws a row as `with_draws` adds them.
        cut: What is removed; of a target with fewer behaviors than that, all are.
    """
    picked = history.with_columns(picked=picks(history, cut))
    return _replaced(picked) if cut.kind == "replaced" else picked.filter(~pl.col("picked")).drop("picked")


def picks(history: pl.DataFrame, cut: Cut) -> pl.Series:
    """Whether a cut picks each behavior, ``(R,)``; arguments as of `cut_history`."""
    number, wanted = cut.number, pl.col("domain").is_in(DOMAINS[cut.of])
    frame = history.with_columns(
        wanted=wanted,
        place=wanted.cast(pl.Int64).cum_sum().over("target") - 1,
        size=wanted.cast(pl.Int64).sum().over("target"),
        of_domain=pl.col("random").rank("ordinal").over("target", "domain"),
    )
    first = (pl.col("size") - number) // 2
    at = {
        "earliest": pl.col("place") < number,
        "replaced": pl.col("place") < number,
        "latest": pl.col("place") >= pl.col("size") - number,
        "middle": pl.col("place").is_between(first, first + number - 1),
        "random": _first_drawn("random") <= number,
        "again": _first_drawn("again") <= number,
    }
    if cut.kind in at:
        return frame.select(pl.col("wanted") & at[cut.kind]).to_series()
    if cut.kind in ("as_earliest", "as_latest"):
        frame = frame.with_columns(end=pl.col("wanted") & at[cut.kind.removeprefix("as_")])
        return frame.select(pl.col("of_domain") <= pl.col("end").sum().over("target", "domain")).to_series()
    frame = frame.with_columns(pl.col("wanted") & (pl.col("of_domain") <= number)).with_columns(
        side=_first_drawn("coin")
    )
    first_side = pl.col("side") <= number
    return frame.select(pl.col("wanted") & (first_side if cut.kind == "coin" else ~first_side)).to_series()


def with_draws(history: pl.DataFrame, users: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Add a number below 2^64 a behavior for each of the draws ``random``, ``again`` and ``coin``.

    Args:
        history: What `leadre.prompts.components` describes.
        users: Columns ``target`` and ``user_id``.
        seed: 0 is a seed.
    """
    place = pl.int_range(pl.len()).over("target")
    keys = history.join(users, on="target", maintain_order="left").select("user_id", place=place)
    return history.with_columns(
        pl.Series(name, draws(keys, seed=seed, of=name)) for name in ("random", "again", "coin")
    )


def _first_drawn(draw: str) -> pl.Expr:
    """The rank of each wanted behavior's draw among the target's wanted ones, from 1 on."""
    return pl.when("wanted").then(draw).rank("ordinal").over("target")


def _replaced(history: pl.DataFrame) -> pl.DataFrame:
    """Give each picked behavior the item and the action of another target's, of the same domain; it keeps its time.

    Targets stand on a circle in the order of their first draw, and each takes from the next; one that has fewer
    behaviors of the domain is gone through again.
    """
    told = ["item_id", "action", "shown", "listed"]
    circle = history.group_by("target").agg(pl.col("random").min()).sort("random")["target"]
    givers = pl.DataFrame({"target": circle, "giver": circle.gather((np.arange(len(circle)) + 1) % len(circle))})
    numbered = history.with_columns(number=pl.int_range(pl.len()).over("target", "domain"))
    given = numbered.select(pl.col("target").alias("giver"), "domain", pl.col("number").alias("taken"), *told)
    sizes = given.group_by("giver", "domain").agg(size=pl.len().cast(pl.Int64))
    asked = numbered.join(givers, on="target", maintain_order="left").join(
        sizes, on=["giver", "domain"], how="left", maintain_order="left"
    )
    asked = asked.with_columns(taken=pl.col("number") % pl.col("size"))
    both = asked.join(given, on=["giver", "domain", "taken"], how="left", maintain_order="left", suffix="_given")
    takes = pl.col("picked") & pl.col("item_id_given").is_not_null()
    changed = (pl.when(takes).then(f"{name}_given").otherwise(name).alias(name) for name in told)
    return both.with_columns(changed).select(column for column in history.columns if column != "picked")


def _variants(history: pl.DataFrame, config: ShortenConfig) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each system and its history, the whole one first."""
    columns = [column for column in history.columns if column not in ("random", "again", "coin")]
    yield FULL, history.select(columns)
    for cut in config.cuts:
        yield cut.name, cut_history(history, cut).select(columns)


def _counts(part: Ingredients) -> pl.DataFrame:
    """How many behaviors of each domain the whole sequences have: ``user_id``, ``ads``, ``contents``."""
    of_domain = {"ads": pl.col("domain") == "ad", "contents": pl.col("domain") == "content"}
    counted = part.history.group_by("target").agg(
        rows.sum().cast(pl.Int64).alias(name) for name, rows in of_domain.items()
    )
    return part.targets.join(counted, on="target", how="left", maintain_order="left").select(
        "user_id", pl.col(*of_domain).fill_null(0)
    )


def _eligible(counts: pl.DataFrame, config: ShortenConfig) -> pl.DataFrame:
    """The users of whom every cut finds enough behaviors, so that all numbers are of the same users."""
    most = {of: max((cut.number for cut in config.cuts if cut.of == of), default=0) for of in DOMAINS}
    coins = max((cut.number for cut in config.cuts if cut.kind in ("coin", "other_side")), default=0)
    return counts.filter(
        pl.col("ads") >= max(most["ads"], coins),
        pl.col("contents") >= max(most["contents"], coins),
        pl.col("ads") + pl.col("contents") >= most["behaviors"],
    )


def _sample(counts: pl.DataFrame, config: ShortenConfig) -> pl.DataFrame:
    eligible = _eligible(counts, config)
    if eligible.height < 2:
        raise ValueError(
            f"{eligible.height} of {counts.height} test users have behaviors enough in their prompts for what is to be "
            "removed: remove fewer, or show more (prompts.max_content_behaviors, prompts.max_ad_behaviors)"
        )
    drawn = pl.Series(draws(eligible.select("user_id"), seed=config.seed, of="users"))
    return eligible.with_columns(drawn=drawn).sort("drawn").head(config.users).drop("drawn").sort("user_id")


def _joined(parts: list[Ingredients]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Parts as one, with targets numbered anew."""
    shift, targets, histories = 0, [], []
    for part in parts:
        targets.append(part.targets.with_columns(pl.col("target") + shift))
        histories.append(part.history.with_columns(pl.col("target") + shift))
        shift += part.targets.height
    return pl.concat(targets), pl.concat(histories)


def _named(users: pl.Series, prompts: Prompts, seen: dict[bytes, str]) -> pl.DataFrame:
    """Name each prompt by its user and its tokens: columns ``prompt``, and whether it is ``new``; ``seen`` grows."""
    rows = []
    whole = not seen
    for user, start, end in zip(users, prompts.offsets[:-1], prompts.offsets[1:], strict=True):
        key = hashlib.sha256(user.encode() + b"\0" + prompts.ids[start:end].tobytes()).digest()
        new = key not in seen
        rows.append((seen.setdefault(key, user if whole else f"{user} #{len(seen)}"), new))
    return pl.DataFrame(rows, schema={"prompt": pl.String, "new": pl.Boolean}, orient="row")


def _pairs(named: pl.DataFrame) -> pl.DataFrame:
    return named.with_columns(user_id="prompt").select(list(tables.PAIRS.columns))
