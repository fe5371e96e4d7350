"""The users of the world: a readable profile, a hidden taste that the profile shapes in part, and activity."""

from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.adworld import words
from leadre.adworld.config import UsersConfig
from leadre.adworld.streams import stream

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Users(NamedTuple):
    """U users."""

    profile: Ints  # (U, F) number of the value of each profile field, before any is left out
    long_term: Floats  # (U, C) logits of long-term taste
    personal: Floats  # (U, D) a step of the user's own in the space of ads
    activity: Floats  # (U,) mean 1 over users
    consumption: Ints  # (U,) consumption level, 0 low

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.activity)


def draw_users(config: UsersConfig, width: int, seed: int) -> Users:
    """Draw users: taste logits ``mu_u = sum_k W_k[x_uk] + N(0, taste_spread^2)``, lognormal activity."""
    rng, count = stream(seed, "users/profile"), config.num_users
    shares = [np.array(list(values.values())) for values in words.PROFILE.values()]
    profile = np.stack([rng.choice(len(share), count, p=share / share.sum()) for share in shares], axis=1)
    long_term = config.taste_spread * _normal(seed, "users/taste", (count, words.NUM_CATEGORIES))
    for field, name in enumerate(words.PROFILE):
        effects = _normal(seed, f"users/effect/{name}", (len(shares[field]), words.NUM_CATEGORIES))
        long_term += np.float32(config.profile_effect) * effects[profile[:, field]]
    activity = np.exp(config.activity_spread * _normal(seed, "users/activity", (count,)))
    return Users(
        profile=profile,
        long_term=long_term,
        personal=_normal(seed, "users/personal", (count, width)) * np.float32(config.personal / np.sqrt(width)),
        activity=(activity * np.exp(-0.5 * config.activity_spread**2)).astype(np.float32),
        consumption=profile[:, list(words.PROFILE).index("consumption_level")],
    )


def user_ids(count: int) -> NDArray[np.object_]:
    """The id of each user, ``(U,)``."""
    return np.array([f"user_{n:06d}" for n in range(count)], dtype=object)


def users_frame(users: Users, config: UsersConfig, seed: int) -> pl.DataFrame:
    """The USERS table; a ``missing_share`` of the profile fields is null."""
    missing = stream(seed, "users/missing").random(users.profile.shape) < config.missing_share
    columns = {"user_id": pl.Series(user_ids(users.num_users), dtype=pl.String)}
    for field, (name, values) in enumerate(words.PROFILE.items()):
        texts = np.array(list(values), dtype=object)[users.profile[:, field]]
        texts[missing[:, field]] = None
        columns[name] = pl.Series(texts.tolist(), dtype=pl.String)  # Polars refuses an array that begins with None
    return pl.DataFrame(columns)


def _normal(seed: int, name: str, shape: tuple[int, ...]) -> Floats:
    return stream(seed, name).standard_normal(shape, dtype=np.float32)
