"""One table over all runs of a Hydra multirun, printed and written when the last one has ended.

``python -m leadre.report.sweep FOLDER`` makes it anew: of a sweep whose jobs go on after the command that began it.
"""

import atexit
import csv
import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from leadre.ranks import global_rank, world_size
from leadre.report.table import NOTHING, Grid, decimals, markdown, rich_table

SEED = "seed"

_NARROWEST, _WIDEST = 110, 1000

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
        objective: The figure that a search wants to be large; None for a job that is no trial of one.
        command: What a trial's settings are scored with on the test users.
    """

    number: int
    overrides: Mapping[str, str]
    figures: Mapping[str, float | None]
    seconds: float | None
    error: str | None
    objective: str | None = None
    command: str | None = None


class SweepTable(Callback):
    """Hydra's hook around a multirun; ``conf/output.yaml`` names it.

    A launcher that loses a job ends the whole command with an error of its own: the table of what is there comes then,
    too. Of several processes of one run the first alone tells and writes it.
    """

    def __init__(self) -> None:
        self.folder = Path()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401  # Hydra's signature
        """Promise the table.

        Raises:
            SystemExit: If a search is begun by several processes at once: each would draw trials of its own, and wait
                for the others in a training that they do not run.
        """
        if config.get("objective") is not None and (processes := world_size()) > 1:
            sys.exit(
                f"objective is {config.objective!r}, but {processes} processes of one run would each draw trials of "
                "their own: begin the search with python in one process, and launch one job per trial instead, such "
                "as with hydra/launcher=slurm"
            )
        self.folder = Path(config.hydra.sweep.dir).absolute()
        if global_rank() == 0:
            atexit.register(self._tell)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401  # Hydra's signature
        """Print the table and write it beside the jobs."""
        atexit.unregister(self._tell)
        if global_rank() == 0:
            write_sweep(self.folder, console=_console())

    def _tell(self) -> None:
        if _numbers(self.folder):
            write_sweep(self.folder, console=_console())
            sys.stderr.write(f"The sweep was broken off. Jobs that still run: python -m {__name__} {self.folder}\n")


def write_sweep(folder: Path, *, console: Console) -> None:
    """Read every job's ``result.json``, print one table over them, and write ``sweep.csv`` and ``sweep.md``.

    Of a search, the best trial's settings and the command that scores them on the test users come last.

    Args:
        folder: The sweep's folder, with one numbered folder a job.
        console: Where the table is printed.

    Raises:
        ValueError: If no job's folder is there.
    """
    jobs = read_jobs(folder)
    grid, title = sweep_grid(jobs), f"Sweep of {len(jobs)} runs"
    _print(grid, title, console)
    page = [f"# {title}", markdown(grid)]
    varying = varying_keys(jobs)
    if errors := [f"- {_name(job, varying)} (run {job.number}): {job.error}" for job in jobs if job.error]:
        if (folder / ".submitit").is_dir():
            errors.append(f"- what the jobs themselves said lies in {folder / '.submitit'}")
        page.append("Runs without figures:\n\n" + "\n".join(errors))
        for error in errors:
            console.print(error, markup=False)
    if (best := best_trial(jobs)) is not None:
        page += _show_best(best, jobs, console)
    (folder / "sweep.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    _write_csv(folder / "sweep.csv", jobs)
    log.info("the table over %s runs lies in %s", len(jobs), folder / "sweep.md")


def read_jobs(folder: Path) -> list[Job]:
    """The jobs of a sweep by their number; one that left no result is a hole with a reason.

    Raises:
        ValueError: If no job's folder is there.
    """
    numbers = _numbers(folder)
    if not numbers:
        raise ValueError(
            f"{folder} holds no job: its folders must be named by number, hydra.sweep.subdir=${{hydra.job.num}}"
        )
    return [_job(number, folder / str(number)) for number in range(max(numbers) + 1)]


def best_trial(jobs: Sequence[Job]) -> Job | None:
    """The trial with the largest objective, the first of equals; None where no search has a whole one."""
    trials = [job for job in jobs if job.objective is not None and job.figures.get(job.objective) is not None]
    return max(trials, key=lambda job: job.figures[job.objective or ""] or 0.0, default=None)


def sweep_grid(jobs: Sequence[Job]) -> Grid:
    """One row a run, named by the overrides in which the runs differ; the best trial of a search stands out.

    Where several runs differ only by ``seed``, a row with their mean ± half their range stands below them.
    """
    varying, columns = varying_keys(jobs), _columns(jobs)
    best = best_trial(jobs)
    ordered = sorted(jobs, key=lambda job: _first_with(job, jobs, varying))
    rows: list[tuple[str, ...]] = []
    strong = set()
    for settings, members in groupby(ordered, key=lambda job: _settings(job, varying)):
        runs = list(members)
        for job in runs:
            strong |= {(len(rows), column) for column in range(len(columns) + 1) if job is best}
            rows.append((_name(job, varying), *_cells(job, columns)))
        whole = [job for job in runs if job.error is None]
        if SEED in varying and len(whole) > 1:
            strong |= {(len(rows), column) for column in range(len(columns) + 1)}
            name = " ".join(f"{_short(key, varying)}={_rounded(value)}" for key, value in settings) or "all"
            rows.append((f"{name}: mean of {len(whole)} seeds ± half range", *_spread(whole, columns)))
    return Grid(head=("run", *columns), rows=tuple(rows), strong=frozenset(strong))


def varying_keys(jobs: Sequence[Job]) -> list[str]:
    """The overrides that are not the same in all jobs, in the order of the command line."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    told = [job for job in jobs if job.overrides]  # a job that was stopped says nothing of its overrides
    return [key for key in keys if len({job.overrides.get(key) for job in told}) > 1]


