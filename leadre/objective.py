"""What a search maximizes: a score of validation users, never of those of the test."""

import re
from collections.abc import Mapping

_OBJECTIVE = re.compile(r"(?:([a-z][a-z0-9_]*)/)?(valid/(?:hr|ndcg|ltrr|value)@[1-9][0-9]*)")


def parts(objective: str) -> tuple[str | None, str]:
    """The learned baseline that is meant, None for LEADRE, and the score as ``metrics.jsonl`` names it.

    Raises:
        ValueError: If it is no score of validation users.

    Example:
        >>> parts("valid/ndcg@8"), parts("sasrec/valid/hr@10")
        ((None, 'valid/ndcg@8'), ('sasrec', 'valid/hr@10'))
    """
    told = _OBJECTIVE.fullmatch(objective)
    if told is None:
        raise ValueError(
            f"objective is {objective!r}, but settings are chosen by validation users, never by those of the "
            "test: give a score such as valid/ndcg@8, or sasrec/valid/ndcg@8 for a learned baseline, or null"
        )
    return told[1], told[2]


def check_objective(objective: str, validations: Mapping[str | None, int]) -> None:
    """Refuse, before anything is trained, an objective that no training will measure.

    Args:
        objective: As it is typed.
        validations: How often each learned baseline is validated, by name, and LEADRE's last stage under None.

    Raises:
        ValueError: If what it names is not trained, or never validated.
    """
    name, _ = parts(objective)
    if name not in validations:
        learned = ", ".join(known for known in validations if known is not None)
        has = f"there are {learned}" if learned else "none is learned"
        raise ValueError(f"objective is {objective!r}, but of baselines {has}: give baselines={name}")
    if not validations[name]:
        of = "of the last stage of tuning" if name is None else f"of baselines.learned.{name}"
        raise ValueError(f"objective is {objective!r}, but validations {of} is 0: give 1 or more")
