"""Settings of decoding."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.settings import settings

Normalizer = Literal["full", "level", "trie"]
"""What a code's probability is taken among: the whole vocabulary, its level's codes, or the node's children."""


@settings
class DecodingConfig:
    """How lists of ads are generated; the effect of each knob is told in ``conf/decoding/default.yaml``."""

    beam_width: Annotated[int, Field(ge=1)]
    num_ads: Annotated[int, Field(ge=1)]
    normalizer: Normalizer
    tokens_per_batch: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _enough_beams(self) -> Self:
        if self.num_ads > self.beam_width:
            raise ValueError(
                f"num_ads is {self.num_ads}, but beam_width is {self.beam_width}: "
                "a list is taken from the beams, so decoding.beam_width must be at least decoding.num_ads"
            )
        return self