def _console() -> Console:
    console = Console()
    console.width = max(console.width, _NARROWEST)
    return console


def _print(grid: Grid, title: str, console: Console) -> None:
    """A narrow terminal breaks long lines; a narrow table would cut names and numbers short."""
    table = rich_table(grid, title=title)
    table.min_width = len(title)
    table.columns[0].min_width = max(len(word) for name, *_ in grid.rows for word in name.split())
    console.width = max(console.width, console.measure(table, options=console.options.update(width=_WIDEST)).minimum)
    console.print(table)


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("*") if path.is_dir() and path.name.isdecimal()]


def _job(number: int, folder: Path) -> Job:
    try:
        result = json.loads((folder / "result.json").read_text())
    except FileNotFoundError:
        why = "it left no result.json: it was stopped before its end, or goes on"
        return Job(number, _begun_with(folder), {}, None, why if folder.is_dir() else "it was never begun")
    except json.JSONDecodeError:
        why = "its result.json is cut short: it was stopped while writing"
        return Job(number, _begun_with(folder), {}, None, why)
    overrides = _by_key(result["overrides"])
    if "error" in result:
        return Job(number, overrides, {}, None, " ".join(str(result["error"]).split()))
    told = result.get("objective"), result.get("command")
    return Job(number, overrides, result["figures"], result["seconds"], None, *told)


def _begun_with(folder: Path) -> Mapping[str, str]:
    """The overrides that Hydra writes down before a job begins; none where it was stopped even before."""
    path = folder / ".hydra" / "overrides.yaml"
    return _by_key([str(text) for text in OmegaConf.load(path)]) if path.is_file() else {}


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    return dict(override.partition("=")[::2] for override in overrides)


def _show_best(best: Job, jobs: Sequence[Job], console: Console) -> list[str]:
    """Print the best trial; the same comes out as parts of a page."""
    whole = sum(job.objective is not None for job in jobs)
    trials = f"{len(jobs)} trials" if whole == len(jobs) else f"{whole} of {len(jobs)} trials"
    title = f"Best of {trials} by {best.objective}: run {best.number}"
    rows = [*((key, best.overrides[key]) for key in varying_keys(jobs) if key in best.overrides)]
    rows += [(name, decimals(figure)) for name, figure in best.figures.items()]
    grid = Grid(head=("setting", "value"), rows=tuple(rows))
    told = "Chosen by validation users; on the test users it is scored by"
    _print(grid, title, console)
    console.print(f"{told}\n{best.command}", soft_wrap=True, markup=False, highlight=False)
    return [f"## {title}", markdown(grid), told, f"```sh\n{best.command}\n```"]


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
    settings = [f"{_short(key, varying)}={_rounded(job.overrides[key])}" for key in varying if key in job.overrides]
    return " ".join(settings) or f"run {job.number}"


def _short(key: str, varying: Sequence[str]) -> str:
    """The end of a key that tells it from the others: ``sft.tuning.learning_rate`` is shown as ``learning_rate``."""
    parts = re.split(r"(?<=[./])", key)
    ends = ("".join(parts[place:]) for place in range(len(parts) - 1, 0, -1))
    return next((end for end in ends if not any(other.endswith(end) for other in varying if other != key)), key)


def _rounded(value: str) -> str:
    """A number that was drawn, in three digits; anything else as it was typed."""
    return f"{float(value):.3g}" if re.fullmatch(r"-?\d+\.\d{5,}|-?\d\.\d+e-?\d+", value) else value


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


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name the folder of one sweep: python -m leadre.report.sweep multirun/DATE/TIME")
    try:
        write_sweep(Path(sys.argv[1]), console=_console())
    except ValueError as told:
        sys.exit(str(told))
