"""A study: rows of settings, each with several training seeds, over the main path, and what is claimed of them.

Every stage is a result in the store, so rows share what they have in common, and a study that was killed goes on
where it was. `experiments.run` makes a command of a study (docs/studies.md).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import NamedTuple

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from leadre import command_line, pipeline
from leadre.artifacts import Result, Store
from leadre.config import CONF, ConfigError, RunConfig
from leadre.report.table import OURS

SIZES = ("levels", "codebook_size")
"""What an override of a row may name of the study's quantizer."""
SEEDS = "0,1,2"
"""Training seeds of a study that is told none: fewer decide no claim."""
_GONE = "no such key"


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        name: As the table shows it.
        overrides: What sets this row apart, as on the command line. They come after the study's own and replace
            those of the same group; ``{levels}`` and ``{codebook_size}`` stand for the study's quantizer's.
        paper: The paper's numbers, by column; empty where it has none.
        control: Whether the row is there to fail: what does not beat it means nothing.
        system: Whose lists are scored: a baseline's name shows that baseline of the same run.
        shift: How far its training seeds lie from the study's: a control that differs in nothing else.
    """

    name: str
    overrides: tuple[str, ...]
    paper: Mapping[str, float] = {}
    control: bool = False
    system: str = OURS
    shift: int = 0


class Claim(NamedTuple):
    """What is said to be so, and what would show it.

    Attributes:
        text: In one sentence.
        better: The row that is said to have more.
        worse: The row that is said to have less.
        on: Of which score of users, such as HR@8.
        control: Two rows whose difference the claim's must be above: the same comparison with nothing behind it.
        source: Who says so.
        same_tokens: Whether it is said of rows that read as many tokens as one another.
    """

    text: str
    better: str
    worse: str
    on: str
    control: tuple[str, str] | None
    source: str
    same_tokens: bool = False


def scored(overrides: Sequence[str], seed: int) -> Result:
    """The scores of the main job with one training seed; whatever is in the store is reused."""
    run = configured(overrides, seed)
    store = Store(Path(run.store.root))
    prepared = pipeline.prepare(run, store, pipeline.index_ads(run, store))
    return pipeline.evaluate(run, store, prepared, pipeline.train(run, store, prepared)).scores


class Study(NamedTuple):
    """A table or figure of the paper, or one of our own.

    Attributes:
        name: The file that it is in, and the folder of what it writes.
        title: What it is.
        question: What it asks, and what the paper found, in one sentence.
        columns: Scores, as ``scores.json`` names them.
        rows: The first is what the others' changes are told from.
        compared: The scores whose means get an interval; the picture shows them.
        claims: What is judged; p-values hold for all of them together.
        measures: Further columns: what each is of a result of stage ``scores`` and of what that was made from.
        run: Makes the scores of a row and a seed.
        draw: Draws ``figure.png`` of a study's folder and the store; None draws the compared scores of the rows.
        unit: What the intervals are over.
    """

    name: str
    title: str
    question: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    compared: tuple[str, ...]
    claims: tuple[Claim, ...] = ()
    measures: Mapping[str, Callable[[Result], float | None]] = {}
    run: Callable[[Sequence[str], int], Result] = scored
    draw: Callable[[Path, Path], None] | None = None
    unit: str = "test users"


def described(study: Study) -> str:
    """What a study asks, its rows and its claims, for ``--help``."""
    rows = [f"  {row.name}{' (control)' if row.control else ''}: {' '.join(row.overrides)}" for row in study.rows]
    claims = [f"  {claim.text} ({claim.source})" for claim in study.claims]
    usage = f"python -m experiments.{study.name} [seeds=0,1,2] [jobs=1] [overrides of conf/run.yaml]"
    return "\n".join([study.title, study.question, usage, "rows:", *rows, "claims:", *claims])


def configured(overrides: Sequence[str], seed: int) -> RunConfig:
    """The settings of a row with a training seed."""
    return command_line.configured([*overrides, f"seed={seed}"])


class Asked(NamedTuple):
    """The command line of a study.

    Attributes:
        seeds: ``seeds=0,1,2`` (the default): the training seeds.
        jobs: ``jobs=1`` (the default): how many runs are under way at once.
        overrides: All other words: overrides of every row.
    """

    seeds: list[int]
    jobs: int
    overrides: list[str]


def asked_of(arguments: Sequence[str]) -> Asked:
    """Read a command line. With several jobs each has its share of the cores, and no progress bars, unless told so.

    Raises:
        ConfigError: If the seeds are no different whole numbers, the jobs none of 1 or more, or a single ``seed`` is
            named.
    """
    own = {"seeds": SEEDS, "jobs": "1"}
    own |= {name: value for name, _, value in (text.partition("=") for text in arguments) if name in own}
    rest = [text for text in arguments if text.partition("=")[0] not in own]
    seeds, jobs = seeds_of(own["seeds"]), own["jobs"]
    if any(text.startswith("seed=") for text in rest):
        raise ConfigError("seed is set by the study, run after run: name the seeds with seeds=0,1,2")
    if not jobs.isdecimal() or int(jobs) < 1:
        raise ConfigError(f"jobs is {jobs!r}, but must be a whole number of 1 or more: how many runs go side by side")
    if int(jobs) > 1:
        shared = (f"compute.threads={max(1, cores() // int(jobs))}", "compute.progress=false")
        rest += [text for text in shared if key_of(text) not in map(key_of, rest)]
    return Asked(seeds, int(jobs), rest)


def seeds_of(text: str) -> list[int]:
    """Read training seeds such as ``0,1,2``.

    Raises:
        ConfigError: If they are no different whole numbers.
    """
    seeds = text.split(",")
    if not all(seed.isdecimal() for seed in seeds) or len(set(map(int, seeds))) < len(seeds):
        raise ConfigError(f"seeds is {text!r}, but must be different whole numbers, such as seeds=0,1,2")
    return [int(seed) for seed in seeds]


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settings_of(study: Study, overrides: Sequence[str]) -> dict[str, list[str]]:
    """What each row is run with: the study's overrides but for what the row replaces, then its own.

    A row's group replaces the study's choice of that group. A key inside of such a group stays where the row's option
    has it, such as ``sft.tuning.learning_rate``, and is left out where it has not, such as the steps of a quantizer
    that does not learn.

    Raises:
        ConfigError: If an override is wrong or sets what the rows differ in, or a row does not compose.
    """
    varied = {key_of(text) for row in study.rows if not row.control for text in row.overrides}
    for text in overrides:
        if key_of(text) in varied:
            raise ConfigError(f"{text}: this is what the rows of {study.name} differ in: leave it out")
    command_line.check(overrides)
    overridden = "".join(text for row in study.rows for text in row.overrides)
    asks_for_sizes = any(name for _, name, _, _ in Formatter().parse(overridden))
    quantizer = _composed(overrides).quantizer if asks_for_sizes else {}
    sizes = {name: quantizer.get(name) for name in SIZES}
    settings = {
        row.name: _settings_of_row([text.format(**sizes) for text in row.overrides], overrides) for row in study.rows
    }
    checked: set[tuple[str, ...]] = set()
    for row in study.rows:
        chosen = settings[row.name]
        try:
            if tuple(chosen) not in checked:
                command_line.check(chosen)
        except ConfigError as error:
            told = " ".join(row.overrides)
            raise ConfigError(f"row {row.name!r} of {study.name} does not compose ({told}): {error}") from None
        checked.add(tuple(chosen))
    return settings


def _settings_of_row(own: Sequence[str], overrides: Sequence[str]) -> list[str]:
    keys = {key_of(text) for text in own}
    inside = [text for text in overrides if any(key_of(text).startswith((f"{key}.", f"{key}/")) for key in keys)]
    if not inside:
        return [*(text for text in overrides if key_of(text) not in keys), *own]
    known = _composed(own)
    lacking = {
        text for text in inside if OmegaConf.select(known, key_of(text).replace("/", "."), default=_GONE) is _GONE
    }
    return [*(text for text in overrides if key_of(text) not in keys and text not in lacking), *own]


def _dotted(override: str) -> str:
    return key_of(override).replace("/", ".")


def _composed(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("run", list(overrides))


def key_of(override: str) -> str:
    """What an override sets, such as ``sft.tuning.learning_rate``."""
    return override.partition("=")[0].lstrip("+~")
