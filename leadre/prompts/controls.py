"""Negative controls: a component that is another's, so that what it still gains was not due to what it tells."""

import numpy as np
import polars as pl

from leadre.prompts.draws import draws


def of_another_user(behaviors: pl.DataFrame, *, domain: str, seed: int) -> pl.DataFrame:
    """Give each user's behaviors of a domain to one other user, at the times at which they were.

    Args:
        behaviors: A BEHAVIORS frame.
        domain: Whose behaviors are exchanged; those of other domains stay.
        seed: 0 is a seed.

    Returns:
        The same rows with another ``user_id``.

    Raises:
        ValueError: If fewer than two users have behaviors of the domain.
    """
    users = behaviors.filter(pl.col("domain") == domain)["user_id"].unique().sort()
    if len(users) < 2:
        raise ValueError(
            f"prompts.{domain}_control is {seed}, but {len(users)} users have behaviors in the {domain} domain, so "
            f"nobody's can be another's: set prompts.{domain}_control to null, or give more users"
        )
    other = dict(zip(users, users.gather(_another(len(users), seed=seed)), strict=True))
    exchanged = pl.col("user_id").replace_strict(other, default=None, return_dtype=pl.String)
    return behaviors.with_columns(user_id=pl.when(domain=domain).then(exchanged).otherwise("user_id"))


def names_of_another(names: pl.DataFrame, known: pl.Series, *, seed: int) -> pl.DataFrame:
    """Exchange the names that each user's behaviors are about: the counts stay, what they count is drawn by user.

    A user's names are moved on by one and the same number of places in the list of all names; the numbers are
    independent of one another, and none is 0.

    Args:
        names: Columns ``user_id``, ``name`` (or null) and ``time``.
        known: All names.
        seed: 0 is a seed.

    Raises:
        ValueError: If there are fewer than two names.
    """
    ordered = known.drop_nulls().unique().sort()
    if len(ordered) < 2:
        raise ValueError(
            f"prompts.summary_control is {seed}, but the items have {len(ordered)} names, so none can stand for "
            "another: set prompts.summary_control to null"
        )
    users = names.select(pl.col("user_id").unique())
    moved = draws(users, seed=seed, of="summary") % np.uint64(len(ordered) - 1) + np.uint64(1)
    places = pl.col("name").replace_strict(ordered, np.arange(len(ordered)), default=None, return_dtype=pl.UInt64)
    rows = names.with_columns(place=places).join(
        users.with_columns(moved=pl.Series(moved)), on="user_id", how="left", maintain_order="left"
    )
    exchanged = ordered.gather((rows["place"] + rows["moved"]) % len(ordered))
    return names.with_columns(exchanged.alias("name"))


def descriptions_of_another(ads: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Give each ad the description of one other ad.

    Args:
        ads: Columns ``ad_id`` and ``description``, in any order; who gets whose depends on the ad_ids alone.
        seed: 0 is a seed.

    Raises:
        ValueError: If there are fewer than two ads.
    """
    if ads.height < 2:
        raise ValueError(
            f"prompts.description_control is {seed}, but there is {ads.height} ad, so no description can be another's: "
            "set prompts.description_control to null"
        )
    ordered = ads.select("ad_id", "description").sort("ad_id")
    exchanged = ordered.with_columns(pl.col("description").gather(_another(ads.height, seed=seed)))
    return ads.drop("description").join(exchanged, on="ad_id", how="left", maintain_order="left").select(ads.columns)


def _another(count: int, *, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """For each of some things another one, none twice: all lie on one random circle."""
    circle = np.random.default_rng(seed).permutation(count)
    another = np.empty(count, dtype=np.int64)
    another[circle] = np.roll(circle, -1)
    return another
