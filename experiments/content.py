"""What a study found as ``result.json``: every number with the key of the result behind it, and every claim judged."""

import json
import logging
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.lineage import Built, lineage, tuned
from experiments.result import Builds, ClaimResult, Data, Difference, RowResult, Run, StudyResult
from experiments.rows import Found
from experiments.study import Claim, Row, Study
from experiments.verdict import FEWEST_SEEDS, Effect, Judged, effect, holm, judge
from leadre import pipeline
from leadre.artifacts import Result

Scores = NDArray[np.float64]
CONFIDENCE, SAMPLES = 0.95, 10_000
TOKENS_APART = 0.02
"""The share by which rows may differ that are said to read as many tokens as one another."""
log = logging.getLogger(__name__)


class Column(NamedTuple):
    """A score of the users of a result.

    Attributes:
        users: Tells their ids from those of others.
        values: ``(N,)``, by user id; NaN where the score is undefined.
    """

    users: int
    values: Scores


Read = Callable[[Path, str, str], Column]


def content_of(study: Study, found: Found, *, store: Path, command: str, seconds: float) -> StudyResult:
    """The content of ``result.json``."""
    found = _with_systems(study, found)
    lineages = {result.path: lineage(result.path) for runs in found.scores.values() for result in runs.values()}
    first = next(result for runs in found.scores.values() for result in runs.values())
    runs = {
        row.name: [_run(study, row, seed, result, lineages, store) for seed, result in found.scores[row.name].items()]
        for row in study.rows
    }
    read = cache(column)
    rows = [_row(study, row, found, runs, read) for row in study.rows]
    behind = {result.path: result for results in lineages.values() for result in results}
    asked = sum(len(lineages[result.path]) for runs in found.scores.values() for result in runs.values())
    return StudyResult(
        study=study.name,
        title=study.title,
        question=study.question,
        command=command,
        date=datetime.now(UTC).replace(microsecond=0),
        **_commit(),
        seconds=round(seconds, 1),
        seconds_of_stages=round(sum(result.seconds for result in behind.values()), 1),
        store=str(store),
        seeds=tuple(found.seeds),
        users=pipeline.read_scores(first).get("users"),
        unit=study.unit,
        data=_data(lineages[first.path]),
        columns=(*study.columns, *study.measures),
        compared=study.compared,
        confidence=CONFIDENCE,
        rows=tuple(rows),
        claims=tuple(_claims(study, found, rows, read)),
        builds=Builds(asked=asked, built=len(behind)),
        notes=tuple(_notes(study, found)),
    )


def _with_systems(study: Study, found: Found) -> Found:
    """Without the runs that do not have a row's system, such as the oracle where data has no known truth."""
    scores, not_run = {}, dict(found.not_run)
    for row in study.rows:
        runs = found.scores[row.name]
        scores[row.name] = {
            seed: result for seed, result in runs.items() if row.system in pipeline.read_scores(result)["systems"]
        }
        if len(scores[row.name]) < len(runs):
            not_run.setdefault(row.name, f"these runs have no {row.system}")
    if not any(scores.values()):
        raise ValueError(f"no run of {study.name} has any of the systems that its rows name")
    return Found(scores, not_run, found.seeds)


def column(path: Path, system: str, score: str) -> Column:
    """A score of each user, by user id.

    HR@K and NDCG@K are told by the rank of the one ad that a user clicked; any other score has a column of its own.

    Args:
        path: The folder of a result of stage ``scores``.
        system: Whose lists are scored.
        score: Its name.

    Raises:
        ValueError: If the result has no such score.
    """
    table = pl.scan_parquet(path / "per_user.parquet")
    value = _score(score, table.collect_schema().names(), path).cast(pl.Float64).fill_null(np.nan)
    frame = table.filter(pl.col("system") == system).sort("user_id").select("user_id", value=value).collect()
    return Column(hash(tuple(frame["user_id"])), frame["value"].to_numpy())


def of_users(results: Sequence[Result], system: str, score: str, *, read: Read = column) -> Scores:
    """A score of each user, by user id, ``(S, N)``: one line a result; NaN where it is undefined.

    Args:
        results: Of stage ``scores``, or what has its files.
        system: Whose lists are scored.
        score: Its name.
        read: Reads one result; it may remember what it read.

    Raises:
        ValueError: If the results were not scored on the same users, or have no such score.
    """
    columns = [read(result.path, system, score) for result in results]
    if len({one.users for one in columns}) > 1:
        raise ValueError(f"{[str(result.path) for result in results]} do not score the same users: compare others")
    return np.stack([one.values for one in columns])


