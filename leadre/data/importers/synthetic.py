"""A simulated world as a source of data."""

from leadre.adworld.config import WorldConfig
from leadre.adworld.simulate import simulate
from leadre.data.check import Found, with_origin
from leadre.data.quarantine import EMPTY

_CHECKED = ("ads", "users", "contents", "behaviors", "impressions")


def load(world: WorldConfig, *, seed: int) -> Found:
    """Simulate the world; its rows go through the same checks as those of a file."""
    made = simulate(world, seed)
    return Found(
        ads=with_origin(made.ads, "simulated ads"),
        users=with_origin(made.users, "simulated users"),
        contents=with_origin(made.contents, "simulated contents"),
        behaviors=with_origin(made.behaviors, "simulated behaviors"),
        impressions=with_origin(made.impressions, "simulated impressions"),
        refused=EMPTY,
        totals={f"simulated {name}": frame.height for name, frame in made._asdict().items() if name in _CHECKED},
        oracle=made.oracle,
        hidden=made.hidden,
    )
