"""Settings of the embeddings."""

from typing import Annotated, Literal

from pydantic import Field

from leadre.settings import settings

Positive = Annotated[int, Field(ge=1)]


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
    model: Annotated[str, Field(min_length=1)]
    revision: str | None
    pooling: Literal["mean", "cls", "last", "sentence_transformers"]
    instruction: str
    normalize: bool
    max_tokens: Positive
    batch_size: Positive
    precision: Literal["fp32", "bf16"]


EmbeddingConfig = Annotated[LSAConfig | HashingConfig | TransformerConfig, Field(discriminator="kind")]
