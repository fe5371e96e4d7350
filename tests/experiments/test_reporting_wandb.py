import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.reporting import to_wandb
from experiments.reporting.to_wandb import (
    STEP,
    curves,
    entries_of,
    log_study,
    run_id,
    study_entry,
    study_id,
)
from experiments.result import read_result
from leadre.artifacts import ArtifactError
from tests.experiments.wandb_server import KEY, NAME, STUDY, WandbServer, write_study


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


@pytest.fixture
def server():
    it = WandbServer()
    yield it
    it.close()


def _entries(study, pictures):
    folder, store = study
    return list(entries_of(read_result(folder), store, pictures))


def test_each_row_and_seed_is_a_run_with_settings_scores_and_tags(study, tmp_path):
    entries = _entries(study, tmp_path)
    assert [entry.name for entry in entries] == [
        *("EX -> Main, seed 0", "EX -> Main, seed 1", "Main only, seed 0", "Main only, seed 1")
    ]
    first, control = entries[0], entries[2]
    assert (first.job_type, first.tags) == ("EX -> Main", (STUDY, "EX -> Main", "seed 0"))
    assert control.tags == (STUDY, "Main only", "seed 0", "control")
    assert first.summary == {"HR@8": 0.25, "steps": 90, "tokens": 2000}  # Value@8 is undefined
    assert {name: first.config[name] for name in ("study", "row", "seed", "key")} == {
        **{"study": STUDY, "row": "EX -> Main", "seed": 0, "key": "ex-main0"}
    }
    assert first.config["stages"] == {
        "world": {"seed": 5},
        "codes": {"levels": 2},
        "sft": {
            "sft: ex": {"tasks": {"explicit": 8.0}, "seed": 0},
            "sft: main": {"tasks": {"main": 5.0}, "seed": 0},
        },
        "generations": {"beam_width": 10},
        "scores": {"hr_ks": [8]},
    }


def test_stages_that_follow_each_other_are_one_curve(study):
    folder, store = study
    (first, _), _ = (row.runs for row in read_result(folder).rows[:2])
    rows = list(curves(first, store))
    assert [row[STEP] for row in rows] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 90]
    assert rows[3] == {STEP: 40, "sft/train/loss": 7.0}
    assert rows[-1] == {STEP: 90, "sft/valid/hr@8": 0.25}


def test_a_curve_that_is_no_longer_in_the_store_is_told(study, caplog):
    folder, store = study
    run = read_result(folder).rows[0].runs[0]
    gone = run.stages[0].model_copy(update={"key": "gone"})
    run = run.model_copy(update={"stages": (gone, *run.stages[1:])})
    assert [row[STEP] for row in curves(run, store)][:2] == [40, 50]
    assert "sft/gone/metrics.jsonl is missing: a stage that trains a network writes it" in caplog.text


def test_the_lists_of_users_have_names_and_the_rank_of_the_ad_clicked(study, tmp_path):
    head, rows = _entries(study, tmp_path)[0].tables["lists"]
    assert head[:5] == ["user", "clicked", "rank of it", "ad 1", "ad 2"]
    assert [row[:5] for row in rows] == [["u1", "tent", 2, NAME, "tent"], ["u2", "c", None, NAME, None]]
    assert {len(row) for row in rows} == {len(head)}


def test_the_codebooks_of_a_catalog_are_drawn_once(study, tmp_path):
    pictures = [entry.shown["codebooks"] for entry in _entries(study, tmp_path)]
    assert set(pictures) == {tmp_path / "c.png"}
    assert pictures[0].read_bytes().startswith(b"\x89PNG")


def test_the_study_is_a_run_with_its_rows_claims_and_files(study):
    folder, _ = study
    entry = study_entry(read_result(folder), folder)
    assert entry.summary == {"holds": 0, "fails": 0, "undecided": 1}
    assert [path.name for path in entry.files] == ["result.json", "table.csv", "table.md", "report.html"]
    assert list(entry.shown) == ["page"]  # there is no figure.png
    head, rows = entry.tables["rows"]
    named = [dict(zip(head, row, strict=True)) for row in rows]
    assert named[0]["HR@8"] == 0.3
    assert (named[0]["HR@8, low"], named[0]["HR@8, paper"], named[0]["not run"]) == (0.2, 0.2, None)
    assert (named[2]["HR@8"], named[2]["seeds"], named[2]["not run"]) == (None, 0, "ValueError: no")
    head, (claim,) = entry.tables["claims"]
    named = dict(zip(head, claim, strict=True))
    assert (named["verdict"], named["difference, p_holm"], named["control difference, low"]) == (
        "undecided",
        0.02,
        None,
    )


