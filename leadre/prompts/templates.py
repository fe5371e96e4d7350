"""The templates of the prompts: the paper's wording and three more in each language (LEADRE 4.2.2).

Template 0 is the paper's wording in the configured arrangement: what a model is evaluated and served with. The others
word the instruction and the question anew and move the profile.

Our choice: a template leaves the order of summary and behaviors as configured. A summary that is read before the
behaviors has counted their categories, so where the loss is also taken on the history it must stay behind them.
The grammar of summary and behaviors is the same in all templates, so that each of them can be read back.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from leadre.prompts.config import Component
from leadre.prompts.draws import draws
from leadre.prompts.wording import CHINESE, ENGLISH, Wording, wording_of


class Template(NamedTuple):
    """One way to word and arrange a prompt.

    Attributes:
        wording: Its fixed texts.
        profile: Where the profile stands among the three components, 0 to 2; None leaves it where it is configured.
    """

    wording: Wording
    profile: int | None


def _english(task: str, role: str, question: str, explicit: str, explicit_question: str) -> Wording:
    return ENGLISH._replace(
        task=task, role=role, question=question, explicit=explicit, explicit_question=explicit_question
    )


def _chinese(task: str, role: str, question: str, explicit: str, explicit_question: str) -> Wording:
    return CHINESE._replace(
        task=task, role=role, question=question, explicit=explicit, explicit_question=explicit_question
    )


TEMPLATES: Mapping[str, tuple[Template, ...]] = {
    "en": (
        Template(ENGLISH, profile=None),
        Template(
            _english(
                "Below is a task. Write a response that completes it.\n[Task]:",
                "You choose the ads of an advertising platform for one user. ",
                "Which ad will this user click on or convert on next?",
                'An ad is described as follows: "',
                '". Which ad is it?',
            ),
            profile=2,
        ),
        Template(
            _english(
                "Read what is known of a user and answer the question at the end.\n[User]:",
                "The user is reached by display ads. ",
                "What is the next ad that the user will be interested in?",
                'Find the ad that fits this description: "',
                '".',
            ),
            profile=1,
        ),
        Template(
            _english(
                "Predict the next positive interaction of a user with an ad.\n[Input]:",
                "As a recommender of ads, consider the following. ",
                "Recommend the ad that suits the user best now.",
                'Name the ad with the detailed description "',
                '".',
            ),
            profile=0,
        ),
    ),
    "zh": (
        Template(CHINESE, profile=None),
        Template(
            _chinese(
                "下面是一项任务，请写出完成该任务的回复。\n[任务]:",
                "你为广告平台的一位用户选择广告。",
                "该用户接下来会点击或转化哪个广告？",
                '某个广告的描述如下: "',
                '"。它是哪个广告？',
            ),
            profile=2,
        ),
        Template(
            _chinese(
                "请阅读一位用户的信息，并回答最后的问题。\n[用户]:",
                "该用户会看到展示广告。",
                "该用户感兴趣的下一个广告是什么？",
                '请找出符合以下描述的广告: "',
                '"。',
            ),
            profile=1,
        ),
        Template(
            _chinese(
                "请预测用户与广告的下一次正向互动。\n[输入]:",
                "作为广告推荐系统，请考虑以下信息。",
                "请推荐当前最适合该用户的广告。",
                '请说出详细描述如下的广告: "',
                '"。',
            ),
            profile=0,
        ),
    ),
}
"""The templates of each language; the first is the paper's."""


def templates_of(language: str) -> tuple[Template, ...]:
    """Find the templates of a language.

    Raises:
        ValueError: If there are none.
    """
    wording_of(language)
    return TEMPLATES[language]


def arranged(template: Template, arrangement: tuple[Component, ...]) -> tuple[Component, ...]:
    """The order of the components in a template.

    Example:
        >>> arranged(Template(ENGLISH, profile=2), ("profile", "behaviors", "summary"))
        ('behaviors', 'summary', 'profile')
    """
    if template.profile is None:
        return arrangement
    others = tuple(component for component in arrangement if component != "profile")
    return (*others[: template.profile], "profile", *others[template.profile :])


def drawn_templates(keys: pl.DataFrame, *, templates: int, seed: int | None) -> NDArray[np.int64]:
    """Which template each row has, ``(N,)``: drawn from the seed and its keys alone; 0 where there is no seed.

    Args:
        keys: ``user_id`` and ``time`` of targets, or ``ad_id`` of the explicit task.
        templates: How many there are.
        seed: 0 is a seed.
    """
    if seed is None:
        return np.zeros(keys.height, dtype=np.int64)
    return (draws(keys, seed=seed, of="template") % np.uint64(templates)).astype(np.int64)
