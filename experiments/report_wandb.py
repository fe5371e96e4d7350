"""The comparison report of a study in Weights & Biases: verdicts, scores by row, curves, tables, settings.

    python -m experiments.report_wandb table2_task_order                # its run of most seeds in the store
    python -m experiments.report_wandb table2_task_order log            # send its runs first (nothing is there twice)
    python -m experiments.report_wandb table2_task_order project=my-ads entity=my-team store.root=store draft

Its panels show the runs that a study logs with ``logger=wandb``, or that ``log`` sends. Built again, the report of the
same run of a study is replaced. It needs a key and a server; ``report.html`` in the study's folder needs neither.
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reporting.tables import interval
from experiments.reporting.to_wandb import (
    CLAIMS,
    CODEBOOKS,
    FIGURE,
    LISTS,
    PAGE,
    ROWS,
    STEP,
    curves,
    log_study,
    run_id,
    study_id,
    sync_command,
)
from experiments.result import ClaimResult, StudyResult, read_result
from leadre.artifacts import ArtifactError
from leadre.training.logs import first_line, has_wandb_key, is_wandb_disabled, wandb_url

Report = Any
"""One of wandb-workspaces, which names nothing for type checkers."""
WORDS = ("draft", "log")
KEYS = {"store.root": "store", "project": "leadre", "entity": ""}
log = logging.getLogger(__name__)

WAIT_S = 10
"""How long the server is waited for before anything is sent."""
_LONGEST_TITLE = 128
_HIT, _LOSS = ("valid/hr@", "valid/ndcg@"), "loss"


class Asked(NamedTuple):
    """What is asked for.

    Attributes:
        study: The name of a study.
        store: The store that it lies in.
        project: W&B's project.
        entity: W&B's user or team; None is the key's own.
        draft: Whether the report is a draft, which nobody else sees.
        log: Whether to send the runs first.
    """

    study: str
    store: Path
    project: str
    entity: str | None
    draft: bool
    log: bool


def asked(arguments: Sequence[str]) -> Asked:
    """Read a command line.

    Raises:
        ValueError: If a word is unknown, or not exactly one study is named.
    """
    given = dict(KEYS)
    for text in arguments:
        key, equals, value = text.partition("=")
        if equals and (key not in KEYS or not value):
            raise ValueError(f"{text}: must be one of {', '.join(f'{name}=VALUE' for name in KEYS)}")
        if equals:
            given[key] = value
    names = [text for text in arguments if "=" not in text and text not in WORDS]
    if len(names) != 1:
        raise ValueError(f"name one study, such as table2_task_order (got {' '.join(names) or 'none'})")
    entity = given["entity"] or None
    draft, log = ("draft" in arguments, "log" in arguments)
    return Asked(names[0], Path(given["store.root"]), given["project"], entity, draft, log)


def reported(studies: Path, study: str) -> Path:
    """The folder of the run of a study that is told: of those with most training seeds the newest.

    A run whose ``result.json`` is broken is named in a warning and passed over.

    Raises:
        ValueError: If there is none, or none that is whole.
    """
    runs = sorted(path.parent for path in (studies / study).glob("*/result.json"))
    if not runs:
        known = sorted({path.parent.parent.name for path in studies.glob("*/*/result.json")})
        there = f"there are {', '.join(known)}" if known else "there is no study"
        raise ValueError(
            f"{study} has no result in {studies}: {there}; run python -m experiments.{study} first, or name the store "
            "with store.root=FOLDER"
        )
    whole: list[tuple[int, Path]] = []
    faults = []
    for run in runs:
        try:
            whole.append((len(read_result(run).seeds), run))
        except ValueError as error:
            faults.append(str(error))
    if not whole:
        raise ValueError("\n".join(faults))
    for fault in faults:
        log.warning("passed over: %s", fault)
    return max(whole)[1]  # folders are named by their time


def build_report(result: StudyResult, *, table: str, names: Sequence[str], project: str, entity: str) -> Report:
    """Lay out the report; nothing is sent.

    Args:
        result: What the study found.
        table: The table as Markdown.
        names: What the training curves are called.
        project: W&B's project.
        entity: W&B's user or team.
    """
    wr = _reports()
    ids = [run_id(result.study, row.name, run) for row in result.rows for run in row.runs]
    place = {"project": project, "entity": entity}
    rows = {"name": "rows and seeds", "filters": _one_of(ids), **place}
    study = wr.Runset(name="the study", filters=_one_of([study_id(result)]), **place)
    by_row = wr.Runset(groupby=["config.row"], **rows)
    blocks = [
        wr.TableOfContents(),
        wr.MarkdownBlock(text=_introduction(result)),
        wr.H2(text="Verdicts"),
        wr.MarkdownBlock(text=_claims(result)),
        wr.H2(text="Scores by row"),
        wr.P(text="The mean over the training seeds of each row, and its range."),
        wr.PanelGrid(runsets=[by_row], panels=_bars(wr, result.compared)),
        wr.MarkdownBlock(text=table),
        wr.H2(text="Training curves"),
        wr.P(text="Optimizer steps are counted over all stages of a row."),
        wr.PanelGrid(runsets=[by_row], panels=_lines(wr, names)),
        wr.H2(text="The study's own tables, picture and page"),
        wr.PanelGrid(runsets=[study], panels=_media(wr, tables=[CLAIMS, ROWS], keys=[FIGURE, PAGE])),
        wr.H2(text="Codebooks, and lists of some users"),
        wr.PanelGrid(runsets=[wr.Runset(**rows)], panels=_media(wr, tables=[LISTS], keys=[CODEBOOKS])),
        wr.H2(text="Settings that differ"),
        wr.PanelGrid(
            runsets=[wr.Runset(**rows)], panels=[wr.RunComparer(diff_only="split", layout=_place(wr, 0, wide=True))]
        ),
    ]
    title = f"{result.title} ({result.study})"[:_LONGEST_TITLE]
    return wr.Report(title=title, description=result.question, blocks=blocks, width="fluid", **place)


def send(report: Report, folder: Path, *, draft: bool) -> str:
    """Save a report, in the place of the one that was made before of the same run of a study; its address."""
    note = folder / "wandb_report.json"
    if note.is_file():
        before = json.loads(note.read_text(encoding="utf-8"))
        if (before["entity"], before["project"], before["draft"]) == (report.entity, report.project, draft):
            report.id = before["id"]
    report.save(draft=draft)
    told = {"id": report.id, "url": report.url, "entity": report.entity, "project": report.project, "draft": draft}
    note.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return str(report.url)


def main(arguments: Sequence[str]) -> None:
    """Build the report of a study, and print its address."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        wanted = asked(arguments)
        if is_wandb_disabled():
            raise ValueError("WANDB_MODE is disabled: unset it to build a report in W&B")
        folder = reported(wanted.store / "studies", wanted.study)
        result = read_result(folder)
        names = curve_names(result, wanted.store)
        entity = wanted.entity or default_entity()
        if wanted.log:
            logged = log_study(folder, wanted.store, project=wanted.project, entity=entity, mode="online")
            if study_id(result) not in logged.sent:  # the last
                raise ValueError(f"not all runs could be sent, so there is no report: `{sync_command(folder)}` first")
    except (ValueError, ArtifactError) as error:
        sys.exit(str(error))
    page = folder / "table.md"
    table = page.read_text(encoding="utf-8") if page.is_file() else ""
    try:
        report = build_report(result, table=table, names=names, project=wanted.project, entity=entity)
        print(send(report, folder, draft=wanted.draft))
    except Exception as error:  # the same, bare Exception among them
        sys.exit(
            f"W&B at {wandb_url()} did not take the report ({type(error).__name__}: {first_line(error)}); if the "
            f"project {entity}/{wanted.project} is not there yet, send the runs first: add the word log"
        )


