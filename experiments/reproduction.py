"""docs/reproduction.md: what the studies found, claim by claim, beside the paper.

The newest run of each study on each data set is kept as ``docs/results/<study>.<data>.json``: scores, claims and keys,
no number of a single user, and no path of the machine it ran on; its picture lies beside it as ``.png``. The page is
written from these files alone, in the words of ``reproduction.md.jinja``.

    python -m experiments.reproduction                                # the studies that lie in store/
    python -m experiments.reproduction table2_task_order              # these studies alone are taken over
    python -m experiments.reproduction store.root=PATH                # those of another store

A run replaces another of the same settings if at least as many of its rows have three seeds: a trial, or a run whose
rows failed, leaves the record as it is. A run with overrides other than of its data, its machine and its seeds has a
file of its own.
"""

import logging
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from experiments.record import file_name, read_record, write_record
from experiments.reporting.tables import interval
from experiments.reporting.words import percent
from experiments.result import ClaimResult, RowResult, StudyResult
from experiments.verdict import FEWEST_SEEDS, Verdict
from leadre.report.table import NOTHING, Grid, decimals, markdown

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
COLORS = 64
log = logging.getLogger(__name__)


class Collected(NamedTuple):
    """The files that were taken over, and what is wrong with those that were not, a line each."""

    taken: list[Path]
    faults: list[str]


def collect(studies: Path, results: Path, named: Sequence[str] = ()) -> Collected:
    """Take over the newest run of each study and data set from a store.

    Args:
        studies: ``<store>/studies``; each run is ``<study>/<time>/result.json``.
        results: Where the records are kept.
        named: The studies that are taken over; none is all.
    """
    newest: dict[str, tuple[StudyResult, Path]] = {}
    faults = []
    for path in sorted(studies.glob("*/*/result.json")):
        study = path.parent.parent.name
        if named and study not in named:
            continue
        try:
            record = read_record(path)
            if record.study != study:
                raise ValueError(f"{path} is a result of study {record.study!r}: it lies in the folder of another")
            found = record, path.with_name("figure.png")
            newest[file_name(record)] = max(newest.get(file_name(record), found), found, key=lambda one: _worth(one[0]))
        except ValueError as error:
            faults.append(str(error))
    taken = [results / name for name, (record, _) in newest.items() if _replaces(record, results / name)]
    for path in taken:
        record, picture = newest[path.name]
        if record.dirty:
            log.warning("%s was made from changed code: commit %s does not make it again", path.name, record.git)
        results.mkdir(parents=True, exist_ok=True)
        write_record(path, record)
        _keep_picture(picture, path.with_suffix(".png"))
    return Collected(taken, faults)


def _keep_picture(picture: Path, kept: Path) -> None:
    """Keep a study's picture with few colors: it is a plot, and a tenth of the bytes."""
    kept.unlink(missing_ok=True)
    if picture.is_file():
        with Image.open(picture) as image:
            image.convert("RGB").quantize(COLORS).save(kept, optimize=True)


def read_records(results: Path) -> list[StudyResult]:
    """All records that are kept, by study and data set.

    Raises:
        ValueError: If files are broken, or do not lie under their own name; it names them all.
    """
    records, faults = [], []
    for path in sorted(results.glob("*.json")):
        try:
            record = read_record(path)
            if path.name != file_name(record):
                raise ValueError(f"{path} holds {file_name(record)}: rename it, or delete it")
            records.append(record)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    return records


