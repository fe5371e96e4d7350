"""Every fixed text of the prompts: in English, the paper's own wording; in Chinese, the same."""

from collections.abc import Mapping
from typing import NamedTuple


class Wording(NamedTuple):
    """The fixed texts of one language. ``{}`` stands for what is filled in.

    Attributes:
        task: What stands before the learnable tokens.
        role: What stands after them.
        profile: One text a field of the user, in the order shown; age and gender make the first clause together.
        age: The text of an age in digits; another age is shown as it is.
        who: What stands between age and gender.
        clause: What stands between two clauses of the profile.
        profile_end: What ends the profile.
        summary: What opens the interest summary: the categories of behaviors.
        summary_spu: What opens the SPUs of behaviors.
        summary_negative: What opens the categories of negative feedback.
        summary_negative_spu: What opens the SPUs of negative feedback.
        category: What follows a category or an SPU in it.
        behaviors: What opens the behaviors.
        behavior: The days and the action of a behavior, before what was seen.
        later: The same where the days are those since the behavior before it.
        last: How many days ago the last behavior was; said where behaviors tell the days between them.
        next_behavior: What stands between two behaviors.
        last_behavior: What ends the last of them.
        question: The question that the response answers.
        explicit: What opens the explicit alignment task.
        explicit_question: What ends it.
        actions: How an action of the data is shown; any other is shown as it is.
    """

    task: str
    role: str
    profile: Mapping[str, str]
    age: str
    who: str
    clause: str
    profile_end: str
    summary: str
    summary_spu: str
    summary_negative: str
    summary_negative_spu: str
    category: str
    behaviors: str
    behavior: str
    later: str
    last: str
    next_behavior: str
    last_behavior: str
    question: str
    explicit: str
    explicit_question: str
    actions: Mapping[str, str]


ENGLISH = Wording(
    task=(
        "The following is an instruction describing a task. "
        "Please give a response to complete this request appropriately.\n[Instruction]:"
    ),
    role="Assuming you are an ad recommender system. ",
    profile={
        "region": "resident in {}",
        "education": "with a {} degree",
        "occupation": "working in {}",
        "consumption_level": "with a {} consumption level",
    },
    age="{}-year-old",
    who=" ",
    clause=", ",
    profile_end=". ",
    summary="The categories that have been frequently interacted recently are (format: category^interaction times): ",
    summary_spu="The SPUs that have been frequently interacted recently are (format: SPU^interaction times): ",
    summary_negative="The categories that have often met no interest recently are (format: category^times): ",
    summary_negative_spu="The SPUs that have often met no interest recently are (format: SPU^times): ",
    category="^{} times; ",
    behaviors="The most recent interaction behavior sequence details (format: time^behavior type^title) are ",
    behavior="{} days ago^{}^",
    later="{} days later^{}^",
    last="The last of them was {} days ago. ",
    next_behavior="; ",
    last_behavior=". ",
    question="what ad will the user be interested in next time?",
    explicit="Given the ad's detailed description \"",
    explicit_question='", what is the corresponding ad?',
    actions={"click": "click on ad", "conversion": "conversion ad"},
)
"""The wording of LEADRE 4.2.1 and 4.3.1, byte for byte; what the paper asks for without wording it (SPUs, negative
feedback) and ``later`` and ``last`` are ours."""

CHINESE = Wording(
    task="以下是描述一项任务的指令。请给出恰当的回复以完成该请求。\n[指令]:",
    role="假设你是一个广告推荐系统。",
    profile={
        "region": "居住在{}",
        "education": "{}学历",
        "occupation": "从事{}",
        "consumption_level": "{}消费水平",
    },
    age="{}岁",
    who="",
    clause="，",
    profile_end="。",
    summary="最近经常互动的类目有（格式: 类目^互动次数）: ",
    summary_spu="最近经常互动的SPU有（格式: SPU^互动次数）: ",
    summary_negative="最近经常不感兴趣的类目有（格式: 类目^次数）: ",
    summary_negative_spu="最近经常不感兴趣的SPU有（格式: SPU^次数）: ",
    category="^{}次; ",
    behaviors="最近的互动行为序列详情（格式: 时间^行为类型^标题）为 ",
    behavior="{}天前^{}^",
    later="{}天后^{}^",
    last="其中最后一次在{}天前。",
    next_behavior="; ",
    last_behavior="。",
    question="该用户下一次会对什么广告感兴趣？",
    explicit='给定广告的详细描述"',
    explicit_question='"，对应的广告是什么？',
    actions={"click": "点击广告", "conversion": "转化广告"},
)
"""The same in Chinese. Our choice: the separators stay ASCII, so that one rule of escaping serves both."""

WORDINGS: Mapping[str, Wording] = {"en": ENGLISH, "zh": CHINESE}
"""The wording of each language that a world may have."""


def wording_of(language: str) -> Wording:
    """Find the wording of a language.

    Raises:
        ValueError: If there is none.
    """
    if language not in WORDINGS:
        raise ValueError(
            f"language is {language!r} in world.json, but prompts are worded in {', '.join(WORDINGS)}: "
            "give the world one of these, or add a wording to leadre/prompts/wording.py"
        )
    return WORDINGS[language]
