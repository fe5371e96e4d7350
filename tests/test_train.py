"""The entries as a user types them: a sweep with a hole, one run after it, an evaluation, and a sweep of indexes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from leadre.command_line import check
from tests.test_pipeline import FEW_PAIRS, SMALLEST

ROOT = Path(__file__).parent.parent
DPO = (*SMALLEST, "alignment=dpo", FEW_PAIRS)
SHELL = """
import gc, json, os, runpy, sys

import leadre.job  # all that an entry imports takes seconds: once for all commands, and each runs in a fork
from leadre.command_line import check

check([])  # Hydra finds its plugins
gc.freeze()  # no fork walks through all that again, not even at its end
for line in sys.stdin:
    folder, arguments, *outputs = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for place, path in zip((1, 2), outputs):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), place)
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def type_(tmp_path_factory):
    """Types a command in a folder: ``type_(folder, "train.py", "seed=1")``."""
    outputs = [tmp_path_factory.mktemp("typed") / name for name in ("stdout", "stderr")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SHELL], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:

        def type_(folder: Path, entry: str, *arguments: str) -> subprocess.CompletedProcess[str]:
            typed = [str(ROOT / entry), *arguments]
            shell.stdin.write(json.dumps([str(folder), typed, *map(str, outputs)]) + "\n")
            shell.stdin.flush()
            code = int(shell.stdout.readline())
            return subprocess.CompletedProcess(typed, code, *(path.read_text() for path in outputs))

        yield type_


@pytest.fixture(scope="module")
def swept(tmp_path_factory, type_):
    """A sweep over two alignments, of which one cannot find a pair."""
    folder = tmp_path_factory.mktemp("runs")
    wrong = "alignment.preferences.min_log_gap=0.2,99.0"
    typed = ["-m", *DPO, wrong, "hydra.sweep.dir=sweep"]
    return folder, type_(folder, "train.py", *typed)


def test_a_sweep_ends_with_one_table_that_shows_the_hole_and_why(swept):
    folder, done = swept
    assert done.returncode == 0, done.stderr
    assert "Sweep of 2 runs" in done.stdout
    table = (folder / "sweep" / "sweep.md").read_text()
    assert "| min_log_gap=0.2 |" in table
    assert "left no pair" in table
    results = [json.loads((folder / "sweep" / job / "result.json").read_text()) for job in ("0", "1")]
    assert "LEADRE" in results[0]["scores"]["systems"]
    assert results[0]["figures"]["Invalid"] == results[0]["figures"]["Duplicate"] == 0
    assert results[1]["error"].startswith("ValueError: alignment.preferences left no pair")


def test_a_search_takes_its_best_trial_by_validation_users_and_goes_on_after_a_failure(swept, type_):
    folder, _ = swept
    tuned = ("learning_rate=2e-3", "weight_decay=0.01", "batch_size=32", "loss_on=history_and_response")
    wrong = "alignment.preferences.min_log_gap=choice(0.2,99.0)"
    typed = [*DPO, *(f"sft.tuning.{setting}" for setting in tuned), wrong, "alignment.tuning.validations=1"]
    done = type_(folder, "train.py", "search=leadre", *typed, "hydra.sweeper.n_trials=3", "hydra.sweep.dir=search")
    assert done.returncode == 0, done.stderr
    results = [json.loads((folder / "search" / job / "result.json").read_text()) for job in ("0", "1", "2")]
    failed = ["error" in result for result in results]
    assert set(failed) == {True, False}
    best = results[failed.index(False)]
    assert best["objective"] == next(iter(best["figures"])) == "valid/ndcg@8"
    assert all(name.startswith("valid/") for name in best["figures"])
    assert not any((folder / "search").rglob("report.md"))  # no test user was looked at
    page = (folder / "search" / "sweep.md").read_text()
    assert "left no pair" in page
    assert f"Best of {failed.count(False)} of 3 trials by valid/ndcg@8" in page
    command = shlex.split(page.split("```")[1].removeprefix("sh"))
    assert command[:2] == ["python", "train.py"]
    assert not any(text.startswith(("search", "objective", "hydra")) for text in command)
    check(command[2:])


def test_a_run_ends_with_the_table_the_report_and_the_path_of_every_result(swept, type_):
    folder, _ = swept
    done = type_(folder, "train.py", *DPO, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "built" not in done.stdout
    assert all(system in done.stdout for system in ("LEADRE", "popularity", "linear", "oracle"))
    paths = [
        line.split()[-1]
        for line in done.stdout.splitlines()
        if line.startswith(("sft: ", "scores", "report ", "index "))
    ]
    assert len(paths) == 5
    assert all((folder / path).exists() for path in paths)
    files = {path.name for path in (folder / "run").iterdir()}
    assert files >= {"report.md", "index.md", "index.png", "result.json", "loss.png", "hr.png", "codebook.png"}


def test_input_that_the_user_can_mend_is_told_without_a_traceback(swept, type_):
    folder, _ = swept
    done = type_(folder, "train.py", *DPO, "alignment.preferences.min_log_gap=99.0", "hydra.run.dir=no")
    assert done.returncode == 1
    assert "left no pair" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_evaluation_trains_nothing_and_says_what_to_run_first(swept, type_):
    folder, _ = swept
    other = type_(folder, "evaluate.py", *DPO, "decoding.beam_width=12", "hydra.run.dir=wider")
    assert other.returncode == 0, other.stderr
    missing = type_(folder, "evaluate.py", *SMALLEST, "alignment=none", "lm.seed=5", "hydra.run.dir=missing")
    assert missing.returncode == 1
    assert "run train.py with the same settings first" in missing.stderr


@pytest.mark.slow
def test_a_sweep_of_indexes_needs_ads_alone_and_ends_with_one_table(tmp_path, type_):
    (tmp_path / "ads.csv").write_text("ad_id,name\n" + "".join(f"ad{i},red tea {i}\n" for i in range(12)))
    typed = ["data=tables", f"data.root={tmp_path}", "quantizer=residual_kmeans", "quantizer.codebook_size=4"]
    done = type_(tmp_path, "index.py", "-m", *typed, "quantizer.levels=1,2", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert "Sweep of 2 runs" in done.stdout
    assert "can be indexed, not trained on" in done.stdout
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert table.splitlines()[2].startswith("| run | texts that collide | relative error | used on level 1 |")
    assert "| levels=2 |" in table
    assert {path.name for path in (tmp_path / "sweep" / "0").iterdir()} >= {"index.md", "index.png", "result.json"}
