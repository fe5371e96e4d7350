"""Settings of the embeddings."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.settings import settings

Positive = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]


@settings
class LSAConfig:
    """Latent semantic analysis of the ads' own texts; works offline. Knobs are told in ``conf/embedding/lsa.yaml``."""

    kind: Literal["lsa"]
    seed: Annotated[int, Field(ge=0)]
    dimension: Positive
    analyzer: Literal["word", "char_wb"]
    ngrams: tuple[Positive, Positive]
    max_terms: Positive


@settings
class HashingConfig:
    """Feature-hashed bag of words: for tests."""

    kind: Literal["hashing"]
    dimension: Positive


@settings
class TransformerConfig:
    """A pre-trained encoder. Knobs are told in ``conf/embedding/transformer.yaml``."""

    kind: Literal["transformer"]
    model: Name
    revision: Name | None
    package: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    tower: Literal["auto", "clip_text", "t5_encoder"]
    pooling: Literal["mean", "cls", "last", "projection"]
    instruction: str
    normalize: bool
    max_tokens: Positive
    batch_tokens: Positive
    precision: Literal["fp32", "bf16"]

    @model_validator(mode="after")
    def _only_clip_has_a_projection(self) -> Self:
        if self.pooling == "projection" and self.tower != "clip_text":
            raise ValueError(
                f"embedding.pooling is 'projection', which CLIP alone has, but embedding.tower is {self.tower!r}: "
                "use embedding.tower=clip_text, or embedding.pooling=mean"
            )
        return self


@settings
class VectorsConfig:
    """Vectors that were made elsewhere. The file is told in ``conf/embedding/vectors.yaml``."""

    kind: Literal["vectors"]
    path: Name


EmbeddingConfig = Annotated[LSAConfig | HashingConfig | TransformerConfig | VectorsConfig, Field(discriminator="kind")]