def render(records: Sequence[StudyResult], results: Path) -> str:
    """The page, as Markdown; it shows the pictures that lie beside the records in ``results``."""

    def picture_of(record: StudyResult) -> str:
        picture = (results / file_name(record)).with_suffix(".png")
        return f"{results.name}/{picture.name}" if picture.is_file() else ""

    page = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page.filters |= {"plain": plain, "cell": lambda text: plain(text).replace("|", "\\|"), "percent": _change}
    studies: dict[str, list[StudyResult]] = {}
    for record in records:
        studies.setdefault(record.study, []).append(record)
    functions = {
        "verdicts": verdicts,
        "claims": claims_table,
        "scores": scores_table,
        "ran": how_it_ran,
        "results": results_of,
        "picture": picture_of,
    }
    text = page.get_template("reproduction.md.jinja").render(studies=studies, **functions)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def verdicts(records: Iterable[StudyResult]) -> str:
    """How many claims hold, in words.

    Example:
        >>> verdicts([])
        'no claim yet'
    """
    found = [claim.verdict for record in records for claim in record.claims]
    told = ((count, one) for one in get_args(Verdict) if (count := found.count(one)))
    return ", ".join(f"{count} {one if count == 1 else one.removesuffix('s')}" for count, one in told) or "no claim yet"


def claims_table(record: StudyResult) -> str:
    """Claim by claim: what the paper has, ours with its interval, the control beside it, and the verdict."""
    share = f"{record.confidence:.0%}"
    head = (
        "claim",
        "score",
        "paper",
        "ours",
        f"difference ({share})",
        f"its control ({share})",
        f"beyond its control ({share})",
        "p (Holm)",
        "verdict",
        "needs",
    )
    return markdown(Grid(head, tuple(_claim_cells(claim) for claim in record.claims)))


def scores_table(record: StudyResult) -> str:
    """The table of the study; below each row that the paper has, the paper's own numbers."""
    lines: list[tuple[str, ...]] = []
    for row in record.rows:
        name = row.name + (" (control)" if row.control else "")
        costs = (_amount(row, "steps"), _amount(row, "tokens")) if row.runs else ("not run", "")
        lines.append((name, *(_score(row, column) for column in record.columns), *costs))
        if row.paper:
            theirs = [_paper(row, record.rows[0], column) for column in record.columns]
            lines.append(("*paper*", *theirs, "", ""))
    return markdown(Grid(("", *record.columns, "steps", "tokens"), tuple(lines)))


def how_it_ran(record: StudyResult) -> str:
    """When, on what, with which seeds, from which commit, and for how long: one sentence each."""
    commit = f"commit `{record.git[:12]}`" if record.git else "no commit known"
    told = [f"{record.date:%Y-%m-%d}", commit + (" with changes on top" if record.dirty else "")]
    told.append(f"seeds {', '.join(map(str, record.seeds))}")
    if record.users is not None:
        told.append(f"{record.users:,} {record.unit}")
    told.append(record.builds.told)
    took = [("stages: {} min of building", record.seconds_of_stages), ("this call {} min", record.seconds)]
    times = [text.format(f"{math.ceil(seconds / 60):,}") for text, seconds in took if seconds is not None]
    return "; ".join(told + [", ".join(times)] * bool(times))


def keys_of(row: RowResult) -> str:
    """The key behind each run; one key where every seed has the same result."""
    seeds, keys = [run.seed for run in row.runs], [run.key for run in row.runs]
    if len(keys) > 1 and len(set(keys)) == 1:
        return f"nothing is random, the same with seeds {', '.join(map(str, seeds))}: `{keys[0]}`"
    return ", ".join(f"seed {seed} `{key}`" for seed, key in zip(seeds, keys, strict=True))


def results_of(record: StudyResult) -> list[str]:
    """A line for each row: its name, what sets it apart, its keys. Rows that show the same results share theirs."""
    shared: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for row in record.rows:
        if row.runs:
            shared.setdefault((row.overrides, keys_of(row)), []).append(plain(row.name))
    lines = []
    for (overrides, keys), names in shared.items():
        told = "all rows" if 1 < len(names) == len(record.rows) else "; ".join(names)
        lines.append(told + f" (`{' '.join(overrides)}`)" * bool(overrides) + f": {keys}")
    return lines


def plain(text: str) -> str:
    r"""A text from a result as one line of Markdown, with nothing in it that Markdown or HTML would act on.

    Example:
        >>> print(plain("a <b> *c*"))
        a \<b> \*c\*
    """
    return re.sub(r"([\\`*_<\[\]])", r"\\\1", " ".join(text.split()))