def test_ids_are_the_same_for_the_same_numbers_and_others_for_others(study):
    result = read_result(study[0])
    ids = [run_id(STUDY, row.name, run) for row in result.rows for run in row.runs]
    assert len({*ids, study_id(result)}) == 5
    first = result.rows[0].runs[0]
    assert ids[0] == run_id(STUDY, "EX -> Main", first.model_copy(update={"scores": {"HR@8": 9}}))
    assert ids[0] != run_id(STUDY, "EX -> Main", first.model_copy(update={"key": "other"}))
    turned = [row.model_copy(update={"runs": row.runs[::-1]}) for row in result.rows]
    assert study_id(result.model_copy(update={"rows": turned})) == study_id(result)


def test_a_tag_is_no_longer_than_wandb_takes(study, tmp_path):
    folder, _ = study
    result = json.loads((folder / "result.json").read_text())
    result["rows"][0]["name"] = "x" * 200
    (folder / "result.json").write_text(json.dumps(result))
    assert max(map(len, _entries(study, tmp_path)[0].tags)) == 64


def test_a_row_without_runs_is_named(study):
    folder, store = study
    result = json.loads((folder / "result.json").read_text())
    del result["rows"][1]["runs"]
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(
        ValueError, match=rf"{folder}/result.json is no result of a study \(rows\[1\]\.runs: field required"
    ):
        log_study(folder, store, project="leadre", entity=None, mode="offline")


