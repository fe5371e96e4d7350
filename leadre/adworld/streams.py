"""Named random streams, so that a change of one part of the world does not move the draws of another."""

import zlib

import numpy as np


def stream(seed: int, name: str, day: int = 0) -> np.random.Generator:
    """The counter-based generator of one named source of chance on one day.

    Args:
        seed: The world's seed; 0 is a seed.
        name: What is drawn, such as ``"ads/quality"``.
        day: The day of the simulation, 0 for what is drawn once.

    Example:
        >>> bool(stream(0, "a").random() == stream(0, "a").random())
        True
        >>> bool(stream(0, "a").random() == stream(0, "b").random())
        False
    """
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(zlib.crc32(name.encode()), day))
    return np.random.Generator(np.random.Philox(sequence))
