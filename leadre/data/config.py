"""Settings of the data room: one class a source, told apart by ``kind``; the values live in ``conf/data/``."""

from typing import Annotated, Literal

from pydantic import Field

from leadre.adworld.config import WorldConfig
from leadre.settings import settings

Language = Literal["en", "zh"]
MinAds = Annotated[int, Field(ge=2)]
Share = Annotated[float, Field(ge=0, le=1)]


@settings
class SyntheticData:
    """A simulated world; ``seed`` is the world's own, so that runs of several seeds share one world."""

    kind: Literal["synthetic"]
    seed: Annotated[int, Field(ge=0)]
    language: Language
    min_ads: MinAds
    max_bad_share: Share
    world: WorldConfig


@settings
class CompleteJourneyData:
    """A year of real purchases, the promoted ones taken as ad conversions."""

    kind: Literal["completejourney"]
    root: str
    domain: Literal["targeted", "broad"]
    ads_by: Literal["product", "spu"]
    min_ad_events: Annotated[int, Field(ge=1)]
    language: Language
    min_ads: MinAds
    max_bad_share: Share


@settings
class AmazonBeautyData:
    """The leave-one-out benchmark with most published generative-retrieval results; every item is an ad."""

    kind: Literal["amazon_beauty"]
    root: str
    language: Language
    min_ads: MinAds
    max_bad_share: Share


@settings
class TablesData:
    """The user's own folder of tables; ``end_time`` is an ISO time, later behaviors are refused."""

    kind: Literal["tables"]
    root: str
    language: Language
    end_time: str | None
    min_ads: MinAds
    max_bad_share: Share


DataConfig = Annotated[SyntheticData | CompleteJourneyData | AmazonBeautyData | TablesData, Field(discriminator="kind")]
