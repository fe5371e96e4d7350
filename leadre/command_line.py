"""What is typed behind a command: looked over as a whole before anything starts, sweeps and searches too.

Nothing heavy is imported here, so that a wrong key is told in about a second.
"""

import math
import re
from collections.abc import Iterator, Sequence
from itertools import chain

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, OverrideType, RangeSweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from leadre.config import CONF, ConfigError, RunConfig, load, load_generate, message, options_of

_SEARCHES = {"hydra/sweeper=search", "hydra/sweeper=optuna"}
"""What makes a search of a multirun where no space is named."""
_OF_TRAINING = ("seed", "embedding", "quantizer", "catalog", "prompts", "lm", "sft", "alignment")
"""What lists for a whole user base take from the model's training."""


def configured(overrides: Sequence[str], *, name: str = "run") -> RunConfig:
    """The settings that the main job would have; what a person typed goes through `check` first, which tells more.

    Args:
        overrides: As typed behind ``train.py``.
        name: The primary config in ``conf/``, of a whole run.

    Raises:
        ConfigError: With every fault of the values.
    """
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load(compose(name, list(overrides)))


def check(arguments: Sequence[str], *, name: str = "run") -> None:
    """Check a command line before anything heavy is imported: groups, keys and values, all faults at once.

    Of a multirun the first job is checked, and every other value of a sweep in its place; of a search every value of
    a choice, and both ends of a range or an interval.

    Args:
        arguments: The command line without the program's name; Hydra's own flags are passed over.
        name: The primary config in ``conf/``.

    Raises:
        ConfigError: With every fault.
    """
    typed = [argument for argument in arguments if re.match(r"^(~|\+{0,2}[\w/@.]+=)", argument)]
    overrides: list[Override] = []
    faults: dict[str, None] = {}  # a set that keeps its order
    space = _searched(typed)
    for text in [*space, *typed]:
        try:
            overrides.append(OverridesParser.create().parse_override(text))
        except HydraException:
            faults[f"{text}: cannot be read as key=value: quote what is no plain word, number or [list]"] = None
    for job in _trials(overrides) if space or _SEARCHES.intersection(typed) else _jobs(overrides):
        faults |= dict.fromkeys(_faults(job, name))
    if faults:
        raise ConfigError(message(list(faults)))


def _searched(typed: Sequence[str]) -> list[str]:
    """What each trial of a search is run with, but for what is typed; nothing where no search is named."""
    names = [text.removeprefix("search=") for text in typed if text.startswith("search=")]
    files = [CONF / "search" / f"{name}.yaml" for name in names]
    spaces = [OmegaConf.load(path).hydra.sweeper.params for path in files if path.is_file()]
    keys = {text.partition("=")[0] for text in typed}
    return [f"{key}={value}" for space in spaces for key, value in space.items() if key not in keys]


def _faults(job: Sequence[tuple[Override, str]], name: str) -> list[str]:
    """The faults of one job, given its overrides with one value each."""
    faults, good = [], []
    for override, text in job:
        key = override.key_or_group
        group = CONF / key
        value = text.partition("=")[2]
        part = re.split(r"[./]", key)[0]
        if name == "generate" and part in _OF_TRAINING:
            faults.append(f"{key}: unknown key (got {value}): generate.py takes {part} from the model's training")
            continue
        if group.is_dir() and override.package is None and part != "hydra":  # plugins have groups of their own there
            options = options_of(key)
            if value not in options:
                faults.append(f"{key}: no such option (got {value}); choose from {', '.join(options)}")
                continue
            good.append(text)
        elif key.startswith("hydra") or override.type is not OverrideType.CHANGE:
            good.append(text)
        else:
            good.append("++" + text)  # added by force, so that the schema can tell an unknown key with all the others
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(name, good)
            OmegaConf.resolve(composed)
        (load_generate if name == "generate" else load)(composed)
    except ConfigError as error:
        faults += str(error).splitlines()[1:]
    except (HydraException, OmegaConfBaseException) as error:
        faults.append(str(error).splitlines()[0])
    finally:
        GlobalHydra.instance().clear()
    return [fault.strip() for fault in faults]


def _jobs(overrides: Sequence[Override]) -> Iterator[list[tuple[Override, str]]]:
    """The first job of a sweep, then each further value of each sweep in its place."""
    values = [_values(override) for override in overrides]
    first = [options[0] for options in values]
    yield list(zip(overrides, first, strict=True))
    for place, options in enumerate(values):
        for option in options[1:]:
            yield list(zip(overrides, chain(first[:place], [option], first[place + 1 :]), strict=True))


def _trials(overrides: Sequence[Override]) -> Iterator[list[tuple[Override, str]]]:
    """The trial with the last value of all that is searched; that with the first; the other values in its place."""
    values = [_bounds(override) or _values(override) for override in overrides]
    first, last = ([options[end] for options in values] for end in (0, -1))
    yield list(zip(overrides, last, strict=True))
    yield list(zip(overrides, first, strict=True))
    for place, options in enumerate(values):
        for option in options[1:-1]:  # a search may draw any value beside any other
            yield list(zip(overrides, chain(first[:place], [option], first[place + 1 :]), strict=True))


def _bounds(override: Override) -> list[str]:
    """The ends of a range as Optuna draws from it: the upper one is a value, which it is not to Hydra."""
    sweep = override.value()
    if not isinstance(sweep, RangeSweep) or sweep.shuffle or sweep.start is None or sweep.stop is None:
        return []  # a shuffled one is a choice to Optuna
    key = (override.input_line or "").partition("=")[0]
    steps = math.floor((sweep.stop - sweep.start) / sweep.step + 1e-9)  # 0.3 / 0.1 is a hair less than 3
    return [f"{key}={end}" for end in (sweep.start, sweep.start + steps * sweep.step)]


def _values(override: Override) -> list[str]:
    """The override as it is typed for one job, once for each of its values."""
    text = override.input_line or ""
    key, sweep = text.partition("=")[0], override.value()
    if isinstance(sweep, IntervalSweep):
        return [f"{key}={end}" for end in (sweep.start, sweep.end)]
    if not isinstance(sweep, ChoiceSweep | RangeSweep):
        return [text]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]
