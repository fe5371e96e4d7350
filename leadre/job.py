"""One job of an entry script: the main path, then the table, the report, and where every result lies."""

import errno
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from leadre import pipeline
from leadre.artifacts import ArtifactError, Result, Store
from leadre.config import Config, GenerateConfig, RunConfig
from leadre.objective import parts
from leadre.ranks import global_rank, world_size
from leadre.report.generation import figures_of, read_lists, show_generation
from leadre.report.index_page import show_index, write_index_page
from leadre.report.report import StageSummary, write_report
from leadre.report.samples import read_samples
from leadre.report.table import OURS, RATES, show
from leadre.training.config import WandbLogs
from leadre.training.logs import log_scores, read_metrics

NUM_SAMPLES = 5
COLUMNS = ("HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8", "LTRR@8", "Diversity@8", "Value@8")
"""What a sweep's table tells of LEADRE, before its rates of wrong ads."""
RIVAL, RIVAL_COLUMN = "popularity", "HR@8"
"""And of what it is measured against."""
SEARCHING = ("search", "objective")
"""Settings that make a job the trial of a search."""
log = logging.getLogger(__name__)

Work = Callable[[Config, Path, list[str]], dict[str, Any]]
"""One kind of job: given the settings, the output folder and the command line it gives what ``result.json`` holds."""


def run_job(run: Config, work: Work[Config]) -> float | None:
    """Run one job and leave ``result.json`` beside its report in Hydra's output folder.

    A job of a multirun that fails is written down, so that the others go on and the sweep's table shows the hole.

    Args:
        run: The checked configuration.
        work: `train`, `evaluate`, `index_ads` or `generate_lists`.

    Returns:
        The objective of a trial of a search: minus infinity for one that failed, so that the search turns elsewhere.
        None of any other job.

    Raises:
        SystemExit: If there is an objective, but the work is not `train`: no other is judged by validation users.
    """
    objective: str | None = getattr(run, "objective", None)
    if objective is not None and work is not train:
        sys.exit(
            f"objective is {objective!r}, but only train.py is searched: evaluate.py would score test users in each "
            "trial, and index.py none at all; leave out search and objective"
        )
    quiet_libraries()
    if run.compute.threads is not None:
        torch.set_num_threads(run.compute.threads)
    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    multirun = hydra.mode is RunMode.MULTIRUN
    start = time.monotonic()
    try:
        content = work(run, folder, overrides)
    except SystemExit as ended:
        if multirun and global_rank() != 0 and not ended.code:
            return None  # its part is done: the sweep goes on
        raise
    except Exception as error:
        _write_result(folder, {"overrides": overrides, "error": f"{type(error).__name__}: {error}"})
        if multirun:
            log.exception("this run failed; the others go on")
        elif _is_mendable(error) and not os.environ.get("HYDRA_FULL_ERROR"):
            sys.exit(f"{error}\n(HYDRA_FULL_ERROR=1 shows where this was raised)")
        else:
            raise
        return None if objective is None else -math.inf
    _write_result(folder, {"overrides": overrides, **content, "seconds": time.monotonic() - start})
    found: float | None = content["figures"][content["objective"]] if "objective" in content else None
    return found


