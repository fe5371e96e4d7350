"""Settings of the alignment with business value."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.settings import settings
from leadre.training.config import check_rates

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@settings
class PreferenceConfig:
    """Which pairs of one user's plausible ads are compared by their ECPM."""

    min_pctr_quantile: Share
    min_log_ecpm_gap: NotNegative
    reject_train_targets: bool
    max_ads_per_user: Annotated[int, Field(ge=2)]
    max_pairs_per_user: Count
    max_pairs_per_ad: Count
    max_pairs: Count
    seed: Annotated[int, Field(ge=0)]


@settings
class TuningConfig:
    """How the weights are moved: AdamW, a warm-up, then a fall of the learning rate to its minimum."""

    epochs: Count
    batch_size: Count
    learning_rate: Positive
    min_learning_rate: NotNegative
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NotNegative
    gradient_clip: Positive | None
    precision: Literal["32-true", "bf16-true", "bf16-mixed"]
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _the_rate_falls(self) -> Self:
        check_rates(self.learning_rate, self.min_learning_rate)
        return self


@settings
class NoAlignment:
    """The tuned model is used as it is."""

    kind: Literal["none"]


@settings
class DpoAlignment:
    """Direct Preference Optimization with a likelihood term on the preferred ad."""

    kind: Literal["dpo"]
    beta: Positive
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    sft_weight: NotNegative
    max_chosen_drop: Positive
    preferences: PreferenceConfig
    tuning: TuningConfig


@settings
class RrhfAlignment:
    """RRHF: ranking by the model's own likelihood, without a reference."""

    kind: Literal["rrhf"]
    sft_weight: NotNegative
    preferences: PreferenceConfig
    tuning: TuningConfig


AlignmentConfig = Annotated[NoAlignment | DpoAlignment | RrhfAlignment, Field(discriminator="kind")]
