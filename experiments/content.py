"""What a study found as ``result.json``: every number with the key of the result behind it, and every claim judged."""

import json
import logging
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.lineage import Built, lineage, tuned
from experiments.study import Claim, Found, Row, Study
from experiments.verdict import FEWEST_SEEDS, Effect, effect, holm, judge
from leadre import pipeline
from leadre.artifacts import Result

Scores = NDArray[np.float64]
CONFIDENCE, SAMPLES = 0.95, 10_000
TOKENS_APART = 0.02
"""The share by which rows may differ that are said to read as many tokens as one another."""
log = logging.getLogger(__name__)


def content_of(study: Study, found: Found, *, store: Path, command: str, seconds: float) -> dict[str, Any]:
    """The content of ``result.json``; docs/studies.md tells its fields."""
    found = _with_systems(study, found)
    lineages = {result.path: lineage(result.path) for runs in found.scores.values() for result in runs.values()}
    first = next(result for runs in found.scores.values() for result in runs.values())
    rows = [_row(study, row, found, lineages, store) for row in study.rows]
    _tell_changes(rows)
    behind = {result.path: result for results in lineages.values() for result in results}
    asked = sum(len(lineages[result.path]) for runs in found.scores.values() for result in runs.values())
    return {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **_commit(),
        "seconds": round(seconds, 1),
        "seconds_of_stages": round(sum(result.seconds for result in behind.values()), 1),
        "store": str(store),
        "seeds": list(found.seeds),
        "users": pipeline.read_scores(first).get("users"),
        "unit": study.unit,
        "data": _data(lineages[first.path]),
        "columns": [*study.columns, *study.measures],
        "compared": list(study.compared),
        "confidence": CONFIDENCE,
        "rows": rows,
        "claims": _claims(study, found, rows),
        "builds": {"asked": asked, "built": len(behind)},
        "notes": _notes(study, found),
    }


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


def of_users(results: Sequence[Result], system: str, score: str) -> Scores:
    """A score of each user, by user id, ``(S, N)``: one line a result; NaN where it is undefined.

    HR@K and NDCG@K are told by the rank of the one ad that a user clicked; any other score has a column of its own.

    Raises:
        ValueError: If the results were not scored on the same users, or have no such score.
    """
    frames = [
        pl.read_parquet(result.path / "per_user.parquet").filter(pl.col("system") == system).sort("user_id")
        for result in results
    ]
    if any(not frame["user_id"].equals(frames[0]["user_id"]) for frame in frames):
        raise ValueError(f"{[str(result.path) for result in results]} do not score the same users: compare others")
    values = [frame.select(_score(score, frame, results[0].path).cast(pl.Float64)).to_series() for frame in frames]
    return np.stack([column.fill_null(np.nan).to_numpy() for column in values])


def _score(name: str, frame: pl.DataFrame, path: Path) -> pl.Expr:
    kind, _, k = name.partition("@")
    rank = pl.col("rank").fill_null(0)
    if kind == "HR":
        return rank.is_between(1, int(k))
    if kind == "NDCG":
        return pl.when(rank.is_between(1, int(k))).then(1 / (rank + 1).log(2)).otherwise(0.0)
    if name not in frame.columns:
        raise ValueError(f"{name} is no score of users in {path}: it has {', '.join(frame.columns)}")
    return pl.col(name)


def _row(study: Study, row: Row, found: Found, lineages: Mapping[Path, Sequence[Built]], store: Path) -> dict[str, Any]:
    runs = [_run(study, row, seed, result, lineages, store) for seed, result in found.scores[row.name].items()]
    columns = [*study.columns, *study.measures]
    scores = {name: [run["scores"][name] for run in runs if run["scores"][name] is not None] for name in columns}
    return {
        "name": row.name,
        "control": row.control,
        "system": row.system,
        "overrides": list(row.overrides),
        "paper": dict(row.paper),
        "not_run": found.not_run.get(row.name),
        "mean": {name: float(np.mean(values)) for name, values in scores.items() if values},
        "interval": {name: ends for name in study.compared if runs and (ends := _interval(row, found, name))},
        "runs": runs,
    }


def _run(
    study: Study, row: Row, seed: int, result: Result, lineages: Mapping[Path, Sequence[Built]], store: Path
) -> dict[str, Any]:
    system = pipeline.read_scores(result)["systems"].get(row.system, {})
    measured = {name: measure(result) for name, measure in study.measures.items()}
    stages = tuned(lineages[result.path], system=row.system)
    return {
        "seed": seed,
        "key": result.key,
        "path": result.path.relative_to(store).as_posix() if result.path.is_relative_to(store) else str(result.path),
        "scores": {name: system.get(name) for name in study.columns} | measured,
        **{name: sum(stage[name] or 0 for stage in stages) or None for name in ("steps", "tokens", "seconds")},
        "stages": stages,
    }


def _interval(row: Row, found: Found, score: str) -> list[float] | None:
    """The interval of a row's mean; None where no user has the score."""
    try:
        own = of_users(list(found.scores[row.name].values()), row.system, score)
        around = _effect(own)
    except ValueError as error:
        log.warning("%s: %s", row.name, error)
        return None
    return [around.low, around.high]


def _effect(differences: Scores) -> Effect:
    none = np.zeros_like(differences)
    return effect(differences, none, samples=SAMPLES, confidence=CONFIDENCE, generator=np.random.default_rng(0))


def _of_rows(study: Study, found: Found, names: Sequence[str], score: str) -> tuple[list[Scores], int]:
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
    same = [found.scores[name][seed].path / "per_user.parquet" for name in names for seed in seeds]
    users = [pl.read_parquet(path, columns=["user_id"])["user_id"].unique().sort() for path in same]
    if any(not others.equals(users[0]) for others in users):
        raise ValueError(f"{' and '.join(names)} do not score the same users")
    return [of_users([found.scores[name][seed] for seed in seeds], system[name], score) for name in names], len(seeds)


