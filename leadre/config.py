"""The typed configuration of a run: one field a group of ``conf/``, and every fault told at once.

Nothing heavy is imported here, so that a wrong key is told in about a second.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from leadre.alignment.config import AlignmentConfig
from leadre.baselines.config import BaselinesConfig
from leadre.catalog.config import CatalogConfig
from leadre.data.config import DataConfig
from leadre.decoding.config import DecodingConfig
from leadre.embedding.config import EmbeddingConfig
from leadre.inspection.config import InspectionConfig
from leadre.lm.config import LMConfig
from leadre.ltr.config import LtrConfig
from leadre.metrics.config import MetricsConfig
from leadre.objective import check_objective, scores_measured
from leadre.prompts.config import PromptsConfig
from leadre.quantizer.config import QuantizerConfig
from leadre.settings import settings
from leadre.sft.config import SftConfig
from leadre.training.config import ComputeConfig, LoggerConfig

CONF = Path(__file__).parent.parent / "conf"
SEVERAL = ("next_n", "next_n_control")
"""The tasks whose responses name several ads."""


class ConfigError(ValueError):
    """The configuration is wrong; the message lists every fault, a line each."""


@settings
class StoreConfig:
    """Where results are kept."""

    root: Annotated[str, Field(min_length=1)]


@settings
class RunConfig:
    """All settings of a run; one field a group of ``conf/``.

    Attributes:
        objective: What a trial of a search is judged by: ``valid/ndcg@8`` of the last tuned stage, or, as
            ``sasrec/valid/ndcg@8``, of a learned baseline. None is the whole job.
    """

    seed: Annotated[int, Field(ge=0)]
    objective: str | None
    previous_catalog: Annotated[str, Field(min_length=1)] | None
    store: StoreConfig
    data: DataConfig
    embedding: EmbeddingConfig
    quantizer: QuantizerConfig
    catalog: CatalogConfig
    inspection: InspectionConfig
    prompts: PromptsConfig
    lm: LMConfig
    sft: SftConfig
    ltr: LtrConfig
    alignment: AlignmentConfig
    decoding: DecodingConfig
    baselines: BaselinesConfig
    metrics: MetricsConfig
    compute: ComputeConfig
    logger: LoggerConfig

    @model_validator(mode="after")
    def _filters_are_there(self) -> Self:
        _check_filters(self.decoding)
        return self

    @model_validator(mode="after")
    def _the_objective_is_measured(self) -> Self:
        if self.objective is not None:
            check_objective(self.objective, scores_measured(self.sft, self.alignment, self.baselines))
        return self

    @model_validator(mode="after")
    def _the_history_is_not_told_before_it_is_asked_for(self) -> Self:
        order = self.prompts.arrangement
        told_first = self.prompts.summary and "summary" in order and "behaviors" in order
        if (
            self.sft.tuning.loss_on == "history_and_response"
            and told_first
            and order.index("summary") < order.index("behaviors")
        ):
            raise ValueError(
                "sft.tuning.loss_on is 'history_and_response', but prompts.arrangement puts the summary, which counts "
                "the categories of those very ads, before the behaviors: use prompts.arrangement="
                "[profile,behaviors,summary], prompts.summary=false, or sft.tuning.loss_on=response"
            )
        return self

    @model_validator(mode="after")
    def _every_task_has_pairs(self) -> Self:
        missing = {
            "next_n": "prompts.next_n above 1" if self.prompts.next_n == 1 else "",
            "next_n_control": "a seed as prompts.next_n_control" if self.prompts.next_n_control is None else "",
        }
        for task, remedy in missing.items():
            if remedy and any(task in stage for stage in self.sft.stages):
                raise ValueError(
                    f"sft.stages has the task {task!r}, which prompts make no pairs for: set {remedy}, or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _several_ads_a_pass_are_learned_first(self) -> Self:
        ads = self.decoding.next_n
        tuned = any(task in stage for stage in self.sft.stages for task in SEVERAL)
        if ads > 1 and not (tuned and self.prompts.next_n >= ads):
            raise ValueError(
                f"decoding.next_n is {ads}, but the model is not tuned to name {ads} ads one after another: use "
                f"sft=ex_im_next_n prompts.next_n={ads}, or decoding.next_n=1"
            )
        return self

    @model_validator(mode="after")
    def _codes_are_compared_as_they_were_learned(self) -> Self:
        if self.sft.tuning.support == "vocab":
            return self
        if self.decoding.normalizer != "trie":
            raise ValueError(
                f"decoding.normalizer is {self.decoding.normalizer!r}, but sft.tuning.support='trie' teaches nothing "
                "of codes that lead to no ad: use decoding=trie, or sft.tuning.support=vocab"
            )
        if self.alignment.kind != "none" and self.alignment.support != "trie":
            raise ValueError(
                f"alignment.support is {self.alignment.support!r}, but sft.tuning.support='trie' teaches nothing of "
                "codes that lead to no ad: use alignment.support=trie, or sft.tuning.support=vocab"
            )
        return self

    @model_validator(mode="after")
    def _alignment_has_something_to_learn_from(self) -> Self:
        if self.data.kind == "amazon_beauty" and self.alignment.kind != "none":
            raise ValueError(
                f"alignment is {self.alignment.kind!r}, but data=amazon_beauty has no impressions with ECPM, "
                "so there are no pairs to learn from: use alignment=none"
            )
        if (
            self.data.kind == "completejourney"
            and self.alignment.kind != "none"
            and not self.alignment.preferences.train_targets
        ):
            raise ValueError(
                f"alignment is {self.alignment.kind!r}, but all ads that data=completejourney shows were bought, "
                "and pairs leave the ads out that tuning has taught: use alignment=none or "
                "alignment.preferences.train_targets=true"
            )
        return self


@settings
class GenerateConfig:
    """All settings of lists for a whole user base; prompts, catalog and language are those of the model's training.

    Attributes:
        model: An aligned or sft result, by its folder or key.
        data: Where today's tables come from; None takes the world that the model was trained with.
        as_of: UTC seconds; only what users did strictly before is seen. None is one second after the last behavior.
        audience: A folder of prompts that a platform made itself, in place of ``data`` and ``as_of``; None makes them.
        decoding: How lists are generated.
        compute: Where.
        store: Where results are kept.
        ray_actors: How many Ray actors make the lists; None makes them in this process, or in those of torchrun.
    """

    model: Annotated[str, Field(min_length=1)]
    data: DataConfig | None
    as_of: Annotated[int, Field(ge=0)] | None
    audience: Annotated[str, Field(min_length=1)] | None
    decoding: DecodingConfig
    compute: ComputeConfig
    store: StoreConfig
    ray_actors: Annotated[int, Field(ge=1)] | None

    @model_validator(mode="after")
    def _filters_are_there(self) -> Self:
        _check_filters(self.decoding)
        return self

    @model_validator(mode="after")
    def _an_audience_comes_without_a_world(self) -> Self:
        if self.audience is None:
            return self
        if not Path(self.audience).is_dir():
            raise ValueError(
                f"audience is {self.audience!r}, but there is no such folder: name a folder of prompts-*.parquet and "
                "prompts.json, or give null to make the prompts from data"
            )
        if given := [name for name in ("data", "as_of") if getattr(self, name) is not None]:
            raise ValueError(
                f"audience is {self.audience!r}, but {given[0]} is given too: prompts that are there already are made "
                f"from no tables, and for a time of their own; leave out audience or {' and '.join(given)}"
            )
        return self


Config = TypeVar("Config", RunConfig, GenerateConfig)


def load(config: DictConfig) -> RunConfig:
    """Check a composed configuration of a run and turn it into frozen values.

    Raises:
        ConfigError: With every fault, named by its key as the user types it.
    """
    return _load(config, RunConfig)


def load_generate(config: DictConfig) -> GenerateConfig:
    """The same for ``conf/generate.yaml``."""
    return _load(config, GenerateConfig)


def _load(config: DictConfig, schema: type[Config]) -> Config:
    missing = [f"{key}: is missing: give {key}=VALUE" for key in sorted(OmegaConf.missing_keys(config))]
    plain = OmegaConf.to_container(config, resolve=True)
    try:
        # Through JSON: strict mode then takes a list for a tuple, but refuses "3", True and 3.0 for an int.
        loaded = TypeAdapter(schema).validate_json(json.dumps(plain), strict=True)
    except ValidationError as error:
        raise ConfigError(message(missing + _told(error))) from None
    if missing:
        raise ConfigError(message(missing))
    return loaded


def _check_filters(decoding: DecodingConfig) -> None:
    if decoding.filters is not None and not Path(decoding.filters).is_dir():
        raise ValueError(
            f"decoding.filters is {decoding.filters!r}, but there is no such folder: name the folder of the tables of "
            "filters, or give null to filter nothing"
        )


def _told(error: ValidationError) -> list[str]:
    """One line a fault; a fault that only follows from another one inside it is left out."""
    faults: dict[tuple[int | str, ...], dict[str, Any]] = {}
    for fault in error.errors():  # where a value may be of several types, each says why it is not: the first does
        faults.setdefault(tuple(_as_typed(fault["loc"])), dict(fault))
    return [
        _fault(place, fault)
        for place, fault in faults.items()
        if not any(len(place) < len(other) and other[: len(place)] == place for other in faults)
    ]


def _fault(place: tuple[int | str, ...], fault: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in place)
    got = "" if fault["type"] in {"missing", "value_error"} else f" (got {_short(fault['input'])})"
    message = {
        "unexpected_keyword_argument": "unknown key",
        "missing": "is missing",
        "missing_argument": "is missing",
        "union_tag_not_found": f"no option is chosen: give {key}=OPTION first, one of {', '.join(options_of(key))}",
    }.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    return f"{key}: {message}{got}" if key else f"{message}{got}"


def _as_typed(location: tuple[int | str, ...]) -> Iterator[int | str]:
    """The path of a fault without the tags that pydantic puts in for the members of a union."""
    for depth, part in enumerate(location):
        is_kind = depth == 1 and part in _KINDS.get(str(location[0]), ())
        is_kind |= depth == 3 and location[:2] == ("baselines", "learned")
        if not is_kind and not _TYPE.fullmatch(str(part)):
            yield part


def options_of(group: str) -> list[str]:
    """The names that may be chosen in a group of ``conf/``."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _kinds_of(group: str) -> frozenset[str]:
    schema = TypeAdapter(RunConfig).json_schema()["properties"][group]
    return frozenset(schema.get("discriminator", {}).get("mapping", ()))


_UNIONS = ("data", "embedding", "quantizer", "lm", "alignment", "logger")
_KINDS = {group: _kinds_of(group) for group in _UNIONS}
_TYPE = re.compile(r"\[key\]|(constrained-)?int|tuple\[.*\]")


def _short(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 60 else text[:57] + "..."


def message(faults: Sequence[str]) -> str:
    """The text of a `ConfigError`."""
    return "The configuration is wrong:\n" + "\n".join(f"  {fault}" for fault in faults)
