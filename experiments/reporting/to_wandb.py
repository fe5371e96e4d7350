"""A study in Weights & Biases: a run for each row and seed, and one for the study itself.

All is read from ``result.json`` and from the results that it names in the store; nothing of the project's own reads
what is written here. What cannot be sent is kept offline in the study's folder, whole, for ``wandb sync``.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import polars as pl

from experiments.lineage import Built, lineage
from experiments.reporting.trained import trained
from experiments.result import RowResult, Run, StudyResult, read_result
from leadre import tables
from leadre.artifacts import verify
from leadre.report.curves import draw_codebooks
from leadre.training.logs import FINISH_S, INIT_S, first_line, has_wandb_key, is_wandb_disabled

Mode = Literal["online", "offline"]
Cells = tuple[list[str], list[list[Any]]]
"""Column names and rows of a W&B Table."""

STEP = "tuning/step"
"""The horizontal axis of the training curves: optimizer steps of a row, stage after stage."""
CODEBOOKS, LISTS, CLAIMS, ROWS, FIGURE, PAGE = "codebooks", "lists", "claims", "rows", "figure", "page"
"""What the pictures, pages and tables are called in W&B."""
SHOWN = {FIGURE: "figure.png", PAGE: "report.html"}
FILES = ("result.json", "table.csv", "table.md", "figure.png", "report.html")
NUM_USERS, NUM_ADS = 20, 8
LONGEST_TAG = 64
"""W&B refuses longer ones."""
log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """What becomes one W&B run.

    Attributes:
        id: The same for the same numbers, so that a run which is logged twice is there once.
        name: As W&B lists it.
        job_type: The row.
        tags: Study, row and seed.
        config: The settings.
        summary: The scores.
        curves: What is logged step by step.
        tables: What becomes W&B Tables.
        shown: Pictures and pages, by the name they get in W&B.
        files: What becomes an artifact.
    """

    id: str
    name: str
    job_type: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    summary: Mapping[str, float]
    curves: Sequence[Mapping[str, float]] = ()
    tables: Mapping[str, Cells] = {}
    shown: Mapping[str, Path] = {}
    files: Sequence[Path] = ()


class Logged(NamedTuple):
    """What has been logged: the ids of the runs that were sent and of those kept offline, and the folder of these."""

    sent: tuple[str, ...]
    offline: tuple[str, ...]
    folder: Path


def log_study(folder: Path, store: Path, *, project: str, entity: str | None, mode: Mode | None = None) -> Logged:
    """Log a study to W&B: one run a row and seed, in a group with one run for the study.

    Logging it again replaces what is there. When W&B cannot be reached, or refuses the key, the rest is kept offline
    and a warning says so: a study never fails for it. With ``WANDB_MODE=disabled`` nothing is logged.

    Args:
        folder: The study's, with ``result.json``; W&B's own files go into ``wandb`` in it, which is made anew once
            all that is logged has been read.
        store: The store that the results lie in.
        project: W&B's project.
        entity: W&B's user or team; None is the key's own.
        mode: Send it, or keep it for ``wandb sync``; None sends it where there is a key.

    Raises:
        ValueError: If ``result.json`` is missing or broken.
        ArtifactError: If a stored result that is read is missing or broken.
    """
    if is_wandb_disabled():
        log.info("W&B: WANDB_MODE is disabled, so nothing is logged")
        return Logged((), (), folder / "wandb")
    result = read_result(folder)
    mode = mode or ("online" if has_wandb_key() else "offline")
    place: dict[str, Any] = {"group": result.study, "project": project, "entity": entity}
    sent: list[str] = []
    offline: list[str] = []
    with TemporaryDirectory() as pictures:
        entries = [*entries_of(result, store, Path(pictures)), study_entry(result, folder)]
        shutil.rmtree(folder / "wandb", ignore_errors=True)  # only now: a broken result must not cost what is unsent
        for entry in entries:
            fault = _fault(entry, folder, mode=mode, **place)
            if fault and mode == "online":
                mode = "offline"
                log.warning(
                    "W&B failed (%s): %r and the runs after it are kept offline; check WANDB_API_KEY, WANDB_BASE_URL "
                    "and the network, then `%s`",
                    *(fault, entry.name, sync_command(folder)),
                )
                fault = _fault(entry, folder, mode=mode, **place)
            if fault:
                log.warning("W&B cannot be had (%s): not all runs are logged; all is in %s", fault, folder)
                break
            (sent if mode == "online" else offline).append(entry.id)
    remedy = f"; `{sync_command(folder)}` sends these" if offline else ""
    log.info("W&B: sent %s runs, kept %s offline%s", len(sent), len(offline), remedy)
    return Logged(tuple(sent), tuple(offline), folder / "wandb")


def sync_command(folder: Path) -> str:
    """What sends the runs that were kept offline."""
    return f"wandb sync {folder / 'wandb'}/offline-run-*"


def run_id(study: str, row: str, run: Run) -> str:
    """The id of the W&B run of a row and seed: other settings or data make another run."""
    return _id(study, row, run.seed, run.key)


def study_id(result: StudyResult) -> str:
    """The id of the W&B run of the study itself: other results make another run."""
    return _id(result.study, *sorted(run.key for row in result.rows for run in row.runs))


def _id(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def entries_of(result: StudyResult, store: Path, pictures: Path) -> Iterator[Entry]:
    """What is logged of each row and seed.

    Args:
        result: What the study found.
        store: The store that the results lie in.
        pictures: A folder to draw codebooks in, each once.

    Raises:
        ArtifactError: If a stored result that is read is missing or broken.
    """
    for row in result.rows:
        for run in row.runs:
            made_of = _made_of(store / run.path)
            folders = {one.stage: one.path for one in made_of}
            yield Entry(
                id=run_id(result.study, row.name, run),
                name=f"{row.name}, seed {run.seed}",
                job_type=row.name,
                tags=_tags(result.study, row.name, f"seed {run.seed}", *["control"] * row.control),
                config=_config(result, row, run, made_of),
                summary=_numbers(run.scores) | _numbers({"steps": run.steps, "tokens": run.tokens}),
                curves=list(curves(run, store)),
                tables=_lists(folders, row.system),
                shown=_codebooks(folders, pictures),
            )


def _made_of(path: Path) -> list[Built]:
    """A result and all that it was made from, checked as far as its files are logged."""
    verify(path)
    made_of = lineage(path)
    for one in made_of:
        if one.stage in {"world", "codes", "baselines", "generations"}:
            verify(one.path)
    return made_of


def study_entry(result: StudyResult, folder: Path) -> Entry:
    """What is logged of the study: the tables of its rows and claims, its picture, its page, and all its files."""
    told = {
        "study",
        "title",
        "question",
        "command",
        "date",
        "git",
        "dirty",
        "seeds",
        "users",
        "data",
        "builds",
        "notes",
    }
    verdicts = [claim.verdict for claim in result.claims]
    return Entry(
        id=study_id(result),
        name=result.study,
        job_type="study",
        tags=_tags(result.study, "study"),
        config=result.model_dump(mode="json", include=told),
        summary={name: float(verdicts.count(name)) for name in ("holds", "fails", "undecided")},
        tables={ROWS: _rows_table(result), CLAIMS: _claims_table(result)},
        shown={name: folder / file for name, file in SHOWN.items() if (folder / file).is_file()},
        files=[folder / name for name in FILES if (folder / name).is_file()],
    )


def curves(run: Run, store: Path) -> Iterator[dict[str, float]]:
    """The training curves of one row and seed, its stages one after another; a name begins with its stage."""
    gaps: list[str] = []
    for one in trained(run, store, gaps):
        for row in one.rows:
            yield {STEP: row["step"]} | {f"{one.stage.stage}/{name}": row[name] for name in row if name != "step"}
    for gap in gaps:
        log.warning("%s", gap)


def _config(result: StudyResult, row: RowResult, run: Run, made_of: Sequence[Built]) -> dict[str, Any]:
    """What a run was made with: the settings of every stage; of a stage that comes several times, by its name."""
    names = {(stage.stage, stage.key): stage.name for stage in run.stages}
    settings: dict[str, Any] = {}
    for one in made_of:
        if one.config is not None and (one.stage, one.key) in names:
            alike, name = settings.setdefault(one.stage, {}), names[one.stage, one.key]
            alike[f"{name} {one.key}" if name in alike else name] = one.config
        elif one.config is not None:
            settings[one.stage] = one.config
    about = row.model_dump(mode="json", include={"system", "control", "overrides"})
    told = result.model_dump(mode="json", include={"study", "command", "git", "dirty", "data"})
    keys = {"key": run.key, "made_of": [f"{one.stage}/{one.key}" for one in made_of]}
    return {**told, "row": row.name, "seed": run.seed, **about, **keys, "stages": settings}


def _tags(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name[:LONGEST_TAG] for name in names))


def _numbers(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Without what is undefined."""
    return {name: value for name, value in scores.items() if value is not None}


