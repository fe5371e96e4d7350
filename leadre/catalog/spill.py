"""Where ads go whose group of equal codes has no extra code left."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leadre.catalog.sids import in_order, name


def spill(
    sids: NDArray[np.int32], known: NDArray[np.int32], *, num_codes: Sequence[int], cure: str
) -> NDArray[np.int32]:
    """Move every ad whose extra code is beyond the last one to the sibling with most room.

    Our choice: the siblings of a code are the codes of the last level below the same prefix; they stand for the
    finest step of quantization, so a spilled ad stays among its nearest relatives. One ad after another, in the order
    of the rows, goes where most extra codes are free, to the smallest such code if several are.

    Args:
        sids: ``(N, M + 1)`` S-IDs of new ads, the extra codes 0, 1, 2, ... a group, as many as it takes.
        known: ``(P, M + 1)`` S-IDs that are given already; they stay.
        num_codes: The number of codes of the M levels, and of the extra codes.
        cure: What the error tells the user to do.

    Returns:
        The S-IDs of the new ads, all extra codes below ``num_codes[-1]``.

    Raises:
        ValueError: If all S-IDs below a prefix are taken.
    """
    *_, last_codes, limit = num_codes
    everyone = np.concatenate([known, sids])
    order, opens = in_order(everyone[:, :-2])
    starts = np.append(np.flatnonzero(opens), len(order))
    prefix_of = np.cumsum(opens) - 1
    crowded = np.unique(prefix_of[everyone[order, -1] >= limit])
    for prefix in crowded:
        members = order[starts[prefix] : starts[prefix + 1]]
        stays = everyone[members, -1] < limit
        room = limit - np.bincount(everyone[members[stays], -2], minlength=last_codes)
        for row in members[~stays]:
            code = room.argmax()
            if room[code] == 0:
                begin = name(everyone[row, :-2].tolist())
                raise ValueError(
                    f"{len(members)} ads have codes that begin with {begin!r}, but all {last_codes} x {limit} S-IDs "
                    f"that begin so are taken: {cure}, or quantize with more levels or codes"
                )
            everyone[row, -2:] = code, limit - room[code]
            room[code] -= 1
    return everyone[len(known) :]
