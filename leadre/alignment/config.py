"""Settings of the alignment with business value."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.lm.config import Support
from leadre.settings import settings
from leadre.training.config import check_rates

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Worth = Literal["ecpm", "value"]
"""What two ads are compared by: ECPM, or value: the chance of a click times what it brings."""


@settings
class PreferenceConfig:
    """Which pairs of one user's plausible ads are compared by what they are worth."""

    sources: Annotated[tuple[Literal["log", "beam"], ...], Field(min_length=1)]
    beam_width: Count
    worth: Worth
    min_log_gap: NotNegative
    min_pctr_quantile: Share
    train_targets: bool
    max_ads_per_user: Annotated[int, Field(ge=2)]
    rejected_per_chosen: Count
    max_pairs_per_user: Count
    max_pairs_per_ad: Count
    max_pairs: Count
    control: Literal["flipped", "random"] | None
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _value_is_estimated(self) -> Self:
        if self.worth == "value" and "beam" not in self.sources:
            raise ValueError(
                "worth is 'value', which no log tells, but sources has no 'beam', so that nothing is estimated: add "
                "beam to alignment.preferences.sources, or set alignment.preferences.worth=ecpm"
            )
        return self


@settings
class TuningConfig:
    """How the weights are moved: AdamW, a warm-up, then a fall of the learning rate to its minimum."""

    epochs: Count
    batch_size: Count
    micro_batch_size: Count | None
    learning_rate: Positive
    min_learning_rate: NotNegative
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NotNegative
    gradient_clip: Positive | None
    precision: Literal["32-true", "bf16-true", "bf16-mixed"]
    validations: Annotated[int, Field(ge=0)]
    valid_users: Count
    valid_beam_width: Count
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
    loss: Literal["sigmoid", "ipo"]
    beta: Positive
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    sft_weight: NotNegative
    support: Support
    max_chosen_drop: Positive
    preferences: PreferenceConfig
    tuning: TuningConfig

    @model_validator(mode="after")
    def _smoothing_is_of_the_sigmoid(self) -> Self:
        if self.loss == "ipo" and self.label_smoothing:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing:g}, but loss is 'ipo', which knows none: set "
                "alignment.label_smoothing=0, or alignment.loss=sigmoid"
            )
        return self


@settings
class SdpoAlignment:
    """DPO of a preferred ad against several others at once, with a likelihood term on the preferred one."""

    kind: Literal["sdpo"]
    beta: Positive
    negatives: Count
    sft_weight: NotNegative
    support: Support
    max_chosen_drop: Positive
    preferences: PreferenceConfig
    tuning: TuningConfig

    @model_validator(mode="after")
    def _a_chosen_ad_has_so_many(self) -> Self:
        if self.negatives > self.preferences.rejected_per_chosen:
            raise ValueError(
                f"negatives is {self.negatives}, but preferences.rejected_per_chosen is "
                f"{self.preferences.rejected_per_chosen}, so that no ad has so many rejected beside it: raise "
                "alignment.preferences.rejected_per_chosen, or lower alignment.negatives"
            )
        return self


@settings
class RrhfAlignment:
    """RRHF: ranking by the model's own likelihood, without a reference in the loss."""

    kind: Literal["rrhf"]
    variant: Literal["paper", "official"]
    sft_weight: NotNegative
    support: Support
    max_chosen_drop: Positive
    preferences: PreferenceConfig
    tuning: TuningConfig


@settings
class SftAlignment:
    """The control: the likelihood of the preferred ads alone, on the same pairs for the same steps."""

    kind: Literal["sft"]
    support: Support
    max_chosen_drop: Positive
    preferences: PreferenceConfig
    tuning: TuningConfig


PairAlignment = DpoAlignment | SdpoAlignment | RrhfAlignment | SftAlignment
AlignmentConfig = Annotated[NoAlignment | PairAlignment, Field(discriminator="kind")]