class _Told(NamedTuple):
    """What users tell of a claim; the difference is None where there is none, and ``why`` says why."""

    difference: Effect | None = None
    seeds: int = 0
    why: str = ""
    control: Effect | None = None
    excess: Effect | None = None


def _told(study: Study, found: Found, claim: Claim) -> _Told:
    try:
        (better, worse), seeds = _of_rows(study, found, (claim.better, claim.worse), claim.on)
        told = _Told(_effect(better - worse), seeds)
    except ValueError as error:
        return _Told(why=str(error))
    if claim.control is None:
        return told
    try:
        rows, seeds = _of_rows(study, found, (claim.better, claim.worse, *claim.control), claim.on)
        better, worse, gaining, without = rows
        excess = _effect(better - worse - (gaining - without)) if seeds >= FEWEST_SEEDS else None
        return told._replace(control=_effect(gaining - without), excess=excess)
    except ValueError as error:
        log.warning("%s: its control: %s", claim.text, error)
        return told


def _claims(study: Study, found: Found, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each claim judged; one that could not be tried still counts among those that p-values hold for."""
    told = [_told(study, found, claim) for claim in study.claims]
    adjusted = holm([1.0 if one.difference is None else one.difference.p for one in told])
    means = {row["name"]: row for row in rows}
    return [
        claim._asdict()
        | {"control": list(claim.control) if claim.control else None}
        | _judged(one, p_holm, tokens=_tokens(claim, means), claims=len(told))
        | {
            "paper_change": _change(*(means[name]["paper"].get(claim.on) for name in (claim.better, claim.worse))),
            "our_change": _change(*(means[name]["mean"].get(claim.on) for name in (claim.better, claim.worse))),
        }
        for claim, one, p_holm in zip(study.claims, told, adjusted, strict=True)
    ]


def _judged(told: _Told, p_holm: float, *, tokens: str, claims: int) -> dict[str, Any]:
    beside = {
        "control_difference": told.control and told.control._asdict(),
        "excess": told.excess and told.excess._asdict(),
    }
    if told.difference is None:
        return {"verdict": "undecided", "why": told.why, "users_needed": None, "difference": None} | beside
    judged = judge(told.difference, p_holm, told.excess, seeds=told.seeds, claims=claims, confidence=CONFIDENCE)
    if tokens:
        judged = judged._replace(verdict="undecided", why=tokens)
    return judged._asdict() | {"difference": told.difference._asdict() | {"p_holm": p_holm}} | beside


def _tokens(claim: Claim, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Why rows that are said to read as much as one another do not; nothing where they do, or it is not said."""
    if not claim.same_tokens:
        return ""
    better, worse = (
        max((run["tokens"] or 0 for run in rows[name]["runs"]), default=0) for name in (claim.better, claim.worse)
    )
    if abs(better - worse) <= TOKENS_APART * max(better, worse):
        return ""
    return f"the rows do not read as much as one another: {better:,} and {worse:,} tokens"


def _change(better: float | None, worse: float | None) -> float | None:
    return better / worse - 1 if better is not None and worse else None


def _tell_changes(rows: Sequence[dict[str, Any]]) -> None:
    """Add each row's change from the first row, as the paper prints it, over the seeds that both have."""
    for row in rows:
        seeds = {run["seed"] for run in rows[0]["runs"]} & {run["seed"] for run in row["runs"]}
        pair = [[run["scores"] for run in each["runs"] if run["seed"] in seeds] for each in (row, rows[0])]
        changes = {name: _change(*(_mean(scores, name) for scores in pair)) for name in row["mean"]}
        row["change"] = {} if row is rows[0] else {name: one for name, one in changes.items() if one is not None}


def _mean(scores: Sequence[Mapping[str, float | None]], name: str) -> float | None:
    values = [one[name] for one in scores if one.get(name) is not None]
    return float(np.mean(np.asarray(values, dtype=np.float64))) if values else None


def _notes(study: Study, found: Found) -> list[str]:
    """What a reader must know: what was not run and why, and what may not be claimed."""
    told = [f"Not run: {name}: {reason}" for name, reason in found.not_run.items()]
    if len(found.seeds) < FEWEST_SEEDS:
        told.append("Fewer than three seeds: no claim may rest on this table.")
    if not any(row.control for row in study.rows if found.scores[row.name]):
        told.append("No negative control was run: no claim may rest on this table.")
    return told


def _data(built: Sequence[Built]) -> dict[str, Any]:
    """Of what world the users are."""
    world = next((result for result in built if result.stage == "world"), None)
    about = world and world.path / "world.json"
    content = json.loads(about.read_text(encoding="utf-8")) if about and about.is_file() else {}
    counts = content.get("counts", {})
    told = [content.get("name", "unknown")]
    told += [f"{counts['users']:,} users and {counts['ads']:,} ads"] if {"users", "ads"} <= counts.keys() else []
    seed = (world.config or {}).get("seed") if world else None
    told += [] if seed is None else [f"world seed {seed}"]
    return {"name": ", ".join(told), "counts": counts}


def _commit() -> dict[str, Any]:
    """Which code this is; nothing where it is not under git."""
    told = {}
    for name, command in (("git", ["rev-parse", "HEAD"]), ("dirty", ["status", "--porcelain"])):
        done = subprocess.run(
            ["git", *command], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
        told[name] = done.stdout.strip() if done.returncode == 0 else None
    return {"git": told["git"], "dirty": bool(told["dirty"])}
