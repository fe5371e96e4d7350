"""Settings of the synthetic ad world; the numbers live in ``conf/data/world/``."""

from typing import Annotated

from pydantic import Field

from leadre.settings import settings

Count = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


@settings
class AdsConfig:
    """The catalog: how many ads, how alike they are, how they are exposed and how long they live."""

    ads_per_category: Count
    brands_per_category: Annotated[int, Field(ge=1, le=12)]
    spus_per_brand: Annotated[int, Field(ge=1, le=8)]
    width: Count
    brand_spread: NotNegative
    ad_spread: NotNegative
    quality_spread: NotNegative
    bid_spread: NotNegative
    bid_category_spread: NotNegative
    exposure_exponent: NotNegative
    churn_per_day: NotNegative
    missing_share: Share


@settings
class UsersConfig:
    """The users: profile, long-term taste and its drift, activity."""

    num_users: Count
    profile_effect: NotNegative
    taste_spread: NotNegative
    drift_pull: Share
    drift_step: NotNegative
    personal: NotNegative
    activity_spread: NotNegative
    missing_share: Share


@settings
class IntentsConfig:
    """When a commercial intent starts, how long it lasts, and how slowly ads begin to profit from it."""

    start_probability: Share
    mean_days: Positive
    ramp_days: Positive


@settings
class ContentsConfig:
    """What users read and watch; ``signal`` is the share of intent-time content that tells the intent."""

    base_per_day: NotNegative
    intent_per_day: NotNegative
    topic_concentration: Positive
    signal: Share
    spu_share: Share
    items_per_topic: Count


@settings
class ExposureConfig:
    """The platform's logging policy: candidates of one auction and the noise of its ranker."""

    impressions_per_day: Positive
    popular: Count
    two_tower: Count
    random: Count
    two_tower_sharpness: NotNegative
    pctr_noise: Positive


@settings
class ClicksConfig:
    """Weights of the click logit."""

    intercept: float
    fit: float
    taste: float
    intent: NotNegative
    brand: NotNegative
    fatigue: NotNegative
    fatigue_decay: Share


@settings
class ConversionsConfig:
    """Weights of the conversion logit given a click, and the delay from the click."""

    intercept: float
    fit: float
    intent: float
    price_gap: NotNegative
    delay_hours: Positive
    delay_spread: NotNegative


@settings
class WorldConfig:
    """A whole world."""

    days: Count
    oracle_size: Count
    ads: AdsConfig
    users: UsersConfig
    intents: IntentsConfig
    contents: ContentsConfig
    exposure: ExposureConfig
    clicks: ClicksConfig
    conversions: ConversionsConfig
