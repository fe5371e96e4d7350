import csv
import json
from functools import cache
from pathlib import Path

import polars as pl
import pytest

from experiments import alignment_value, information_controlled_sids, study, table4_embedding_sids
from experiments.study import (
    Found,
    Row,
    Study,
    notes,
    of_users,
    overrides_of,
    run_study,
    seeds_and_overrides,
    study_grid,
)
from leadre.artifacts import Result
from leadre.config import check

STUDY = Study(
    name="colors",
    title="Which color",
    columns=("HR@8", "LTRR@8"),
    rows=(
        Row("red", ("embedding=lsa",), paper={"HR@8": 0.2}),
        Row("green", ("embedding=hashing",)),
        Row("blue", ("embedding=lsa_chinese",), paper={"HR@8": 0.4}),
        Row("gray", ("quantizer=tiny",), control=True),
    ),
    compared=("HR@8",),
)


@cache
def _checked(*overrides: str) -> None:
    check(overrides)


@pytest.fixture(autouse=True)
def _what_rows_have_in_common_is_checked_once(monkeypatch):
    monkeypatch.setattr(study, "check", lambda overrides: _checked(*overrides))


def _scores(folder: Path, ranks: list[int | None]) -> Result:
    folder.mkdir()
    frame = {"user_id": [f"u{i}" for i in range(len(ranks))], "system": ["LEADRE"] * len(ranks), "rank": ranks}
    pl.DataFrame(frame, schema_overrides={"rank": pl.Int32}).write_parquet(folder / "per_user.parquet")
    hits = sum(rank is not None and rank <= 8 for rank in ranks) / len(ranks)
    (folder / "scores.json").write_text(json.dumps({"systems": {"LEADRE": {"HR@8": hits, "LTRR@8": 0.5}}}))
    return Result("scores", folder.name, folder, 0.0, False)


@pytest.fixture
def found(tmp_path):
    """Two seeds, four users; blue has no weights."""
    scores = {
        "red": [_scores(tmp_path / "r0", [1, None, None, None]), _scores(tmp_path / "r1", [2, 3, None, None])],
        "green": [_scores(tmp_path / "g0", [1, 2, 3, None]), _scores(tmp_path / "g1", [1, 2, 3, 9])],
        "gray": [_scores(tmp_path / "x0", [None] * 4), _scores(tmp_path / "x1", [None] * 4)],
    }
    return Found(scores, {"blue": "no weights"}, [0, 1])


def test_a_row_tells_mean_half_range_the_papers_number_and_the_difference_from_the_first(found):
    grid = study_grid(STUDY, found)
    assert grid.head[:3] == ("", "HR@8", "LTRR@8")
    red, green, blue, gray = grid.rows
    assert red[:4] == ("red", "0.3750 ±0.1250 [0.2000]", "0.5000 ±0.0000", "–")
    assert green[:3] == ("green", "0.7500 ±0.0000", "0.5000 ±0.0000")
    assert green[3].startswith("+0.3750 (")
    low, high = (float(end) for end in green[3].removesuffix(")").partition("(")[2].split(" to "))
    assert low <= 0.375 <= high
    assert green[4].startswith("+0.7500 (")  # gray, the only control, hits nobody
    assert blue == ("blue", "– [0.4000]", "–", "–", "–")
    assert gray[3].startswith("-0.3750 (")
    assert gray[4] == "–"


def test_the_notes_say_what_was_not_run_and_what_may_not_be_claimed(found):
    told = " ".join(notes(STUDY, found))
    assert "Not run: blue: no weights" in told
    assert "Fewer than three seeds" in told
    assert "No negative control" not in told
    alone = Found({"red": found.scores["red"]}, {}, [0, 1, 2])
    assert "No negative control was run" in " ".join(notes(STUDY, alone))


