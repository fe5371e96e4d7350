"""Who the ranker learns from, and whom LTRR is measured on: two halves of the users that never meet."""

from collections.abc import Sequence
from hashlib import sha256

import polars as pl

from leadre import tables

TRAIN, LABEL = "train", "label"


def roles(users: Sequence[str], *, train_share: float) -> pl.DataFrame:
    """Each user's role (LTR_USERS, sorted by user_id): a user keeps it for good, whoever comes or goes.

    Example:
        >>> roles(["user_000001", "user_000000"], train_share=0.5)["role"].to_list()
        ['train', 'label']
    """
    known = sorted(users)
    role = [TRAIN if draw(user, "role") < train_share else LABEL for user in known]
    return pl.DataFrame({"user_id": known, "role": role}, schema=tables.LTR_USERS.schema)


def folds(users: Sequence[str], *, count: int) -> list[int]:
    """A fold in 0 .. count - 1 of each user, drawn apart from the roles."""
    return [int(draw(user, "fold") * count) for user in users]


def draw(user: str, purpose: str) -> float:
    """A number in [0, 1) that a user has for good: the first 52 bits of a hash of the user_id and a purpose."""
    digest = sha256(f"{purpose}\0{user}".encode(errors="surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 12) / 2**52
