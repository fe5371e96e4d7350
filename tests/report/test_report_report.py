import json
import re

import pytest

from leadre.report.report import Sample, StageSummary, differences_in_words, plain, write_report
from leadre.report.table import PAPER_COLUMNS

SCORES = {
    "users": 200,
    "excluded": {"no_test_target": 7},
    "systems": {
        "LEADRE": dict.fromkeys(PAPER_COLUMNS, 0.31) | {"invalid_ads": 0, "duplicate_ads": 0, "short_lists": 2},
        "own_history": dict.fromkeys(PAPER_COLUMNS, 0.305),
        "popularity": dict.fromkeys(PAPER_COLUMNS, 0.12),
    },
    "differences": {
        "LEADRE - own_history": {"HR@8": {"mean": 0.005, "low": -0.02, "high": 0.03, "ratio": 1.02}},
        "LEADRE - popularity": {"HR@8": {"mean": 0.19, "low": 0.15, "high": 0.23, "ratio": 2.583}},
    },
    "bootstrap": {"samples": 100, "seed": 0, "confidence": 0.95},
}
SAMPLE = Sample(
    user="u*1",
    behaviors=["likes: tea", "clicks: kettle"],
    recommended=["Green tea", "Cup | saucer", "Pot"],
    clicked="Cup | saucer",
    rank=2,
)


def made(tmp_path, **changes):
    stage = tmp_path / "store" / "sft" / "abc"
    stage.mkdir(parents=True)
    rows = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0, "valid/hr@8": 0.2}]
    (stage / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    world = tmp_path / "store" / "world" / "def"
    world.mkdir(parents=True)
    arguments = {
        "title": "LEADRE on a made-up world",
        "command": "python train.py sft=main_only",
        "stages": [
            StageSummary("world", "def", world, 0.4, True),
            StageSummary("sft: main", "abc", stage, 75.0, False),
        ],
        "scores": SCORES,
        "diagnostics": {"counts": [[3, 1], [2, 2]], "collision_rate": 0.125},
        "world": {"name": "synthetic", "counts": {"ads": 300, "quarantined": 2}},
        "samples": [SAMPLE],
    }
    path = write_report(tmp_path, **(arguments | changes))
    return path.read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a report, and its text."""
    folder = tmp_path_factory.mktemp("report")
    return folder, made(folder)


def test_the_report_tells_the_scores_the_pictures_and_the_places(whole):
    folder, text = whole
    headings = re.findall(r"^#+ (.*)$", text, flags=re.M)
    assert headings == [
        "LEADRE on a made-up world",
        "Scores",
        "What some users get",
        "Training",
        "Codebooks",
        "World",
        "Where everything lies",
    ]
    assert "python train.py sft=main_only" in text
    assert "| **LEADRE** | **0.3100** |" in text
    assert "extra code: 12.5% of the ads" in text
    assert "- counts, ads: 300" in text
    assert f"| world | 0.4 s | reused | `{folder / 'store' / 'world' / 'def'}` |" in text
    assert "| sft: main | 1 min 15 s | built |" in text


def test_every_picture_that_the_page_shows_lies_beside_it(whole):
    folder, text = whole
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert pictures == ["loss.png", "hr.png", "codebook.png"]
    assert all((folder / picture).stat().st_size > 1000 for picture in pictures)


def test_a_sample_shows_the_clicked_ad_in_its_place(whole):
    _, text = whole
    assert "**User u\\*1**: likes: tea → clicks: kettle" in text
    assert "1. Green tea\n2. **Cup \\| saucer** ← clicked\n3. Pot" in text
    assert "Clicked next: Cup \\| saucer (place 2)." in text


def test_a_sample_without_a_hit_or_an_ad_says_so(tmp_path):
    text = made(tmp_path, stages=[], samples=[SAMPLE._replace(rank=None, recommended=[], behaviors=[])])
    assert "(not in the list)" in text
    assert "No ad." in text
    assert "no behavior" in text


def test_without_pictures_samples_and_world_the_page_leaves_their_sections_out(tmp_path):
    text = made(tmp_path, stages=[], diagnostics={}, world={}, samples=[])
    assert re.findall(r"^#+ (.*)$", text, flags=re.M) == ["LEADRE on a made-up world", "Scores"]
    assert "![" not in text
    assert not list(tmp_path.glob("*.png"))


def test_differences_are_told_in_words_and_a_doubtful_one_as_doubtful():
    ours, doubtful, clear = differences_in_words(SCORES)
    assert ours == "LEADRE finds the clicked ad among its first 8 for **31.0%** of the users."
    assert doubtful.startswith("own history: 30.5%. LEADRE has +0.5 points")
    assert doubtful.endswith("which these users are too few to tell from none.")
    assert clear == (
        "popularity: 12.0%. LEADRE has +19.0 points (95% interval +15.0 to +23.0), 2.58 times as many hits."
    )


def test_text_of_others_is_no_markup_and_stays_on_one_short_line():
    assert plain("a\n# b") == "a \\# b"
    assert plain("<img src=x>") == "\\<img src=x\\>"
    assert plain("![x](y)") == "!\\[x\\](y)"
    assert len(plain("x" * 200)) == 80


def test_a_missing_folder_or_empty_scores_are_named(tmp_path):
    nothing = {"title": "t", "command": "c", "stages": [], "diagnostics": {}, "world": {}}
    with pytest.raises(FileNotFoundError, match="nowhere is missing: make the folder"):
        write_report(tmp_path / "nowhere", scores=SCORES, **nothing)
    with pytest.raises(ValueError, match="scores holds no systems"):
        write_report(tmp_path, scores={}, **nothing)
