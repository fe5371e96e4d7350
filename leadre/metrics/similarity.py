"""How alike two lists of the same user are (LEADRE 5.2.5)."""

from leadre.metrics.ranking import NO_AD, Rows, Scores, among, check_pair, deduplicate, share


def dice(first: Rows, second: Rows, *, k: int) -> Scores:
    """The Dice coefficient of two users' lists, twice the common ads over all ads (LEADRE 5.2.5, eq. 1).

    Both lists are cut at K after duplicates are dropped, and are compared as sets: the order does not count.
    Two empty lists are alike, 1; an empty one and any other are not, 0.

    Args:
        first: ``(N, V)`` catalog rows, -1 where there is no ad.
        second: ``(N, W)`` catalog rows of the same users.
        k: Where both are cut.

    Returns:
        ``(N,)`` in [0, 1].

    Raises:
        ValueError: If ``k`` is below 1, or the lists do not belong together.

    Example:
        >>> import numpy as np
        >>> dice(np.array([[5, 7], [-1, -1]]), np.array([[7, 9], [-1, -1]]), k=2).tolist()
        [0.5, 1.0]
    """
    check_pair(first, second, k)
    tops = deduplicate(first)[:, :k], deduplicate(second)[:, :k]
    first_size, second_size = ((top != NO_AD).sum(axis=1) for top in tops)
    return share(2 * among(*tops).sum(axis=1), first_size + second_size, empty=1.0)