def test_a_row_that_cannot_run_does_not_stop_the_others_and_everything_is_written(tmp_path, monkeypatch, capsys):
    def scored(overrides, seed):
        if "embedding=lsa_chinese" in overrides:
            raise ValueError("no weights here")
        return _scores(tmp_path / f"{overrides[-1]}_{seed}", [1, None])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "scored", scored)
    run_study(STUDY, ["seeds=3,4", "compute.threads=1"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["seeds"] == [3, 4]
    assert last["not_run"] == {"blue": "no weights here"}
    assert last["rows"]["green"]["keys"] == ["embedding=hashing_3", "embedding=hashing_4"]
    (folder,) = (tmp_path / "outputs" / "colors").iterdir()
    assert {path.name for path in folder.iterdir()} == {"table.md", "table.csv", "figure.png"}
    with (folder / "table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["seed"], line["HR@8"]) for line in lines[:2]] == [
        ("red", "3", "0.5"),
        ("red", "4", "0.5"),
    ]
    assert "python -m experiments.colors seeds=3,4 compute.threads=1" in (folder / "table.md").read_text()


def test_a_wrong_override_stops_a_study_before_anything_runs():
    with pytest.raises(SystemExit, match=r"quantizer\.levels: Input should be greater than or equal to 1 \(got 0\)"):
        run_study(STUDY, ["quantizer.levels=0"])


def test_a_rows_own_settings_win_and_the_studys_groups_that_it_replaces_are_left_out():
    given = Study(
        name="codes",
        title="",
        columns=("HR@8",),
        rows=(
            Row("rqvae", ()),
            Row(
                "random",
                ("quantizer=random", "quantizer.levels={levels}", "quantizer.codebook_size={codebook_size}"),
                control=True,
            ),
        ),
        compared=("HR@8",),
    )
    typed = ["quantizer=medium", "quantizer.steps=700", "lm.seed=3"]
    assert overrides_of(given.rows[0], given, typed) == typed
    random = overrides_of(given.rows[1], given, typed)
    assert random == ["lm.seed=3", "quantizer=random", "quantizer.levels=4", "quantizer.codebook_size=256"]


def test_what_the_rows_differ_in_may_not_be_set():
    with pytest.raises(SystemExit, match="embedding=hashing: this is what the rows of colors differ in"):
        run_study(STUDY, ["embedding=hashing"])
    with pytest.raises(SystemExit, match=r"embedding.dimension=3: this is what"):
        run_study(STUDY, ["embedding.dimension=3"])


@pytest.mark.parametrize("typed", ["seeds=", "seeds=a", "seeds=[0,1]", "seeds=0,0,1", "seed=3"])
def test_wrong_seeds_are_told(typed):
    with pytest.raises(SystemExit, match="seed"):
        run_study(STUDY, [typed])


def test_seeds_that_score_other_users_are_not_compared(tmp_path, found):
    other = _scores(tmp_path / "other", [1, 2])
    with pytest.raises(ValueError, match="do not score the same users"):
        of_users([found.scores["red"][0], other], "LEADRE", "HR@8")


def test_a_study_of_which_no_row_can_run_says_why(monkeypatch):
    def scored(overrides, seed):
        raise ValueError("no weights here")

    monkeypatch.setattr(study, "scored", scored)
    with pytest.raises(SystemExit, match="No row could be run:\nno weights here"):
        run_study(STUDY._replace(rows=STUDY.rows[:1]), [])


def test_seeds_are_taken_out_of_a_command_line():
    assert seeds_and_overrides(["seeds=4,5", "lm=tiny"]) == ([4, 5], ["lm=tiny"])
    assert seeds_and_overrides([]) == ([0, 1, 2], [])


STUDIES = [
    value
    for module in (alignment_value, information_controlled_sids, table4_embedding_sids)
    for value in vars(module).values()
    if isinstance(value, Study)
]


@pytest.mark.parametrize("given", STUDIES, ids=lambda given: given.name)
def test_every_row_of_every_study_is_a_right_configuration_and_there_is_a_control(given):
    for row in given.rows:
        overrides_of(row, given, [])
    assert any(row.control for row in given.rows)
    assert len({row.name for row in given.rows}) == len(given.rows)


def test_scores_of_users_are_compared_where_both_are_defined(tmp_path, found):
    study_of_value = STUDY._replace(compared=("HR@8", "Value@8"), rows=STUDY.rows[:2])
    for name, values in (("red", [1.0, 2.0, None, 4.0]), ("green", [2.0, 3.0, 9.0, None])):
        for result in found.scores[name]:
            frame = pl.read_parquet(result.path / "per_user.parquet").with_columns(pl.Series("Value@8", values))
            frame.write_parquet(result.path / "per_user.parquet")
    head, (_, green), _ = study_grid(study_of_value, found)
    assert head[3:] == (
        "HR@8 less that of red",
        "HR@8 less that of the best control",
        "Value@8 less that of red",
        "Value@8 less that of the best control",
    )
    assert green[3].startswith("+0.3750")
    assert green[5:] == ("+1.0000 (+1.0000 to +1.0000)", "–")
