"""Sweeps whose jobs run side by side: one table, one store, and what a lost or a preempted job costs."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.types import RunMode
from omegaconf import OmegaConf

from leadre import job, objective
from leadre.alignment import align
from leadre.artifacts import Result
from leadre.baselines import retriever
from leadre.command_line import check
from leadre.config import CONF, ConfigError
from leadre.report.sweep import SweepTable
from leadre.sft import tune
from tests.test_pipeline import SMALLEST

ROOT = Path(__file__).parent.parent
TYPED = (*SMALLEST, "alignment=none")
SPACES = sorted(path.stem for path in (CONF / "search").glob("*.yaml"))


def _start(folder: Path, *typed: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *TYPED, *typed],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _sweep(folder: Path, *typed: str, code: int = 0) -> str:
    process = _start(folder, "hydra.sweep.dir=sweep", *typed)
    told = process.communicate()[0]
    assert process.returncode == code, told[-3000:]
    return told


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep" / "sweep.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def _builds(folder: Path) -> Counter[str]:
    """How often each result of a sweep was begun, by the logs of its jobs."""
    lines = [line for path in folder.glob("sweep/*/train.log") for line in path.read_text().splitlines()]
    return Counter(" ".join(line.split()[1:3]) for line in lines if line.endswith(" starts"))


def test_every_space_is_searched_with_the_same_budget_by_a_score_of_validation_users():
    assert set(SPACES) == {"leadre", "two_tower", "sasrec", "tiger"}
    found = []
    for name in SPACES:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("run", [f"search={name}"], return_hydra_config=True)
        sweeper = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
        assert config.objective == ("" if name == "leadre" else f"{name}/") + "valid/ndcg@8"
        assert sweeper["params"].get("baselines", "leadre") == name
        budget = ("n_trials", "n_jobs", "sampler", "direction", "max_failure_rate")
        found.append({key: sweeper[key] for key in budget})
    assert all(budget == found[0] for budget in found)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (
            ["objective=HR@8"],
            r"objective is 'HR@8', but settings are chosen by validation users, never by those of the",
        ),
        (["objective=valid/loss"], "give a score such as valid/ndcg@8"),
        (["objective=sasrec/valid/ndcg@8"], "of baselines none is learned: give baselines=sasrec"),
        (
            ["objective=valid/hr@8", "alignment=none", "sft.tuning.validations=0"],
            "validations of the last stage of tuning is 0: give 1 or more",
        ),
        (["objective=valid/hr@7", "alignment=none"], "the last stage measures valid/hr@1, valid/ndcg@1, valid/hr@4"),
        (["objective=valid/hr@8", "alignment=dpo", "alignment.tuning.valid_beam_width=4"], "value@4: name one of the"),
        (["objective=valid/value@8", "alignment=none"], "only an alignment measures ltrr and value: name one of these"),
        (
            ["objective=sasrec/valid/ltrr@8", "baselines=sasrec"],
            "the training of sasrec measures sasrec/valid/hr@1, sasrec/valid/ndcg@1, .*sasrec/valid/ndcg@10: name one",
        ),
        (
            ["objective=tiger/valid/hr@10", "baselines=tiger", "baselines.learned.tiger.beam_width=9"],
            "the training of tiger measures .*tiger/valid/ndcg@8: name one",
        ),
        (["search=leadre", "lm.layers=choice(2,0,3)"], r"lm.layers: Input should be .* \(got 0\)"),
        (["search=leadre", "sft.tuning.validations=range(0,3)"], "validations of the last stage of tuning is 0"),
        (["search=leadre", "lm.layers=3", "metrics.confidence=range(0.25,1.0,0.25)"], r"confidence: .* \(got 1.0\)"),
        (
            ["hydra/sweeper=search", "objective=valid/hr@8", "alignment=none", "metrics.confidence=range(0.5,1.0,0.5)"],
            r"confidence: .* \(got 1.0\)",
        ),
        (["search=sasrec", "baselines.learned.sasrec.width=33"], "width is 33, but 2 heads share it"),
        (["search=leadre", "sft.tuning.learning_rate=interval(1e-5,1e-3)"], "the rate falls to it from learning_rate"),
    ],
)
def test_a_search_that_cannot_be_right_is_refused_before_anything_is_trained(typed, told):
    with pytest.raises(ConfigError, match=told):
        check(typed)


@pytest.mark.parametrize(
    "typed",
    [
        ["objective=valid/value@8", "alignment=dpo"],
        ["objective=valid/ltrr@4", "alignment=rrhf"],
        ["objective=two_tower/valid/hr@10", "baselines=two_tower"],
        ["search=leadre", "lm.layers=range(2,4)"],
    ],
)
def test_an_objective_that_is_measured_is_taken(typed):
    check(typed)


def test_the_cut_offs_are_those_that_the_trainings_measure():
    assert objective.TUNED_KS == tune.VALID_KS == align.VALID_KS
    assert objective.LEARNED_KS == retriever.KS


def test_jobs_of_slurm_are_requeued_and_have_a_process_a_device(tmp_path):
    from submitit.slurm.slurm import _make_sbatch_string

    with initialize_config_dir(str(CONF), version_base="1.3"):
        given = ["hydra/launcher=slurm", "compute.devices=8", "hydra.launcher.partition=gpu"]
        launcher = compose("run", given, return_hydra_config=True).hydra.launcher
        plain = OmegaConf.to_container(launcher.copy(), resolve=False)
        plain |= {key: launcher[key] for key in ("nodes", "tasks_per_node", "gpus_per_node")}
    assert (plain["max_num_timeout"], plain["timeout_min"]) == (10, 720)
    script = _make_sbatch_string(
        command="python",
        folder=tmp_path,
        time=plain["timeout_min"],
        nodes=plain["nodes"],
        ntasks_per_node=plain["tasks_per_node"],
        gpus_per_node=plain["gpus_per_node"],
        partition=plain["partition"],
        signal_delay_s=plain["signal_delay_s"],
        additional_parameters=plain["additional_parameters"],
    )
    flags = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert flags >= {"requeue", "ntasks-per-node=8", "gpus-per-node=8", "nodes=1", "partition=gpu", "time=720"}
    assert any(flag.startswith("signal=USR2@120") for flag in flags)  # in time for a checkpoint


def _hydra(monkeypatch, folder, mode):
    runtime = SimpleNamespace(output_dir=str(folder))
    told = SimpleNamespace(runtime=runtime, overrides=SimpleNamespace(task=["seed=0"]), mode=mode)
    monkeypatch.setattr(job.HydraConfig, "get", lambda: told)


def _run(objective=None):
    return SimpleNamespace(objective=objective, compute=SimpleNamespace(threads=None))


def _fails(run, folder, overrides):
    raise ValueError("no")


def _is_done(run, folder, overrides):
    sys.exit()


def test_a_failed_trial_is_worse_than_any_other_and_a_failed_job_of_a_sweep_is_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "train", _fails)
    _hydra(monkeypatch, tmp_path, RunMode.MULTIRUN)
    assert job.run_job(_run("valid/hr@8"), _fails) == -math.inf
    assert job.run_job(_run(), _fails) is None
    assert json.loads((tmp_path / "result.json").read_text()) == {"overrides": ["seed=0"], "error": "ValueError: no"}
    _hydra(monkeypatch, tmp_path, RunMode.RUN)
    with pytest.raises(SystemExit, match="no\n"):
        job.run_job(_run("valid/hr@8"), _fails)


@pytest.mark.parametrize("work", [job.evaluate, job.index_ads])
@pytest.mark.parametrize("mode", list(RunMode))
def test_what_looks_at_test_users_takes_no_objective(monkeypatch, tmp_path, work, mode):
    _hydra(monkeypatch, tmp_path, mode)
    with pytest.raises(SystemExit, match=r"objective is 'valid/hr@8', but only train.py is searched: .* leave out"):
        job.run_job(_run("valid/hr@8"), work)
    assert not list(tmp_path.iterdir())


def _search_of(monkeypatch, folder, processes, **more):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}} | more)
    OmegaConf.set_struct(config, True)
    table = SweepTable()
    table.on_multirun_start(config)
    return table, config


@pytest.mark.parametrize("processes", [2, 16])
def test_a_search_that_several_processes_would_draw_is_refused(monkeypatch, tmp_path, processes):
    with pytest.raises(SystemExit, match=rf"but {processes} processes .* trials of their own: .*one job per trial"):
        _search_of(monkeypatch, tmp_path, processes, objective="valid/hr@8")


def test_of_several_processes_only_the_first_tells_the_table(monkeypatch, tmp_path, capsys):
    told = {"overrides": ["seed=0"], "figures": {"HR@8": 0.5}, "seconds": 1.0}
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "result.json").write_text(json.dumps(told))
    table, config = _search_of(monkeypatch, tmp_path, 2, objective=None)
    table.on_multirun_end(config)
    assert capsys.readouterr().out == ""
    assert not list(tmp_path.glob("sweep.*"))
    monkeypatch.setenv("RANK", "0")
    table.on_multirun_end(config)
    assert "Sweep of 1 runs" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("sweep.*")} == {"sweep.md", "sweep.csv"}


def test_a_rank_whose_part_is_done_goes_on_to_the_next_job_of_a_sweep_and_else_ends(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "1")
    _hydra(monkeypatch, tmp_path, RunMode.MULTIRUN)
    assert job.run_job(_run(), _is_done) is None
    _hydra(monkeypatch, tmp_path, RunMode.RUN)
    with pytest.raises(SystemExit):
        job.run_job(_run(), _is_done)
    assert not list(tmp_path.iterdir())


def test_a_trial_without_its_score_says_which_there_are(monkeypatch, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "valid/hr@8": 0.1}\n{"step": 2, "valid/hr@8": 0.2}\n')
    trained = Result("sft", "key", tmp_path, 1.0, reused=True)
    monkeypatch.setattr(job.pipeline, "index_ads", lambda run, store: None)
    monkeypatch.setattr(job.pipeline, "prepare", lambda run, store, indexed: None)
    monkeypatch.setattr(job.pipeline, "train", lambda run, store, prepared: trained)
    run = SimpleNamespace(objective="valid/ndcg@5", store=SimpleNamespace(root=str(tmp_path)))
    with pytest.raises(
        ValueError, match=r"objective is 'valid/ndcg@5', but the training measures valid/hr@8: name one"
    ):
        job.train(run, tmp_path, [])
    found = job.train(SimpleNamespace(objective="valid/hr@8", store=run.store), tmp_path, ["search=leadre", "seed=3"])
    assert found == {"objective": "valid/hr@8", "figures": {"valid/hr@8": 0.2}, "command": "python train.py seed=3"}


@pytest.mark.parametrize(
    ("typed", "last"),
    [(["seed=3"], "seed=3 alignment=none"), (["alignment=rrhf"], "alignment=rrhf"), ([], "alignment=none")],
)
def test_the_best_of_a_baseline_is_scored_beside_a_model_that_is_not_aligned(typed, last):
    command = job._command_of_the_best(["search=sasrec", *typed], baseline="sasrec")
    assert command == f"python train.py {last}"


@pytest.fixture(scope="module")
def one_after_another(tmp_path_factory):
    folder = tmp_path_factory.mktemp("basic")
    _sweep(folder, "sft.tuning.learning_rate=1e-3,3e-3")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_that_run_side_by_side_build_each_result_once_and_end_in_the_same_table(
    launcher, one_after_another, tmp_path
):
    told = _sweep(tmp_path, f"hydra/launcher={launcher}", "sft.tuning.learning_rate=1e-3,3e-3")
    assert "Sweep of 2 runs" in told
    builds = _builds(tmp_path)
    assert builds == _builds(one_after_another)
    assert set(builds.values()) == {1}
    assert len(builds) >= 15
    assert _table(tmp_path) == _table(one_after_another)
    assert (tmp_path / "sweep" / "sweep.md").read_text() == (one_after_another / "sweep" / "sweep.md").read_text()


@pytest.mark.slow
def test_a_broken_result_costs_the_rows_that_need_it_and_is_named(tmp_path):
    typed = ("sft.stages=[{main: 1}]", "sft.tuning.weight_decay=0.01,0.02")
    _sweep(tmp_path, *typed)
    (harmed,) = [path.parent for path in tmp_path.glob("store/sft/*/manifest.json") if _decay(path) == 0.02]
    model = harmed / "model.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    told = _sweep(tmp_path, *typed, "decoding.beam_width=12")
    rows = _table(tmp_path)
    assert (rows[0]["error"], rows[1]["HR@8"]) == ("", "")
    assert float(rows[0]["HR@8"]) >= 0
    assert "model.safetensors differs from its sha256; delete the folder to build it anew" in rows[1]["error"]
    assert "weight_decay=0.02 (run 1): ArtifactError" in told


def _decay(manifest: Path) -> float:
    return json.loads(manifest.read_text())["config"]["tuning"]["weight_decay"]


def _task_of(folder: Path) -> int | None:
    """The process of submitit that runs a job of a sweep; None before it is there."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode().split("\0")
            task = "SUBMITIT_LOCAL_GLOBALID" in (path.parent / "environ").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if task and "submitit.core._submit" in command and any(str(folder) in part for part in command):
            return int(path.parent.name)
    return None


