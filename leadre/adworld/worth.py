"""What showing an ad to a user truly earns, from the state that nobody in the world can see."""

import json
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from leadre.adworld.catalog import Catalog
from leadre.adworld.config import WorldConfig
from leadre.adworld.response import affinity, click_probability, conversion_probability
from leadre.adworld.state import State
from leadre.adworld.users import Users

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]
Texts = NDArray[np.object_]


class Hidden(NamedTuple):
    """A world's N ads, and its state for U users at the moment of each user's last ad behavior."""

    config: WorldConfig
    state: State
    day: Ints  # (U,) of that moment
    users: Users
    catalog: Catalog
    user_ids: Texts  # (U,)
    ad_ids: Texts  # (N,)


_PARTS: dict[str, Any] = {"state": State, "users": Users, "catalog": Catalog}


def worth(hidden: Hidden, user: Ints, ad: Ints) -> Doubles:
    """The expected ECPM of showing ads: ``1000 P(click) P(conversion | click) bid``, the intent included.

    These are the probabilities that the simulation draws with. An advertiser pays its bid for a conversion; an ad that
    does not live on the day cannot be shown and earns 0.

    Args:
        hidden: The state.
        user: Rows of users, of any shape that broadcasts with ``ad``.
        ad: Rows of ads.

    Returns:
        Of the broadcast shape, in the unit of ``ecpm``.
    """
    user, ad = np.broadcast_arrays(user, ad)
    config, state, users, catalog = hidden.config, hidden.state, hidden.users, hidden.catalog
    fit = affinity(state, catalog, user, ad)
    click = click_probability(state, catalog, user, ad, fit, config=config).astype(np.float64)
    convert = conversion_probability(state, catalog, users, user, ad, fit, config=config.conversions)
    day = hidden.day[user]
    alive = (catalog.start_day[ad] <= day) & (day < catalog.end_day[ad])
    return np.asarray(alive * 1000 * click * convert * catalog.bid[ad], dtype=np.float64)


def pack(hidden: Hidden) -> dict[str, NDArray[Any]]:
    """As arrays of numbers alone, which safetensors holds; texts are rows of bytes."""
    packed: dict[str, NDArray[Any]] = {"day": hidden.day}
    for part in _PARTS:
        packed |= {f"{part}.{name}": array for name, array in getattr(hidden, part)._asdict().items()}
    config = np.frombuffer(json.dumps(asdict(hidden.config)).encode(), dtype=np.uint8)
    packed |= {"config": config, "user_ids": _bytes(hidden.user_ids), "ad_ids": _bytes(hidden.ad_ids)}
    return {name: np.ascontiguousarray(array) for name, array in packed.items()}


def unpack(arrays: dict[str, NDArray[Any]]) -> Hidden:
    """What `pack` was given.

    Raises:
        ValueError: If an array is missing.
    """
    wanted = [
        "day",
        "config",
        "user_ids",
        "ad_ids",
        *(f"{p}.{name}" for p, kind in _PARTS.items() for name in kind._fields),
    ]
    if missing := [name for name in wanted if name not in arrays]:
        raise ValueError(f"the hidden state has no {missing[0]!r} (one of {len(missing)}): gather the world anew")
    parts = {part: kind(**{name: arrays[f"{part}.{name}"] for name in kind._fields}) for part, kind in _PARTS.items()}
    config = TypeAdapter(WorldConfig).validate_json(arrays["config"].tobytes(), strict=True)
    return Hidden(
        config=config,
        day=arrays["day"],
        user_ids=_texts(arrays["user_ids"]),
        ad_ids=_texts(arrays["ad_ids"]),
        **parts,
    )


def _bytes(texts: Texts) -> NDArray[np.uint8]:
    """``(n,)`` texts to ``(n, longest)`` bytes, filled up with zeros."""
    encoded = np.array([text.encode() for text in texts], dtype=np.bytes_)
    return encoded.view(np.uint8).reshape(len(texts), -1) if len(texts) else np.empty((0, 1), dtype=np.uint8)


def _texts(rows: NDArray[np.uint8]) -> Texts:
    return np.array([row.tobytes().rstrip(b"\0").decode() for row in rows], dtype=object)