def train(run: RunConfig, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The main job: build whatever is missing, then score; or, where there is an objective, a trial of a search."""
    if run.objective is not None:
        return _try(run, run.objective, overrides)
    return _score(run, folder, ["python", "train.py", *overrides], build=True)


def evaluate(run: RunConfig, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Score a model that is there: only lists, baselines and scores are made."""
    return _score(run, folder, ["python", "evaluate.py", *overrides], build=False)


def index_ads(run: RunConfig, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The ad side alone: a catalog, and a page that shows how good it is."""
    store = Store(Path(run.store.root))
    indexed = pipeline.index_ads(run, store)
    _end_other_ranks()
    console = _console()
    inspection, page = _inspect(run, store, indexed, folder, ["python", "index.py", *overrides])
    show_index(inspection, console=console)
    _show_paths(store.results, console)
    console.print(f"{'page':20} {page}", soft_wrap=True, highlight=False)
    return {"figures": _index_figures(inspection)}


def generate_lists(run: GenerateConfig, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """The daily batch: a list of ads for every user, with a model that is there."""
    store = Store(Path(run.store.root))
    listed = pipeline.generate_lists(run, store)
    _end_other_ranks()
    console = _console()
    generation = json.loads((listed.generations.path / "generation.json").read_text(encoding="utf-8"))
    audience = json.loads((listed.audience.path / "prompts.json").read_text(encoding="utf-8"))
    samples = read_lists(
        listed.world.path if listed.world else None,
        listed.audience.path,
        listed.generations.path,
        num_users=NUM_SAMPLES,
        num_ads=NUM_SAMPLES,
    )
    reused, left_out = listed.generations.reused, audience.get("audience", {}).get("left_out")
    show_generation(generation, samples, reused=reused, left_out=left_out, console=console)
    _show_paths(store.results, console)
    console.print(f"{'lists':20} {listed.generations.path / 'lists'}", soft_wrap=True, highlight=False)
    return {"generation": generation, "figures": figures_of(generation, reused=reused)}


def _is_mendable(error: Exception) -> bool:
    """Whether the user can mend it, so that it is told without a traceback: wrong input, or a disk that is full."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
    return isinstance(error, ValueError | ArtifactError) or (isinstance(error, OSError) and error.errno in full)


def quiet_libraries() -> None:
    """Leave out what libraries say of themselves: progress bars for loading a file, hints, devices found."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # Transformers' own, for loading a file; stages have theirs
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _score(run: RunConfig, folder: Path, command: list[str], *, build: bool) -> dict[str, Any]:
    root = Path(run.store.root)
    store, scoring = Store(root, build=build), Store(root)
    indexed = pipeline.index_ads(run, store)
    prepared = pipeline.prepare(run, store, indexed)
    model = pipeline.train(run, store, prepared)
    if world_size() == 1:
        _end_other_ranks()  # those that Lightning started end with the training; those of torchrun generate too
    evaluated = pipeline.evaluate(run, scoring, prepared, model)
    _end_other_ranks()
    pages = {}
    if build:
        pages["index"] = _inspect(run, scoring, indexed, folder, command)[1]

    results = [*store.results, *scoring.results]
    scores = pipeline.read_scores(evaluated.scores)
    pages["report"] = write_report(
        folder,
        title="LEADRE run",
        command=shlex.join(command),
        stages=[_summary(result) for result in results],
        scores=scores,
        diagnostics=json.loads((indexed.codes.path / "diagnostics.json").read_text()),
        world=json.loads((indexed.world.path / "world.json").read_text()),
        samples=read_samples(indexed.world.path, evaluated.generations.path, num_users=NUM_SAMPLES),
    )
    console = _console()
    show(scores, console=console)
    _show_paths(results, console)
    for what, page in pages.items():
        console.print(f"{what:20} {page}", soft_wrap=True, highlight=False)
    if isinstance(run.logger, WandbLogs):
        log_scores(run.logger, scores["systems"])
    systems = scores["systems"]
    figures = {column: systems[OURS].get(column) for column in COLUMNS}
    figures |= {name: systems[OURS].get(rate) for name, rate in RATES.items()}
    figures[f"{RIVAL} {RIVAL_COLUMN}"] = systems.get(RIVAL, {}).get(RIVAL_COLUMN)
    return {"scores": scores, "figures": figures}


def _try(run: RunConfig, objective: str, overrides: list[str]) -> dict[str, Any]:
    """One trial of a search: train, and tell how validation users are served; no test user is looked at.

    Raises:
        ValueError: If the training does not measure the objective.
    """
    store = Store(Path(run.store.root))
    indexed = pipeline.index_ads(run, store)
    name, metric = parts(objective)
    if name is None:
        trained = pipeline.train(run, store, pipeline.prepare(run, store, indexed))
    else:
        trained = pipeline.learn_baselines(run, store, indexed.world, indexed.catalog)[name]
    _end_other_ranks()
    rows = read_metrics(trained.path / "metrics.jsonl")
    last = {key: value for row in rows for key, value in row.items() if key.startswith("valid/")}
    if metric not in last:
        has = f"measures {', '.join(last)}" if last else "has no validation users"
        raise ValueError(f"objective is {objective!r}, but the training {has}: name one of its scores ({trained.path})")
    console = _console()
    _show_paths(store.results, console)
    console.print(f"{objective:20} {last[metric]:.4f}", highlight=False)
    figures = {metric: last[metric], **last}  # the objective is the first
    return {"objective": metric, "figures": figures, "command": _command_of_the_best(overrides, baseline=name)}


def _command_of_the_best(overrides: list[str], *, baseline: str | None) -> str:
    """What scores the test users with the settings of a trial; LEADRE beside a baseline is not aligned."""
    kept = [text for text in overrides if text.partition("=")[0].lstrip("+") not in SEARCHING]
    if baseline is not None and not any(text.lstrip("+").startswith("alignment") for text in kept):
        kept.append("alignment=none")
    return shlex.join(["python", "train.py", *kept])


def _inspect(
    run: RunConfig, store: Store, indexed: pipeline.Indexed, folder: Path, command: list[str]
) -> tuple[dict[str, Any], Path]:
    """The numbers of an index, and the page of it in the output folder."""
    found = pipeline.inspect_index(run, store, indexed).path
    inspection: dict[str, Any] = json.loads((found / "inspection.json").read_text(encoding="utf-8"))
    page = write_index_page(
        folder,
        title="LEADRE index",
        command=shlex.join(command),
        inspection=inspection,
        neighbors=json.loads((found / "neighbors.json").read_text(encoding="utf-8")),
    )
    return inspection, page


def _index_figures(inspection: dict[str, Any]) -> dict[str, float | None]:
    """What a sweep's table tells of an index."""
    return {
        "texts that collide": inspection["before"]["texts"]["rate"],
        "relative error": inspection["reconstruction_error"],
        "used on level 1": inspection["levels"][0]["used"] / inspection["levels"][0]["codes"],
        "evenness of bits": inspection["bits"]["evenness"],
        **{f"bits {place}": level["bits"] for place, level in enumerate(inspection["levels"], start=1)},
    }


def _end_other_ranks() -> None:
    """End every process of a distributed run but the first, which prints and reports."""
    if global_rank() != 0:
        sys.exit()


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)


def _show_paths(results: list[Result], console: Console) -> None:
    for summary in map(_summary, results):
        console.print(f"{summary.name:20} {summary.path}", soft_wrap=True, highlight=False)


def _summary(result: Result) -> StageSummary:
    """A result under the name that readers know it by: a tuning stage is told by its tasks."""
    config = json.loads((result.path / "manifest.json").read_text())["config"] or {}
    name = ": ".join([result.stage, *(["+".join(config["tasks"])] if "tasks" in config else [])])
    return StageSummary(name, result.key, result.path, result.seconds, result.reused)


def _write_result(folder: Path, result: dict[str, Any]) -> None:
    if global_rank() == 0:
        (folder / "result.json").write_text(json.dumps(result, indent=1))
