"""Metrics on disk, always: one JSON object a logged step, and the same as CSV at the end."""

import csv
import json
import logging
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from leadre.training.config import FileLogs, LoggerConfig, WandbLogs

log = logging.getLogger(__name__)


class FileLogger(Logger):
    """Append every logged metric to ``metrics.jsonl`` in ``folder``.

    Args:
        folder: Where the file lies.
        resume_step: Rows after this step are dropped first: they were logged after the checkpoint
            that training goes on from, and are about to be logged again.
        step: Tells the optimizer steps taken so far. Lightning's own count for a logger is one less
            in training than in validation.
    """

    def __init__(self, folder: Path, *, resume_step: int, step: Callable[[], int]) -> None:
        super().__init__()
        self.path = folder / "metrics.jsonl"
        self.step = step
        kept = [row for row in read_metrics(self.path) if row["step"] <= resume_step] if resume_step else []
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.logged = {(row["step"], *sorted(row)) for row in kept}

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def version(self) -> str:
        """One version a folder."""
        return ""

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Nothing: the manifest beside the file holds the settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row."""
        row = {"step": self.step()} | {key: value for key, value in metrics.items() if key != "epoch"}
        mark = (row["step"], *sorted(row))
        if len(row) > 1 and mark not in self.logged:  # a validation that a resumed training repeats is logged once
            self.logged.add(mark)
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.jsonl``; none when there is no file. A row cut short by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            log.warning("%s: left out a row that is cut short: %s", path, line[:80])
    return rows


def write_csv(folder: Path) -> None:
    """Write ``metrics.csv`` from ``metrics.jsonl``: one column a metric, empty where it was not logged."""
    rows = read_metrics(folder / "metrics.jsonl")
    names = ["step", *sorted({name for row in rows for name in row} - {"step"})]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def loggers(
    config: LoggerConfig, folder: Path, *, name: str, resume_step: int, step: Callable[[], int]
) -> list[Logger]:
    """The file logger, and Weights & Biases beside it where the config asks for it."""
    files = FileLogger(folder, resume_step=resume_step, step=step)
    match config:
        case FileLogs():
            return [files]
        case WandbLogs():
            return [files, wandb_logger(config, name=name, job_type=name.split(".")[0])]


def wandb_logger(config: WandbLogs, *, name: str, job_type: str) -> WandbLogger:
    """A W&B run; offline when neither WANDB_API_KEY nor a netrc entry is there."""
    options: dict[str, Any] = {"entity": config.entity, "group": config.group, "tags": list(config.tags)}
    Path(config.folder).mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        name=name,
        project=config.project,
        save_dir=config.folder,
        offline=not _has_wandb_key(),
        job_type=job_type,
        reinit="finish_previous",
        **options,
    )


def log_scores(config: WandbLogs, systems: Mapping[str, Mapping[str, float | None]]) -> None:
    """A W&B run of its own for the scores of all systems, named ``test/<system>/<metric>``; undefined ones are not."""
    run = wandb_logger(config, name="scores", job_type="scores")
    flat = {f"test/{system}/{name}": value for system, row in systems.items() for name, value in row.items()}
    run.log_metrics({name: value for name, value in flat.items() if value is not None})
    run.experiment.finish()


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_MODE") in {"offline", "disabled"}:
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
