"""One job of train.py or evaluate.py: the main path, then the table, the report, and where every result lies."""

import json
import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from leadre import pipeline
from leadre.artifacts import ArtifactError, Result, Store, global_rank
from leadre.config import RunConfig
from leadre.report.report import StageSummary, write_report
from leadre.report.samples import read_samples
from leadre.report.table import show
from leadre.training.config import WandbLogs
from leadre.training.logs import log_scores

NUM_SAMPLES = 5
log = logging.getLogger(__name__)


def run_job(run: RunConfig, *, train: bool) -> None:
    """Run one job and leave ``report.md`` and ``result.json`` in Hydra's output folder.

    A job of a multirun that fails is written down, so that the others go on and the sweep's table shows the hole.

    Args:
        run: The checked configuration.
        train: Build whatever is missing; with False only lists, baselines and scores are made.
    """
    quiet_libraries()
    if run.compute.threads is not None:
        torch.set_num_threads(run.compute.threads)
    hydra = HydraConfig.get()
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    start = time.monotonic()
    try:
        scores = _run(run, folder, overrides, train=train)
    except Exception as error:
        _write_result(folder, {"overrides": overrides, "error": f"{type(error).__name__}: {error}"})
        if hydra.mode is RunMode.MULTIRUN:
            log.exception("this run failed; the others go on")
        elif isinstance(error, ValueError | ArtifactError) and not os.environ.get("HYDRA_FULL_ERROR"):
            sys.exit(f"{error}\n(HYDRA_FULL_ERROR=1 shows where this was raised)")  # input that the user can mend
        else:
            raise
    else:
        _write_result(folder, {"overrides": overrides, "scores": scores, "seconds": time.monotonic() - start})


def quiet_libraries() -> None:
    """Leave out what libraries say of themselves: progress bars for loading a file, hints, devices found."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # Transformers' own, for loading a file; stages have theirs
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _run(run: RunConfig, folder: Path, overrides: list[str], *, train: bool) -> dict[str, Any]:
    root = Path(run.store.root)
    store, scoring = Store(root, build=train), Store(root)
    prepared = pipeline.prepare(run, store)
    model = pipeline.train(run, store, prepared)
    if global_rank() != 0:
        sys.exit()  # the other ranks of a distributed training end with it
    evaluated = pipeline.evaluate(run, scoring, prepared, model)

    results = [*store.results, *scoring.results]
    scores = pipeline.read_scores(evaluated.scores)
    report = write_report(
        folder,
        title="LEADRE run",
        command=shlex.join(["python", "train.py" if train else "evaluate.py", *overrides]),
        stages=[_summary(result) for result in results],
        scores=scores,
        diagnostics=json.loads((prepared.codes.path / "diagnostics.json").read_text()),
        world=json.loads((prepared.world.path / "world.json").read_text()),
        samples=read_samples(prepared.world.path, evaluated.generations.path, num_users=NUM_SAMPLES),
    )
    console = Console(width=None if sys.stdout.isatty() else 120)
    show(scores, console=console)
    for summary in map(_summary, results):
        console.print(f"{summary.name:20} {summary.path}", soft_wrap=True, highlight=False)
    console.print(f"{'report':20} {report}", soft_wrap=True, highlight=False)
    if isinstance(run.logger, WandbLogs):
        log_scores(run.logger, scores["systems"])
    return scores


def _summary(result: Result) -> StageSummary:
    """A result under the name that readers know it by: a tuning stage is told by its tasks."""
    config = json.loads((result.path / "manifest.json").read_text())["config"] or {}
    name = ": ".join([result.stage, *(["+".join(config["tasks"])] if "tasks" in config else [])])
    return StageSummary(name, result.key, result.path, result.seconds, result.reused)


def _write_result(folder: Path, result: dict[str, Any]) -> None:
    if global_rank() == 0:
        (folder / "result.json").write_text(json.dumps(result, indent=1))
