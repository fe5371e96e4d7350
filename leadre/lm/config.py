"""Settings of the language model."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.settings import settings

Count = Annotated[int, Field(ge=1)]
Support = Literal["vocab", "trie"]
"""What a code's probability is taken among in a loss: the whole vocabulary, or the codes that lead to an ad."""
EightBit = Literal["w8a8", "fp8"]
"""8-bit numbers that matrix products are made in: integers, or floats."""


@settings
class TinyLM:
    """A HunYuan dense decoder with random weights and a tokenizer trained on the corpus: no download needed."""

    kind: Literal["tiny"]
    hidden_size: Count
    layers: Count
    heads: Count
    kv_heads: Count
    intermediate_size: Count
    text_tokens: Annotated[int, Field(ge=300)]
    initializer_range: Annotated[float, Field(gt=0)]
    sid_start: Literal["normal", "mean", "codebook"]
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"lm.hidden_size ({self.hidden_size}) must be divisible by lm.heads ({self.heads}), "
                f"and lm.heads by lm.kv_heads ({self.kv_heads}): change one of them"
            )
        return self


@settings
class PretrainedLM:
    """Any Transformers causal language model, from a local folder or by hub name."""

    kind: Literal["pretrained"]
    model: Annotated[str, Field(min_length=1)]
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    sid_start: Literal["normal", "mean", "codebook"]
    seed: Annotated[int, Field(ge=0)]


LMConfig = Annotated[TinyLM | PretrainedLM, Field(discriminator="kind")]
