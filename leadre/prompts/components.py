"""The five components of a prompt (LEADRE 4.2.1), each a pure function.

What belongs to a user is computed one user at a time; what belongs to a history, for many targets at once. A
history is a frame with one row a behavior, sorted by ``target`` and time, oldest first:

    target    the prompt that the behavior belongs to
    time      UTC seconds
    days      whole days before the target, or since the behavior before it
    domain    ``ad`` or ``content``
    item_id   an ad_id or a content's id
    action    as the data name it
    shown     the item as text, escaped
    listed    whether the item is an ad of the catalog
"""

import re
from collections.abc import Mapping
from functools import cache
from itertools import permutations
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre import tables
from leadre.data.split import DAY
from leadre.prompts.segments import Segment, column, escape, in_turn, soft, text
from leadre.prompts.wording import Wording

Profile = Mapping[str, str | None]


def instruction(wording: Wording, *, soft_tokens: int) -> list[Segment]:
    """Describe the task, with the learnable tokens inside (component 1)."""
    return [text(wording.task), *[soft() for _ in range(soft_tokens)], text(wording.role)]


def profile(user: Profile, wording: Wording) -> list[Segment]:
    """Tell who the user is (component 2).

    A missing field leaves its clause out; where all are missing, there is no sentence at all. Each clause is a
    segment of its own.
    """
    known = {field: escape(value) for field, value in user.items() if value}
    person = wording.who.join(
        part for part in (_age(known.get("age"), wording), known.get("gender")) if part is not None
    )
    details = [_clause(form, known[field]) for field, form in wording.profile.items() if field in known]
    clauses = [clause for clause in (person, *details) if clause]
    if not clauses:
        return []
    return [*[text(clause + wording.clause) for clause in clauses[:-1]], text(clauses[-1] + wording.profile_end)]


def profiles(users: pl.DataFrame, wording: Wording) -> pl.DataFrame:
    """The `profile` of each row of the table USERS: columns ``user_id`` and ``profile`` (segments)."""
    told = [profile(user, wording) for user in users.drop("user_id").iter_rows(named=True)]
    return users.select("user_id", profile=pl.Series(told, dtype=pl.List(tables.SEGMENT)))


def reordered(profiles: pl.Series, drawn: NDArray[np.uint64], wording: Wording) -> pl.Series:
    """Put the clauses of each profile in a drawn order (LEADRE 4.2.2, "user profile reordering").

    The clause of age and gender stays one clause. All orders of a profile's clauses are equally likely.

    Args:
        profiles: ``(N,)`` what `profile` tells of each user; null where nothing is known of a user.
        drawn: ``(N,)`` of `leadre.prompts.draws.draws`.
        wording: The fixed texts.
    """
    told = []
    for segments, draw in zip(profiles.to_list(), drawn.tolist(), strict=True):
        clauses = [segment["value"] for segment in segments or []]
        if clauses:
            clauses[-1] = clauses[-1].removesuffix(wording.profile_end) + wording.clause
            orders = _orders(len(clauses))
            clauses = [clauses[place] for place in orders[draw % len(orders)]]
            clauses[-1] = clauses[-1].removesuffix(wording.clause) + wording.profile_end
        told.append([text(clause) for clause in clauses])
    return pl.Series("profile", told, dtype=pl.List(tables.SEGMENT))


def interest_summary(frequent: pl.DataFrame, opening: str, wording: Wording) -> pl.DataFrame:
    """Tell what of one kind came how often: categories or SPUs, of behaviors or of negative feedback (component 3).

    Args:
        frequent: Columns ``target``, ``name`` and ``times``, in the order told; names are escaped.
        opening: What opens the list.
        wording: The fixed texts.

    Returns:
        Columns ``target`` and ``summary`` (segments); targets that have nothing to count have no row.
    """
    before, after = wording.category.split("{}")
    times = pl.lit(before) + pl.col("times").cast(pl.String) + pl.lit(after)
    counts = frequent.select("target", what=_text(pl.col("name")), times=_text(times))
    return (
        counts.select("target", summary=in_turn(counts["what"], counts["times"]))
        .group_by("target", maintain_order=True)
        .agg(pl.col("summary").explode())
        .select("target", summary=pl.concat_list(column([text(opening)]), "summary"))
    )


def since_last(history: pl.DataFrame) -> pl.DataFrame:
    """Let ``days`` be the whole days since the behavior before it, 0 for the first of each target."""
    passed = (pl.col("time") - pl.col("time").shift(1)).over("target")
    return history.with_columns(days=passed.fill_null(0) // DAY)


def last(history: pl.DataFrame, wording: Wording) -> pl.DataFrame:
    """How many days before the target its last behavior was: columns ``target`` and ``last`` (segments)."""
    before, after = wording.last.split("{}")
    days = pl.lit(before) + pl.col("days").last().cast(pl.String) + pl.lit(after)
    return history.group_by("target", maintain_order=True).agg(last=pl.concat_list(_text(days)).first())


def behaviors(history: pl.DataFrame, wording: Wording, *, ads: Literal["sid", "description"]) -> pl.DataFrame:
    """Tell the behaviors of both domains in the order of time (components 4 and 5).

    Each behavior is three segments: when and how, what, and what follows it. An ad of the catalog is an ad
    segment, or its description if ``ads`` says so (LEADRE 4.3.1, the implicit task). Our choice: an ad that is
    not in the catalog has no S-ID, so its description stands for it in either case.

    Returns:
        Columns ``target`` and ``behaviors`` (a list of lists of segments).
    """
    as_ad = pl.col("listed") if ads == "sid" else pl.lit(False)
    before, between, after = wording.behavior.split("{}")
    names = {name: escape(wording.actions.get(name, name)) for name in history["action"].unique()}
    action = pl.col("action").replace_strict(names, return_dtype=pl.String)
    when = pl.lit(before) + pl.col("days").cast(pl.String) + pl.lit(between) + action + pl.lit(after)
    what = pl.struct(
        kind=pl.when(as_ad).then(pl.lit("ad")).otherwise(pl.lit("text")),
        value=pl.when(as_ad).then("item_id").otherwise("shown"),
    )
    last = pl.col("target") != pl.col("target").shift(-1)
    end = pl.when(last.fill_null(True)).then(pl.lit(wording.last_behavior)).otherwise(pl.lit(wording.next_behavior))
    told = history.select("target", when=_text(when), what=what, end=_text(end))
    return (
        told.select("target", behaviors=in_turn(told["when"], told["what"], told["end"]))
        .group_by("target", maintain_order=True)
        .agg("behaviors")
    )


@cache
def _orders(clauses: int) -> tuple[tuple[int, ...], ...]:
    return tuple(permutations(range(clauses)))


def _age(age: str | None, wording: Wording) -> str | None:
    return wording.age.format(age) if age and re.fullmatch(r"\d+([-–]\d+)?\+?", age) else age


def _clause(form: str, value: str) -> str:
    """Fill a clause; a value that says "degree" itself does not make it twice."""
    return form.format(value.removesuffix(form.partition("{}")[2]))


def _text(value: pl.Expr) -> pl.Expr:
    return pl.struct(kind=pl.lit("text"), value=value)
