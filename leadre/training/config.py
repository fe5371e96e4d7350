"""Settings of the machine and of the logs, which are not part of a result's key.

Other devices or threads add in another order, so the last digits of a result may differ; the manifest records them.
"""

from typing import Annotated, Literal

from pydantic import Field

from leadre.settings import settings


@settings
class ComputeConfig:
    """Where and how training and generation run."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Annotated[int, Field(ge=1)]
    num_nodes: Annotated[int, Field(ge=1)]
    strategy: Literal["auto", "ddp"]
    threads: Annotated[int, Field(ge=1)] | None
    checkpoint_every_steps: Annotated[int, Field(ge=1)]
    progress: bool


@settings
class FileLogs:
    """Metrics go to ``metrics.jsonl`` and ``metrics.csv`` beside each result, and nowhere else."""

    kind: Literal["csv"]


@settings
class WandbLogs:
    """Metrics also go to Weights & Biases; without a key they are kept offline for ``wandb sync``."""

    kind: Literal["wandb"]
    project: Annotated[str, Field(min_length=1)]
    entity: str | None
    group: str | None
    tags: tuple[str, ...]
    folder: str


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
