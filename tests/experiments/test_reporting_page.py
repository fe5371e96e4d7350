"""The page of a study and the index: what they tell, what they survive, and how a browser shows them."""

import json
import re
from html.parser import HTMLParser

import pytest

from experiments.reporting import page as module
from experiments.reporting.page import write_index, write_page
from experiments.reporting.plots import Curve, curves, plot, spanning, steps_down
from experiments.reporting.samples import Ad, Group, Listed, Passage, Piece, Prompt, Sample
from experiments.reporting.trained import trained
from experiments.reporting.views import cells, charts, claim_plot
from experiments.result import ClaimResult, Run, StudyResult, read_result

HOSTILE = "<script>alert('x')</script><img src=https://example.com/a.png onerror=alert(1)>\u202egnp\ud800"


def run_of(seed, value, stages=()):
    key = f"{seed}{value}"
    return {
        "seed": seed,
        "key": key,
        "path": f"scores/{key}",
        "scores": {"HR@8": value, "Value@8": None},
        "steps": 90,
    } | {
        "tokens": 12_345,
        "seconds": 3.5,
        "stages": list(stages),
    }


def row_of(name, values, paper=None, **others):
    mean = sum(values) / len(values) if values else None
    row = {
        "name": name,
        "control": False,
        "system": "LEADRE",
        "overrides": [f"sft={name}"],
        "paper": {} if paper is None else {"HR@8": paper},
        "not_run": None,
        "mean": {} if mean is None else {"HR@8": mean},
        "interval": {} if mean is None else {"HR@8": [mean - 0.02, mean + 0.02]},
        "change": {},
        "runs": [run_of(seed, value) for seed, value in enumerate(values)],
    }
    return row | others


def claim_of(text, better, worse, verdict, **others):
    difference = {"mean": 0.02, "low": -0.01, "high": 0.05, "p": 0.04, "p_holm": 0.08}
    claim = {"text": text, "source": "LEADRE 5.2.2", "better": better, "worse": worse, "on": "HR@8", "control": None}
    return claim | {
        "verdict": verdict,
        "why": "the interval holds zero",
        "difference": difference,
        "control_difference": None,
        "users_needed": 4321,
        "paper_change": 0.25,
        "our_change": 0.1,
    } | others  # fmt: skip


@pytest.fixture
def result():
    """Rows of .2 and .22 in the mean, a control, a row with holes and one that was not run; three claims."""
    return {
        "study": "table2_task_order",
        "title": "Table 2: the order of tasks",
        "question": "Does the order matter?",
        "command": "python -m experiments.table2_task_order data.seed=5",
        "date": "2026-11-21T20:15:00+00:00",
        "git": "0123456789abcdef",
        "dirty": True,
        "seconds": 3210.5,
        "store": "store",
        "seeds": [0, 1],
        "users": 3236,
        "data": {"name": "synthetic, world seed 5", "counts": {"ads": 1200}},
        "columns": ["HR@8", "Value@8"],
        "compared": ["HR@8"],
        "confidence": 0.95,
        "rows": [
            row_of("mixed", [0.19, 0.21], paper=0.16),
            row_of("in order", [0.21, 0.23], paper=0.2, change={"HR@8": 0.1}),
            row_of("shuffled", [0.15, 0.15], control=True, change={"HR@8": -0.25}),
            row_of("half", [0.2], not_run="seed 1: ValueError: no memory"),
            row_of("large", [], not_run=HOSTILE),
        ],
        "claims": [
            claim_of("Order helps", "in order", "mixed", "undecided", control=["shuffled", "mixed"]),
            claim_of("Size helps", "large", "mixed", "undecided", difference=None, paper_change=None, our_change=None),
            claim_of(HOSTILE, "mixed", "in order", "fails"),
        ],
        "builds": {"asked": 48, "built": 15},
        "notes": ["Fewer than three seeds: no claim may rest on this table.", "Not run: large: told already"],
    }


