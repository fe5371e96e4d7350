"""The page of a study, and the index of all studies: static HTML, one file each, for readers without our programs.

A page is written from ``result.json`` and the results that it names in the store. It holds no script, asks for no file
but itself, follows the reader's choice of light or dark, and fits a phone. Text of others (the name of an ad, an error)
is text on it, whatever it looks like.
"""

import base64
import os
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from experiments.reporting import words
from experiments.reporting.samples import Group, Source, read_groups
from experiments.reporting.trained import codebooks, training_curves
from experiments.reporting.views import cells, charts, claim_plot
from experiments.result import StudyResult, read_result
from leadre.artifacts import ArtifactError
from leadre.report.report import duration
from leadre.report.table import decimals

USERS_EACH = 2


class Found(NamedTuple):
    """A study of the index: where its newest run is, what it found, its page, and the number of older runs."""

    folder: Path
    result: StudyResult
    page: str | None
    older: int


def write_page(folder: Path, store: Path) -> Path:
    """Write ``report.html`` beside a study's ``result.json``.

    What the store lacks (it may have been cleared) is left out, and the page says so.

    Args:
        folder: The folder of the study; ``figure.png`` goes into the page where it is there.
        store: The store that the study ran in.

    Raises:
        ValueError: If there is no ``result.json``, or if it is none of a study.
    """
    result = read_result(folder)
    gaps: list[str] = []
    content = _environment().get_template("report.html").render(
        result=result,
        counts=verdict_counts(result),
        claims=[(claim, claim_plot(result, claim)) for claim in result.claims],
        table=[(row, cells(result, row)) for row in result.rows],
        charts=[chart for score in result.compared for chart in charts(result, score)],
        curves=training_curves(result, store, gaps),
        codebooks=codebooks(result, store, gaps),
        groups=_groups(result, store, gaps),
        figure=_picture(folder / "figure.png"),
        gaps=list(dict.fromkeys(gaps)),
    )  # fmt: skip
    return _write(folder / "report.html", content)


def write_index(studies: Path) -> Path:
    """Write ``index.html`` over all studies of a store: of each command the newest run, with its verdicts.

    Args:
        studies: The folder ``<store>/studies``; below it lie ``<study>/<time>/result.json``.
    """
    newest: dict[tuple[str, str], Found] = {}
    broken = []
    for path in sorted(studies.glob("*/*/result.json")):
        try:
            result = read_result(path.parent)
        except ValueError as error:
            broken.append(str(error))
            continue
        key = (result.study, result.command)
        page = path.parent / "report.html"
        link = quote(page.relative_to(studies).as_posix()) if page.exists() else None
        before = newest.get(key)
        if before is None or result.date >= before.result.date:
            newest[key] = Found(path.parent, result, link, before.older + 1 if before else 0)
        else:
            newest[key] = before._replace(older=before.older + 1)
    found = sorted(newest.values(), key=lambda one: (one.result.study, one.result.command))
    total = sum((verdict_counts(one.result) for one in found), Counter[str]())
    content = _environment().get_template("index.html").render(
        found=[(one, verdict_counts(one.result)) for one in found], total=total, broken=broken
    )  # fmt: skip
    return _write(studies / "index.html", content)


def verdict_counts(result: StudyResult) -> Counter[str]:
    """How many claims hold, fail, and are undecided."""
    return Counter(claim.verdict for claim in result.claims)


def _write(path: Path, content: str) -> Path:
    """Write a page in one move: studies that end at the same time share the index."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(content, encoding="utf-8")
    os.replace(part, path)
    return path


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=words.visible,
    )
    filters = [words.capital, words.chance, words.count, words.day, words.percent, words.sentence, words.short]
    filters += [words.signed, words.tick, decimals, duration]
    environment.filters |= {filter.__name__: filter for filter in filters}
    return environment


def _groups(result: StudyResult, store: Path, gaps: list[str]) -> list[Group]:
    """Users of the first row beside those of the row that the first claim sets against it, or else of the next."""
    ran = {row.name: row for row in result.rows if row.runs}
    if not ran:
        return []
    first = next(iter(ran))
    against = [{claim.better, claim.worse} for claim in result.claims]
    rivals = [name for pair in against if first in pair for name in pair - {first} if name in ran]
    rival = [*rivals, *(name for name in ran if name != first)][:1]
    for shown in ([first, *rival], [first]):  # a row whose lists are not kept need not hide those of the first
        sources = [Source(name, ran[name].system, store / ran[name].runs[0].path) for name in shown]
        try:
            return read_groups(sources, users_each=USERS_EACH)
        except (ArtifactError, OSError, ValueError, KeyError) as error:
            gaps.append(f"No sample users of {' and '.join(shown)}: {error}")
    return []


def _picture(path: Path) -> str | None:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" if path.exists() else None