def curve_names(result: StudyResult, store: Path) -> list[str]:
    """What is logged step by step in any row."""
    found = (row for line in result.rows for run in line.runs for row in curves(run, store))
    return sorted({name for row in found for name in row} - {STEP})


def default_entity() -> str:
    """The key's own user or team.

    Raises:
        ValueError: If there is no key, or W&B does not answer or does not know the key.
    """
    page = "the study's own report.html needs no W&B"
    if not has_wandb_key():
        raise ValueError(f"there is no W&B key, or WANDB_MODE is offline: set WANDB_API_KEY or `wandb login`; {page}")
    import wandb

    try:
        entity = wandb.Api(timeout=WAIT_S).default_entity
    except Exception as error:  # W&B raises many kinds, its own and others
        if _has_waited(error):
            raise ValueError(
                f"W&B at {wandb_url()} did not answer within {WAIT_S} s: check the network and WANDB_BASE_URL; {page}"
            ) from None
        raise ValueError(
            f"W&B at {wandb_url()} did not take the key ({first_line(error)}): check WANDB_API_KEY; {page}"
        ) from None
    if not entity:
        raise ValueError("the W&B key has no default entity: name one with entity=NAME")
    return str(entity)


def _has_waited(error: BaseException | None) -> bool:
    """Whether W&B gave up waiting: it says so only in what its error was raised from."""
    return error is not None and (isinstance(error, TimeoutError) or _has_waited(error.__cause__ or error.__context__))


