"""How sure a mean over users is: the bootstrap over users, and Wilson's interval for shares.

``values`` is ``(N, V)``: V numbers a user, NaN where a user is not scored. The same draw of users serves all V
columns. Two systems are compared by the differences of each user, so that what users have in common cancels out.

Of millions of users a `Tally` keeps how often which number was seen: for a column's bootstrap that is all there is to
know, since a draw of N users with replacement is a multinomial draw of these counts. A tally of the differences of two
systems is their paired comparison.
"""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

_DRAWS_AT_ONCE = 32
_LOWER_BITS = np.uint64(48)
"""Bits of a number that do not tell its bin: all but the sign, the exponent and 4 of the fraction."""


class Interval(NamedTuple):
    """The ends of an interval, one an entry: ``(V,)`` each."""

    low: Scores
    high: Scores


class Tally:
    """One number a user, added block by block, kept as counts of alike numbers: kilobytes for any number of users.

    Our choice: alike are numbers that agree in the upper 16 bits of their float64, so within a sixteenth of each other;
    of each such bin count, sum and sum of squares are kept. The mean is exact. A bin of equal numbers, as those of hits
    and shares of short lists are, is drawn exactly as the bootstrap draws its users; the numbers drawn of any other bin
    add up to a normal number with the right mean and variance.
    """

    def __init__(self) -> None:
        self.unscored = 0
        self._bins = np.empty(0, dtype=np.int64)
        self._totals = np.empty((3, 0))  # counts, sums, sums of squares

    def add(self, values: Scores) -> None:
        """Add ``(N,)`` users' numbers; NaN is a user that is not scored.

        Raises:
            ValueError: If a number is infinite.
        """
        scored = values[~np.isnan(values)] + 0.0  # -0 is 0
        if infinite := int(np.isinf(scored).sum()):
            raise ValueError(
                f"values holds {infinite} infinite numbers of {len(values)}: a user's number is finite, or NaN where "
                "the user is not scored"
            )
        self.unscored += len(values) - len(scored)
        bins = (scored.view(np.uint64) >> _LOWER_BITS).astype(np.int64)
        found = np.stack([np.bincount(bins, weights) for weights in (None, scored, scored**2)])
        seen = np.flatnonzero(found[0])
        known = np.union1d(self._bins, seen)
        totals = np.zeros((3, len(known)))
        totals[:, np.searchsorted(known, self._bins)] = self._totals
        totals[:, np.searchsorted(known, seen)] += found[:, seen]
        self._bins, self._totals = known, totals

    @property
    def scored(self) -> int:
        """How many users are scored."""
        return int(self._totals[0].sum())

    @property
    def total(self) -> float:
        """The sum over users."""
        return float(self._totals[1].sum())

    @property
    def mean(self) -> float:
        """The mean over the users that are scored; NaN where none is."""
        return self.total / self.scored if self.scored else float("nan")

    def resampled_means(self, *, samples: int, generator: np.random.Generator) -> Scores:
        """Draw the users again, with replacement, and take the mean over those that are scored: ``(samples,)``.

        Raises:
            ValueError: As the function of the same name.
        """
        counts, sums, squares = self._totals
        users = self.scored + self.unscored
        _check_draws(users, samples)
        means = sums / counts
        spreads = squares / counts - means**2
        spreads[spreads < 1e-12 * means**2] = 0  # equal numbers, but for rounding
        drawn = generator.multinomial(users, np.append(counts, self.unscored) / users, size=samples)[:, :-1]
        noise = np.sqrt(drawn @ spreads) * generator.standard_normal(samples)
        found = drawn.sum(axis=1)
        again: Scores = np.full(samples, np.nan)
        np.divide(drawn @ means + noise, found, out=again, where=found > 0)
        return again

    def interval(self, *, samples: int, confidence: float, generator: np.random.Generator) -> tuple[float, float]:
        """The percentile interval of the mean, as `bootstrap_interval`; NaN where no user is scored."""
        means = self.resampled_means(samples=samples, generator=generator)
        low, high = _percentiles(means[:, None], confidence)
        return float(low[0]), float(high[0])


