import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import leadre
from leadre.report.sweep import read_jobs, sweep_grid, varying_keys, write_sweep

COLUMNS = ("HR@1", "HR@4", "HR@8", "NDCG@8")


def result(number, **overrides):
    return {
        "overrides": [f"{key}={value}" for key, value in overrides.items()],
        "figures": dict.fromkeys(COLUMNS, number) | {"popularity HR@8": 0.1},
        "seconds": 12.5,
    }


def sweep(folder, *results):
    for number, content in enumerate(results):
        (folder / str(number)).mkdir()
        if content is not None:
            (folder / str(number) / "result.json").write_text(json.dumps(content))
    return folder


def printed(folder):
    console = Console(width=120, record=True, quiet=False, file=(folder / "console.txt").open("w"))
    write_sweep(folder, console=console)
    console.file.close()
    return (folder / "console.txt").read_text()


def test_runs_are_named_by_what_differs(tmp_path):
    sweep(tmp_path, result(0.1, lm="tiny", sft="main_only"), result(0.2, lm="tiny", sft="ex_main"))
    grid = sweep_grid(read_jobs(tmp_path))
    assert grid.rows == (
        ("sft=main_only", *["0.1000"] * 4, "0.1000"),
        ("sft=ex_main", *["0.2000"] * 4, "0.1000"),
    )


def test_jobs_stand_in_the_order_of_their_numbers(tmp_path):
    sweep(tmp_path, *(result(n / 100, lr=n) for n in range(12)))
    (tmp_path / ".hydra").mkdir()
    assert [job.number for job in read_jobs(tmp_path)] == list(range(12))


def test_seeds_get_their_mean_and_half_range_below_them(tmp_path):
    sweep(
        tmp_path,
        result(0.1, sft="a", seed=0),
        result(0.5, sft="b", seed=0),
        result(0.2, sft="a", seed=1),
        {"overrides": ["sft=b", "seed=1"], "error": "ValueError: no"},
    )
    grid = sweep_grid(read_jobs(tmp_path))
    assert [row[0] for row in grid.rows] == [
        "sft=a seed=0",
        "sft=a seed=1",
        "sft=a: mean of 2 seeds ± half range",
        "sft=b seed=0",
        "sft=b seed=1",
    ]
    assert grid.rows[2][1] == "0.1500\n±0.0500"
    assert (2, 0) in grid.strong
    assert grid.rows[4][1:3] == ("failed", "–")


def test_a_sweep_of_seeds_alone_has_one_mean(tmp_path):
    sweep(tmp_path, *(result(n, seed=seed) for seed, n in enumerate((0.1, 0.2, 0.6))))
    last = sweep_grid(read_jobs(tmp_path)).rows[-1]
    assert last[:2] == ("all: mean of 3 seeds ± half range", "0.3000\n±0.2500")


def test_a_failed_a_stopped_and_a_cut_short_job_are_holes_with_reasons(tmp_path):
    sweep(
        tmp_path,
        result(0.3, alignment="dpo"),
        {"overrides": ["alignment=none"], "error": "ValueError: beta is 0"},
        None,
        None,
    )
    (tmp_path / "3" / "result.json").write_text('{"overr')
    text = printed(tmp_path)
    assert varying_keys(read_jobs(tmp_path)) == ["alignment"]
    assert "alignment=none (run 1): ValueError: beta is 0" in text
    assert "run 2 (run 2): it left no result.json" in text
    page = (tmp_path / "sweep.md").read_text()
    assert "| alignment=none | failed |" in page
    assert "its result.json is cut short" in page


def test_the_files_hold_every_run(tmp_path):
    sweep(tmp_path, result(0.1, sft="a", lm="tiny"), {"overrides": ["sft=b"], "error": "no"})
    assert "0.1000" in printed(tmp_path)
    assert (tmp_path / "sweep.md").read_text().startswith("# Sweep of 2 runs\n\n| run |")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["sft"], row["lm"], row["HR@8"], row["error"]) for row in rows] == [
        ("0", "a", "tiny", "0.1", ""),
        ("1", "b", "", "", "no"),
    ]
    assert rows[0]["popularity HR@8"] == "0.1"


def test_a_figure_that_a_run_does_not_have_is_a_dash(tmp_path):
    sweep(
        tmp_path,
        {"overrides": ["a=1"], "figures": {"HR@1": 0.5, "HR@4": None}, "seconds": 1.0},
        {"overrides": ["a=2"], "figures": {"HR@8": 0.25}, "seconds": 1.0},
    )
    grid = sweep_grid(read_jobs(tmp_path))
    assert grid.head == ("run", "HR@1", "HR@4", "HR@8")
    assert grid.rows == (("a=1", "0.5000", "–", "–"), ("a=2", "–", "–", "0.2500"))


def test_a_sweep_of_failed_runs_has_a_column_that_says_so(tmp_path):
    sweep(tmp_path, {"overrides": ["a=1"], "error": "no"}, {"overrides": ["a=2"], "error": "no"})
    grid = sweep_grid(read_jobs(tmp_path))
    assert grid.head == ("run", "figures")
    assert grid.rows == (("a=1", "failed"), ("a=2", "failed"))


def test_a_folder_without_jobs_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no job: its folders must be named by number"):
        read_jobs(tmp_path)


APP = """
import json, sys
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=".", config_name="run")
def main(config):
    figures = {"HR@8": config.lr}
    content = {"overrides": list(HydraConfig.get().overrides.task), "figures": figures, "seconds": 1.0}
    Path(HydraConfig.get().runtime.output_dir, "result.json").write_text(json.dumps(content))

main()
print("heavy:", sorted({"torch", "matplotlib", "polars"} & set(sys.modules)))
"""
CONFIG = """
lr: 0.5
hydra:
  sweep: {dir: sweep, subdir: "${hydra.job.num}"}
  callbacks: {sweep_table: {_target_: leadre.report.sweep.SweepTable}}
"""


def test_hydra_calls_the_table_at_the_end_of_a_multirun_and_nothing_heavy_is_imported(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "run.yaml").write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "app.py", "-m", "lr=0.25,0.75"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(leadre.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Sweep of 2 runs" in done.stdout
    assert "lr=0.25" in done.stdout
    assert "heavy: []" in done.stdout
    assert (tmp_path / "sweep" / "sweep.csv").exists()
    assert "| lr=0.75 |" in (tmp_path / "sweep" / "sweep.md").read_text()
