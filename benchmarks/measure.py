"""The harness of the benchmarks: variants side by side in one process, results compared, figures against goals."""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from rich.console import Console
from rich.table import Table

Input = TypeVar("Input")
Output = TypeVar("Output")

DATA = Path(os.environ.get("LEADRE_DATA", Path(__file__).parents[2] / "shared" / "data"))


class Setting(NamedTuple):
    """How to measure: ``quick`` takes fewer repetitions and smaller inputs; ``data`` is the folder of real data."""

    quick: bool
    data: Path


class Figure(NamedTuple):
    """One measured number.

    Attributes:
        name: What was measured, with its unit.
        value: The number; None where it was not run.
        relation: How it must stand to its goal; None for a number that is only told.
        goal: The goal.
        note: What a reader must know to judge it.
    """

    name: str
    value: float | None
    relation: Literal["<=", ">="] | None = None
    goal: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether it meets its goal; None if it has none or was not run."""
        if self.value is None or self.goal is None:
            return None
        return self.value <= self.goal if self.relation == "<=" else self.value >= self.goal


Measurement = Callable[[Setting], Iterable[Figure]]


def race(
    variants: Mapping[str, Callable[[Input], Output]],
    inputs: Callable[[int], Input],
    *,
    repeats: int,
    check: Callable[[Input, Mapping[str, Output]], None],
    warmup: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """Time variants on the same fresh inputs, in an order that rotates with each repetition.

    Args:
        variants: Functions of one input.
        inputs: Makes the input of each repetition, not timed.
        repeats: Repetitions that count.
        check: Gets input and results of each repetition, not timed, and raises AssertionError where results differ.
        warmup: Repetitions before, which do not count.
        clock: Seconds; by default those that this process spent on a CPU, all its threads together.

    Returns:
        The median seconds of each variant.
    """
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(warmup + repeats):
        given, results = inputs(turn), {}
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            begin = clock()
            results[name] = variants[name](given)
            seconds[name].append(clock() - begin)
        check(given, results)
    return {name: statistics.median(taken[warmup:]) for name, taken in seconds.items()}


def main(measurements: Sequence[Measurement], argv: Sequence[str] | None = None) -> int:
    """Run measurements as a command: a table, and as the last line all figures as one JSON object.

    Everything is measured on one thread. A measurement that ends in an error, or whose results are not equal, counts as
    a figure that misses, with the reason in its note; the others go on.

    Returns:
        The exit code: 1 where a figure misses its goal, else 0.
    """
    names = [measurement.__name__ for measurement in measurements]
    parser = argparse.ArgumentParser(description="Measure figures against their goals.")
    parser.add_argument("--quick", action="store_true", help="a minute and a half: smaller inputs, fewer repetitions")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the real data sets (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="measure these alone")
    given = parser.parse_args(argv)
    # Libraries read these when they are imported, which is why a measurement imports them itself.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    os.environ["POLARS_MAX_THREADS"] = "1"
    chosen = [measurement for measurement in measurements if measurement.__name__ in given.only]
    figures = [figure for each in chosen for figure in _measured(each, Setting(given.quick, given.data))]
    console = Console()
    console.print(_table(figures))
    console.file.write(json.dumps({"figures": [_told(figure) for figure in figures]}) + "\n")
    return int(any(figure.holds is False for figure in figures))


def _measured(measurement: Measurement, setting: Setting) -> list[Figure]:
    begin = time.perf_counter()
    figures = []
    try:
        for figure in measurement(setting):
            figures.append(figure)  # noqa: PERF402  # those before a failure are kept
    except AssertionError as error:
        figures.append(Figure(f"{measurement.__name__}: equal results", 0, ">=", 1, _first_line(error)))
    except Exception as error:  # whatever one measurement runs into, the others are wanted
        reason = f"{type(error).__name__}: {_first_line(error)}"
        figures.append(Figure(f"{measurement.__name__}: measured to its end", 0, ">=", 1, reason))
    Console(stderr=True).print(f"{measurement.__name__}: {time.perf_counter() - begin:.0f} s")
    return figures


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _told(figure: Figure) -> dict[str, object]:
    finite = figure.value is not None and math.isfinite(figure.value)
    return {
        "name": figure.name,
        "value": figure.value if finite else None,
        "goal": None if figure.goal is None else f"{figure.relation} {figure.goal:g}",
        "holds": figure.holds,
        "note": figure.note,
    }


def _table(figures: Iterable[Figure]) -> Table:
    table = Table("what", "value", "goal", "", "note")
    for figure in figures:
        told = _told(figure)
        value = "not run" if figure.value is None else f"{figure.value:.4g}"
        verdict = {True: "holds", False: "MISSES", None: ""}[figure.holds]
        table.add_row(figure.name, value, str(told["goal"] or ""), verdict, figure.note)
    return table