@pytest.fixture
def study(tmp_path, result):
    return put(tmp_path / "studies", result)


@pytest.fixture
def users(monkeypatch):
    """Two groups of users instead of those of a store: one found, one not, with names that would like to be markup."""
    clicked = Ad(HOSTILE, "Games › Mobile", ("a_1", "b_2", "d_0"))
    near = Ad("A near miss", "Games › Mobile", ("a_1", "b_7", "d_0"))
    parts = [
        Passage("head", 5, [Piece("text", HOSTILE), Piece("soft", "<Learnable Token>")]),
        Passage(
            "behavior", 7, [Piece("text", "2 days ago^click on ad^"), Piece("ad", "<a_1, b_7, d_0>", "A near miss")]
        ),
        Passage("response", 3, [Piece("ad", "<a_1, b_2, d_0>", HOSTILE)]),
    ]
    prompt = Prompt(["mixed", "in order"], 15, 256, parts, dropped=4)
    found = Sample("u1", clicked, [Listed("mixed", [near, clicked], 2), Listed("in order", [near], None)], [prompt])
    groups = [Group(["mixed"], ["in order"], 1, 0.25, [found]), Group([], ["mixed", "in order"], 3, 0.75, [])]
    monkeypatch.setattr(module, "read_groups", lambda sources, users_each: groups)


def put(studies, result, when="2026-11-21_20-15-00"):
    folder = studies / result["study"] / when
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


