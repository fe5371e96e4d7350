"""Settings of the inspection."""

from typing import Annotated, Literal

from pydantic import Field

from leadre.settings import settings

Positive = Annotated[int, Field(ge=1)]


@settings
class InspectionConfig:
    """What an index is measured on; the effect of each knob is told in ``conf/inspection/default.yaml``."""

    seed: Annotated[int, Field(ge=0)]
    category: Literal["first", "second"]
    num_shuffles: Positive
    num_pairs: Positive
    num_samples: Positive
    num_neighbors: Positive
