"""A study as a command: run its rows, judge its claims, and leave a table, a picture and a page.

All that is left is made from ``result.json``, which names the result behind every number (docs/studies.md).
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from experiments.content import content_of
from experiments.reporting.figure import draw
from experiments.reporting.page import write_index, write_page
from experiments.reporting.tables import grid_of, write_tables
from experiments.result import StudyResult, write_result
from experiments.rows import log_to_stderr, run_rows
from experiments.study import Study, asked_of, configured, described, settings_of
from leadre.artifacts import ArtifactError
from leadre.config import ConfigError, RunConfig
from leadre.report.table import rich_table
from leadre.training.config import WandbLogs

STUDIES = "studies"
"""The folder of a store that holds what studies found, beside the stages' results."""
log = logging.getLogger(__name__)


def run_study(study: Study, arguments: Sequence[str]) -> None:
    """Run all rows with all seeds, show the table and the verdicts, and as the last line print the folder as JSON."""
    if {"-h", "--help"} & set(arguments):
        print(described(study))
        return
    try:
        seeds, jobs, overrides = asked_of(arguments)
        settings = settings_of(study, overrides)
    except ConfigError as error:
        sys.exit(str(error))
    log_to_stderr()
    start = time.monotonic()
    found = run_rows(study, settings, seeds, jobs=jobs)
    if not any(found.scores.values()):
        sys.exit("No row could be run:\n" + "\n".join(found.not_run.values()))
    command = f"python -m experiments.{study.name} {' '.join(arguments)}".strip()
    run = configured(overrides, seeds[0])
    content = content_of(study, found, store=Path(run.store.root), command=command, seconds=time.monotonic() - start)
    finish(study, content, run)


def finish(study: Study, content: StudyResult, run: RunConfig) -> None:
    """Leave what a study found, send it to Weights & Biases where it is to go there, and print the folder as JSON.

    Args:
        study: What was run.
        content: Of ``result.json``.
        run: Where the store is and where metrics go.
    """
    store = Path(run.store.root)
    folder = store / STUDIES / study.name / f"{datetime.now(UTC):%Y-%m-%d_%H-%M-%S-%f}"
    _leave(folder, content, store, draw=study.draw or draw)
    if isinstance(run.logger, WandbLogs):
        _log(folder, store, run.logger)
    holes = [row.name for row in content.rows if row.not_run]
    last = {"study": study.name, "folder": str(folder), "verdicts": verdicts(content), "not_run": holes}
    print(json.dumps(last))
    if holes:
        sys.exit(f"{len(holes)} of {len(content.rows)} rows have holes: {', '.join(holes)}")


def _log(folder: Path, store: Path, logger: WandbLogs) -> None:
    """Send a study to Weights & Biases: what is found stays found where that fails."""
    from experiments.reporting.to_wandb import log_study

    try:
        log_study(folder, store, project=logger.project, entity=logger.entity)
    except (ArtifactError, ValueError) as error:
        log.warning("nothing went to Weights & Biases: %s", error)


def _leave(folder: Path, content: StudyResult, store: Path, *, draw: Callable[[Path, Path], None]) -> None:
    """Write a study's files, the page and the index last, and show the table and the verdicts."""
    folder.mkdir(parents=True)
    write_result(folder, content)
    write_tables(folder, content)
    draw(folder, store)
    page = write_page(folder, store)
    index = write_index(store / STUDIES)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(rich_table(grid_of(content), title=content.title))
    for claim in content.claims:
        console.print(f"[bold]{claim.verdict:9}[/bold] {claim.text}: {claim.why}", highlight=False)
    for note in content.notes:
        console.print(note, markup=False, highlight=False)
    for name, path in (("page", page), ("all studies", index)):
        console.print(f"{name:20} {path}", soft_wrap=True, highlight=False)


def verdicts(content: StudyResult) -> dict[str, str]:
    """The verdict on each claim."""
    return {claim.text: claim.verdict for claim in content.claims}
