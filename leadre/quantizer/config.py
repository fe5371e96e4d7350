"""Settings of the quantizer; the effect of each knob is told in ``conf/quantizer/``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.settings import settings

Seed = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Levels = Annotated[int, Field(ge=1, le=25)]  # with the extra code, a letter a..z each
NotNegative = Annotated[float, Field(ge=0)]


def _sampled_enough(codebook_size: int, kmeans_sample: int) -> None:
    if kmeans_sample < codebook_size:
        raise ValueError(
            f"kmeans_sample is {kmeans_sample}, but codebook_size is {codebook_size}, and every code starts at an "
            f"embedding of its own: give at least {codebook_size}"
        )


@settings
class RQVAEConfig:
    """The paper's RQ-VAE (LEADRE A.1), with the ways to train its codebooks that came after (``paper.yaml``)."""

    kind: Literal["rqvae"]
    seed: Seed
    levels: Levels
    codebook_size: Positive
    code_dim: Positive
    hidden_dims: tuple[Positive, ...]
    beta_quant: NotNegative
    codebook: Literal["gradient", "ema"]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    sinkhorn_epsilon: Annotated[float, Field(ge=0.003)] | None  # below it, exp(-2 / epsilon) is 0 in float64
    sinkhorn_iterations: Positive
    sinkhorn_levels: Literal["last", "all"]
    rotation: bool
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
    shuffled: bool

    @model_validator(mode="after")
    def _numbers_fit_each_other(self) -> Self:
        _sampled_enough(self.codebook_size, self.kmeans_sample)
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but steps is {self.steps}, so that the full learning rate would "
                f"never be reached: give at most {self.steps}"
            )
        return self


@settings
class ResidualKMeansConfig:
    """Residual k-means on the embeddings themselves: the plain control beside the RQ-VAE."""

    kind: Literal["residual_kmeans"]
    seed: Seed
    levels: Levels
    codebook_size: Positive
    kmeans_sample: Positive
    kmeans_iterations: Annotated[int, Field(ge=0)]
    spread_last_level: bool
    shuffled: bool

    @model_validator(mode="after")
    def _numbers_fit_each_other(self) -> Self:
        _sampled_enough(self.codebook_size, self.kmeans_sample)
        return self


@settings
class GradedKMeansConfig:
    """Residual k-means whose levels share the information, by codebooks of different sizes."""

    kind: Literal["graded_kmeans"]
    seed: Seed
    levels: Levels
    bits: tuple[NotNegative, ...] | None
    codebook_size: Positive
    kmeans_sample: Positive
    kmeans_iterations: Annotated[int, Field(ge=0)]
    spread_last_level: bool
    shuffled: bool

    @model_validator(mode="after")
    def _numbers_fit_each_other(self) -> Self:
        _sampled_enough(self.codebook_size, self.kmeans_sample)
        if self.bits is not None and len(self.bits) != self.levels - 1:
            raise ValueError(
                f"bits has {len(self.bits)} budgets, but levels is {self.levels}, and each level but the last has one: "
                f"give {self.levels - 1}, or null"
            )
        return self


@settings
class RandomConfig:
    """Uniform random codes, one list a text: the control that any claim about meaning needs."""

    kind: Literal["random"]
    seed: Seed
    levels: Levels
    codebook_size: Positive


@settings
class ImportedConfig:
    """Codes made elsewhere, in the format of LETTER's ``index.json``."""

    kind: Literal["imported"]
    path: Annotated[str, Field(min_length=1)]
    key_shift: int


LearnedConfig = RQVAEConfig | ResidualKMeansConfig | GradedKMeansConfig
"""Kinds that train a network on the embeddings and keep it, so that new ads can be coded by it later."""

QuantizerConfig = Annotated[LearnedConfig | RandomConfig | ImportedConfig, Field(discriminator="kind")]
