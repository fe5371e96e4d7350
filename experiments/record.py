"""What is kept of a study's ``result.json``: checked, small, and without a path of the machine that it ran on."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, Field, ValidationError


class Run(BaseModel, frozen=True):
    """One row with one seed; the key is that of the result its scores lie in."""

    seed: int
    key: str
    path: str = ""
    scores: dict[str, float | None] = {}
    steps: int | None = None
    tokens: int | None = None


class Row(BaseModel, frozen=True):
    """One row of a study: means over users and seeds, the intervals of some, and the paper's numbers."""

    name: str
    control: bool = False
    system: str = "LEADRE"
    overrides: list[str] = []
    paper: dict[str, float] = {}
    not_run: str | None = None
    mean: dict[str, float | None] = {}
    interval: dict[str, tuple[float, float] | None] = {}
    change: dict[str, float | None] | None = None
    runs: list[Run] = []


class Difference(BaseModel, frozen=True):
    """How much more one row has than another, with the ends of the interval."""

    mean: float
    low: float
    high: float
    p: float | None = None
    p_holm: float | None = None


class Claim(BaseModel, frozen=True):
    """What the paper says of two rows, and what was found."""

    text: str
    source: str
    better: str
    worse: str
    on: str
    control: tuple[str, str] | None
    verdict: Literal["holds", "fails", "undecided"]
    why: str
    difference: Difference | None = None
    control_difference: Difference | None = None
    users_needed: int | None = None
    paper_change: float | None = None
    our_change: float | None = None


class Data(BaseModel, frozen=True):
    """The world of a study, and how much of what is in it."""

    name: str
    counts: dict[str, Any] = {}

    @property
    def told(self) -> str:
        """The name and the size, which tells two worlds of one name apart."""
        sizes = [f"{size:,} {what}" for what in ("users", "ads") if isinstance(size := self.counts.get(what), int)]
        return f"{self.name} ({', '.join(sizes)})" if sizes else self.name


class Builds(BaseModel, frozen=True):
    """Stages that the rows asked for, and those that had to be built."""

    asked: int
    built: int


class Record(BaseModel, frozen=True):
    """What is kept of a study's ``result.json``: whatever is not named here is left out."""

    study: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    title: str
    question: str
    command: str
    date: AwareDatetime
    git: str | None = None
    dirty: bool = False
    seconds: float | None = None
    seeds: list[int]
    users: int | None = None
    unit: str = "test users"
    data: Data
    columns: list[str]
    compared: list[str] = []
    confidence: float = 0.95
    rows: Annotated[list[Row], Field(min_length=1)]
    claims: list[Claim] = []
    builds: Builds | None = None
    notes: list[str] = []


def read_record(path: Path) -> Record:
    """What a study left, or what is kept of it, without the paths of the machine.

    Raises:
        ValueError: If the file is no result of a study; it names the file and what is wrong.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Record.model_validate(without_paths(found))
    except ValidationError as error:
        told = (
            "".join(f"{_place(fault['loc'])}{fault['msg'][:1].lower()}{fault['msg'][1:]}") for fault in error.errors()
        )
        raise ValueError(
            f"{path} is no result of a study: {'; '.join(told)}; run its study anew or delete it"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; run its study anew or delete it") from None


def without_paths(value: Any) -> Any:  # noqa: ANN401
    """Every path of a machine in what JSON holds becomes ``PATH``; addresses of the web and shares stay.

    Example:
        >>> without_paths(["x data.root=/home/me/data y", "HR/NDCG", "https://a.b/c/d", "(/tmp/x)"])
        ['x data.root=PATH y', 'HR/NDCG', 'https://a.b/c/d', '(PATH)']
    """
    if isinstance(value, str):
        return re.sub(r"(?<![\w.:/~<])~?/(?:[^\s/'\"`,;()\[\]|]+/)+[^\s/'\"`,;:()\[\]|]*", "PATH", value)
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    return value


def file_name(record: Record) -> str:
    """Where a record is kept: one file a study and data set, such as ``table2_task_order.completejourney.json``."""
    data = re.sub(r"[^a-z0-9]+", "_", record.data.told.replace(",", "").lower()).strip("_")
    return f"{record.study}.{data}.json" if data else f"{record.study}.json"


def _place(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") + ": " * bool(
        location
    )
