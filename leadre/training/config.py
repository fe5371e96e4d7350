"""Settings of the machine and of the logs, which are not part of a result's key.

Other devices or threads add in another order, so the last digits of a result may differ; the manifest records them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from leadre.settings import settings


@settings
class ComputeConfig:
    """Where and how training and generation run."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Annotated[int, Field(ge=1)]
    num_nodes: Annotated[int, Field(ge=1)]
    strategy: Literal["auto", "ddp", "fsdp"]
    compile: bool
    threads: Annotated[int, Field(ge=1)] | None
    checkpoint_every_steps: Annotated[int, Field(ge=1)]
    progress: bool

    @property
    def processes(self) -> int:
        """How many processes train together, one a device."""
        return self.devices * self.num_nodes

    @model_validator(mode="after")
    def _compiled_weights_stay_whole(self) -> Self:
        if self.compile and self.strategy == "fsdp":
            raise ValueError(
                "compile is true, but strategy is 'fsdp', whose shared weights have not been tried compiled: set "
                "compute.compile=false, or compute.strategy=ddp"
            )
        return self


@settings
class FileLogs:
    """Metrics go to ``metrics.jsonl`` and ``metrics.csv`` beside each result, and nowhere else."""

    kind: Literal["csv"]


@settings
class WandbLogs:
    """Metrics also go to Weights & Biases; without a key they are kept offline for ``wandb sync``.

    Attributes:
        kind: Which of the logs this is.
        project: W&B's project.
        entity: W&B's user or team; None is the key's own.
        group: What W&B shows together.
        tags: What W&B can filter by.
        folder: Where the local ``wandb`` folder is made.
        settings: What a run shows as its config.
    """

    kind: Literal["wandb"]
    project: Annotated[str, Field(min_length=1)]
    entity: str | None
    group: str | None
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...]
    folder: str
    settings: Mapping[str, Any]


LoggerConfig = Annotated[FileLogs | WandbLogs, Field(discriminator="kind")]


def check_rates(learning_rate: float, min_learning_rate: float) -> None:
    """Refuse a learning rate that would rise to its minimum.

    Raises:
        ValueError: If the minimum is above the rate that falls to it.
    """
    if min_learning_rate > learning_rate:
        raise ValueError(
            f"min_learning_rate is {min_learning_rate:g}, but the rate falls to it from learning_rate "
            f"{learning_rate:g}: lower min_learning_rate"
        )
