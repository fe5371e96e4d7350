"""Settings of decoding."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.lm.config import EightBit
from leadre.settings import settings

Count = Annotated[int, Field(ge=1)]
Normalizer = Literal["full", "level", "trie"]
"""What a code's probability is taken among: the whole vocabulary, its level's codes, or the node's children."""


@settings
class DecodingConfig:
    """How lists of ads are generated; the effect of each knob is told in ``conf/decoding/default.yaml``."""

    beam_width: Count | Annotated[tuple[Count, ...], Field(min_length=1)]
    num_ads: Count
    normalizer: Normalizer
    next_n: Count
    filters: Annotated[str, Field(min_length=1)] | None
    engine: Literal["eager", "graph"]
    weights: Literal["as_trained"] | EightBit
    tokens_per_batch: Count
    shard_users: Count

    @model_validator(mode="after")
    def _enough_beams(self) -> Self:
        last = self.beam_width if isinstance(self.beam_width, int) else self.beam_width[-1]
        if self.num_ads > last * self.next_n:
            raise ValueError(
                f"num_ads is {self.num_ads}, but beam_width is {self.beam_width} and next_n {self.next_n}: a list is "
                "taken from the beams, so the last beam_width times next_n must be at least decoding.num_ads"
            )
        return self