def _codebooks(folders: Mapping[str, Path], pictures: Path) -> dict[str, Path]:
    """A picture of how often each code is used, level by level."""
    if "codes" not in folders:
        return {}
    picture = pictures / f"{folders['codes'].name}.png"
    diagnostics = json.loads((folders["codes"] / "diagnostics.json").read_text(encoding="utf-8"))
    return {CODEBOOKS: picture} if picture.exists() or draw_codebooks(diagnostics["counts"], picture) else {}


def _lists(folders: Mapping[str, Path], system: str) -> dict[str, Cells]:
    """The lists of some test users, evenly spaced over all that have one: the ad clicked, its rank, the first ads."""
    ours = folders.get("generations", Path()) / "lists"
    path = ours if system == "LEADRE" else folders.get("baselines", Path()) / f"{system}.parquet"
    if "world" not in folders or not path.exists():
        return {}
    lists = tables.read(tables.LISTS, path)
    users = lists["user_id"].unique().sort()
    chosen = users.gather_every(max(1, len(users) // NUM_USERS)).head(NUM_USERS)
    ads = tables.read(tables.ADS, folders["world"] / "ads.parquet").select("ad_id", name=pl.coalesce("name", "ad_id"))
    names = dict(ads.iter_rows())
    split = tables.read(tables.SPLIT, folders["world"] / "split.parquet").filter(role="test")
    clicked = dict(split.select("user_id", "ad_id").iter_rows())
    rows = []
    for user in chosen:
        listed = lists.filter(user_id=user).sort("rank")["ad_id"].to_list()
        target = clicked.get(user)
        rank = listed.index(target) + 1 if target in listed else None
        first = [names.get(ad, ad) for ad in listed[:NUM_ADS]]
        rows.append([user, names.get(target, target), rank, *first, *[None] * (NUM_ADS - len(first))])
    return {LISTS: (["user", "clicked", "rank of it", *(f"ad {place + 1}" for place in range(NUM_ADS))], rows)}


def _rows_table(result: StudyResult) -> Cells:
    columns, compared = result.columns, result.compared
    intervals = [f"{name}, {end}" for name in compared for end in ("low", "high")]
    head = ["row", "system", "control", "seeds", *columns, *intervals, *(f"{name}, paper" for name in columns)]
    body = []
    for row in result.rows:
        ends = [end for name in compared for end in row.interval.get(name) or (None, None)]
        told = [row.name, row.system, row.control, len(row.runs), *map(row.mean.get, columns), *ends]
        body.append([*told, *map(row.paper.get, columns), row.not_run])
    return [*head, "not run"], body


def _claims_table(result: StudyResult) -> Cells:
    effect = ("mean", "low", "high", "p_holm")
    plain = ("text", "source", "better", "worse", "on", "verdict", "why", "users_needed", "paper_change", "our_change")
    pairs = [(kind, name) for kind in ("difference", "control_difference") for name in effect]
    head = [*plain, *(f"{kind.replace('_', ' ')}, {name}" for kind, name in pairs)]
    rows = []
    for claim in result.claims:
        content = claim.model_dump()
        rows.append([*map(content.get, plain), *((content[kind] or {}).get(name) for kind, name in pairs)])
    return head, rows


def _fault(entry: Entry, folder: Path, *, group: str, project: str, entity: str | None, mode: Mode) -> str:
    """Log one run; why that could not be done, or nothing."""
    try:
        _send(entry, folder, group=group, project=project, entity=entity, mode=mode)
    except Exception as error:  # whatever it is, it is not worth a study
        _let_go()
        return f"{type(error).__name__}: {first_line(error)}"
    return ""


def _let_go() -> None:
    """End W&B's service, which would hold on to the id of a run that failed."""
    with suppress(Exception):
        import wandb

        wandb.teardown()


def _send(entry: Entry, folder: Path, *, group: str, project: str, entity: str | None, mode: Mode) -> None:
    import wandb  # heavy, and not needed without it

    quiet = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "x_disable_stats": True,
        "x_save_requirements": False,
    }
    with (
        _beside(folder),
        wandb.init(
            project=project,
            entity=entity,
            id=entry.id,  # without `resume`, a run of this id is replaced
            name=entry.name,
            group=group,
            job_type=entry.job_type,
            tags=entry.tags,
            config=dict(entry.config),
            dir=folder,
            mode=mode,
            reinit="finish_previous",
            settings=wandb.Settings(init_timeout=INIT_S, finish_timeout=FINISH_S, **quiet),
        ) as run,
    ):
        run.define_metric(STEP)
        for stage in {name.partition("/")[0] for row in entry.curves for name in row if name != STEP}:
            run.define_metric(f"{stage}/*", step_metric=STEP)
        for row in entry.curves:
            run.log(dict(row))
        told = {name: wandb.Table(columns=head, data=body) for name, (head, body) in entry.tables.items()}
        told |= {name: _medium(path) for name, path in entry.shown.items()}
        if told:
            run.log(told)
        if entry.files:
            artifact = wandb.Artifact(f"{group}-{entry.id}", type="study")
            for file in entry.files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)
        run.summary.update(dict(entry.summary))


def _medium(path: Path) -> Any:  # noqa: ANN401
    """A picture or a page as W&B shows it."""
    import wandb

    if path.suffix == ".html":
        return wandb.Html(path.read_text(encoding="utf-8"), inject=False)
    return wandb.Image(str(path))


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let W&B keep the copies of files that are not sent yet beside the runs, and not in the home directory."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb" / "data").absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before
