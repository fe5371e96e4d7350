"""Settings of the quantizer."""

from typing import Annotated, Literal

from pydantic import Field

from leadre.settings import settings

Positive = Annotated[int, Field(ge=1)]
Levels = Annotated[int, Field(ge=1, le=25)]  # with the extra code, a letter a..z each
NotNegative = Annotated[float, Field(ge=0)]


@settings
class RQVAEConfig:
    """The paper's RQ-VAE (LEADRE A.1); the effect of each knob is told in ``conf/quantizer/paper.yaml``."""

    kind: Literal["rqvae"]
    seed: Annotated[int, Field(ge=0)]
    levels: Levels
    codebook_size: Positive
    code_dim: Positive
    hidden_dims: tuple[Positive, ...]
    beta_quant: NotNegative
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: NotNegative
    batch_size: Positive
    steps: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    restart_every_steps: Positive
    validations: Annotated[int, Field(ge=0)]
    kmeans_sample: Positive
    kmeans_iterations: Annotated[int, Field(ge=0)]
    spread_last_level: bool


@settings
class ResidualKMeansConfig:
    """Residual k-means on the embeddings themselves: the plain control beside the RQ-VAE."""

    kind: Literal["residual_kmeans"]
    seed: Annotated[int, Field(ge=0)]
    levels: Levels
    codebook_size: Positive
    kmeans_sample: Positive
    kmeans_iterations: Annotated[int, Field(ge=0)]
    spread_last_level: bool


QuantizerConfig = Annotated[RQVAEConfig | ResidualKMeansConfig, Field(discriminator="kind")]
