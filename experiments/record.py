"""What is kept of a study's ``result.json``: checked, small, and without a path of the machine that it ran on."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, ValidationError

from experiments.verdict import Verdict

PATH = "PATH"
"""Stands where a path of a machine stood."""
LONGEST_SLUG = 48
_WEB = r"https?://[\w.~%/@#?&+-]+"
_BEGINS = r"(?:file:/|(?<![\w.~/<])/(?=[^\s=])|(?<![\w/])~[\w.-]*/|(?<!\w)[A-Za-z]:[/\\]|(?:[\w.~-]*[/\\])*\.\.[/\\])"
"""A path that is absolute, of a home, of a drive, or of a parent folder."""
_QUOTED = "|".join(
    rf"(?<={quote})(?P<{name}>[^{quote}\s]*?)(?:{_BEGINS}|[^{quote}\n]*[/\\]\.\.[/\\])[^{quote}\n]*(?={quote})"
    for name, quote in (("single", "'"), ("double", '"'), ("back", "`"))
)
_BARE = rf"{_BEGINS}(?:[^\s'\"`]|['\"`](?=\w))*?(?=[).,;:\]}}]*(?:$|\s|['\"`](?!\w)))"
_PLACES = re.compile(rf"(?P<web>{_WEB})|{_QUOTED}|{_BARE}")
_OVERRIDE = re.compile(r"(?:[+~]*[A-Za-z_][\w./@:]*=|~[A-Za-z_])")
_OF_A_MACHINE = re.compile(r"(?:\w+\.)*(?:root|model|previous_catalog)|store\.[\w.]+|decoding\.filters")
"""Settings whose values are places of a machine, or private names."""
_OF_DATA = re.compile(r"(?:data|compute|store|logger)(?:[./].*)?|seeds|category|text")
"""Settings that a record's name tells by its data, or that do not change what is found; category and text are Table 3's
and in the name of its data."""


def overrides_of(command: str) -> tuple[str, list[str]]:
    """A command line before its first override, and its overrides; values keep their spaces.

    Example:
        >>> overrides_of("python -m x data.root=/a b sft.stages=[main, main] ~logger")
        ('python -m x', ['data.root=/a b', 'sft.stages=[main, main]', '~logger'])
    """
    parts = [""]
    for word in re.findall(r"(?:'[^']*'|\"[^\"]*\"|\S)+", command):
        if _OVERRIDE.match(word):
            parts.append(word)
        else:
            parts[-1] = f"{parts[-1]} {word}".strip()
    return parts[0], parts[1:]


def without_value(override: str) -> str:
    """An override without its value if that is a place of a machine.

    Example:
        >>> without_value("lm.model=me/private model"), without_value("lm=local")
        ('lm.model=PATH', 'lm=local')
    """
    key = override.partition("=")[0]
    return f"{key}={PATH}" if _OF_A_MACHINE.fullmatch(key.lstrip("+~")) and "=" in override else override


def without_values(command: str) -> str:
    """A command line without the values that are places of a machine."""
    head, overrides = overrides_of(command)
    return " ".join(filter(None, [head, *map(without_value, overrides)]))


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
    overrides: list[Annotated[str, AfterValidator(without_value)]] = []
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
    verdict: Verdict
    why: str
    difference: Difference | None = None
    control_difference: Difference | None = None
    excess: Difference | None = None
    users_needed: int | None = None
    paper_change: float | None = None
    our_change: float | None = None


class Data(BaseModel, frozen=True):
    """The world of a study, and how much of what is in it."""

    name: str
    counts: dict[str, Any] = {}

    @property
    def told(self) -> str:
        """The name and the size, which tells two worlds of one name apart; a name may tell its size itself."""
        sizes = [f"{size:,} {what}" for what in ("users", "ads") if isinstance(size := self.counts.get(what), int)]
        sizes = [size for size in sizes if size not in self.name]
        return f"{self.name} ({', '.join(sizes)})" if sizes else self.name


class Builds(BaseModel, frozen=True):
    """The results of stages if rows shared nothing, and the distinct ones that there are."""

    asked: int
    built: int


class Record(BaseModel, frozen=True):
    """What is kept of a study's ``result.json``: whatever is not named here is left out."""

    study: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    title: str
    question: str
    command: Annotated[str, AfterValidator(without_values)]
    date: AwareDatetime
    git: str | None = None
    dirty: bool = False
    seconds: float | None = None
    seconds_of_stages: float | None = None
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

    A path is absolute, of a home or of a parent folder. It ends with its quotes, else at a space or the line's end.

    Example:
        >>> without_paths(["x data.root=/home/me/data y", "HR/NDCG", "https://a.b/c/d", "(/tmp/x)", "no '../a b/c'"])
        ['x data.root=PATH y', 'HR/NDCG', 'https://a.b/c/d', '(PATH)', "no 'PATH'"]
    """
    if isinstance(value, str):
        return _PLACES.sub(_kept, value)
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    return value


def _kept(found: re.Match[str]) -> str:
    return found["web"] or f"{found['single'] or found['double'] or found['back'] or ''}{PATH}"


def file_name(record: Record) -> str:
    """Where a record is kept: one file a study and data set, and one for each other set of overrides.

    Such as ``table2_task_order.completejourney.json``, and ``table2_task_order.completejourney.lm_small.json`` of a run
    with ``lm=small``: what is run otherwise does not replace what is run as it comes.
    """
    data = re.sub(r"[^a-z0-9]+", "_", record.data.told.replace(",", "").lower()).strip("_")
    return ".".join(filter(None, [record.study, data, _slug(record.command), "json"]))


def _slug(command: str) -> str:
    varied = [text for text in overrides_of(command)[1] if not _OF_DATA.fullmatch(text.partition("=")[0].lstrip("+~"))]
    whole = " ".join(sorted(varied))
    slug = re.sub(r"[^a-z0-9.-]+", "_", whole.lower()).strip("_.")
    if len(slug) <= LONGEST_SLUG:
        return slug
    return f"{slug[:LONGEST_SLUG].rstrip('_.')}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _place(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".") + ": " * bool(
        location
    )
