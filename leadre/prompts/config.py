"""The settings of the prompts."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.settings import settings

Component = Literal["profile", "summary", "behaviors"]


@settings
class PromptsConfig:
    """What a prompt holds, in which order, and how long it may be (LEADRE 4.2).

    Attributes:
        profile: Whether the prompt tells who the user is.
        summary: Whether the prompt counts the categories of the user's behaviors.
        ad_behaviors: Whether behaviors in the ad domain are shown (and counted in the summary).
        content_behaviors: Whether behaviors in the content domain are shown (and counted in the summary).
        soft_tokens: Number of learnable tokens in the instruction.
        arrangement: The order of the three components; each exactly once.
        summary_categories: Number of categories that the summary names, the most frequent first.
        window_days: Days before the target that a behavior may lie back.
        max_tokens: Tokens of prompt and response together; the oldest behaviors give way.
        max_ad_behaviors: The newest behaviors of the ad domain that are shown; null shows all that fit.
        max_content_behaviors: The same for the content domain.
        content_title: ``title_spu`` shows ``<title>/<SPU>``, ``title`` the title alone.
        reuse_every: Which train targets of a user make a pair: every n-th, counted back from the last; 1 takes all
            (LEADRE 4.2.2, "ad positive interaction reuse"), null the last alone.
        next_n: Ads in a response of the task next_n: the target and those that follow it; 1 makes no such pairs.
        next_n_control: A seed also makes the task next_n_control, where following ads are those of other users; null
            does not.
    """

    profile: bool
    summary: bool
    ad_behaviors: bool
    content_behaviors: bool
    soft_tokens: Annotated[int, Field(ge=0)]
    arrangement: tuple[Component, ...]
    summary_categories: Annotated[int, Field(ge=1)]
    window_days: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    max_ad_behaviors: Annotated[int, Field(ge=1)] | None
    max_content_behaviors: Annotated[int, Field(ge=1)] | None
    content_title: Literal["title", "title_spu"]
    reuse_every: Annotated[int, Field(ge=1)] | None
    next_n: Annotated[int, Field(ge=1)]
    next_n_control: Annotated[int, Field(ge=0)] | None

    @model_validator(mode="after")
    def _a_control_has_something_to_control(self) -> Self:
        if self.next_n_control is not None and self.next_n == 1:
            raise ValueError(
                f"next_n_control is {self.next_n_control}, but next_n is 1, so there are no following ads to shuffle: "
                "set prompts.next_n above 1, or prompts.next_n_control to null"
            )
        return self
