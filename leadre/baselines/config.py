"""Settings of the baselines; the effect of each knob is told in ``conf/baselines/`` and ``conf/baselines/learned/``."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from leadre.settings import settings
from leadre.training.config import check_rates

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]

TAKEN = ("popularity", "own_history", "linear", "oracle", "ltr")
"""Names of lists that a learned baseline may not take."""


@settings
class LinearConfig:
    """The multinomial linear model."""

    content_behaviors: bool
    half_lives_days: tuple[Positive, ...]
    min_count: Count
    learning_rate: Positive
    batch_size: Count
    max_epochs: Count
    patience: Count


@settings
class TwoTowerConfig:
    """A user tower and an ad tower over ids: the paper's conventional retrieval."""

    kind: Literal["two_tower"]
    content_behaviors: bool
    window_days: Count
    max_ads: Count
    max_contents: Count
    width: Count
    hidden: Count
    dropout: Share
    temperature: Positive
    learning_rate: Positive
    min_learning_rate: NotNegative
    warmup_share: Share
    weight_decay: NotNegative
    batch_size: Count
    epochs: Count
    list_length: Count
    validations: Annotated[int, Field(ge=0)]
    valid_users: Count
    exclude_seen: bool
    seed: Seed


@settings
class SasrecConfig:
    """Self-attention over the user's ads."""

    kind: Literal["sasrec"]
    max_ads: Count
    width: Count
    heads: Count
    inner: Count
    layers: Count
    dropout: Share
    learning_rate: Positive
    min_learning_rate: NotNegative
    warmup_share: Share
    weight_decay: NotNegative
    batch_size: Count
    epochs: Count
    list_length: Count
    validations: Annotated[int, Field(ge=0)]
    valid_users: Count
    exclude_seen: bool
    seed: Seed

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, but {self.heads} heads share it: give a multiple of heads")
        return self


@settings
class TigerConfig:
    """An encoder-decoder from scratch over the S-IDs of the user's ads."""

    kind: Literal["tiger"]
    width: Count
    heads: Count
    head_width: Count
    inner: Count
    encoder_layers: Count
    decoder_layers: Count
    dropout: Share
    max_ads: Count
    user_tokens: Annotated[int, Field(ge=0)]
    learning_rate: Positive
    min_learning_rate: NotNegative
    warmup_share: Share
    weight_decay: NotNegative
    batch_size: Count
    steps: Count
    beam_width: Count
    list_length: Count
    validations: Annotated[int, Field(ge=0)]
    valid_users: Count
    exclude_seen: bool
    seed: Seed


def _the_rate_falls(learned: "LearnedConfig") -> "LearnedConfig":
    check_rates(learned.learning_rate, learned.min_learning_rate)
    return learned


LearnedConfig = Annotated[
    TwoTowerConfig | SasrecConfig | TigerConfig, Field(discriminator="kind"), AfterValidator(_the_rate_falls)
]


@settings
class BaselinesConfig:
    """All baselines of a run; ``learned`` are trained, each a result of its own under its name."""

    seed: Seed
    list_length: Count
    window_days: Count
    linear: LinearConfig
    learned: Mapping[Name, LearnedConfig]

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if taken := sorted(set(self.learned) & set(TAKEN)):
            raise ValueError(f"learned has the name {taken[0]!r}, which other lists have: choose another name")
        return self