def of_rank(name: str) -> pl.Expr:
    """HR@K or NDCG@K of each user, from the ``rank`` of the one ad that the user clicked; null or 0 is no hit."""
    kind, _, k = name.partition("@")
    rank = pl.col("rank").fill_null(0)
    hit = rank.is_between(1, int(k))
    return hit if kind == "HR" else pl.when(hit).then(1 / (rank + 1).log(2)).otherwise(0.0)


def _score(name: str, columns: Sequence[str], path: Path) -> pl.Expr:
    if name.startswith(("HR@", "NDCG@")):
        return of_rank(name)
    if name not in columns:
        raise ValueError(f"{name} is no score of users in {path}: it has {', '.join(columns)}")
    return pl.col(name)


def _row(study: Study, row: Row, found: Found, runs: Mapping[str, Sequence[Run]], read: Read) -> RowResult:
    first, own = (runs[name] for name in (study.rows[0].name, row.name))
    columns = [*study.columns, *study.measures]
    means = {name: _mean(own, name) for name in columns}
    return RowResult(
        name=row.name,
        control=row.control,
        system=row.system,
        overrides=row.overrides,
        paper=dict(row.paper),
        not_run=found.not_run.get(row.name),
        mean={name: mean for name, mean in means.items() if mean is not None},
        interval={name: ends for name in study.compared if own and (ends := _interval(row, found, name, read))},
        change={} if row is study.rows[0] else _changes(own, first, columns),
        runs=tuple(own),
    )


def _run(
    study: Study, row: Row, seed: int, result: Result, lineages: Mapping[Path, Sequence[Built]], store: Path
) -> Run:
    system = pipeline.read_scores(result)["systems"].get(row.system, {})
    measured = {name: measure(result) for name, measure in study.measures.items()}
    stages = tuned(lineages[result.path], system=row.system)
    return Run(
        seed=seed,
        key=result.key,
        path=result.path.relative_to(store).as_posix() if result.path.is_relative_to(store) else str(result.path),
        scores={name: system.get(name) for name in study.columns} | measured,
        steps=sum(stage.steps or 0 for stage in stages) or None,
        tokens=sum(stage.tokens or 0 for stage in stages) or None,
        seconds=sum(stage.seconds for stage in stages) or None,
        stages=tuple(stages),
    )


def _interval(row: Row, found: Found, score: str, read: Read) -> tuple[float, float] | None:
    """The interval of a row's mean; None where no user has the score."""
    try:
        around = _effect(of_users(list(found.scores[row.name].values()), row.system, score, read=read))
    except ValueError as error:
        log.warning("%s: %s", row.name, error)
        return None
    return around.low, around.high


def _effect(differences: Scores) -> Effect:
    none = np.zeros_like(differences)
    return effect(differences, none, samples=SAMPLES, confidence=CONFIDENCE, generator=np.random.default_rng(0))


def _of_rows(study: Study, found: Found, names: Sequence[str], score: str, read: Read) -> tuple[list[Scores], int]:
    """A score of the users of several rows, ``(S, N)`` each, over the seeds that all have; and how many these are.

    Raises:
        ValueError: If a row was not run with any of these seeds, or rows do not score the same users.
    """
    for name in names:
        if not found.scores[name]:
            raise ValueError(f"{name} was not run")
    seeds = [seed for seed in found.scores[names[0]] if all(seed in found.scores[name] for name in names)]
    if not seeds:
        raise ValueError(f"{' and '.join(names)} have no training seed in common")
    system = {row.name: row.system for row in study.rows}
    columns = [[read(found.scores[name][seed].path, system[name], score) for seed in seeds] for name in names]
    if len({one.users for of_row in columns for one in of_row}) > 1:
        raise ValueError(f"{' and '.join(names)} do not score the same users")
    return [np.stack([one.values for one in of_row]) for of_row in columns], len(seeds)


class _Told(NamedTuple):
    """What users tell of a claim; the difference is None where there is none, and ``why`` says why."""

    difference: Effect | None = None
    seeds: int = 0
    why: str = ""
    control: Effect | None = None
    excess: Effect | None = None


def _told(study: Study, found: Found, claim: Claim, read: Read) -> _Told:
    try:
        (better, worse), seeds = _of_rows(study, found, (claim.better, claim.worse), claim.on, read)
        told = _Told(_effect(better - worse), seeds)
    except ValueError as error:
        return _Told(why=str(error))
    if claim.control is None:
        return told
    try:
        rows, seeds = _of_rows(study, found, (claim.better, claim.worse, *claim.control), claim.on, read)
        better, worse, gaining, without = rows
        excess = _effect(better - worse - (gaining - without)) if seeds >= FEWEST_SEEDS else None
        return told._replace(control=_effect(gaining - without), excess=excess)
    except ValueError as error:
        log.warning("%s: its control: %s", claim.text, error)
        return told


