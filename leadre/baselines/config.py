"""Settings of the baselines; the effect of each knob is told in ``conf/baselines/default.yaml``."""

from typing import Annotated

from pydantic import Field

from leadre.settings import settings

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


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
class BaselinesConfig:
    """All baselines of a run."""

    seed: Annotated[int, Field(ge=0)]
    list_length: Count
    window_days: Count
    linear: LinearConfig
