"""Settings of staged tuning."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.lm.config import Support
from leadre.settings import settings
from leadre.training.config import check_rates

Task = Literal["explicit", "implicit", "main", "next_n", "next_n_control"]
"""The tasks of the paper; ``next_n``, whose responses name several ads; and its control, where others' ads follow."""
Count = Annotated[int, Field(ge=1)]


@settings
class Lora:
    """Low-rank adapters; the rows of the S-ID and learnable tokens are trained beside them."""

    rank: Count
    alpha: Annotated[float, Field(gt=0)]
    targets: Annotated[tuple[str, ...], Field(min_length=1)]


@settings
class Tuning:
    """What the stages share: the loss, the optimizer, and how often retrieval is validated."""

    loss_on: Literal["response", "history_and_response"]
    support: Support
    learning_rate: Annotated[float, Field(gt=0)]
    min_learning_rate: Annotated[float, Field(ge=0)]
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    batch_size: Count
    micro_batch_size: Count | None
    share_history: bool
    activation_checkpointing: bool
    gradient_clip: Annotated[float, Field(gt=0)] | None
    precision: Literal["32-true", "bf16-true", "bf16-mixed"]
    lora: Lora | None
    dropout: Annotated[float, Field(ge=0, lt=1)]
    freeze_soft_tokens: bool
    validations: Annotated[int, Field(ge=0)]
    valid_users: Count
    valid_beam_width: Count
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _the_rate_falls(self) -> Self:
        check_rates(self.learning_rate, self.min_learning_rate)
        return self


Tasks = Annotated[dict[Task, Annotated[float, Field(gt=0)]], Field(min_length=1)]
"""Task to epochs: how often each of its pairs is seen in the stage. Several tasks of a stage are mixed."""


@settings
class Stage:
    """One stage, with all that its result depends on."""

    tasks: Tasks
    tuning: Tuning


@settings
class SftConfig:
    """The curriculum: its stages in order, and what they share."""

    stages: Annotated[tuple[Tasks, ...], Field(min_length=1)]
    tuning: Tuning

    def curriculum(self) -> tuple[Stage, ...]:
        """The stages one by one."""
        return tuple(Stage(tasks=tasks, tuning=self.tuning) for tasks in self.stages)