def _task_in_training(folder: Path, process: subprocess.Popen[str]) -> int:
    while process.poll() is None:
        if any(folder.glob("store/sft/*.partial/checkpoints/*.ckpt")) and (task := _task_of(folder)):
            return task
        time.sleep(0.01)
    raise AssertionError(process.communicate()[0][-3000:])


LONG = ("sft.stages=[{main: 12}]", "compute.checkpoint_every_steps=1", "hydra/launcher=submitit_local")


@pytest.mark.slow
def test_a_preempted_job_is_requeued_and_goes_on_from_its_checkpoint(tmp_path):
    process = _start(tmp_path, "hydra.sweep.dir=sweep", *LONG, "seed=0")
    os.kill(_task_in_training(tmp_path, process), signal.SIGUSR2)  # as SLURM does before it takes the machine away
    told = process.communicate()[0]
    assert process.returncode == 0, told[-3000:]
    log = (tmp_path / "sweep" / "0" / "train.log").read_text()
    assert log.count("going on from step") == 1
    (row,) = _table(tmp_path)
    assert row["error"] == ""
    assert float(row["HR@8"]) >= 0


@pytest.mark.slow
def test_a_job_that_is_killed_is_a_hole_and_the_table_comes_all_the_same(tmp_path):
    process = _start(tmp_path, "hydra.sweep.dir=sweep", *LONG, "seed=0")
    os.kill(_task_in_training(tmp_path, process), signal.SIGKILL)  # as for memory
    told = process.communicate()[0]
    assert process.returncode == 1
    assert "it left no result.json: it was stopped before its end" in " ".join(told.split())
    assert "python -m leadre.report.sweep" in told
    (row,) = _table(tmp_path)
    assert (row["sft.stages"], row.get("HR@8", "")) == ("[{main:12}]", "")
    again = _sweep(tmp_path, "seed=0", *LONG[:2])  # the store has its checkpoint
    assert "going on from step" in again
    assert _table(tmp_path)[0]["error"] == ""