def _reports() -> Any:  # noqa: ANN401
    import wandb_workspaces.reports.v2 as wr

    return wr


def _one_of(ids: Sequence[str]) -> str:
    return f"Metric('ID') in {list(ids)}"


def _place(wr: Any, number: int, *, wide: bool = False) -> Any:  # noqa: ANN401
    """The place of a panel on W&B's grid of 24 columns: two a line, or one."""
    if wide:
        return wr.Layout(x=0, y=12 * number, w=24, h=12)
    return wr.Layout(x=12 * (number % 2), y=8 * (number // 2), w=12, h=8)


def _bars(wr: Any, scores: Sequence[str]) -> list[Any]:  # noqa: ANN401
    grouped = {"groupby": wr.Config("row"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return [
        wr.BarPlot(title=name, metrics=[name], layout=_place(wr, place), **grouped) for place, name in enumerate(scores)
    ]


def _lines(wr: Any, names: Sequence[str]) -> list[Any]:  # noqa: ANN401
    """One panel a curve: what validation users get first, then the losses; all others are in the runs."""
    told = [name for name in names if any(hit in name for hit in _HIT)]
    told += [name for name in names if name.endswith(_LOSS)]
    grouped = {"groupby": wr.Config("row"), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return [
        wr.LinePlot(title=name, x=STEP, y=[name], title_x="optimizer step", layout=_place(wr, place), **grouped)
        for place, name in enumerate(told)
    ]


def _media(wr: Any, *, tables: Sequence[str], keys: Sequence[str]) -> list[Any]:  # noqa: ANN401
    shown = [wr.WeavePanelSummaryTable(table_name=name) for name in tables]
    shown += [wr.MediaBrowser(title=name, media_keys=[name], num_columns=1) for name in keys]
    for place, panel in enumerate(shown):
        panel.layout = _place(wr, place, wide=True)
    return shown


def _introduction(result: StudyResult) -> str:
    commit = f", commit {result.git[:10]}{' and changes' if result.dirty else ''}" if result.git else ""
    seeds = ", ".join(map(str, result.seeds))
    users = f"{result.users or 'no'} test users"
    told = [
        result.question,
        f"`{result.command}`",
        f"{result.date.isoformat()}{commit}; {result.data.name}; {users}; training seeds {seeds}.",
        *(f"- {note}" for note in result.notes),
    ]
    return "\n\n".join(filter(None, told))


def _claims(result: StudyResult) -> str:
    """A line a claim; the tables below have all of its numbers."""
    return "\n".join(map(_claim, result.claims)) or "This study makes no claim."


def _claim(claim: ClaimResult) -> str:
    told = [claim.why]
    if claim.difference:
        told.append(
            f"{claim.on} of {claim.better} less that of {claim.worse}: {interval(claim.difference)}, "
            f"p {claim.difference.p_holm:.4f} after Holm"
        )
    if claim.control_difference:
        told.append(f"that of the control: {interval(claim.control_difference)}")
    if claim.users_needed:
        told.append(f"{claim.users_needed:,} users would tell")
    return f"- **{claim.verdict}**: {claim.text} ({claim.source}): {'; '.join(told)}"


if __name__ == "__main__":
    main(sys.argv[1:])
