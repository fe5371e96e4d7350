"""What a study found as ``result.json``: every number with the key of the result behind it, and every claim judged."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from experiments.lineage import Built, lineage, tuned
from experiments.study import OURS, Claim, Found, Row, Study
from experiments.verdict import FEWEST_SEEDS, Effect, effect, holm, judge
from leadre import pipeline
from leadre.artifacts import Result

Scores = NDArray[np.float64]
CONFIDENCE, SAMPLES = 0.95, 10_000


def content_of(study: Study, found: Found, *, store: Path, command: str, seconds: float) -> dict[str, Any]:
    """The content of ``result.json``; docs/studies.md tells its fields."""
    lineages = {result.path: lineage(result.path) for runs in found.scores.values() for result in runs.values()}
    first = next(result for runs in found.scores.values() for result in runs.values())
    rows = [_row(study, row, found, lineages, store) for row in study.rows]
    _tell_changes(rows)
    built = {(result.stage, result.key) for results in lineages.values() for result in results}
    return {
        "study": study.name,
        "title": study.title,
        "question": study.question,
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **_commit(),
        "seconds": round(seconds, 1),
        "store": str(store),
        "seeds": list(found.seeds),
        "users": pipeline.read_scores(first).get("users"),
        "unit": study.unit,
        "data": _data(lineages[first.path]),
        "columns": [*study.columns, *study.measures],
        "compared": list(study.compared),
        "confidence": CONFIDENCE,
        "rows": rows,
        "claims": _claims(study, found),
        "builds": {"asked": sum(map(len, lineages.values())), "built": len(built)},
        "notes": _notes(study, found),
    }


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
    name, _, k = score.partition("@")
    rank = pl.col("rank").fill_null(0)
    hit = rank.is_between(1, int(k or 0))
    known = {"HR": hit, "NDCG": pl.when(hit).then(1 / (rank + 1).log(2)).otherwise(0.0)}
    if name not in known and score not in frames[0].columns:
        raise ValueError(f"{score} is no score of users in {results[0].path}: it has {', '.join(frames[0].columns)}")
    values = [frame.select(known.get(name, pl.col(score)).cast(pl.Float64)).to_series() for frame in frames]
    return np.stack([column.fill_null(np.nan).to_numpy() for column in values])


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
        "interval": {name: _interval(row, found, name) for name in study.compared} if runs else {},
        "runs": runs,
    }


def _run(
    study: Study, row: Row, seed: int, result: Result, lineages: Mapping[Path, Sequence[Built]], store: Path
) -> dict[str, Any]:
    system = pipeline.read_scores(result)["systems"].get(row.system, {})
    measured = {name: measure(result) for name, measure in study.measures.items()}
    stages = tuned(list(lineages[result.path])) if row.system == OURS else []
    return {
        "seed": seed,
        "key": result.key,
        "path": result.path.relative_to(store).as_posix() if result.path.is_relative_to(store) else str(result.path),
        "scores": {name: system.get(name) for name in study.columns} | measured,
        **{name: sum(stage[name] or 0 for stage in stages) or None for name in ("steps", "tokens", "seconds")},
        "stages": stages,
    }


def _interval(row: Row, found: Found, score: str) -> list[float]:
    own = of_users(list(found.scores[row.name].values()), row.system, score)
    around = _effect(own, np.zeros_like(own))
    return [around.low, around.high]


def _effect(better: Scores, worse: Scores) -> Effect:
    return effect(better, worse, samples=SAMPLES, confidence=CONFIDENCE, generator=np.random.default_rng(0))


def _difference(study: Study, found: Found, better: str, worse: str, score: str) -> tuple[Effect, int] | None:
    """How much more one row has than another over the seeds that both have, and how many these are."""
    seeds = [seed for seed in found.scores[better] if seed in found.scores[worse]]
    if not seeds:
        return None
    system = {row.name: row.system for row in study.rows}
    both = (of_users([found.scores[name][seed] for seed in seeds], system[name], score) for name in (better, worse))
    return _effect(*both), len(seeds)


def _claims(study: Study, found: Found) -> list[dict[str, Any]]:
    measured = [_difference(study, found, claim.better, claim.worse, claim.on) for claim in study.claims]
    adjusted = iter(holm([difference.p for difference, _ in filter(None, measured)]))
    return [
        _claim(study, found, claim, told, next(adjusted) if told else None)
        for claim, told in zip(study.claims, measured, strict=True)
    ]


def _claim(
    study: Study, found: Found, claim: Claim, told: tuple[Effect, int] | None, p_holm: float | None
) -> dict[str, Any]:
    control = _difference(study, found, *claim.control, claim.on) if claim.control else None
    about = claim._asdict() | {"control": list(claim.control) if claim.control else None}
    changes = {
        "paper_change": _change(*(row.paper.get(claim.on) for row in _both(study, claim))),
        "our_change": _change(*(_mean(found, row, claim.on) for row in _both(study, claim))),
    }
    beside = control and control[0]._asdict()
    if told is None or p_holm is None:
        missing = next(name for name in (claim.better, claim.worse) if not found.scores[name])
        why = f"{missing} was not run"
        nothing = {"verdict": "undecided", "why": why, "users_needed": None, "difference": None}
        return about | nothing | {"control_difference": beside} | changes
    difference, seeds = told
    judged = judge(difference, p_holm, control and control[0], seeds=seeds, confidence=CONFIDENCE)
    return (
        about
        | judged._asdict()
        | {"difference": difference._asdict() | {"p_holm": p_holm}, "control_difference": beside}
        | changes
    )


def _both(study: Study, claim: Claim) -> list[Row]:
    return [next(row for row in study.rows if row.name == name) for name in (claim.better, claim.worse)]


def _mean(found: Found, row: Row, score: str) -> float | None:
    results = list(found.scores[row.name].values())
    return float(np.nanmean(of_users(results, row.system, score))) if results else None


def _change(better: float | None, worse: float | None) -> float | None:
    return better / worse - 1 if better is not None and worse else None


def _tell_changes(rows: Sequence[dict[str, Any]]) -> None:
    """Add each row's change from the first row, as the paper prints it."""
    base = rows[0]["mean"]
    for row in rows:
        changes = {name: _change(value, base.get(name)) for name, value in row["mean"].items()}
        row["change"] = (
            {} if row is rows[0] else {name: change for name, change in changes.items() if change is not None}
        )


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
