"""Run the rows of a study with every seed: one after another, or several at once on the cores of one machine."""

import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from experiments.study import Study, key_of
from leadre.artifacts import Result
from leadre.job import quiet_libraries

log = logging.getLogger(__name__)


class Found(NamedTuple):
    """What a study found.

    Attributes:
        scores: The results of stage ``scores`` by row and seed.
        not_run: Why a row has none, or not of every seed.
        seeds: The training seeds that were asked for.
    """

    scores: Mapping[str, Mapping[int, Result]]
    not_run: Mapping[str, str]
    seeds: Sequence[int]


class Job(NamedTuple):
    """One run of the main path, for all rows that ask for it.

    Attributes:
        overrides: Its settings.
        training_seed: The study's seed, shifted where a row is.
        seed: The study's seed that its scores stand under.
        rows: The names of its rows: several where they show systems of one run.
    """

    overrides: tuple[str, ...]
    training_seed: int
    seed: int
    rows: tuple[str, ...]


def run_rows(study: Study, settings: Mapping[str, Sequence[str]], seeds: Sequence[int], *, jobs: int = 1) -> Found:
    """Run all rows, seed by seed, so that what a killed study has left can be compared: name fewer seeds to see it.

    Args:
        study: Its rows, and what runs one.
        settings: The overrides of each row.
        seeds: The study's training seeds.
        jobs: How many are under way at once, each in a process of its own. What they share one of them builds, and the
            others wait for it.
    """
    scores: dict[str, dict[int, Result]] = {row.name: {} for row in study.rows}
    not_run: dict[str, str] = {}
    planned = all_jobs(study, settings, seeds)

    def wanted(job: Job) -> bool:
        return not all(row in not_run for row in job.rows)

    finished = _one_by_one(study, planned, wanted) if jobs == 1 else _side_by_side(study, planned, wanted, jobs)
    start, built = time.monotonic(), 0
    for done, (job, outcome) in enumerate(finished, start=1):
        for row in job.rows:
            if isinstance(outcome, str):
                not_run.setdefault(row, f"seed {job.seed}: {outcome}")
            else:
                scores[row][job.seed] = outcome
        built += isinstance(outcome, Result) and not outcome.reused
        minutes = (time.monotonic() - start) / max(built, 1) * (len(planned) - done) / 60
        left = f", about {minutes:.0f} min left" if built else ""  # what was there already took no time
        log.info("%s: %s of %s runs done%s", study.name, done, len(planned), left)
    in_order = {row: {seed: made[seed] for seed in seeds if seed in made} for row, made in scores.items()}
    return Found(in_order, not_run, seeds)


def all_jobs(study: Study, settings: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[Job]:
    """Each job once, seed by seed and in the order of the rows that ask for it."""
    rows: dict[tuple[tuple[str, ...], int, int], list[str]] = {}
    for seed in seeds:
        for row in study.rows:
            rows.setdefault((_unlogged(settings[row.name]), seed + row.shift, seed), []).append(row.name)
    return [Job(*asked, tuple(names)) for asked, names in rows.items()]


def log_to_stderr(*, process: str = "") -> None:
    """Show the progress of stages, and leave out what libraries say of themselves."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {process}%(message)s", datefmt="%H:%M:%S")
    quiet_libraries()


def _one_by_one(
    study: Study, planned: Sequence[Job], wanted: Callable[[Job], bool]
) -> Iterator[tuple[Job, Result | str]]:
    for job in filter(wanted, planned):  # looked at when its turn comes
        yield job, _outcome(study.name, study.run, job)


def _side_by_side(
    study: Study, planned: Sequence[Job], wanted: Callable[[Job], bool], jobs: int
) -> Iterator[tuple[Job, Result | str]]:
    """The outcomes as they come. Processes are started anew: PyTorch's threads do not live on in a forked one."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        futures = {pool.submit(_outcome, study.name, study.run, job): job for job in planned}
        for done in as_completed(futures):
            if done.cancelled():
                continue
            try:
                yield futures[done], done.result()
            except BrokenProcessPool:
                yield futures[done], "a process ended without a word, perhaps for want of memory: give fewer jobs"
            for other, job in futures.items():
                if not wanted(job):
                    other.cancel()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    log_to_stderr(process=f"[{os.getpid()}] ")


def _outcome(study: str, make: Callable[[Sequence[str], int], Result], job: Job) -> Result | str:
    """The scores of a job, or why there are none."""
    log.info("%s: %s, seed %s", study, ", ".join(job.rows), job.seed)
    try:
        return make(job.overrides, job.training_seed)
    except Exception as error:  # the other rows need not suffer, and the table shows the hole and why
        log.warning("%s is not run", ", ".join(job.rows), exc_info=error)
        return f"{type(error).__name__}: {error}"


def _unlogged(overrides: Sequence[str]) -> tuple[str, ...]:
    """Without what sends curves to Weights & Biases: a study sends them with its scores, when it ends."""
    return tuple(text for text in overrides if key_of(text).partition(".")[0] != "logger")
