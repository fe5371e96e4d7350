"""A simulated world as a source of data."""

from leadre.adworld.config import WorldConfig
from leadre.adworld.simulate import simulate
from leadre.data.check import Found, with_origin
from leadre.data.quarantine import EMPTY


def load(world: WorldConfig, *, seed: int) -> Found:
    """Simulate the world; its rows go through the same checks as those of a file."""
    made = simulate(world, seed)
    rows = {name: getattr(made, name) for name in ("ads", "users", "contents", "behaviors", "impressions")}
    return Found(
        **{name: with_origin(frame, f"simulated {name}") for name, frame in rows.items()},
        refused=EMPTY,
        totals={f"simulated {name}": frame.height for name, frame in rows.items()},
        oracle=made.oracle,
    )
