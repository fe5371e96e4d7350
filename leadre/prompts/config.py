"""The settings of the prompts."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from leadre.settings import settings

Component = Literal["profile", "summary", "behaviors"]
Seed = Annotated[int, Field(ge=0)]


@settings
class PromptsConfig:
    """What a prompt holds, in which order, and how long it may be (LEADRE 4.2).

    Attributes:
        profile: Whether the prompt tells who the user is.
        summary: Whether the prompt counts what the user's behaviors were about.
        summary_by: What the summary counts: categories, SPUs or both.
        summary_negatives: Whether it also counts what was shown or played to the user and not wanted.
        ad_behaviors: Whether behaviors in the ad domain are shown (and counted in the summary).
        content_behaviors: Whether behaviors in the content domain are shown (and counted in the summary).
        soft_tokens: Number of learnable tokens in the instruction.
        arrangement: The order of the three components; each exactly once.
        summary_categories: Number of categories, and of SPUs, that the summary names, the most frequent first.
        window_days: Days before the target that a behavior may lie back.
        max_tokens: Tokens of prompt and response together; the oldest behaviors give way.
        max_ad_behaviors: The newest behaviors of the ad domain that are shown; null shows all that fit.
        max_content_behaviors: The same for the content domain.
        times: ``ago`` tells each behavior by the days before the target, ``since_last`` by the days since the behavior
            before it, so that the prompts of one user's targets begin alike.
        content_title: ``title_spu`` shows ``<title>/<SPU>``, ``title`` the title alone.
        reuse_every: Which train targets of a user make a pair: every n-th, counted back from the last; 1 takes all
            (LEADRE 4.2.2, "ad positive interaction reuse"), null the last alone.
        reuse_seed: A seed draws which one of each run of ``reuse_every`` targets makes the pair; null counts back.
        template_seed: A seed draws a template for each train pair (LEADRE 4.2.2, "multiple prompt templates"); null
            takes the paper's for all.
        profile_seed: A seed draws the order of the profile in each train pair (LEADRE 4.2.2, "user profile
            reordering"); null keeps it.
        next_n: Ads in a response of the task next_n: the target and those that follow it; 1 makes no such pairs.
        next_n_control: A seed also makes the task next_n_control, where following ads are those of other users; null
            does not.
        content_control: A seed gives each user another user's behaviors in the content domain, in all splits; null
            leaves them. This control and the next two are for studies: see `leadre.prompts.controls`.
        summary_control: A seed exchanges the names that each user's summary counts; null leaves them.
        description_control: A seed gives each ad another ad's description in the alignment tasks; null leaves them.
    """

    profile: bool
    summary: bool
    summary_by: Annotated[tuple[Literal["category", "spu"], ...], Field(min_length=1)]
    summary_negatives: bool
    ad_behaviors: bool
    content_behaviors: bool
    soft_tokens: Annotated[int, Field(ge=0)]
    arrangement: tuple[Component, ...]
    summary_categories: Annotated[int, Field(ge=1)]
    window_days: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    max_ad_behaviors: Annotated[int, Field(ge=1)] | None
    max_content_behaviors: Annotated[int, Field(ge=1)] | None
    times: Literal["ago", "since_last"]
    content_title: Literal["title", "title_spu"]
    reuse_every: Annotated[int, Field(ge=1)] | None
    reuse_seed: Seed | None
    template_seed: Seed | None
    profile_seed: Seed | None
    next_n: Annotated[int, Field(ge=1)]
    next_n_control: Seed | None
    content_control: Seed | None
    summary_control: Seed | None
    description_control: Seed | None

    @model_validator(mode="after")
    def _a_control_has_something_to_control(self) -> Self:
        if self.next_n_control is not None and self.next_n == 1:
            raise ValueError(
                f"next_n_control is {self.next_n_control}, but next_n is 1, so there are no following ads to shuffle: "
                "set prompts.next_n above 1, or prompts.next_n_control to null"
            )
        return self

    @model_validator(mode="after")
    def _a_control_has_a_component(self) -> Self:
        for name, shown in (("content_control", "content_behaviors"), ("summary_control", "summary")):
            if getattr(self, name) is not None and not getattr(self, shown):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but {shown} is false, so there is nothing to exchange: set "
                    f"prompts.{shown}=true, or prompts.{name} to null"
                )
        return self

    @model_validator(mode="after")
    def _a_seed_has_something_to_draw(self) -> Self:
        if self.reuse_seed is not None and self.reuse_every in (1, None):
            every = "null" if self.reuse_every is None else self.reuse_every
            raise ValueError(
                f"reuse_seed is {self.reuse_seed}, but reuse_every is {every}, so there is nothing to draw: set "
                "prompts.reuse_every above 1, or prompts.reuse_seed to null"
            )
        return self

    @model_validator(mode="after")
    def _the_summary_counts_each_thing_once(self) -> Self:
        if len(set(self.summary_by)) < len(self.summary_by):
            raise ValueError(
                f"summary_by is {list(self.summary_by)}, but names something twice: prompts.summary_by=[category,spu] "
                "counts both once"
            )
        return self
