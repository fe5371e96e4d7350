import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import report_wandb
from experiments.report_wandb import Asked, asked, build_report, curve_names, default_entity, main, reported, send
from experiments.reporting.to_wandb import STEP, run_id, study_id
from experiments.result import read_result
from tests.experiments.wandb_server import ENTITY, KEY, STUDY, WandbServer, write_study


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path)


def test_a_command_line_is_read():
    assert asked([STUDY]) == Asked(STUDY, Path("store"), "leadre", None, draft=False, log=False)
    words = ["draft", "entity=team", STUDY, "project=ads", "store.root=my/store", "log"]
    assert asked(words) == Asked(STUDY, Path("my/store"), "ads", "team", draft=True, log=True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], r"name one study, such as table2_task_order \(got none\)"),
        (["a", "b"], r"name one study, such as table2_task_order \(got a b\)"),
        (["a", "seed=0"], r"seed=0: must be one of store.root=VALUE, project=VALUE, entity=VALUE"),
        (["a", "entity="], "entity=: must be one of"),
    ],
)
def test_a_wrong_word_is_refused(words, told):
    with pytest.raises(ValueError, match=told):
        asked(words)


def test_of_the_runs_of_most_seeds_the_newest_is_taken(study, caplog):
    folder, store = study
    later = folder.with_name("2027-01-01_00-00-00")
    (later / "wandb").mkdir(parents=True)  # it was killed: it has no result
    assert reported(store / "studies", STUDY) == folder
    result = json.loads((folder / "result.json").read_text())
    (later / "result.json").write_text(json.dumps(result))
    assert reported(store / "studies", STUDY) == later
    (later / "result.json").write_text(json.dumps(result | {"seeds": [0]}))
    assert reported(store / "studies", STUDY) == folder
    assert caplog.messages == []
    (later / "result.json").write_text("{}")
    assert reported(store / "studies", STUDY) == folder
    assert caplog.messages[0].startswith(
        f"passed over: {later}/result.json is no result of a study (study: field required; title"
    )


def test_an_unknown_study_is_refused_with_those_that_there_are(study, tmp_path):
    told = rf"table9 has no result in .*studies: there are {STUDY}; run python -m experiments.table9 first"
    with pytest.raises(ValueError, match=told):
        reported(study[1] / "studies", "table9")
    with pytest.raises(ValueError, match=r"there is no study; run python -m experiments.table9 first"):
        reported(tmp_path / "nowhere", "table9")


def _without_a_server(monkeypatch):
    """Answer wandb-workspaces in place of a server; what it asked."""
    from wandb_workspaces.reports.v2 import interface

    server, given = WandbServer.__new__(WandbServer), []
    server.projects, server.views, server.operations, server.unknown = ["leadre"], [], [], []

    class Api:
        default_entity = ENTITY

        def projects(self, entity):
            return [type("Project", (), {"name": "leadre"})]

    def execute(api, query, variables):
        operation = query.split("(")[0].split()[-1]
        given.append((operation, variables))
        return server.answer(operation, query, variables)

    monkeypatch.setattr(interface, "_get_api", Api)
    monkeypatch.setattr(interface, "execute_graphql", execute)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "http://127.0.0.1:9/")
    return given


def _report(study):
    folder, store = study
    result = read_result(folder)
    names = curve_names(result, store)
    return build_report(result, table="| a |", names=names, project="leadre", entity=ENTITY)


def _check_spec(spec, result):
    """The panels that W&B is asked for: scores by row, curves, tables, settings, each of the right runs."""
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    sections = [grid["metadata"]["panelBankSectionConfig"]["panels"] for grid in grids]
    bars, lines, media, more, compared = sections
    assert [panel["viewType"] for panel in bars] == ["Bar Chart"]
    assert bars[0]["config"]["metrics"] == ["HR@8"]
    assert (bars[0]["config"]["groupBy"], bars[0]["config"]["groupAgg"]) == ("row.value", "mean")
    assert [panel["config"]["metrics"] for panel in lines] == [["sft/valid/hr@8"], ["sft/train/loss"]]
    assert {panel["config"]["xAxis"] for panel in lines} == {STEP}
    assert [panel["viewType"] for panel in media] == [*["Weave"] * 2, *["Media Browser"] * 2]
    assert [panel["config"]["mediaKeys"] for panel in (*media[2:], more[1])] == [["figure"], ["page"], ["codebooks"]]
    assert [panel["viewType"] for panel in compared] == ["Run Comparer"]
    ids = [run_id(STUDY, row.name, run) for row in result.rows for run in row.runs]
    asked_for = [json.dumps(grid["metadata"]["runSets"][0]["filters"]) for grid in grids]
    for text, which in zip(asked_for, (ids, ids, [study_id(result)], ids, ids), strict=True):
        assert all(name in text for name in which)
    text = json.dumps(spec)
    assert "- **undecided**: EX helps (LEADRE 5.2.1, Table 2): it has no control; HR@8 of EX -> Main less that" in text
    assert "of Main only: +0.0500 (+0.0100 to +0.0900), p 0.0200 after Holm; 12,345 users would tell" in text
    assert f"python -m experiments.{STUDY}" in text


