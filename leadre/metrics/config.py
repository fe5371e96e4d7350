"""Settings of the scores; what each knob does is told in ``conf/metrics/default.yaml``."""

from typing import Annotated

from pydantic import Field

from leadre.settings import settings

Count = Annotated[int, Field(ge=1)]
Cuts = Annotated[tuple[Count, ...], Field(min_length=1)]


@settings
class MetricsConfig:
    """Where the lists are cut, and how the intervals are drawn."""

    hr_ks: Cuts
    ndcg_ks: Cuts
    ltrr_ks: Cuts
    value_ks: Cuts
    diversity_k: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    bootstrap_samples: Count
    seed: Annotated[int, Field(ge=0)]
