"""One table over all runs of a Hydra multirun, printed and written when the last one has ended."""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from leadre.report.table import NOTHING, Grid, decimals, markdown, rich_table

SEED = "seed"

_NARROWEST = 110

log = logging.getLogger(__name__)

Settings = tuple[tuple[str, str], ...]


class Job(NamedTuple):
    """One run of a sweep.

    Attributes:
        number: Hydra's number of the job.
        overrides: Its command line, by key.
        figures: Its numbers by the columns' names; empty for a failed job.
        seconds: How long it took; None for a failed job.
        error: Why it has no figures; None where it has.
    """

    number: int
    overrides: Mapping[str, str]
    figures: Mapping[str, float | None]
    seconds: float | None
    error: str | None


class SweepTable(Callback):
    """Hydra's hook at the end of a multirun; ``conf/run.yaml`` names it."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401  # Hydra's signature
        """Print the table and write it beside the jobs."""
        console = Console()
        # A narrow terminal breaks long lines; a narrow table would cut numbers short.
        console.width = max(console.width, _NARROWEST)
        write_sweep(Path(config.hydra.sweep.dir), console=console)


def write_sweep(folder: Path, *, console: Console) -> None:
    """Read every job's ``result.json``, print one table over them, and write ``sweep.csv`` and ``sweep.md``.

    Args:
        folder: The sweep's folder, with one numbered folder a job.
        console: Where the table is printed.

    Raises:
        ValueError: If no job's folder is there.
    """
    jobs = read_jobs(folder)
    grid = sweep_grid(jobs)
    console.print(rich_table(grid, title=f"Sweep of {len(jobs)} runs"))
    varying = varying_keys(jobs)
    errors = [f"- {_name(job, varying)} (run {job.number}): {job.error}" for job in jobs if job.error]
    notes = ["Runs without figures:\n\n" + "\n".join(errors)] if errors else []
    for error in errors:
        console.print(error, markup=False)
    (folder / "sweep.md").write_text(
        "\n\n".join([f"# Sweep of {len(jobs)} runs", markdown(grid), *notes]) + "\n", encoding="utf-8"
    )
    _write_csv(folder / "sweep.csv", jobs)
    log.info("the table over %s runs lies in %s", len(jobs), folder / "sweep.md")


def read_jobs(folder: Path) -> list[Job]:
    """The jobs of a sweep by their number; one that left no result is a hole with a reason.

    Raises:
        ValueError: If no job's folder is there.
    """
    numbers = sorted(int(path.name) for path in folder.glob("*") if path.is_dir() and path.name.isdecimal())
    if not numbers:
        raise ValueError(
            f"{folder} holds no job: its folders must be named by number, hydra.sweep.subdir=${{hydra.job.num}}"
        )
    return [_job(number, folder / str(number) / "result.json") for number in numbers]


def sweep_grid(jobs: Sequence[Job]) -> Grid:
    """One row a run, named by the overrides in which the runs differ.

    Where several runs differ only by ``seed``, a row with their mean ± half their range stands below them.
    """
    varying, columns = varying_keys(jobs), _columns(jobs)
    ordered = sorted(jobs, key=lambda job: _first_with(job, jobs, varying))
    rows: list[tuple[str, ...]] = []
    strong = set()
    for settings, members in groupby(ordered, key=lambda job: _settings(job, varying)):
        runs = list(members)
        rows += [(_name(job, varying), *_cells(job, columns)) for job in runs]
        whole = [job for job in runs if job.error is None]
        if SEED in varying and len(whole) > 1:
            strong |= {(len(rows), column) for column in range(len(columns) + 1)}
            name = " ".join(f"{key}={value}" for key, value in settings) or "all"
            rows.append((f"{name}: mean of {len(whole)} seeds ± half range", *_spread(whole, columns)))
    return Grid(head=("run", *columns), rows=tuple(rows), strong=frozenset(strong))


def varying_keys(jobs: Sequence[Job]) -> list[str]:
    """The overrides that are not the same in all jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    told = [job for job in jobs if job.overrides]  # a job that was stopped says nothing of its overrides
    return [key for key in keys if len({job.overrides.get(key) for job in told}) > 1]


def _job(number: int, path: Path) -> Job:
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        return Job(number, {}, {}, None, "it left no result.json: it was stopped before its end")
    except json.JSONDecodeError:
        return Job(number, {}, {}, None, "its result.json is cut short: it was stopped while writing")
    overrides = dict(override.partition("=")[::2] for override in result["overrides"])
    if "error" in result:
        return Job(number, overrides, {}, None, " ".join(str(result["error"]).split()))
    return Job(number, overrides, result["figures"], result["seconds"], None)


def _columns(jobs: Sequence[Job]) -> list[str]:
    """The names of all figures, in the order they first come; where every run failed there is one column to say so."""
    return list(dict.fromkeys(name for job in jobs for name in job.figures)) or ["figures"]


def _settings(job: Job, varying: Sequence[str]) -> Settings:
    """What tells a run from another one but for the seed."""
    return tuple((key, job.overrides[key]) for key in varying if key != SEED and key in job.overrides)


def _first_with(job: Job, jobs: Sequence[Job], varying: Sequence[str]) -> tuple[int, int]:
    """Runs that differ only by seed stand together, where the first of them stands."""
    settings = _settings(job, varying)
    return min(other.number for other in jobs if _settings(other, varying) == settings), job.number


def _name(job: Job, varying: Sequence[str]) -> str:
    settings = [f"{key}={job.overrides[key]}" for key in varying if key in job.overrides]
    return " ".join(settings) or f"run {job.number}"


def _cells(job: Job, columns: Sequence[str]) -> list[str]:
    cells = [decimals(job.figures.get(column)) for column in columns]
    return cells if job.error is None else ["failed", *cells[1:]]


def _spread(jobs: Sequence[Job], columns: Sequence[str]) -> list[str]:
    cells = []
    for column in columns:
        numbers = [number for job in jobs if (number := job.figures.get(column)) is not None]
        half = (max(numbers) - min(numbers)) / 2 if numbers else 0.0
        cells.append(f"{sum(numbers) / len(numbers):.4f}\n±{half:.4f}" if numbers else NOTHING)
    return cells


def _write_csv(path: Path, jobs: Sequence[Job]) -> None:
    """One row a run with every override, for other programs; empty where there is no number."""
    keys, columns = list(dict.fromkeys(key for job in jobs for key in job.overrides)), _columns(jobs)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", *keys, *columns, "seconds", "error"])
        for job in jobs:
            overrides = [job.overrides.get(key) for key in keys]
            writer.writerow([job.number, *overrides, *map(job.figures.get, columns), job.seconds, job.error])
