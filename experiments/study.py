"""A study: rows of settings, each with several training seeds, over the main path; its table stands beside the paper's.

Every stage is a result in the store, so rows share what they have in common, and a study that was killed goes on
where it was. What may be concluded from a table is said with it: the interval of each difference, and the controls.
"""

import csv
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from rich.console import Console

from leadre import pipeline
from leadre.artifacts import ArtifactError, Result, Store
from leadre.config import CONF, ConfigError, RunConfig, check, load
from leadre.job import quiet_libraries
from leadre.metrics.uncertainty import paired_bootstrap
from leadre.report.table import NOTHING, Grid, decimals, markdown, rich_table

OfUsers = NDArray[np.float64]
"""A score of each user, the mean over the seeds, ``(N,)``; NaN where it is undefined."""
OURS = "LEADRE"
log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        name: As the table shows it.
        overrides: What sets this row apart, as on the command line. They come after the study's own and replace
            those of the same group; ``{levels}`` and ``{codebook_size}`` stand for the study's quantizer's.
        paper: The paper's numbers, by column; empty where it has none.
        control: Whether the row is there to fail: what does not beat it means nothing.
    """

    name: str
    overrides: tuple[str, ...]
    paper: Mapping[str, float] = {}
    control: bool = False


class Study(NamedTuple):
    """A table of the paper, or one of our own.

    Attributes:
        name: The file name of what it writes.
        title: What it asks.
        columns: Scores of LEADRE's test lists, as ``scores.json`` names them.
        rows: The first is what the others are compared with.
        compared: The scores whose differences get an interval; the figure shows them too.
        measures: Further columns: what each is of a result of stage ``scores`` and of what that was made from.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    compared: tuple[str, ...]
    measures: Mapping[str, Callable[[Result], float | None]] = {}


class Found(NamedTuple):
    """What a study found.

    Attributes:
        scores: The results of stage ``scores``, one a seed, by row.
        not_run: Why a row has none.
        seeds: The training seeds.
    """

    scores: Mapping[str, Sequence[Result]]
    not_run: Mapping[str, str]
    seeds: Sequence[int]


