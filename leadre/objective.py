"""What a search maximizes: a score of validation users, never of those of the test."""

import re
from collections.abc import Mapping, Sequence

from leadre.alignment.config import AlignmentConfig
from leadre.baselines.config import BaselinesConfig
from leadre.sft.config import SftConfig

TUNED_KS, LEARNED_KS = (1, 4, 8), (1, 4, 8, 10)
"""Cut-offs of the scores of validation users: in tuning and alignment, and in the training of a learned baseline."""
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


def scores_measured(
    sft: SftConfig, alignment: AlignmentConfig, baselines: BaselinesConfig
) -> dict[str | None, tuple[str, ...]]:
    """What trainings measure of validation users: LEADRE's last stage under None, learned baselines by name."""
    last = sft.tuning if alignment.kind == "none" else alignment.tuning
    kinds = ("hr", "ndcg") if alignment.kind == "none" else ("hr", "ndcg", "ltrr", "value")
    cuts = [k for k in TUNED_KS if k <= last.valid_beam_width]
    measured: dict[str | None, tuple[str, ...]] = {None: _scores(kinds, cuts) if last.validations else ()}
    for name, baseline in baselines.learned.items():
        cuts = [k for k in LEARNED_KS if baseline.kind != "tiger" or k <= baseline.beam_width]
        measured[name] = _scores(("hr", "ndcg"), cuts) if baseline.validations else ()
    return measured


def _scores(kinds: Sequence[str], cuts: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"valid/{kind}@{k}" for k in cuts for kind in kinds)


def check_objective(objective: str, measured: Mapping[str | None, Sequence[str]]) -> None:
    """Refuse, before anything is trained, an objective that no training will measure.

    Args:
        objective: As it is typed.
        measured: The scores that each learned baseline's training measures, by name, and LEADRE's last stage under
            None; empty for one that is never validated.

    Raises:
        ValueError: If what it names is not trained, is never validated, or is not measured there.
    """
    name, score = parts(objective)
    if name not in measured:
        learned = ", ".join(known for known in measured if known is not None)
        has = f"there are {learned}" if learned else "none is learned"
        raise ValueError(f"objective is {objective!r}, but of baselines {has}: give baselines={name}")
    if not measured[name]:
        of = "of the last stage of tuning" if name is None else f"of baselines.learned.{name}"
        raise ValueError(f"objective is {objective!r}, but validations {of} is 0: give 1 or more")
    if score not in measured[name]:
        there = ", ".join(score if name is None else f"{name}/{score}" for score in measured[name])
        of = "the last stage" if name is None else f"the training of {name}"
        more = "; only an alignment measures ltrr and value" if name is None and "ltrr@" not in there else ""
        raise ValueError(f"objective is {objective!r}, but {of} measures {there}{more}: name one of these")
