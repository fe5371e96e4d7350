"""What is in the users' minds on a day: drifting taste, an intent that comes and goes, and fatigue."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from leadre.adworld.config import WorldConfig
from leadre.adworld.streams import stream
from leadre.adworld.users import Users

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class State(NamedTuple):
    """The hidden state of users on one day."""

    logits: Floats  # (U, C) taste before the softmax
    taste: Floats  # (U, C) sums to 1
    vector: Floats  # (U, D) the user's place in the space of ads, unit length
    intent: Ints  # (U,) category of the intent under way, -1 for none
    brand: Ints  # (U,) the brand wanted
    age: Ints  # (U,) whole days since the intent began
    days_left: Floats  # (U,) the intent ends when none is left
    fatigue: Floats  # (U, C) decayed count of the ads seen on earlier days


def begin(users: Users, category_vectors: Floats) -> State:
    """The state before the first day: long-term taste, no intent, no fatigue."""
    count, num_categories = users.long_term.shape
    taste = _softmax(users.long_term)
    return State(
        logits=users.long_term,
        taste=taste,
        vector=_place(taste, users, category_vectors),
        intent=np.full(count, -1),
        brand=np.zeros(count, dtype=np.int64),
        age=np.zeros(count, dtype=np.int64),
        days_left=np.zeros(count, dtype=np.float32),
        fatigue=np.zeros((count, num_categories), dtype=np.float32),
    )


def next_day(
    state: State, users: Users, category_vectors: Floats, *, config: WorldConfig, seed: int, day: int
) -> State:
    """Taste drifts, ``eta + kappa (mu - eta) + sigma xi``; intents end, others start with a category ~ taste."""
    noise = stream(seed, "taste/drift", day).standard_normal(state.logits.shape, dtype=np.float32)
    pull, step = np.float32(config.users.drift_pull), np.float32(config.users.drift_step)
    logits = state.logits + pull * (users.long_term - state.logits) + step * noise
    taste = _softmax(logits)
    going_on = (state.intent >= 0) & (state.days_left > 1)
    rng, count = stream(seed, "intent/start", day), len(taste)
    starts = ~going_on & (rng.random(count) < config.intents.start_probability)
    wanted = _draw_category(taste, rng.random(count))
    brand = rng.integers(0, config.ads.brands_per_category, count)
    days = (1 + rng.exponential(config.intents.mean_days, count)).astype(np.float32)
    return State(
        logits=logits,
        taste=taste,
        vector=_place(taste, users, category_vectors),
        intent=np.where(going_on, state.intent, np.where(starts, wanted, -1)),
        brand=np.where(going_on, state.brand, brand),
        age=np.where(going_on, state.age + 1, 0),
        days_left=np.where(going_on, state.days_left - 1, np.where(starts, days, 0)).astype(np.float32),
        fatigue=state.fatigue,
    )


def tire(state: State, user: Ints, category: Ints, decay: float) -> State:
    """Age the fatigue by a day and add today's impressions: ``(n,)`` users and categories of the ads shown."""
    shown = np.zeros_like(state.fatigue)
    np.add.at(shown, (user, category), np.float32(1))
    return state._replace(fatigue=np.float32(decay) * (state.fatigue + shown))


def ramp(state: State, ramp_days: float) -> Floats:
    """How far ads profit from the intent, ``(U,)`` in [0, 1].

    It is 0 on the intent's first day, so that content always precedes ads, and 1 after ``ramp_days``.
    """
    grown = np.minimum(state.age / ramp_days, 1.0)
    return np.where(state.intent >= 0, grown, 0.0).astype(np.float32)


def copy_users(target: State, source: State, users: Ints) -> None:
    """Overwrite the rows of some users in ``target`` by those of ``source``."""
    fields: list[tuple[NDArray[Any], NDArray[Any]]] = list(zip(target, source, strict=True))
    for kept, new in fields:
        kept[users] = new[users]


def select_users(state: State, users: Ints) -> State:
    """The state of some users."""
    return State._make(field[users] for field in state)


def _place(taste: Floats, users: Users, category_vectors: Floats) -> Floats:
    place = taste @ category_vectors
    place = place / np.linalg.norm(place, axis=1, keepdims=True) + users.personal
    return np.asarray(place / np.linalg.norm(place, axis=1, keepdims=True), dtype=np.float32)


def _draw_category(taste: Floats, uniform: NDArray[np.float64]) -> Ints:
    cumulative = np.cumsum(taste, axis=1, dtype=np.float64)
    below = cumulative < uniform[:, None] * cumulative[:, -1:]
    return np.asarray(below.sum(axis=1), dtype=np.int64)


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)