class Tags(HTMLParser):
    """All tags with their attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_page_tells_verdicts_numbers_the_papers_numbers_and_holes(study, tmp_path):
    path = write_page(study, tmp_path / "store")
    assert path == study / "report.html"
    text = " ".join(Tags(path.read_text(encoding="utf-8")).text.split())
    for told in (
        "1 fails", "2 undecided", "3,236 test users", "2 seeds (0, 1)", "21 November 2026, 20:15",
        "15 distinct results where rows that share nothing would have 48",
        "commit 0123456789 and changes", "Order helps", "The interval holds zero.",
        "in order − mixed +10.0 % (−5.0 % to +25.0 %)", "control: shuffled − mixed not measured",
        "the paper, on its own data +25.0 %", "p 0.080 after Holm, 0.040 alone", "about 4,321 users",
        "LEADRE 5.2.2.", "0.2200 +10.0 % 0.2000 +25.0 %", "12.3 k", "scores/00.19", "Fewer than three seeds",
        "half was not run with every seed: seed 1: ValueError: no memory",
    ):  # fmt: skip
        assert told in text, told
    assert "told already" not in text


def test_users_needed_are_told_where_there_are_fewer(study, result, tmp_path):
    """A claim may be undecided for want of seeds or of a control, where more users would not help."""
    for claim in result["claims"]:
        claim["users_needed"] = 12
    (study / "result.json").write_text(json.dumps(result))
    assert "users would be needed" not in write_page(study, tmp_path).read_text(encoding="utf-8")


def test_the_page_has_no_script_and_asks_for_nothing_whatever_names_it_shows(study, users, tmp_path):
    (study / "figure.png").write_bytes(b"\x89PNG")
    html = write_page(study, tmp_path).read_text(encoding="utf-8")
    found = Tags(html)
    assert html.count("&lt;script&gt;") >= 6
    assert "\\u202egnp\\ud800" in found.text
    for tag, attributes in found.tags:
        assert tag not in {"script", "link", "iframe", "object"} or attributes == {"rel": "icon", "href": "data:,"}
        assert not any(name.startswith("on") for name in attributes)
        assert re.match(r"#|data:|\.\./|$", attributes.get("href", "") or ""), attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    assert not re.search(r"url\(|@import", html)
    assert "data:image/png;base64,iVBORw==" in html


def test_a_user_is_shown_with_the_lists_the_clicked_ad_and_the_prompt(study, users, tmp_path):
    html = write_page(study, tmp_path).read_text(encoding="utf-8")
    text = " ".join(Tags(html).text.split())
    assert "Mixed finds it, in order does not 1 users, 25.0 %" in text
    assert "Neither finds it 3 users, 75.0 %" in text
    assert "mixed found at 2" in text
    assert "in order not found" in text
    assert "reads it: 15 of 256 tokens" in text
    assert "4 older behaviors did not fit" in text
    assert html.count('<li class="hit">') == 1
    assert "<b>a_1</b> b_7 d_0" in html  # only the codes from the first on that the clicked ad has too


def test_what_the_store_lacks_is_said_on_the_page(study, result, tmp_path):
    stage = {"stage": "sft", "name": "sft: main", "key": "gone", "steps": 5, "tokens": 7, "seconds": 1.0}
    result["rows"][0]["runs"][0]["stages"] = [stage]
    (study / "result.json").write_text(json.dumps(result), encoding="utf-8")
    text = Tags(write_page(study, tmp_path / "empty").read_text(encoding="utf-8")).text
    assert re.search(r"No curve of sft: main: .*metrics\.jsonl is missing", text)
    assert re.search(r"No codes of mixed: .*has no manifest\.json", text)
    assert re.search(r"No sample users of mixed and in order: .*has no manifest\.json", text)


def test_training_is_drawn_stage_after_stage_on_common_axes(study, result, tmp_path):
    for key, rows in {
        "one": [{"step": 10, "valid/hr@8": 0.1}, {"step": 20, "valid/hr@8": 0.2, "train/loss": 3.0}],
        "two": [{"step": 30, "valid/hr@8": 0.3}, {"step": 50, "train/loss": float("nan")}],
    }.items():
        folder = tmp_path / "sft" / key
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "preferences" / "pairs").mkdir(parents=True)  # a stage that trains no network
    keys = (
        ("sft", "one", "sft: explicit", 20),
        ("preferences", "pairs", "preferences", None),
        ("sft", "two", "sft: main", 80),
    )
    result["rows"][0]["runs"][0]["stages"] = [
        {"stage": stage, "name": name, "key": key, "steps": steps, "tokens": None, "seconds": 1.0}
        for stage, key, name, steps in keys
    ]
    (study / "result.json").write_text(json.dumps(result), encoding="utf-8")
    html = write_page(study, tmp_path).read_text(encoding="utf-8")
    drawn = re.findall('polyline points="([^"]+)"', html)
    points = [[tuple(map(float, point.split(","))) for point in line.split()] for line in drawn]
    assert [x for x, _ in points[0]] == pytest.approx([100 * step / 102 for step in (10, 20, 50)], abs=0.01)
    heights = [100 * (value - 0.088) / 0.224 for value in (0.1, 0.2, 0.3)]
    assert [100 - y for _, y in points[0]] == pytest.approx(heights, abs=0.01)
    assert len(points[1]) == 1  # what is no number is not drawn
    text = " ".join(Tags(html).text.split())
    assert "HR@8 of the validation users" in text
    assert "explicit → main ends at 0.3" in text


def _drawn(result, claim):
    return claim_plot(StudyResult.model_validate(result), ClaimResult.model_validate(claim))


def test_a_claim_is_drawn_in_per_cent_of_the_worse_row_and_its_control_of_its_own(result):
    """.02 of .2 is 10 %; a control difference of .015 of .15 is 10 % too; the paper says 25 %."""
    control = {"mean": 0.015, "low": 0.0, "high": 0.03, "p": 0.1}
    claim = claim_of("", "in order", "mixed", "undecided", control=["mixed", "shuffled"], control_difference=control)
    drawn = _drawn(result, claim)
    ours, beside, paper = drawn.lines
    assert (ours.mean, *ours.interval) == pytest.approx((10, -5, 25))
    assert (beside.mean, *beside.interval) == pytest.approx((10, 0, 20))
    assert (paper.mean, paper.paper) == (None, 25)
    assert drawn.unit == " %"


def test_a_score_that_is_no_column_is_drawn_by_its_change_and_one_without_a_size_as_it_is(result):
    off_the_table = claim_of("", "in order", "mixed", "undecided", on="Dice@8")
    assert _drawn(result, off_the_table).lines[0].mean == pytest.approx(10)  # .02 is 10 % of .2
    lonely = claim_of("", "in order", "mixed", "undecided", on="Dice@8", our_change=None)
    drawn = _drawn(result, lonely)
    assert (drawn.unit, len(drawn.lines), drawn.lines[0].mean) == ("", 1, 0.02)
    assert drawn.lines[0].told == "+0.0200 (−0.0100 to +0.0500)"
    assert _drawn(result, lonely | {"difference": None}) is None


def test_the_best_row_that_is_no_control_stands_out(result):
    result = StudyResult.model_validate(result)
    assert [cells(result, row)[0].best for row in result.rows] == [False, True, False, False, False]
    assert cells(result, result.rows[4])[0].ours == "–"
    assert cells(result, result.rows[1])[0].hover == (
        "interval 0.2000 to 0.2400\nseed 0: 0.2100, scores/00.21\nseed 1: 0.2300, scores/10.23"
    )


def test_a_compared_score_has_a_plot_and_another_of_its_change_where_the_paper_has_it(result):
    result = StudyResult.model_validate(result)
    scores, change = charts(result, "HR@8")
    assert [line.label for line in scores.lines] == ["mixed", "in order", "shuffled", "half"]
    assert scores.lines[0].dots == [0.19, 0.21]
    assert [(line.label, line.mean, round(line.paper, 9)) for line in change.lines] == [("in order", 10, 25)]
    assert list(charts(result, "Value@8")) == []


def test_a_scale_holds_what_it_spans_and_its_ticks_are_round():
    for values in ([3.0], [0.0], [1e-7, 2e-7], [-5.0, 1e6], [0.2, 0.2]):
        scale = spanning(values, zero=True)
        assert all(0 < scale.at(value) < 100 for value in [0.0, *values])
        assert 2 <= len(scale.ticks()) <= 6
        assert all(scale.low <= tick <= scale.high for tick in scale.ticks())
    assert spanning([]).at(0.5) == 50


def test_a_long_curve_is_thinned_and_keeps_its_end():
    long = Curve([(step, step / 1000) for step in range(1001)], [(0, "main")], 1000)
    (panel,) = curves("loss", {("row", "ours"): [long]}).panels
    points = panel.curves[0].split()
    assert len(points) < 160
    assert points[-1].startswith("98.04,")
    assert curves("loss", {("row", "ours"): [Curve([], [(0, "main")], 5)]}) is None
    assert plot("HR@8", []) is None
    assert steps_down([]) == "100,100 0,100"


def test_stages_are_put_end_to_end_and_one_that_tells_no_steps_has_as_many_as_it_logged(tmp_path):
    for key, steps in (("one", [10, 20]), ("two", [5])):
        folder = tmp_path / "sft" / key
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
    (tmp_path / "preferences" / "pairs").mkdir(parents=True)  # a stage that trains no network
    keys = (("sft", "one", None), ("preferences", "pairs", None), ("sft", "gone", 7), ("sft", "two", 30))
    stages = [
        {"stage": stage, "name": key, "key": key, "steps": steps, "tokens": None, "seconds": 1.0}
        for stage, key, steps in keys
    ]
    gaps = []
    found = trained(Run.model_validate(run_of(0, 0.2, stages)), tmp_path, gaps)
    assert [(one.stage.key, one.start, one.steps) for one in found] == [
        ("one", 0, 20),
        ("gone", 20, 7),
        ("two", 27, 30),
    ]
    assert [row["step"] for one in found for row in one.rows] == [10, 20, 32]
    (gap,) = gaps
    assert re.match(r"No curve of gone: .*sft/gone/metrics\.jsonl is missing", gap)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda result: result.pop("claims"), r"claims: field required"),
        (lambda result: result.update(rows=[]), r"rows: tuple should have at least 1 item"),
        (lambda result: result["rows"][0].pop("mean"), r"rows\[0\]\.mean: field required"),
        (lambda result: result["rows"][0]["runs"].append("x"), r"rows\[0\]\.runs\[2\]: input should be a valid dict"),
        (
            lambda result: result["rows"][1]["runs"][0].update(steps="x"),
            r"rows\[1\]\.runs\[0\]\.steps: input should be",
        ),
        (lambda result: result["claims"][2]["difference"].pop("low"), r"claims\[2\]\.difference\.low: field required"),
        (
            lambda result: result["claims"][0].update(verdict="maybe"),
            r"claims\[0\]\.verdict: input should be 'holds', 'fails' or 'undecided'",
        ),
    ],
)
def test_a_foreign_result_is_named_with_the_field_and_what_to_do(study, result, change, told):
    change(result)
    (study / "result.json").write_text(json.dumps(result))
    whole = rf"{study}/result\.json is no result of a study \({told}.*\): run the study anew, or remove it"
    with pytest.raises(ValueError, match=whole):
        write_page(study, study)


def test_a_broken_or_missing_result_is_named(study):
    (study / "result.json").write_text('{"study": ')
    with pytest.raises(
        ValueError, match=r"result\.json is broken, it is no JSON \(Expecting value.*: run the study anew"
    ):
        read_result(study)
    (study / "result.json").unlink()
    with pytest.raises(ValueError, match=r"result\.json cannot be read \(No such file or directory\): run the study"):
        read_result(study)


def test_a_result_is_read_from_its_folder_or_its_file_whatever_else_is_in_it(study, result):
    result["mood"] = result["rows"][0]["mood"] = result["rows"][0]["runs"][0]["mood"] = "good"
    (study / "other.json").write_text(json.dumps(result))
    assert read_result(study / "other.json") == read_result(study) == read_result(study / "result.json")


def test_no_number_in_a_result_is_no_number_on_the_page(study, result, tmp_path):
    result["rows"][2]["interval"]["HR@8"] = [float("nan"), float("nan")]
    result["claims"][0]["difference"]["low"] = float("nan")
    result["users"] = None
    (study / "result.json").write_text(json.dumps(result))
    read = read_result(study)
    assert (read.rows[2].interval["HR@8"], read.claims[0].difference) == (None, None)
    text = write_page(study, tmp_path).read_text()
    assert "nan" not in text
    assert "not measured" in text


def test_the_index_shows_the_newest_run_of_each_command_and_names_what_it_cannot_read(result, tmp_path):
    studies = tmp_path / "studies"
    write_page(put(studies, result), tmp_path)
    put(studies, result | {"date": "2026-11-20T00:00:00+00:00", "title": "an older run"}, when="2026-11-20_00-00-00")
    other = result | {"command": "python -m experiments.table2_task_order data=mine", "claims": [], "title": HOSTILE}
    put(studies, other, when="2026-11-22_00-00-00")
    put(studies, {"study": "foreign"})
    html = write_index(studies).read_text(encoding="utf-8")
    found = Tags(html)
    text = " ".join(found.text.split())
    assert "an older run" not in text
    assert text.count("Table 2: the order of tasks") == 1
    assert "1 older run" in text
    assert "1 fails" in text
    assert "2 undecided" in text
    assert re.search(
        r"foreign/2026-11-21_20-15-00/result\.json is no result of a study \(title: field required; ", text
    )
    assert [link["href"] for tag, link in found.tags if tag == "a"] == [
        "table2_task_order/2026-11-21_20-15-00/report.html"
    ]
    assert "no page written" in text
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "img"})


def test_the_index_of_no_study_says_how_to_run_one(tmp_path):
    assert "No study was run yet" in write_index(tmp_path).read_text()
