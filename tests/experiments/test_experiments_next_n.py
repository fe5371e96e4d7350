import json

import polars as pl
import pytest
from hydra import compose, initialize_config_dir

from experiments import study
from experiments.content import content_of
from experiments.next_n import STUDY, measured
from experiments.reporting.tables import grid_of
from experiments.rows import Found
from experiments.study import Row, Study, settings_of
from leadre import tables
from leadre.artifacts import Store
from leadre.config import CONF, load

VERSION = 1
ABOUT = {"users": 3, "users_of_this_run": 2, "cpu_seconds": 0.5, "settings": {"num_ads": 4}}
LISTS = {"u": "ABC", "v": "AD", "w": ""}


def _run(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load(compose("run", list(overrides)))


def _sft(*, out):
    (out / "budget.json").write_text(json.dumps({"steps": 7, "tokens": 1_500_000, "tasks": {"next_n": 5}}))


def _generations(_, *, out):
    rows = [(user, rank, ad_id, 0.0) for user, ads in LISTS.items() for rank, ad_id in enumerate(ads, 1)]
    frame = pl.DataFrame(rows, schema=tables.LISTS.schema, orient="row")
    (out / "lists").mkdir()
    tables.write(tables.LISTS, frame[:2], out / "lists" / "part-00000.parquet")
    tables.write(tables.LISTS, frame[2:], out / "lists" / "part-00001.parquet")
    (out / "generation.json").write_text(json.dumps(ABOUT))


def _scores(_, *, out):
    systems = {"LEADRE": {"HR@8": 0.25, "Diversity@8": 2.0}}
    (out / "scores.json").write_text(json.dumps({"systems": systems}))
    ranks = {"user_id": list("uvwx"), "system": ["LEADRE"] * 4, "rank": [1, None, None, None]}
    pl.DataFrame(ranks, schema_overrides={"rank": pl.Int32}).write_parquet(out / "per_user.parquet")


def _made(folder):
    store = Store(folder)
    tuned = store.make("sft", _sft, None)
    return store.make("scores", _scores, None, store.make("generations", _generations, None, tuned))


@pytest.fixture
def scores(tmp_path):
    return _made(tmp_path)


def test_lists_costs_and_tuning_are_measured_as_by_hand(scores):
    assert measured(scores) == {"distinct": 4, "filled": 5 / 12, "seconds": 250.0}


def test_measures_are_columns_behind_the_scores(scores, tmp_path):
    given = Study("x", "", "", ("HR@8",), (Row("a", ()), Row("b", (), control=True)), ("HR@8",), (), STUDY.measures)
    found = Found({"a": {0: scores}, "b": {0: scores}}, {}, [0])
    content = content_of(given, found, store=tmp_path, command="x", seconds=1.0)
    grid = grid_of(content)
    assert grid.head[1:5] == ("HR@8", *STUDY.measures)
    assert grid.rows[0][1:5] == ("0.2500 ±0.0000", "4.0000 ±0.0000", "0.4167 ±0.0000", "250.0 ±0.0")
    assert grid.rows[0][5:] == ("7", "1.50")  # steps and tokens of the tuning behind it
    assert content.rows[0].runs[0].scores["distinct ads"] == 4.0


def test_lists_that_a_killed_run_had_made_have_no_pace(tmp_path, monkeypatch):
    monkeypatch.setitem(ABOUT, "users_of_this_run", 0)
    assert measured(_made(tmp_path))["seconds"] is None


def test_every_row_composes_and_shares_all_but_its_last_stage_and_its_decoding(monkeypatch):
    """The curricula of the first two rows are those of the options on disk."""
    monkeypatch.setattr(study.command_line, "check", lambda overrides: None)  # each row is composed here
    typed = "sft.tuning.learning_rate=1e-3"
    runs = {name: _run(*overrides) for name, overrides in settings_of(STUDY, [typed]).items()}
    first, second, *_ = runs.values()
    for run in runs.values():
        assert (run.prompts, run.lm, run.data, run.quantizer) == (
            first.prompts,
            first.lm,
            first.data,
            first.quantizer,
        )
        assert run.sft.curriculum()[:-1] == first.sft.curriculum()[:-1]
        assert run.sft.tuning == first.sft.tuning
    lasts = [run.sft.curriculum()[-1].tasks for run in runs.values()]
    assert lasts == [{"main": 5}, {"next_n": 5}, {"next_n": 5}, {"next_n": 5}, {"next_n_control": 5}]
    assert [run.decoding.next_n for run in runs.values()] == [1, 1, 4, 4, 4]
    assert [row.control for row in STUDY.rows] == [False] * 4 + [True]
    assert all(run.alignment.kind == "none" for run in runs.values())
    assert _run(typed).sft == first.sft
    assert _run(typed, "prompts.next_n=4", "sft=ex_im_next_n").sft == second.sft
