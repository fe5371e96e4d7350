"""What a study leaves as ``result.json``: its fields, and how the file is written and read.

`experiments.content` makes it of what a study found; pages, tables, pictures and records are made from it.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, ValidationError

from experiments.verdict import Verdict

FILE = "result.json"


def _whole(found: object) -> object:
    """None in the place of an interval or a difference that lacks a number: there is nothing to show."""
    ends = [found.get(name, 0) for name in ("mean", "low", "high")] if isinstance(found, dict) else found
    return None if isinstance(ends, list | tuple) and None in ends else found


class Stage(BaseModel, frozen=True):
    """A stage that a run was trained in.

    Attributes:
        stage: The folder of the store that it lies in.
        name: The stage and its tasks.
        key: Its folder there.
        steps: Optimizer steps; None where it tells none.
        tokens: Tokens read; None where it tells none.
        seconds: How long its build took.
    """

    stage: str
    name: str
    key: str
    steps: int | None
    tokens: int | None
    seconds: float


class Run(BaseModel, frozen=True):
    """One row with one seed.

    Attributes:
        seed: The study's training seed.
        key: Of the result that its scores lie in.
        path: That result's folder in the store.
        scores: By column; None where one is undefined.
        steps: Optimizer steps of all its stages; None where it was not trained.
        tokens: Tokens that they read.
        seconds: How long their builds took.
        stages: What it was trained in, one after another.
    """

    seed: int
    key: str
    path: str
    scores: dict[str, float | None]
    steps: int | None
    tokens: int | None
    seconds: float | None = None
    stages: tuple[Stage, ...] = ()


Interval = Annotated[tuple[float, float] | None, BeforeValidator(_whole)]


class RowResult(BaseModel, frozen=True):
    """A row of a study.

    Attributes:
        name: As the table shows it.
        control: Whether the row is there to fail.
        system: Whose lists are scored.
        overrides: What sets the row apart.
        paper: The paper's numbers, by column.
        not_run: Why it was not run, or not with every seed; None where it was.
        mean: The mean over users and seeds, by column.
        interval: The ends of the interval of some of these means.
        change: From the first row, as a share, over the seeds that both have; the first row has none.
        runs: One a seed.
    """

    name: str
    control: bool
    system: str
    overrides: tuple[str, ...]
    paper: dict[str, float]
    not_run: str | None
    mean: dict[str, float | None]
    interval: dict[str, Interval]
    change: dict[str, float | None]
    runs: tuple[Run, ...]


class Difference(BaseModel, frozen=True):
    """How much more one row has than another; `experiments.verdict.Effect` tells most of its numbers.

    Attributes:
        mean: The mean over users and seeds.
        low: The lower end of its interval.
        high: The upper end of its interval.
        p: How probable it is if there is no difference.
        p_holm: The same with all claims of the study; None for a control's difference.
        users: How many users are scored in both.
        of_users: The variance that comes of the users.
        of_seeds: The variance that comes of the training seeds.
    """

    mean: float
    low: float
    high: float
    p: float | None = None
    p_holm: float | None = None
    users: int | None = None
    of_users: float | None = None
    of_seeds: float | None = None


Measured = Annotated[Difference | None, BeforeValidator(_whole)]


class ClaimResult(BaseModel, frozen=True):
    """What is said of two rows, and what was found.

    Attributes:
        text: In one sentence.
        source: Who says so.
        better: The row that is said to have more.
        worse: The row that is said to have less.
        on: Of which score of users.
        control: Two rows whose difference the claim's must be above; None where it has no control.
        same_tokens: Whether it is said of rows that read as many tokens as one another.
        verdict: Whether it holds.
        why: In one sentence.
        difference: Between the two rows; None where it could not be measured.
        control_difference: Between the two rows of the control.
        excess: By how much the one is above the other.
        users_needed: How many users would tell; None where no number would.
        paper_change: The paper's change from the worse row to the better, as a share.
        our_change: Ours.
    """

    text: str
    source: str
    better: str
    worse: str
    on: str
    control: tuple[str, str] | None
    same_tokens: bool = False
    verdict: Verdict
    why: str
    difference: Measured
    control_difference: Measured
    excess: Measured = None
    users_needed: int | None
    paper_change: float | None
    our_change: float | None


class Data(BaseModel, frozen=True):
    """The world of a study.

    Attributes:
        name: What it is called, with its seed.
        counts: How much of what is in it.
    """

    name: str
    counts: dict[str, Any] = {}

    @property
    def told(self) -> str:
        """The name and the size, which tells two worlds of one name apart; a name may tell its size itself."""
        sizes = [f"{size:,} {what}" for what in ("users", "ads") if isinstance(size := self.counts.get(what), int)]
        sizes = [size for size in sizes if size not in self.name]
        return f"{self.name} ({', '.join(sizes)})" if sizes else self.name


class Builds(BaseModel, frozen=True):
    """The results of stages behind a study.

    Attributes:
        asked: How many there would be if rows shared nothing.
        built: How many distinct ones there are.
    """

    asked: int
    built: int

    @property
    def told(self) -> str:
        """Both in words.

        Example:
            >>> Builds(asked=48, built=15).told
            '15 distinct results where rows that share nothing would have 48'
        """
        return f"{self.built:,} distinct results where rows that share nothing would have {self.asked:,}"


class StudyResult(BaseModel, frozen=True):
    """All that a study found.

    Attributes:
        study: The name of its file.
        title: What it is.
        question: What it asks.
        command: How it was called.
        date: When it ended.
        git: The commit of the code; None where that is not known.
        dirty: Whether the code was changed since.
        seconds: How long the call took.
        seconds_of_stages: How long all stages took, whenever they were built.
        store: Where the results lie.
        seeds: The training seeds.
        users: How many were tested.
        unit: What the intervals are over.
        data: Of what world.
        columns: The scores of the table.
        compared: Those of them whose means have an interval.
        confidence: Of the intervals.
        rows: The first is what changes are told from.
        claims: Each with its verdict.
        builds: How much the rows shared.
        notes: What a reader must know.
    """

    study: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    title: str
    question: str
    command: str
    date: AwareDatetime
    git: str | None
    dirty: bool
    seconds: float
    seconds_of_stages: float | None = None
    store: str = "store"
    seeds: tuple[int, ...]
    users: int | None
    unit: str = "test users"
    data: Data
    columns: tuple[str, ...]
    compared: tuple[str, ...]
    confidence: float
    rows: Annotated[tuple[RowResult, ...], Field(min_length=1)]
    claims: tuple[ClaimResult, ...]
    builds: Builds
    notes: tuple[str, ...]


def write_result(folder: Path, result: StudyResult) -> None:
    """Write ``result.json`` in one move.

    Raises:
        ValueError: If a number of it is none.
    """
    part = folder / f"{FILE}.part"
    content = json.dumps(result.model_dump(mode="json"), indent=1, allow_nan=False)
    part.write_text(f"{content}\n", encoding="utf-8")
    part.replace(folder / FILE)


def read_result(path: Path) -> StudyResult:
    """What a study found; what its file has beside the fields above is passed over, and NaN is no number.

    Args:
        path: The folder of the study's run, or the file itself.

    Raises:
        ValueError: If there is no such file, or if it is none of a study; it names the file and each wrong field.
    """
    file = path if path.suffix == ".json" else path / FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda _: None)
        return StudyResult.model_validate(content)
    except OSError as error:
        told = f"cannot be read ({error.strerror})"
    except ValidationError as error:
        told = f"is no result of a study ({'; '.join(_fault(one['loc'], one['msg']) for one in error.errors())})"
    except ValueError as error:
        told = f"is broken, it is no JSON ({error})"
    raise ValueError(f"{file} {told}: run the study anew, or remove it")


def _fault(place: tuple[int | str, ...], told: str) -> str:
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return ": ".join(filter(None, [field, f"{told[:1].lower()}{told[1:]}"]))
