"""Rows and seeds, one after another and side by side."""

import os
import time
from pathlib import Path

from experiments.rows import all_jobs, run_rows
from experiments.study import Row, Study
from leadre.artifacts import Result

STUDY = Study(
    name="colors",
    title="Which color",
    question="Which color is best?",
    columns=("HR@8",),
    rows=(Row("red", ()), Row("green", ()), Row("blue", (), shift=100)),
    compared=("HR@8",),
)
SETTINGS = {"red": ["lm.seed=1"], "green": ["lm.seed=2"], "blue": ["lm.seed=1"]}


def _made(overrides, seed):
    return Result("scores", f"{overrides[0]} {seed}", Path(), 0.0, reused=False)


def _failing(overrides, seed):
    if overrides[0] == "lm.seed=2":
        raise ValueError(f"no weights for seed {seed}")
    return _made(overrides, seed)


def _dying(overrides, seed):
    os._exit(9)


def _meeting(overrides, seed):
    """Does not end before another process is at work as well; the first seed's are the last to end."""
    folder = Path(overrides[1])
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3 if seed == 0 and overrides[0] == "lm.seed=1" else 0)
    return _failing(overrides, seed)


def test_every_row_has_the_result_of_each_seed():
    found = run_rows(STUDY._replace(run=_made), SETTINGS, [0, 1])
    assert _keys(found) == {
        "red": {0: "lm.seed=1 0", 1: "lm.seed=1 1"},
        "green": {0: "lm.seed=2 0", 1: "lm.seed=2 1"},
        "blue": {0: "lm.seed=1 100", 1: "lm.seed=1 101"},
    }
    assert (found.not_run, found.seeds) == ({}, [0, 1])


def test_jobs_find_side_by_side_what_one_finds_after_another(tmp_path):
    settings = {row: [*chosen, str(tmp_path)] for row, chosen in SETTINGS.items()}
    found = run_rows(STUDY._replace(run=_meeting), settings, [0, 1], jobs=2)
    alone = run_rows(STUDY._replace(run=_failing), settings, [0, 1])
    assert repr(_keys(found)) == repr(_keys(alone)), "in the order of the seeds"
    assert found.not_run.keys() == {"green"}
    processes = {path.name for path in tmp_path.iterdir()}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes


def _keys(found):
    return {row: {seed: made.key for seed, made in of_row.items()} for row, of_row in found.scores.items()}


def test_rows_that_are_systems_of_one_run_share_it_and_run_once_a_seed():
    rows = (Row("ours", ()), Row("sasrec", (), system="sasrec"), Row("other", ()), Row("popularity", ()))
    settings = {"ours": ["a"], "sasrec": ["a"], "other": ["b"], "popularity": ["a"]}
    asked = []
    given = STUDY._replace(rows=rows, run=lambda overrides, seed: asked.append((overrides, seed)) or seed)
    assert [job.rows for job in all_jobs(given, settings, [0, 1])] == [
        ("ours", "sasrec", "popularity"),
        ("other",),
        ("ours", "sasrec", "popularity"),
        ("other",),
    ]
    found = run_rows(given, settings, [0, 1])
    assert asked == [(("a",), 0), (("b",), 0), (("a",), 1), (("b",), 1)]
    assert [list(found.scores[name].values()) for name in settings] == [[0, 1]] * 4


def test_a_shifted_row_is_trained_with_other_seeds_and_stands_beside_the_studys():
    asked = []
    given = STUDY._replace(
        rows=(Row("a", ()), Row("b", (), shift=100)), run=lambda overrides, seed: asked.append(seed) or seed
    )
    found = run_rows(given, {"a": [], "b": []}, [0, 1])
    assert asked == [0, 100, 1, 101]
    assert found.scores["b"] == {0: 100, 1: 101}


def test_a_row_that_fails_is_told_with_its_seed_and_the_others_go_on():
    found = run_rows(STUDY._replace(run=_failing), SETTINGS, [3, 4])
    assert found.not_run == {"green": "seed 3: ValueError: no weights for seed 3"}
    assert [list(found.scores[row]) for row in ("red", "green", "blue")] == [[3, 4], [], [3, 4]]


def test_a_row_that_failed_is_not_tried_with_the_seeds_after():
    tried = []

    def run(overrides, seed):
        tried.append((overrides[0], seed))
        return _failing(overrides, seed)

    run_rows(STUDY._replace(run=run, rows=STUDY.rows[:2]), SETTINGS, [0, 1, 2])
    assert tried == [("lm.seed=1", 0), ("lm.seed=2", 0), ("lm.seed=1", 1), ("lm.seed=1", 2)]


def test_a_process_that_dies_leaves_holes_that_say_what_to_do():
    found = run_rows(STUDY._replace(run=_dying), SETTINGS, [0], jobs=2)
    told = "seed 0: a process ended without a word, perhaps for want of memory: give fewer jobs"
    assert found.not_run == dict.fromkeys(SETTINGS, told)


def test_the_rows_of_a_study_send_nothing_to_wandb_themselves():
    seen = []
    given = STUDY._replace(rows=STUDY.rows[:1], run=lambda overrides, seed: seen.append(overrides))
    run_rows(given, {"red": ["logger=wandb", "logger.project=x", "lm=tiny"]}, [7])
    assert seen == [("lm=tiny",)]


def test_the_time_left_is_told_of_what_is_built_and_not_of_what_was_there(caplog, monkeypatch):
    clock = iter(range(0, 1000, 60))
    monkeypatch.setattr("experiments.rows.time.monotonic", lambda: next(clock))
    reused = _made(("lm.seed=1",), 0)._replace(reused=True)
    given = STUDY._replace(
        run=lambda overrides, seed: reused if overrides[0] == "lm.seed=1" else _made(overrides, seed)
    )
    with caplog.at_level("INFO", "experiments.rows"):
        run_rows(given, SETTINGS, [0])
    assert [text for text in caplog.messages if "done" in text] == [
        "colors: 1 of 3 runs done",
        "colors: 2 of 3 runs done, about 2 min left",
        "colors: 3 of 3 runs done, about 0 min left",
    ]