def _claims(study: Study, found: Found, rows: Sequence[RowResult], read: Read) -> list[ClaimResult]:
    """Each claim judged; one that could not be tried still counts among those that p-values hold for."""
    told = [_told(study, found, claim, read) for claim in study.claims]
    adjusted = holm([1.0 if one.difference is None else one.difference.p for one in told])
    of_name = {row.name: row for row in rows}
    return [
        _claim(claim, one, p_holm, better=of_name[claim.better], worse=of_name[claim.worse], claims=len(told))
        for claim, one, p_holm in zip(study.claims, told, adjusted, strict=True)
    ]


def _claim(
    claim: Claim, told: _Told, p_holm: float, *, better: RowResult, worse: RowResult, claims: int
) -> ClaimResult:
    judged = _judged(told, p_holm, tokens=_tokens(better, worse) if claim.same_tokens else "", claims=claims)
    return ClaimResult(
        **claim._asdict(),
        **judged._asdict(),
        difference=told.difference and Difference(**told.difference._asdict(), p_holm=p_holm),
        control_difference=told.control and Difference(**told.control._asdict()),
        excess=told.excess and Difference(**told.excess._asdict()),
        paper_change=_change(better.paper.get(claim.on), worse.paper.get(claim.on)),
        our_change=_change(better.mean.get(claim.on), worse.mean.get(claim.on)),
    )


def _judged(told: _Told, p_holm: float, *, tokens: str, claims: int) -> Judged:
    if told.difference is None:
        return Judged("undecided", told.why, None)
    judged = judge(told.difference, p_holm, told.excess, seeds=told.seeds, claims=claims, confidence=CONFIDENCE)
    return judged._replace(verdict="undecided", why=tokens) if tokens else judged


def _tokens(better: RowResult, worse: RowResult) -> str:
    """Why rows that are said to read as much as one another do not; nothing where they do."""
    ours, theirs = (max((run.tokens or 0 for run in row.runs), default=0) for row in (better, worse))
    if abs(ours - theirs) <= TOKENS_APART * max(ours, theirs):
        return ""
    return f"the rows do not read as much as one another: {ours:,} and {theirs:,} tokens"


def _change(better: float | None, worse: float | None) -> float | None:
    return better / worse - 1 if better is not None and worse else None


def _changes(own: Sequence[Run], first: Sequence[Run], columns: Sequence[str]) -> dict[str, float | None]:
    """A row's change from the first row, as the paper prints it, over the seeds that both have."""
    seeds = {run.seed for run in own} & {run.seed for run in first}
    pair = [[run for run in runs if run.seed in seeds] for runs in (own, first)]
    changes = {name: _change(*(_mean(runs, name) for runs in pair)) for name in columns}
    return {name: change for name, change in changes.items() if change is not None}


def _mean(runs: Sequence[Run], name: str) -> float | None:
    values = [value for run in runs if (value := run.scores[name]) is not None]
    return float(np.mean(values)) if values else None


def _notes(study: Study, found: Found) -> list[str]:
    """What a reader must know: what was not run and why, and what may not be claimed."""
    told = [f"Not run: {name}: {reason}" for name, reason in found.not_run.items()]
    if len(found.seeds) < FEWEST_SEEDS:
        told.append("Fewer than three seeds: no claim may rest on this table.")
    if not any(row.control for row in study.rows if found.scores[row.name]):
        told.append("No negative control was run: no claim may rest on this table.")
    return told


def _data(built: Sequence[Built]) -> Data:
    """Of what world the users are."""
    world = next((result for result in built if result.stage == "world"), None)
    about = world and world.path / "world.json"
    content = json.loads(about.read_text(encoding="utf-8")) if about and about.is_file() else {}
    counts = content.get("counts", {})
    told = [content.get("name", "unknown")]
    told += [f"{counts['users']:,} users and {counts['ads']:,} ads"] if {"users", "ads"} <= counts.keys() else []
    seed = (world.config or {}).get("seed") if world else None
    told += [] if seed is None else [f"world seed {seed}"]
    return Data(name=", ".join(told), counts=counts)


def _commit() -> dict[str, Any]:
    """Which code this is; nothing where it is not under git."""
    told = {}
    for name, command in (("git", ["rev-parse", "HEAD"]), ("dirty", ["status", "--porcelain"])):
        done = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
        told[name] = done.stdout.strip() if done.returncode == 0 else None
    return {"git": told["git"], "dirty": bool(told["dirty"])}
