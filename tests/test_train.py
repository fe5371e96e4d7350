"""The entries as a user types them: a sweep with a hole, one run after it, an evaluation, and a sweep of indexes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_pipeline import FEW_PAIRS, ROOT, SMALLEST


def _type(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / arguments[0]), *arguments[1:], *SMALLEST],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep over two alignments, of which one cannot find a pair."""
    folder = tmp_path_factory.mktemp("runs")
    wrong = "alignment.preferences.min_log_ecpm_gap=0.2,99.0"
    return folder, _type(folder, "train.py", "-m", "alignment=dpo", wrong, FEW_PAIRS, "hydra.sweep.dir=sweep")


def test_a_sweep_ends_with_one_table_that_shows_the_hole_and_why(swept):
    folder, done = swept
    assert done.returncode == 0, done.stderr
    assert "Sweep of 2 runs" in done.stdout
    table = (folder / "sweep" / "sweep.md").read_text()
    assert "alignment.preferences.min_log_ecpm_gap=0.2" in table
    assert "left no pair" in table
    results = [json.loads((folder / "sweep" / job / "result.json").read_text()) for job in ("0", "1")]
    assert "LEADRE" in results[0]["scores"]["systems"]
    assert results[1]["error"].startswith("ValueError: alignment.preferences left no pair")


def test_a_run_ends_with_the_table_the_report_and_the_path_of_every_result(swept):
    folder, _ = swept
    done = _type(folder, "train.py", "alignment=dpo", FEW_PAIRS, "hydra.run.dir=run")
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


def test_input_that_the_user_can_mend_is_told_without_a_traceback(swept):
    folder, _ = swept
    done = _type(folder, "train.py", "alignment=dpo", "alignment.preferences.min_log_ecpm_gap=99.0", "hydra.run.dir=no")
    assert done.returncode == 1
    assert "left no pair" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_evaluation_trains_nothing_and_says_what_to_run_first(swept):
    folder, _ = swept
    other = _type(folder, "evaluate.py", "alignment=dpo", FEW_PAIRS, "decoding.beam_width=12", "hydra.run.dir=wider")
    assert other.returncode == 0, other.stderr
    missing = _type(folder, "evaluate.py", "alignment=none", "lm.seed=5", "hydra.run.dir=missing")
    assert missing.returncode == 1
    assert "run train.py with the same settings first" in missing.stderr


def test_a_sweep_of_indexes_needs_ads_alone_and_ends_with_one_table(tmp_path):
    (tmp_path / "ads.csv").write_text("ad_id,name\n" + "".join(f"ad{i},red tea {i}\n" for i in range(12)))
    typed = ["data=tables", f"data.root={tmp_path}", "quantizer=residual_kmeans", "quantizer.codebook_size=4"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "index.py"), "-m", *typed, "quantizer.levels=1,2", "hydra.sweep.dir=sweep"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Sweep of 2 runs" in done.stdout
    assert "can be indexed, not trained on" in done.stdout
    table = (tmp_path / "sweep" / "sweep.md").read_text()
    assert table.splitlines()[2].startswith("| run | texts that collide | relative error | used on level 1 |")
    assert "| quantizer.levels=2 |" in table
    assert {path.name for path in (tmp_path / "sweep" / "0").iterdir()} >= {"index.md", "index.png", "result.json"}