def _claim_cells(claim: ClaimResult) -> tuple[str, ...]:
    ends = claim.difference
    needs = NOTHING if claim.users_needed is None else f"{claim.users_needed:,}"
    told = NOTHING if ends is None or ends.p_holm is None else f"{ends.p_holm:.3f}" if ends.p_holm >= 0.001 else "<.001"
    return (
        f"{plain(claim.text)} ({plain(claim.source)}): {plain(claim.better)} over {plain(claim.worse)}",
        claim.on,
        _change(claim.paper_change),
        _change(claim.our_change),
        *(interval(found) for found in (ends, claim.control_difference, claim.excess)),
        told,
        f"**{claim.verdict}**",
        needs,
    )


def _change(share: float | None) -> str:
    return percent(share) or NOTHING


def _score(row: RowResult, column: str) -> str:
    mean, change, ends = row.mean.get(column), row.change.get(column), row.interval.get(column)
    if mean is None or not math.isfinite(mean):
        return NOTHING
    told = [decimals(mean)]
    told += [f"[{decimals(ends[0])}, {decimals(ends[1])}]"] if ends else []
    told += [f"({percent(change)})"] if change is not None else []
    return " ".join(told)


def _paper(row: RowResult, first: RowResult, column: str) -> str:
    theirs, base = row.paper.get(column), first.paper.get(column)
    if theirs is None:
        return NOTHING
    return decimals(theirs) + (f" ({percent(theirs / base - 1)})" if base and row is not first else "")


def _amount(row: RowResult, name: Literal["steps", "tokens"]) -> str:
    found = [amount for run in row.runs if (amount := getattr(run, name)) is not None]
    return f"{sum(found) / len(found):,.0f}" if found else NOTHING


def _worth(record: StudyResult) -> tuple[int, float]:
    return sum(len(row.runs) >= FEWEST_SEEDS for row in record.rows), record.date.timestamp()


def _replaces(record: StudyResult, path: Path) -> bool:
    try:
        kept = read_record(path)
    except ValueError:  # there is none, or it is broken
        return True
    if record.date > kept.date and _worth(record) < _worth(kept):
        rows = [_worth(one)[0] for one in (kept, record)]
        told = "%s stays: %s of its rows have three seeds, of the newest run %s; delete it to have that"
        log.warning(told, path, *rows)
    return _worth(record) >= _worth(kept)


def places(arguments: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    """Read the command line: the folder of the studies, and which of them are taken over.

    Raises:
        ValueError: If an argument is neither ``store.root=PATH`` nor a study's name, or a named place has no studies.
    """
    roots = [text.removeprefix("store.root=") for text in arguments if text.startswith("store.root=")]
    named = tuple(text for text in arguments if not text.startswith("store.root="))
    if wrong := [text for text in named if not re.fullmatch("[a-z0-9_]+", text)]:
        raise ValueError(f"{wrong[0]!r} is neither store.root=PATH nor the name of a study")
    studies = Path((roots or ["store"])[-1]) / "studies"
    if roots and not studies.is_dir():
        raise ValueError(f"store.root={roots[-1]}: there are no studies in it")
    if missing := [name for name in named if not (studies / name).is_dir()]:
        raise ValueError(f"{studies} has no study {missing[0]!r}: run `python -m experiments.{missing[0]}` first")
    return studies, named


def main(arguments: Sequence[str]) -> None:
    """Take over what is new in the store, then write the page; what could not be read is told at the end."""
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}\n")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        studies, named = places(arguments)
        collected = collect(studies, DOCS / "results", named)
        records = read_records(DOCS / "results")
    except ValueError as error:
        sys.exit(str(error))
    for path in collected.taken:
        log.info("taken over: %s", path.name)
    (DOCS / "reproduction.md").write_text(render(records, DOCS / "results"), encoding="utf-8")
    log.info("docs/reproduction.md: results %s; claims: %s", len(records), verdicts(records))
    if collected.faults:
        sys.exit("\n".join(collected.faults))


if __name__ == "__main__":
    main(sys.argv[1:])
