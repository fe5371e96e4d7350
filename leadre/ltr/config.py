"""Settings of the other retrieval strategy; the effect of each knob is told in ``conf/ltr/default.yaml``."""

from typing import Annotated

from pydantic import Field

from leadre.settings import settings

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@settings
class LtrConfig:
    """Who the ranker learns from, what it sees, how it is trained, and how many ads it names."""

    train_share: Annotated[float, Field(gt=0, lt=1)]
    labels: Count
    window_days: Count
    half_lives_days: Annotated[tuple[Positive, ...], Field(min_length=1)]
    interest_smoothing: Positive
    click_smoothing: Positive
    folds: Annotated[int, Field(ge=2)]
    negatives: Count
    hidden_size: Count
    learning_rate: Positive
    batch_size: Count
    max_epochs: Count
    patience: Count
    seed: Annotated[int, Field(ge=0)]
