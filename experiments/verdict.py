"""Whether a claim holds: a paired difference over users and training seeds, beside that of its negative control.

Scores are ``(S, N)``: S training seeds, N users; NaN where a user is not scored.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Scores = NDArray[np.float64]
Verdict = Literal["holds", "fails", "undecided"]

FEWEST_SEEDS = 3
"""With fewer, nothing is known of how much other seeds would differ, and no claim holds."""
POWER = 0.8
_DRAWS_AT_ONCE = 500
_ROUNDING = 1e-9
"""A share of a variance that the order of a sum may make: taken for more, it would untie draws at 0."""
_HALVINGS = 60


class Effect(NamedTuple):
    """How much more one row has than another.

    Attributes:
        mean: The mean over users and seeds of the paired difference.
        low: The lower end of its interval.
        high: The upper end of its interval.
        p: How probable it is to see a mean this far from 0 if there is no difference, two-sided.
        users: How many users are scored in both.
        of_users: The variance of the mean that comes of the users that happened to be tested.
        of_seeds: The variance of the mean that comes of the training seeds.
    """

    mean: float
    low: float
    high: float
    p: float
    users: int
    of_users: float
    of_seeds: float


class Judged(NamedTuple):
    """A verdict, why, and the users with whom it could be told."""

    verdict: Verdict
    why: str
    users_needed: int | None


def effect(better: Scores, worse: Scores, *, samples: int, confidence: float, generator: np.random.Generator) -> Effect:
    """Compare two rows on the same users and seeds: a bootstrap over users, and Student's t over seeds.

    Each draw takes the users again with replacement, all seeds and both rows of a user together. Three seeds cannot be
    drawn again (nine in ten such intervals would be too narrow where seeds matter): our choice is to add to each
    draw a variate of Student's t with S - 1 degrees of freedom, as wide as the seeds' means differ beyond what the
    users explain. Of one seed that width is not known, and the interval tells of users alone.

    Args:
        better: ``(S, N)``.
        worse: ``(S, N)``, of the same seeds and users.
        samples: How many draws.
        confidence: The share of such intervals that hold the true difference.
        generator: The only source of randomness.

    Raises:
        ValueError: If the shapes differ, or no user is scored in both.
    """
    if better.shape != worse.shape:
        raise ValueError(f"better is {better.shape}, worse is {worse.shape}: give both the same seeds and users")
    found = better - worse
    found = found[:, ~np.isnan(found).any(axis=0)]
    seeds, users = found.shape
    if not users:
        raise ValueError("no user is scored in both rows, so there is nothing to compare: name another score")
    of_seeds = _variance_of_seeds(found)
    draws = _drawn_means(found, samples=samples, generator=generator)
    of_users = float(draws.var())
    draws += np.sqrt(of_seeds) * generator.standard_t(max(seeds - 1, 1), size=samples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = min(1.0, 2 * (beyond + 1) / (samples + 1))
    return Effect(float(found.mean()), float(low), float(high), p, users, of_users, of_seeds)


def _drawn_means(found: Scores, *, samples: int, generator: np.random.Generator) -> Scores:
    """The mean over seeds and drawn users, ``(samples,)``; users with equal differences are drawn together."""
    means, counts = np.unique(found.mean(axis=0), return_counts=True)
    users = found.shape[1]
    drawn = np.empty(samples)
    for start in range(0, samples, _DRAWS_AT_ONCE):
        some = drawn[start : start + _DRAWS_AT_ONCE]
        some[:] = generator.multinomial(users, counts / users, size=len(some)) @ means / users
    return drawn


def _variance_of_seeds(found: Scores) -> float:
    """The variance of the mean over S seeds that is due to the seeds: what users' own swings do not explain."""
    seeds, users = found.shape
    if seeds < 2 or users < 2:
        return 0.0
    of_seed = found.mean(axis=1)
    rest = found - found.mean(axis=0) - of_seed[:, None] + found.mean()
    swings = (rest**2).sum() / ((seeds - 1) * (users - 1)) / users
    variance = of_seed.var(ddof=1)
    more = variance - swings
    return float(more / seeds) if more > _ROUNDING * variance else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """P-values that hold for all claims of a study together (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p)), key=lambda place: p[place])
    adjusted, most = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = most
    return adjusted


def users_needed(found: Effect, *, seeds: int, confidence: float) -> int | None:
    """How many users would tell a difference of this size from none, with these seeds, four times in five.

    The interval must end short of 0 by what the mean swings four times in five: its half width is that of the normal
    distribution over users and of Student's t over seeds, put together as the roots of their squares.

    Returns:
        None where the seeds differ so much that no number of users would, or where there is no difference at all.
    """
    tail = (1 + confidence) / 2
    over_users, over_seeds = NormalDist().inv_cdf(tail), float(student.ppf(tail, max(seeds - 1, 1)))

    def is_told(of_users: float) -> bool:
        half = np.hypot(over_users * of_users**0.5, over_seeds * found.of_seeds**0.5)
        return bool(abs(found.mean) >= half + NormalDist().inv_cdf(POWER) * (of_users + found.of_seeds) ** 0.5)

    if found.mean == 0 or not is_told(0.0):
        return None
    least, most = 0.0, found.mean**2  # variances that are told, and that are not
    for _ in range(_HALVINGS):
        middle = (least + most) / 2
        least, most = (middle, most) if is_told(middle) else (least, middle)
    return int(np.ceil(found.of_users * found.users / least)) if least else None


def judge(found: Effect, p_holm: float, excess: Effect | None, *, seeds: int, claims: int, confidence: float) -> Judged:
    """The verdict on a claim.

    It *holds* if its difference is above 0 (by Holm's p) with three seeds or more, and above that of its negative
    control too; it *fails* if its difference is below 0, with three seeds or more; else it is *undecided*.

    Args:
        found: The claim's difference.
        p_holm: Its p among all claims of the study.
        excess: By how much the difference is above the same where what the claim names is taken out; None where that
            control has fewer than three seeds.
        seeds: How many training seeds both rows have.
        claims: How many claims the study has.
        confidence: Of the intervals; 1 - confidence is the level that ``p_holm`` must be below.
    """
    needed = users_needed(found, seeds=seeds, confidence=1 - (1 - confidence) / claims)
    if p_holm >= 1 - confidence:
        return Judged("undecided", _why_not_told(found, needed), needed)
    if seeds < FEWEST_SEEDS:
        why = f"{seeds} training seed{'s' * (seeds > 1)}: how much others would differ is not known; three are needed"
        return Judged("undecided", why, needed)
    if found.mean < 0:
        return Judged("fails", "the difference is the other way round", needed)
    if excess is None:
        return Judged("undecided", "its negative control was not run with three seeds", needed)
    if excess.low <= 0:
        why = "its negative control's difference cannot be told from it, so it may not come of what is claimed"
        return Judged("undecided", why, needed)
    return Judged("holds", "the difference is above 0, and above its negative control's", needed)


def _why_not_told(found: Effect, needed: int | None) -> str:
    if needed is None:
        return "the difference cannot be told from none, with however many users: more training seeds are needed"
    return f"the difference cannot be told from none with {found.users:,} users; of this size it would take {needed:,}"