def test_a_broken_artifact_is_named_before_anything_is_logged_and_costs_no_run_that_is_not_sent(study):
    folder, store = study
    unsent = folder / "wandb" / "offline-run-1" / "run-1.wandb"
    unsent.parent.mkdir(parents=True)
    unsent.write_text("not sent yet")
    (store / "codes" / "c" / "diagnostics.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"codes/c is broken: diagnostics.json differs from its sha256"):
        log_study(folder, store, project="leadre", entity=None, mode="offline")
    assert [path for path in (folder / "wandb").rglob("*") if path.is_file()] == [unsent]


def test_where_wandb_is_disabled_nothing_is_logged(study, monkeypatch):
    folder, store = study
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (folder / "result.json").unlink()  # not even read
    logged = log_study(folder, store, project="leadre", entity=None)
    assert (logged.sent, logged.offline) == ((), ())
    assert not (folder / "wandb").exists()


class _Failing:
    def __init__(self, fails):
        self.fails, self.runs = fails, []

    def __call__(self, entry, folder, *, mode, **place):
        if mode in self.fails and len(self.runs) >= 1:
            raise ConnectionError("no route to host\nand more")
        self.runs.append((entry.name, mode))


def test_a_missing_result_is_named(study):
    folder, store = study
    (store / "scores" / "main1" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"scores/main1 has no manifest.json: the result is not whole"):
        log_study(folder, store, project="leadre", entity=None, mode="offline")


def test_when_the_network_goes_the_rest_is_kept_offline(study, monkeypatch, caplog):
    folder, store = study
    send = _Failing({"online"})
    monkeypatch.setattr(to_wandb, "_send", send)
    monkeypatch.setattr(to_wandb, "_let_go", lambda: None)
    logged = log_study(folder, store, project="leadre", entity=None, mode="online")
    assert [mode for _, mode in send.runs] == ["online", *["offline"] * 4]
    assert (len(logged.sent), len(logged.offline)) == (1, 4)
    (told,) = caplog.messages
    assert told.startswith("W&B failed (ConnectionError: no route to host): 'EX -> Main, seed 1' and the runs after it")
    assert told.endswith(f"then `wandb sync {folder}/wandb/offline-run-*`")


def test_a_study_does_not_fail_when_wandb_cannot_even_be_kept_offline(study, monkeypatch, caplog):
    folder, store = study
    monkeypatch.setattr(to_wandb, "_send", _Failing({"online", "offline"}))
    monkeypatch.setattr(to_wandb, "_let_go", lambda: None)
    logged = log_study(folder, store, project="leadre", entity=None, mode="offline")
    assert len(logged.offline) == 1
    assert caplog.messages == [
        f"W&B cannot be had (ConnectionError: no route to host): not all runs are logged; all is in {folder}"
    ]


def test_without_a_key_it_is_offline_and_the_last_line_says_how_to_send_it(study, monkeypatch, caplog):
    folder, store = study
    caplog.set_level("INFO")
    send = _Failing(set())
    monkeypatch.setattr(to_wandb, "_send", send)
    monkeypatch.setattr(to_wandb, "has_wandb_key", lambda: False)
    log_study(folder, store, project="leadre", entity=None)
    assert {mode for _, mode in send.runs} == {"offline"}
    sync = f"; `wandb sync {folder}/wandb/offline-run-*` sends these"
    assert caplog.messages == [f"W&B: sent 0 runs, kept 5 offline{sync}"]
    log_study(folder, store, project="leadre", entity=None, mode="online")
    assert caplog.messages[1:] == ["W&B: sent 5 runs, kept 0 offline"]


PROGRAM = """
import logging, sys
from pathlib import Path
from experiments.reporting.to_wandb import log_study
logging.basicConfig(level=logging.WARNING)
logged = log_study(Path(sys.argv[1]), Path(sys.argv[2]), project="leadre", entity=None, mode=sys.argv[3])
print(len(logged.sent), len(logged.offline))
"""


def _environment(home, **given):
    root = str(Path(__file__).parent.parent.parent)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return plain | {"HOME": str(home), "PYTHONPATH": root} | given


def _log(study, home, mode, **given):
    command = [sys.executable, "-c", PROGRAM, *map(str, study), mode]
    done = subprocess.run(
        command, env=_environment(home, **given), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def _check_all_is_there(server, study):
    """All that entries hold is on the server, no run twice, and nothing else."""
    folder, store = study
    result = read_result(folder)
    entries = [*entries_of(result, store, folder.parent), study_entry(result, folder)]
    assert set(server.runs) == {entry.id for entry in entries}
    assert server.unknown == []
    for entry in entries:
        sent = server.runs[entry.id]
        assert (sent["displayName"], sent["groupName"], sent["jobType"]) == (entry.name, STUDY, entry.job_type)
        assert tuple(sent["tags"]) == entry.tags
        assert server.config(entry.id) == json.loads(json.dumps(entry.config))
        assert entry.summary.items() <= server.summary(entry.id).items()
        history = server.history(entry.id)
        told = [{name: row[name] for name in row if name == STEP or "/" in name} for row in history]
        assert told[: len(entry.curves)] == [dict(row) for row in entry.curves]
        assert len(history) == len(entry.curves) + 1
        for name, (head, body) in entry.tables.items():
            table = json.loads(server.files[f"{entry.id}/{history[-1][name]['path']}"])
            assert (table["columns"], table["data"]) == (head, body)
        for name, path in entry.shown.items():
            assert server.files[f"{entry.id}/{history[-1][name]['path']}"] == path.read_bytes()
    (whole,) = [name for name, given in server.artifacts.items() if given["artifactTypeName"] == "study"]
    assert set(server.artifacts) == set(server.committed)
    for file in study_entry(result, folder).files:
        assert server.files[f"{whole}/{file.name}"] == file.read_bytes()


@pytest.mark.slow
def test_a_study_is_sent_whole_and_a_second_time_it_is_there_once(study, server, tmp_path):
    given = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    assert _log(study, tmp_path, "online", **given).stdout.split()[-2:] == ["5", "0"]
    _check_all_is_there(server, study)
    server.artifacts.clear()
    server.committed.clear()
    assert _log(study, tmp_path, "online", **given).stdout.split()[-2:] == ["5", "0"]
    _check_all_is_there(server, study)


@pytest.mark.slow
def test_what_is_kept_offline_loses_nothing_when_it_is_synced(study, server, tmp_path):
    """Logged twice without a network, moved nowhere, the home directory gone; then `wandb sync`."""
    home = tmp_path / "home"
    for _ in range(2):
        assert _log(study, home, "offline").stdout.split()[-2:] == ["0", "5"]
    runs = sorted((study[0] / "wandb").glob("offline-run-*"))
    assert len(runs) == 5
    assert not list(home.rglob("staging/*"))
    given = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    command = [str(Path(sys.executable).parent / "wandb"), "sync", *map(str, runs)]
    done = subprocess.run(
        command, env=_environment(tmp_path / "other", **given), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _check_all_is_there(server, study)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": KEY}, "W&B failed ("),
        ({"WANDB_API_KEY": "0" * 40}, "W&B failed ("),
        ({"WANDB_API_KEY": "short"}, "API key must have 40+ characters"),
    ],
)
def test_a_wrong_key_or_no_network_keeps_all_offline_and_says_so(study, server, tmp_path, given, told):
    done = _log(study, tmp_path, "online", **{"WANDB_BASE_URL": server.url} | given)
    assert done.stdout.split()[-2:] == ["0", "5"]
    assert told in done.stderr
    assert "'EX -> Main, seed 0' and the runs after it are kept offline" in done.stderr
    assert len(list((study[0] / "wandb").glob("offline-run-*"))) == 5
    assert server.runs == {}
