"""Whole prompts with what LEADRE 4.2 asks for without an example: templates, orders, SPUs and negative feedback."""

from leadre import tables
from leadre.prompts.compose import compose
from leadre.prompts.segments import display_name, render

DAY = 86_400
NOW = 1_700_000_000

ENGLISH = (
    "Read what is known of a user and answer the question at the end.\n"
    "[User]:<Learnable Token>The user is reached by display ads. "
    "The categories that have been frequently interacted recently are (format: "
    "category^interaction times): Automobile^1 times; emotion^1 times; "
    "entertainment^1 times; "
    "The SPUs that have been frequently interacted recently are (format: "
    "SPU^interaction times): ID.3^1 times; Racket X^1 times; "
    "The categories that have often met no interest recently are (format: category^times): "
    "Beauty^12 times; Automobile^1 times; entertainment^1 times; "
    "The SPUs that have often met no interest recently are (format: SPU^times): "
    "Rouge 9^12 times; ID.3^1 times; Racket X^1 times; "
    "resident in Haidian, Beijing, 22-year-old male, working in Internet industry, "
    "with a medium consumption level, with a bachelor's degree. "
    "The most recent interaction behavior sequence details (format: "
    "time^behavior type^title) are 10 days ago^play short video^reality; "
    "9 days ago^click on ad^<a_51, b_10>; 5 days ago^play short video^shuttlecock/Racket X. "
    "What is the next ad that the user will be interested in?"
)
SINCE_LAST = (
    "The following is an instruction describing a task. "
    "Please give a response to complete this request appropriately.\n"
    "[Instruction]:<Learnable Token>Assuming you are an ad recommender system. "
    "22-year-old male, resident in Haidian, Beijing, with a bachelor's degree, working in Internet industry, "
    "with a medium consumption level. "
    "The most recent interaction behavior sequence details (format: "
    "time^behavior type^title) are 0 days later^play short video^reality; "
    "1 days later^click on ad^<a_51, b_10>; "
    "4 days later^play short video^shuttlecock/Racket X; "
    "5 days later^conversion ad^<a_243, b_136>; 6 days later^click on ad^<a_51, b_10>. "
    "The last of them was 16 days ago. "
    "The categories that have been frequently interacted recently are (format: "
    "category^interaction times): Automobile^2 times; Beauty^1 times; emotion^1 times; "
    "entertainment^1 times; what ad will the user be interested in next time?"
)
CHINESE = (
    "以下是描述一项任务的指令。请给出恰当的回复以完成该请求。\n"
    "[指令]:<Learnable Token>假设你是一个广告推荐系统。22岁男，居住在北京海淀，本科学历，从事互联网行业。"
    "最近经常互动的类目有（格式: 类目^互动次数）: 汽车^2次; 娱乐^1次; 情感^1次; 美妆^1次; 最近经常互动的SPU有（格式: "
    "SPU^互动次数）: ID.3^2次; 口红九号^1次; 球拍^1次; 最近经常不感兴趣的类目有（格式: 类目^次数）: 美妆^12次; "
    "娱乐^2次; 情感^1次; 汽车^1次; 最近经常不感兴趣的SPU有（格式: SPU^次数）: 口红九号^12次; 球拍^2次; "
    "ID.3^1次; 最近的互动行为序列详情（格式: 时间^行为类型^标题）为 32天前^播放短视频^现实; "
    "31天前^点击广告^<a_51, b_10>; 27天前^播放短视频^毽子/球拍; 22天前^转化广告^<a_243, b_136>; "
    "16天前^点击广告^<a_51, b_10>。该用户下一次会对什么广告感兴趣？"
)


def _world(write, *, language, profile, ads, contents, action):
    """A user with a train target, a valid and a test target, and both kinds of feedback in both domains."""
    return write(
        language=language,
        ads=ads,
        sids={"A": (51, 10), "B": (243, 136), "D": (122, 28)},
        contents=contents,
        users=[{"user_id": "u"} | profile],
        behaviors=[
            ("u", "r", "content", action, NOW - 32 * DAY),
            ("u", "A", "ad", "click", NOW - 31 * DAY),
            ("u", "s", "content", action, NOW - 27 * DAY),
            ("u", "B", "ad", "conversion", NOW - 22 * DAY),
            ("u", "A", "ad", "click", NOW - 16 * DAY),
            ("u", "D", "ad", "click", NOW),
        ],
        negatives=[
            *(("u", "B", "ad", "no_click", NOW - (40 - n) * DAY) for n in range(12)),
            ("u", "A", "ad", "no_click", NOW - 25 * DAY),
            ("u", "s", "content", "skip", NOW - 24 * DAY),
            ("u", "s", "content", "skip", NOW - 20 * DAY),
            ("u", "r", "content", "skip", NOW - DAY),
        ],
        split=[
            ("u", "train", "B", NOW - 22 * DAY),
            ("u", "valid", "A", NOW - 16 * DAY),
            ("u", "test", "D", NOW),
        ],
    )


def _english(write):
    return _world(
        write,
        language="en",
        profile={
            "age": "22",
            "gender": "male",
            "region": "Haidian, Beijing",
            "education": "bachelor's",
            "occupation": "Internet industry",
            "consumption_level": "medium",
        },
        ads={
            "A": ("Automobile", "Ad A", "ID.3"),
            "B": ("Beauty", "Ad B", "Rouge 9"),
            "D": ("Automobile", "Ad D", "ID.4"),
        },
        contents=[("r", "reality", "emotion", None), ("s", "shuttlecock", "entertainment", "Racket X")],
        action="play short video",
    )


def _shown(folders, name):
    sids = tables.read(tables.SIDS, folders.catalog / "sids.parquet")
    display = {ad_id: display_name(code) for ad_id, code in sids.select("ad_id", "name").iter_rows()}
    pair = folders.pairs(name).row(0, named=True)
    behaviors = [segment for behavior in pair["behaviors"] for segment in behavior]
    return render([*pair["head"], *pair["lead"], *behaviors, *pair["tail"]], display)


COUNTED = {"summary_by": ("category", "spu"), "summary_negatives": True}


def test_an_augmented_train_prompt(write, config):
    folders = _english(write)
    compose(config(template_seed=1, profile_seed=0, **COUNTED), folders.world, folders.catalog, out=folders.out)
    assert _shown(folders, "main.train") == ENGLISH


def test_a_test_prompt_that_shares_its_history(write, config):
    folders = _english(write)
    arrangement = ("profile", "behaviors", "summary")
    compose(config(times="since_last", arrangement=arrangement), folders.world, folders.catalog, out=folders.out)
    assert _shown(folders, "main.test") == SINCE_LAST


def test_a_chinese_test_prompt_with_negatives_and_spus(write, config):
    folders = _world(
        write,
        language="zh",
        profile={"age": "22", "gender": "男", "region": "北京海淀", "education": "本科", "occupation": "互联网行业"},
        ads={"A": ("汽车", "广告", "ID.3"), "B": ("美妆", "广告", "口红九号"), "D": ("汽车", "广告", "ID.4")},
        contents=[("r", "现实", "情感", None), ("s", "毽子", "娱乐", "球拍")],
        action="播放短视频",
    )
    compose(config(**COUNTED), folders.world, folders.catalog, out=folders.out)
    assert _shown(folders, "main.test") == CHINESE
