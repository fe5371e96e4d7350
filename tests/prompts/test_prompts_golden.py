"""The paper's own examples, produced from the data behind them."""

from leadre import tables
from leadre.prompts.compose import compose
from leadre.prompts.segments import display_name, render

DAY = 86_400
NOW = 1_700_000_000

MAIN = (
    "The following is an instruction describing a task. Please give a response to complete this request "
    "appropriately.\n"
    "[Instruction]:<Learnable Token>Assuming you are an ad recommender system. 22-year-old male, resident in "
    "Haidian, Beijing, with a bachelor's degree, working in Internet industry, with a medium consumption level. "
    "The categories that have been frequently interacted recently are (format: category^interaction times): "
    "emotion^115 times; entertainment^28 times; mental health^8 times; education^6 times; finance^6 times; "
    "The most recent interaction behavior sequence details (format: time^behavior type^title) are "
    "32 days ago^play short video^reality; 31 days ago^click on ad^<a_51, b_10, c_67, d_93, e_0>; "
    "27 days ago^play short video^shuttlecock; 25 days ago^Play short video^Emotional/psychological age test; "
    "22 days ago^Conversion ad^<a_243, b_136, c_23, d_245, e_0>; "
    "19 days ago^Click ad^<a_164, b_243, c_38, d_88, e_0>; "
    "16 days ago^Conversion ad^<a_51, b_10, c_67, d_93, e_0>. "
    "what ad will the user be interested in next time?"
)
RESPONSE = "<a_122, b_28, c_35, d_15, e_0>"
DESCRIPTION = (
    "The name of the ad is SAIC Volkswagen-New Energy-ID.3; The product type is Automobile Products; "
    "The first-level category is Automobile; The second-level category is SAIC Volkswagen-New Energy; "
    "The attributes include: automobile brand_Volkswagen, automobile series_Volkswagen ID.3."
)
EXPLICIT = f'Given the ad\'s detailed description "{DESCRIPTION}", what is the corresponding ad?'
CHINESE = (
    "以下是描述一项任务的指令。请给出恰当的回复以完成该请求。\n"
    "[指令]:<Learnable Token>假设你是一个广告推荐系统。22岁男，居住在北京海淀，本科学历，从事互联网行业，"
    "中等消费水平。最近经常互动的类目有（格式: 类目^互动次数）: 情感^2次; 汽车^1次; "
    "最近的互动行为序列详情（格式: 时间^行为类型^标题）为 32天前^播放短视频^现实; "
    "31天前^点击广告^<a_51, b_10>; 25天前^播放短视频^情感/心理年龄测试。"
    "该用户下一次会对什么广告感兴趣？"
)


def _shown(pairs, row, folders):
    sids = tables.read(tables.SIDS, folders.catalog / "sids.parquet")
    display = {ad_id: display_name(name) for ad_id, name in sids.select("ad_id", "name").iter_rows()}
    pair = pairs.row(row, named=True)
    behaviors = [segment for behavior in pair["behaviors"] for segment in behavior]
    segments = [*pair["head"], *pair["lead"], *behaviors, *pair["tail"]]
    return render(segments, display), display[pair["ad_id"]]


def _user(**profile):
    return {"user_id": "u", **profile}


def _paper_world(write):
    contents = [("r", "reality", "emotion", None), ("s", "shuttlecock", "entertainment", None)]
    contents += [("e", "Emotional", "emotion", "psychological age test")]
    contents += [(name, "old", name, None) for name in ("emotion", "entertainment", "mental health", "education")]
    contents += [("finance", "old", "finance", None), ("rare", "old", "zoology", None)]
    old = {"emotion": 113, "entertainment": 27, "mental health": 8, "finance": 6, "education": 6, "rare": 5}
    behaviors = [
        ("u", item, "content", "play short video", NOW - 60 * DAY + i) for item, n in old.items() for i in range(n)
    ]
    behaviors += [
        ("u", "r", "content", "play short video", NOW - 32 * DAY),
        ("u", "A", "ad", "click", NOW - 31 * DAY),
        ("u", "s", "content", "play short video", NOW - 27 * DAY),
        ("u", "e", "content", "Play short video", NOW - 25 * DAY),
        ("u", "B", "ad", "Conversion ad", NOW - 22 * DAY),
        ("u", "C", "ad", "Click ad", NOW - 19 * DAY),
        ("u", "A", "ad", "Conversion ad", NOW - 16 * DAY),
        ("u", "D", "ad", "click", NOW),
    ]
    return write(
        ads=dict.fromkeys("ABCD", (None, DESCRIPTION)),
        sids={
            "A": (51, 10, 67, 93, 0),
            "B": (243, 136, 23, 245, 0),
            "C": (164, 243, 38, 88, 0),
            "D": (122, 28, 35, 15, 0),
        },
        contents=contents,
        users=[
            _user(
                age="22",
                gender="male",
                region="Haidian, Beijing",
                education="bachelor's",
                occupation="Internet industry",
                consumption_level="medium",
            )
        ],
        behaviors=behaviors,
        split=[("u", "test", "D", NOW)],
    )


def test_the_main_prompt_is_the_papers_example(write, config):
    folders = _paper_world(write)
    compose(config(max_content_behaviors=3), folders.world, folders.catalog, out=folders.out)
    assert _shown(folders.pairs("main.test"), 0, folders) == (MAIN, RESPONSE)


def test_the_explicit_prompt_is_the_papers_sample_behind_the_learnable_token(write, config):
    folders = _paper_world(write)
    compose(config(soft_tokens=0), folders.world, folders.catalog, out=folders.out)
    assert _shown(folders.pairs("explicit.train"), 0, folders)[0] == EXPLICIT
    compose(config(), folders.world, folders.catalog, out=folders.out)
    assert _shown(folders.pairs("explicit.train"), 0, folders)[0] == "<Learnable Token>" + EXPLICIT


def test_the_implicit_prompt_shows_descriptions_where_the_main_prompt_shows_sids(write, config):
    folders = _paper_world(write)
    compose(config(max_content_behaviors=3), folders.world, folders.catalog, out=folders.out)
    expected = MAIN
    for sid in ("51, b_10, c_67, d_93", "243, b_136, c_23, d_245", "164, b_243, c_38, d_88"):
        expected = expected.replace(f"<a_{sid}, e_0>", DESCRIPTION)
    assert _shown(folders.pairs("implicit.test"), 0, folders) == (expected, RESPONSE)


def test_a_chinese_world_is_worded_in_chinese(write, config):
    folders = write(
        language="zh",
        ads={"A": ("汽车", "广告"), "D": ("汽车", "广告")},
        sids={"A": (51, 10), "D": (122, 28)},
        contents=[("r", "现实", "情感", None), ("e", "情感", "情感", "心理年龄测试")],
        users=[
            _user(
                age="22",
                gender="男",
                region="北京海淀",
                education="本科",
                occupation="互联网行业",
                consumption_level="中等",
            )
        ],
        behaviors=[
            ("u", "r", "content", "播放短视频", NOW - 32 * DAY),
            ("u", "A", "ad", "click", NOW - 31 * DAY),
            ("u", "e", "content", "播放短视频", NOW - 25 * DAY),
            ("u", "D", "ad", "click", NOW),
        ],
        split=[("u", "test", "D", NOW)],
    )
    compose(config(), folders.world, folders.catalog, out=folders.out)
    assert _shown(folders.pairs("main.test"), 0, folders)[0] == CHINESE
    shown = _shown(folders.pairs("explicit.train"), 0, folders)[0]
    assert shown == '<Learnable Token>给定广告的详细描述"广告"，对应的广告是什么？'