def wilson(hits: int, users: int, *, confidence: float) -> tuple[float, float]:
    """Wilson's interval for a share such as HR@K; unlike the bootstrap it has a width at 0 and at 1.

    Args:
        hits: Users with a hit.
        users: All users.
        confidence: The share of such intervals that hold the true share.

    Returns:
        The ends, in [0, 1].

    Raises:
        ValueError: If there are no users, or not 0 <= hits <= users.

    Example:
        >>> [round(end, 4) for end in wilson(0, 10, confidence=0.95)]
        [0.0, 0.2775]
    """
    if users < 1 or not 0 <= hits <= users:
        raise ValueError(f"{hits} hits of {users} users is no share: give 0 <= hits <= users and 1 or more users")
    z = NormalDist().inv_cdf((1 + _checked(confidence)) / 2)
    center = (hits + z**2 / 2) / (users + z**2)
    half = z / (users + z**2) * (hits * (users - hits) / users + z**2 / 4) ** 0.5
    return max(0.0, center - half), min(1.0, center + half)


def resampled_means(values: Scores, *, samples: int, generator: np.random.Generator) -> Scores:
    """Draw the users again, with replacement, and take each column's mean over those that are scored.

    Args:
        values: ``(N, V)``.
        samples: How often the users are drawn.
        generator: The only source of randomness; generators in equal states draw the same users.

    Returns:
        ``(samples, V)``; NaN where no drawn user is scored.

    Raises:
        ValueError: If there are no users, or ``samples`` is below 1.
    """
    if values.ndim != 2 or not len(values):
        raise ValueError(f"values is {values.shape}, must be (users, metrics) with 1 user or more")
    users = len(values)
    _check_draws(users, samples)
    scored = ~np.isnan(values)
    filled = np.where(scored, values, 0.0)
    means = np.empty((samples, values.shape[1]))
    for start in range(0, samples, _DRAWS_AT_ONCE):
        stop = min(start + _DRAWS_AT_ONCE, samples)
        draws = [np.bincount(generator.integers(users, size=users), minlength=users) for _ in range(start, stop)]
        weights = np.asarray(draws, dtype=np.float64)  # (draws, N): how often each user was drawn
        totals, counts = weights @ filled, weights @ scored.astype(np.float64)
        means[start:stop] = np.divide(totals, counts, out=np.full_like(totals, np.nan), where=counts > 0)
    return means


def bootstrap_interval(values: Scores, *, samples: int, confidence: float, generator: np.random.Generator) -> Interval:
    """The percentile interval of each column's mean over users.

    Returns:
        Ends ``(V,)``; NaN for a column in which no user is scored.

    Raises:
        ValueError: As for `resampled_means`, or if ``confidence`` is not between 0 and 1.
    """
    return _percentiles(resampled_means(values, samples=samples, generator=generator), confidence)


def _percentiles(means: Scores, confidence: float) -> Interval:
    tail = (1 - _checked(confidence)) / 2
    # A draw in which no user is scored says nothing; a column in which no draw says anything stays NaN.
    low, high = np.full((2, means.shape[1]), np.nan)
    told = ~np.isnan(means).all(axis=0)
    if told.any():
        low[told], high[told] = np.nanquantile(means[:, told], [tail, 1 - tail], axis=0)
    return Interval(low=low, high=high)


def _check_draws(users: int, samples: int) -> None:
    if users < 1:
        raise ValueError("there are 0 users: an interval needs 1 or more")
    if samples < 1:
        raise ValueError(f"samples is {samples}, but an interval needs 1 or more: use about 1000")


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, must lie between 0 and 1: 0.95 is usual")
    return confidence
