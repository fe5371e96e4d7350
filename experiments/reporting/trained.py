"""What a page shows of the results behind a study: how its rows were trained, and how their codes are used."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.reporting import plots
from experiments.reporting.plots import Curve, Curves
from experiments.reporting.views import kind_of
from experiments.result import Run, Stage, StudyResult
from leadre.artifacts import ArtifactError, origins
from leadre.report.curves import perplexity, read_curves
from leadre.report.report import METRICS_FILE
from leadre.report.table import OURS


class Trained(NamedTuple):
    """A stage of a run as it was trained.

    Attributes:
        stage: Which.
        start: The optimizer steps of the stages before it.
        steps: Its own.
        rows: What it logged; ``step`` is counted over all stages.
    """

    stage: Stage
    start: float
    steps: float
    rows: Sequence[Mapping[str, float]]


class Codebook(NamedTuple):
    """The codes of some rows: a level's name, how it is used, and the area under its sorted counts."""

    rows: Sequence[str]
    key: str
    levels: Sequence[tuple[str, str, str]]


def trained(run: Run, store: Path, gaps: list[str]) -> list[Trained]:
    """The stages of a run that train a network, put end to end.

    A stage that does not tell its steps has as many as it logged.

    Args:
        run: Of one row, with one seed.
        store: The store of the study.
        gaps: Gets a sentence for each stage whose curve is missing.
    """
    found: list[Trained] = []
    start: float = 0
    for stage in run.stages:
        rows: Sequence[Mapping[str, float]] = []
        path = store / stage.stage / stage.key / METRICS_FILE
        if path.parent.is_dir() and not path.exists():
            continue  # it trains no network
        try:
            rows = read_curves(stage.name, path).rows
        except (FileNotFoundError, ValueError) as error:
            gaps.append(f"No curve of {stage.name}: {error}")
        steps = stage.steps or max((row["step"] for row in rows), default=0)
        found.append(Trained(stage, start, steps, [{**row, "step": start + row["step"]} for row in rows]))
        start += steps
    return found


def training_curves(result: StudyResult, store: Path, gaps: list[str]) -> list[Curves]:
    """How every row did on validation users while it was trained, then its loss.

    Args:
        result: What the study found.
        store: The store of the study.
        gaps: Gets a sentence for whatever is missing.
    """
    logged = {}
    for row in result.rows:
        found = [trained(run, store, gaps) for run in row.runs if run.stages]
        if found:
            logged[row.name, kind_of(row)] = found
    names = {name for found in logged.values() for run in found for one in run for row in one.rows for name in row}
    validations = [f"valid/{score.lower()}" for score in (*result.compared, "HR@8", "NDCG@8", "HR@10", "NDCG@10")]
    wanted = [name for name in validations if name in names][:1] + ["train/loss"] * ("train/loss" in names)
    titles = {"train/loss": "Training loss, of each stage its own"}
    made = [
        plots.curves(
            titles.get(name, f"{name.removeprefix('valid/').upper()} of the validation users"),
            {row: [_curve(run, name) for run in found] for row, found in logged.items()},
        )
        for name in wanted
    ]
    return [one for one in made if one]


def codebooks(result: StudyResult, store: Path, gaps: list[str]) -> list[Codebook]:
    """How the codes of each row are used, of its first seed; rows with the same codes stand together.

    Args:
        result: What the study found.
        store: The store of the study.
        gaps: Gets a sentence for whatever is missing.
    """
    rows_of: dict[Path, list[str]] = {}
    for row in result.rows:
        if row.runs and row.system == OURS:
            try:
                codes = origins(store / row.runs[0].path, ("codes",)).get("codes")
            except (ArtifactError, OSError, ValueError) as error:
                gaps.append(f"No codes of {row.name}: {error}")
                continue
            if codes and (codes.path / "diagnostics.json").exists():
                rows_of.setdefault(codes.path, []).append(row.name)
    return [_codebook(path, rows) for path, rows in rows_of.items()]


def _curve(run: Sequence[Trained], name: str) -> Curve:
    points = [(row["step"], row[name]) for one in run for row in one.rows if math.isfinite(row.get(name, math.nan))]
    stages = [(one.start, one.stage.name.rpartition(": ")[2]) for one in run]
    return Curve(points, stages, sum(one.steps for one in run))


def _codebook(path: Path, rows: Sequence[str]) -> Codebook:
    counts = json.loads((path / "diagnostics.json").read_text(encoding="utf-8"))["counts"]
    levels = [
        (
            f"level {number}",
            f"{sum(count > 0 for count in level)} of {len(level)} used, perplexity {perplexity(level):.1f}",
            plots.steps_down(level),
        )
        for number, level in enumerate(counts, start=1)
    ]
    return Codebook(rows, path.name, levels)
