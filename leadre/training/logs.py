"""Metrics on disk, always: one JSON object a logged step, and the same as CSV at the end."""

import csv
import json
import logging
import netrc
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from leadre.training.config import FileLogs, LoggerConfig, WandbLogs

INIT_S, FINISH_S = 10.0, 60.0
"""How long W&B is waited for: for each of two answers at the start of a run, and for what is not sent at its end."""
log = logging.getLogger(__name__)


class FileLogger(Logger):
    """Append every logged metric to ``metrics.jsonl`` in ``folder``.

    Args:
        folder: Where the file lies.
        resume_step: Rows after this step are dropped first: they were logged after the checkpoint
            that training goes on from, and are about to be logged again.
        step: Tells the optimizer steps taken so far. Lightning's own count for a logger is one less
            in training than in validation.

    A row that comes twice is written once: that of a saved step (see `Saving`), and that of a validation which a
    resumed training runs again.
    """

    def __init__(self, folder: Path, *, resume_step: int, step: Callable[[], int]) -> None:
        super().__init__()
        self.path = folder / "metrics.jsonl"
        self.step = step
        kept = [row for row in read_metrics(self.path) if row["step"] <= resume_step] if resume_step else []
        part = self.path.with_name(self.path.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(part, self.path)  # a kill while it is written must not cost the rows
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
        if len(row) > 1 and mark not in self.logged:
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


class Unfailing(Logger):
    """A W&B run that a training does not depend on: its first error is told, and then it is left alone.

    Args:
        logger: The run.
        remedy: What the user can do about an error.
    """

    def __init__(self, logger: WandbLogger, *, remedy: str) -> None:
        super().__init__()
        self.logger: WandbLogger | None = logger
        self.remedy = remedy
        self.last: object = None

    @property
    def name(self) -> str | None:
        """The run's."""
        return self.logger.name if self.logger else None

    @property
    def version(self) -> int | str | None:
        """The run's."""
        return self.logger.version if self.logger else None

    def log_hyperparams(self, *args: object, **kwargs: object) -> None:
        """Nothing: the manifest holds the settings."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand on one row, but not a second time (see `Saving`)."""
        row = (step, *sorted(metrics))
        if row != self.last:
            self.last = row
            self._try(lambda logger: logger.log_metrics(dict(metrics), step))

    def save(self) -> None:
        """Hand on."""
        self._try(lambda logger: logger.save())

    def finalize(self, status: str) -> None:
        """End the run: the next stage has one of its own."""
        self._try(lambda logger: logger.finalize(status))
        self._try(lambda logger: logger.experiment.finish(exit_code=0 if status == "success" else 1))

    def _try(self, act: Callable[[WandbLogger], None]) -> None:
        if self.logger is None:
            return
        try:
            act(self.logger)
        except Exception as error:  # whatever it is, it is not worth a training
            self.logger = None
            why = f"{type(error).__name__}: {first_line(error)}"
            log.warning("W&B failed (%s): it goes on without; %s", why, self.remedy)


def loggers(
    config: LoggerConfig, folder: Path, *, name: str, resume_step: int, step: Callable[[], int]
) -> list[Logger]:
    """The file logger, and Weights & Biases beside it where the config asks for it and it can be had."""
    files = FileLogger(folder, resume_step=resume_step, step=step)
    match config:
        case FileLogs():
            return [files]
        case WandbLogs():
            about = {"stage": name, "result": f"{folder.parent.name}/{folder.name.removesuffix('.partial')}"}
            run = wandb_run(config, name=name, job_type=name.split(".")[0], about=about)
            return [files] if run is None else [files, Unfailing(run, remedy=_remedy(config))]


def wandb_run(
    config: WandbLogs, *, name: str, job_type: str, about: Mapping[str, object] | None = None
) -> WandbLogger | None:
    """A W&B run that has started; offline without WANDB_API_KEY and netrc entry, or when W&B cannot be reached.

    There is none with ``WANDB_MODE=disabled``, or where not even an offline one can be had.

    Nothing that W&B does ends a training. It is waited for half a minute at most, once a process: Lightning sets
    WANDB_MODE to offline for the rest.

    Args:
        config: Where the run is, and the settings that W&B shows as the run's config.
        name: The run's.
        job_type: What kind of run it is.
        about: What the run's config tells beside the settings.
    """
    if is_wandb_disabled():
        return None
    for offline in [True] if not has_wandb_key() else [False, True]:
        try:
            run = _wandb_logger(config, name=name, job_type=job_type, about=about or {}, offline=offline)
            _ = run.experiment  # starts it
        except Exception as error:  # whatever it is, it is not worth a training
            why = f"{type(error).__name__}: {first_line(error)}"
            log.warning("W&B cannot be had (%s): it goes on without; %s", why, _remedy(config))
        else:
            return run
    return None


def log_scores(config: WandbLogs, systems: Mapping[str, Mapping[str, float | None]]) -> None:
    """A W&B run of its own for the scores of all systems, named ``test/<system>/<metric>``; undefined ones are not."""
    run = wandb_run(config, name="scores", job_type="scores")
    if run is None:
        return
    flat = {f"test/{system}/{name}": value for system, row in systems.items() for name, value in row.items()}
    sink = Unfailing(run, remedy=_remedy(config))
    sink.log_metrics({name: value for name, value in flat.items() if value is not None})
    sink.finalize("success")


def _wandb_logger(
    config: WandbLogs, *, name: str, job_type: str, about: Mapping[str, object], offline: bool
) -> WandbLogger:
    import wandb  # heavy, and not needed without it

    Path(config.folder).mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"entity": config.entity, "group": config.group, "tags": list(config.tags)}
    options["config"] = {**config.settings, **about}
    if offline:
        options["mode"] = "offline"  # once it was online, W&B overlooks the WANDB_MODE that Lightning sets
    return WandbLogger(
        name=name,
        project=config.project,
        save_dir=config.folder,
        offline=offline,
        job_type=job_type,
        reinit="finish_previous",
        settings=wandb.Settings(init_timeout=INIT_S, finish_timeout=FINISH_S),
        **options,
    )


def _remedy(config: WandbLogs) -> str:
    return (
        "all metrics are in metrics.jsonl beside the result, and what W&B kept offline can be sent with "
        f"`wandb sync {Path(config.folder) / 'wandb'}/offline-run-*`"
    )


def first_line(error: Exception) -> str:
    """The first line of what an error says: W&B's go on for pages."""
    return (str(error).splitlines() or [""])[0]


def is_wandb_disabled() -> bool:
    """Whether WANDB_MODE says that nothing at all is to go to W&B, not even to a folder of its own."""
    return os.environ.get("WANDB_MODE") == "disabled"


def has_wandb_key() -> bool:
    """Whether there is a key to send runs with, in WANDB_API_KEY or netrc, and WANDB_MODE does not forbid it."""
    if os.environ.get("WANDB_MODE") in {"offline", "disabled", "dryrun"}:
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(wandb_url()).hostname or "") is not None
    except (ImportError, OSError, netrc.NetrcParseError):
        return False


def wandb_url() -> str:
    """The W&B server: WANDB_BASE_URL, or what W&B itself takes without it."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