def test_the_report_has_scores_curves_tables_and_settings_of_the_runs(study, monkeypatch):
    given = _without_a_server(monkeypatch)
    folder, _ = study
    url = send(_report(study), folder, draft=False)
    operation, view = given[-1]
    assert (operation, view["type"], view["displayName"]) == (
        *("upsertView", "runs"),
        f"Table 2: the order of the tasks ({STUDY})",
    )
    assert {name for name, _ in given[:-1]} == {"ProjectInternalId"}
    _check_spec(json.loads(view["spec"]), read_result(folder))
    assert url.startswith(f"http://127.0.0.1:9/{ENTITY}/leadre/reports/Table-2")


def test_a_report_that_is_built_again_is_replaced_and_a_draft_is_another(study, monkeypatch):
    given = _without_a_server(monkeypatch)
    folder, _ = study
    for draft in (False, False, True):
        send(_report(study), folder, draft=draft)
    views = [variables for operation, variables in given if operation == "upsertView"]
    assert [view["id"] for view in views] == [None, "view0", None]
    assert [view["type"] for view in views] == ["runs", "runs", "runs/draft"]


def test_without_a_key_it_is_told_what_to_do(study, monkeypatch):
    monkeypatch.setattr(report_wandb, "has_wandb_key", lambda: False)
    with pytest.raises(ValueError, match=r"there is no W&B key.*set WANDB_API_KEY or `wandb login`; the study's own"):
        default_entity()
    with pytest.raises(SystemExit, match="there is no W&B key"):
        main([STUDY, f"store.root={study[1]}"])


def test_a_broken_result_is_named(study):
    (study[0] / "result.json").write_text("{")
    with pytest.raises(SystemExit, match=r"result.json is broken.*run the study anew"):
        main([STUDY, f"store.root={study[1]}"])


def test_a_row_without_runs_is_named(study):
    result = json.loads((study[0] / "result.json").read_text())
    del result["rows"][0]["runs"]
    (study[0] / "result.json").write_text(json.dumps(result))
    with pytest.raises(
        SystemExit, match=r"result.json is no result of a study \(rows\[0\]\.runs: field required\): run the"
    ):
        main([STUDY, f"store.root={study[1]}"])


def test_where_wandb_is_disabled_no_report_is_built(study, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(SystemExit, match="WANDB_MODE is disabled: unset it to build a report"):
        main([STUDY, f"store.root={study[1]}", "entity=me"])


def _run(study, home, *words, **given):
    root = str(Path(__file__).parent.parent.parent)
    plain = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    return subprocess.run(
        [sys.executable, "-m", "experiments.report_wandb", STUDY, f"store.root={study[1]}", *words],
        env=plain | {"HOME": str(home), "PYTHONPATH": root} | given,
        **{"capture_output": True, "text": True, "timeout": 300, "check": False, "cwd": root},
    )


@pytest.fixture
def server():
    it = WandbServer()
    yield it
    it.close()


@pytest.mark.slow
def test_a_server_gets_the_runs_and_the_report(study, server, tmp_path):
    given = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    done = _run(study, tmp_path, "log", **given)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith(f"{server.url}/{ENTITY}/leadre/reports/")
    result = read_result(study[0])
    (view,) = server.views
    _check_spec(json.loads(view["spec"]), result)
    ids = {run_id(STUDY, row.name, run) for row in result.rows for run in row.runs}
    assert set(server.runs) == ids | {study_id(result)}  # what its panels show is there
    assert server.unknown == []
    assert _run(study, tmp_path, "draft", **given).returncode == 0
    assert [(view["id"], view["type"]) for view in server.views] == [(None, "runs"), (None, "runs/draft")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"WANDB_API_KEY": "0" * 40}, "did not take the key (Failed to verify credentials with "),
        ({"WANDB_API_KEY": "short"}, "did not take the key (WANDB_API_KEY invalid: API key must have 40+ characters"),
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "did not answer within 10 s: check the net"),
        ({"WANDB_API_KEY": ""}, "there is no W&B key, or WANDB_MODE is offline: set WANDB_API_KEY"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "there is no W&B key, or WANDB_MODE is offline"),
    ],
)
def test_a_wrong_key_or_no_network_is_told_in_a_line(study, server, tmp_path, given, told):
    done = _run(study, tmp_path, **{"WANDB_BASE_URL": server.url} | given)
    assert done.returncode == 1
    assert told in done.stderr
    assert "report.html needs no W&B" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.views == []


@pytest.mark.slow
def test_a_project_that_is_not_there_is_told(study, server, tmp_path):
    given = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    done = _run(study, tmp_path, "project=other", **given)
    assert done.returncode == 1
    assert "me/other' not found" in done.stderr
    assert "send the runs first: add the word log" in done.stderr
    assert "Traceback" not in done.stderr