def scored(overrides: Sequence[str], seed: int) -> Result:
    """The scores of the main job with one training seed; whatever is in the store is reused."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run: RunConfig = load(compose("run", [*overrides, f"seed={seed}"]))
    store = Store(Path(run.store.root))
    prepared = pipeline.prepare(run, store, pipeline.index_ads(run, store))
    return pipeline.evaluate(run, store, prepared, pipeline.train(run, store, prepared)).scores


def of_users(results: Sequence[Result], system: str, score: str) -> OfUsers:
    """A score of each user, by user id; of HR@k, the share of the seeds whose first k ads have the clicked one.

    Raises:
        ValueError: If the seeds were not scored on the same users.
    """
    frames = [
        pl.read_parquet(result.path / "per_user.parquet").filter(pl.col("system") == system).sort("user_id")
        for result in results
    ]
    if any(not frame["user_id"].equals(frames[0]["user_id"]) for frame in frames):
        raise ValueError(f"{[result.path for result in results]} do not score the same users: they cannot be compared")
    name, _, k = score.partition("@")
    value = pl.col("rank").fill_null(0).is_between(1, int(k)) if name == "HR" else pl.col(score)
    values = [frame.select(value.cast(pl.Float64)).to_series().fill_null(np.nan).to_numpy() for frame in frames]
    return np.asarray(np.mean(values, axis=0), dtype=np.float64)


def difference(ours: OfUsers, theirs: OfUsers) -> dict[str, float]:
    """Means over users of two systems against each other: difference, 95 % paired interval, ratio."""
    both = ~(np.isnan(ours) | np.isnan(theirs))
    found = paired_bootstrap(
        ours[both, None], theirs[both, None], samples=2000, confidence=0.95, generator=np.random.default_rng(0)
    )
    return {name: float(value[0]) for name, value in found._asdict().items()}


def seeds_and_overrides(arguments: Sequence[str]) -> tuple[list[int], list[str]]:
    """Take ``seeds=0,1,2`` (the default) out of a command line; the rest are overrides of every row.

    Raises:
        ConfigError: If the seeds are no different whole numbers, or a single ``seed`` is named.
    """
    typed = [text.removeprefix("seeds=") for text in arguments if text.startswith("seeds=")]
    rest = [text for text in arguments if not text.startswith("seeds=")]
    seeds = (typed or ["0,1,2"])[-1].split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(set(map(int, seeds))) < len(seeds):
        raise ConfigError(f"seeds is {','.join(seeds)!r}, but must be different whole numbers, such as seeds=0,1,2")
    if any(text.startswith("seed=") for text in rest):
        raise ConfigError("seed is set by the study, run after run: name the seeds with seeds=0,1,2")
    return [int(seed) for seed in seeds], rest


def overrides_of(row: Row, study: Study, overrides: Sequence[str]) -> list[str]:
    """What a row is run with: the study's overrides but for the groups that the row replaces, then its own.

    Raises:
        ConfigError: If an override names what the rows differ in, or is wrong.
    """
    varied = [{_key(text) for text in row.overrides} for row in study.rows if not row.control]
    for text in overrides:
        if all(any(_covers(own, _key(text)) for own in keys) for keys in varied):
            raise ConfigError(f"{text}: this is what the rows of {study.name} differ in: leave it out")
    check(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        quantizer = compose("run", list(overrides)).quantizer
    sizes = {name: quantizer.get(name) for name in ("levels", "codebook_size")}
    own = [text.format(**sizes) for text in row.overrides]
    chosen = [*(text for text in overrides if not any(_covers(_key(one), _key(text)) for one in own)), *own]
    check(chosen)
    return chosen


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _covers(key: str, other: str) -> bool:
    """Whether setting ``key`` replaces ``other``: itself, or a group that it lies in."""
    return other == key or other.startswith((f"{key}.", f"{key}/"))


def run_study(study: Study, arguments: Sequence[str]) -> None:
    """Run all rows with all seeds, print the table, write it, and as the last line print the same as JSON."""
    try:
        seeds, overrides = seeds_and_overrides(arguments)
        settings = {row.name: overrides_of(row, study, overrides) for row in study.rows}
    except ConfigError as error:
        sys.exit(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    quiet_libraries()
    found = _run_rows(study, settings, seeds)
    if not found.scores:
        sys.exit("No row could be run:\n" + "\n".join(found.not_run.values()))
    folder = Path("outputs") / study.name / datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    wide = 80 + 18 * len(study.measures) + 60 * len(study.compared)
    console = Console(width=None if sys.stdout.isatty() else wide)
    grid = study_grid(study, found)
    console.print(rich_table(grid, title=study.title))
    for note in notes(study, found):
        console.print(note, highlight=False)
    write_study(folder, study, found, command=f"python -m experiments.{study.name} {' '.join(arguments)}".strip())
    console.print(f"{folder / 'table.md'}", soft_wrap=True, highlight=False)
    print(json.dumps(as_json(study, found)))


def study_grid(study: Study, found: Found) -> Grid:
    """One row a row: mean and half range over the seeds, the paper's number, and the differences with intervals.

    Each compared score has two: that from the first row, and that from the control that has most of it.
    """
    first = study.rows[0].name
    rivals = {score: (first, _best_control(study, found, score)) for score in study.compared}
    body = []
    for row in study.rows:
        results = found.scores.get(row.name, [])
        cells = [_cell(_values(study, results, name), row.paper.get(name)) for name in _columns(study)]
        cells += [_against(found, row.name, rival, score) for score, pair in rivals.items() for rival in pair]
        body.append((row.name, *cells))
    told = (f"{score} less that of {rival}" for score in study.compared for rival in (first, "the best control"))
    return Grid(head=("", *_columns(study), *told), rows=tuple(body))


def _best_control(study: Study, found: Found, score: str) -> str | None:
    controls = [row.name for row in study.rows if row.control and row.name in found.scores]
    return max(controls, key=lambda name: float(np.nanmean(of_users(found.scores[name], OURS, score))), default=None)


def notes(study: Study, found: Found) -> list[str]:
    """What a reader must know: seeds, users, what was not run and why, and what may not be claimed."""
    results = next(iter(found.scores.values()), None)
    users = len(of_users(results, OURS, "HR@1")) if results else 0
    told = [
        f"Means ± half range over the training seeds {', '.join(map(str, found.seeds))}; {users} test users. "
        "The differences have 95 % intervals over users, scores averaged over these seeds: how much other seeds would "
        "differ they do not tell. In brackets: the paper's numbers, of other data.",
        *(f"Not run: {name}: {reason}" for name, reason in found.not_run.items()),
    ]
    if len(found.seeds) < 3:
        told.append("Fewer than three seeds: no claim may rest on this table.")
    if not any(row.control for row in study.rows if row.name in found.scores):
        told.append("No negative control was run: no claim may rest on this table.")
    return told


def write_study(folder: Path, study: Study, found: Found, *, command: str) -> None:
    """Write ``table.md``, ``table.csv`` (one line a row and seed, with the key of its scores) and ``figure.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    page = [f"# {study.title}", f"`{command}`", markdown(study_grid(study, found)), *notes(study, found)]
    (folder / "table.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "seed", *_columns(study), "scores"])
        for name, results in found.scores.items():
            for seed, result in zip(found.seeds, results, strict=True):
                values = (_value(study, result, column) for column in _columns(study))
                writer.writerow([name, seed, *values, result.key])
    _draw(folder / "figure.png", study, found)


def as_json(study: Study, found: Found) -> dict[str, Any]:
    """The table for other programs."""
    first = study.rows[0].name
    rows = {
        row.name: {
            "control": row.control,
            "scores": {column: _values(study, found.scores[row.name], column) for column in _columns(study)},
            "differences": {score: _difference(found, row.name, first, score) for score in study.compared},
            "keys": [result.key for result in found.scores[row.name]],
        }
        for row in study.rows
        if row.name in found.scores
    }
    return {"study": study.name, "seeds": list(found.seeds), "rows": rows, "not_run": dict(found.not_run)}


def _run_rows(study: Study, settings: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> Found:
    """Seed by seed, so that what a killed study has left can be compared: name fewer seeds to see it."""
    scores: dict[str, list[Result]] = {row.name: [] for row in study.rows}
    not_run: dict[str, str] = {}
    start, done = time.monotonic(), 0
    for turn, seed in enumerate(seeds):
        for row in [row for row in study.rows if row.name not in not_run]:
            left = len(scores) - len(not_run) - sum(len(found) > turn for found in scores.values())
            left += (len(seeds) - turn - 1) * (len(scores) - len(not_run))
            told = f", about {(time.monotonic() - start) / done * left / 60:.0f} min" if done else ""
            log.info("%s: %s, seed %s (%s runs left%s)", study.name, row.name, seed, left, told)
            try:
                scores[row.name].append(scored(settings[row.name], seed))
                done += 1
            except (ValueError, ArtifactError) as error:  # such as weights that are not here: others need not suffer
                not_run[row.name] = str(error)
                log.warning("%s is not run: %s", row.name, error)
    return Found({name: found for name, found in scores.items() if name not in not_run}, not_run, seeds)


def _columns(study: Study) -> tuple[str, ...]:
    return (*study.columns, *study.measures)


def _values(study: Study, results: Sequence[Result], column: str) -> list[float]:
    values = (_value(study, result, column) for result in results)
    return [float(value) for value in values if value is not None]


def _value(study: Study, result: Result, column: str) -> float | None:
    if column in study.measures:
        return study.measures[column](result)
    found: float | None = pipeline.read_scores(result)["systems"][OURS].get(column)
    return found


def _cell(values: Sequence[float], paper: float | None) -> str:
    beside = f" [{decimals(paper)}]" if paper is not None else ""
    if not values:
        return NOTHING + beside
    digits = 4 if max(values) < 10 else 1
    return f"{np.mean(values):.{digits}f} ±{(max(values) - min(values)) / 2:.{digits}f}{beside}"


def _difference(found: Found, row: str, rival: str | None, score: str) -> dict[str, float] | None:
    if rival is None or rival == row or not {row, rival} <= found.scores.keys():
        return None
    return difference(*(of_users(found.scores[name], OURS, score) for name in (row, rival)))


def _against(found: Found, row: str, rival: str | None, score: str) -> str:
    told = _difference(found, row, rival, score)
    return NOTHING if told is None else f"{told['mean']:+.4f} ({told['low']:+.4f} to {told['high']:+.4f})"


def _draw(path: Path, study: Study, found: Found) -> None:
    """The compared scores of every row: a dot a seed, and the mean."""
    from matplotlib.figure import Figure

    rows = [row for row in study.rows if row.name in found.scores]
    figure = Figure(figsize=(3 + 5 * len(study.compared), 1.2 + 0.5 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(study.compared), sharey=True, squeeze=False)[0]
    for axes, score in zip(panels, study.compared, strict=True):
        for place, row in enumerate(rows):
            values = _values(study, found.scores[row.name], score)
            color = "tab:gray" if row.control else "tab:blue"
            axes.scatter(values, [place] * len(values), s=24, color=color, alpha=0.6)
            axes.scatter([np.mean(values)], [place], s=120, marker="|", color=color)
        axes.set_xlabel(f"{score} of the test users")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(rows)), [row.name + (" (control)" if row.control else "") for row in rows])
    panels[0].invert_yaxis()
    figure.suptitle("A dot a training seed, the bar their mean", fontsize="medium")
    figure.savefig(path, dpi=150)
