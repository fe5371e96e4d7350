import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import leadre
from leadre.report.sweep import best_trial, read_jobs, sweep_grid, varying_keys, write_sweep

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


BREAKS = """
import os, signal
from pathlib import Path
import hydra

@hydra.main(version_base="1.3", config_path=".", config_name="run")
def main(config):
    if config.lr == 0.75:
        raise SystemExit(143)  # as a signal ends a training
    (Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir) / "result.json").write_text(
        '{"overrides": ["lr=0.25"], "figures": {"HR@8": 0.25}, "seconds": 1.0}'
    )

main()
"""


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


def test_a_stopped_job_is_named_by_what_it_was_begun_with_and_one_that_never_began_by_its_number(tmp_path):
    sweep(tmp_path, result(0.1, sft="a"), None)
    (tmp_path / "1" / ".hydra").mkdir()
    (tmp_path / "1" / ".hydra" / "overrides.yaml").write_text("- sft=b\n- sft.stages=[{main:1}]\n")
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "result.json").write_text(json.dumps(result(0.3, sft="d")))
    text = printed(tmp_path)
    assert "sft=b stages=[{main:1}] (run 1): it left no result.json: it was stopped before its end, or goes on" in text
    assert "run 2 (run 2): it was never begun" in text
    assert [job.number for job in read_jobs(tmp_path)] == [0, 1, 2, 3]


def test_a_hole_of_submitit_says_where_the_job_itself_speaks(tmp_path):
    sweep(tmp_path, result(0.1, sft="a"), None)
    (tmp_path / ".submitit").mkdir()
    assert f"what the jobs themselves said lies in {tmp_path}/.submitit" in printed(tmp_path).replace("\n", "")


def test_a_run_is_named_by_the_ends_of_its_keys_where_they_tell_and_by_rounded_numbers(tmp_path):
    long = {"sft.tuning.learning_rate": "0.005381153886003519", "alignment.tuning.epochs": 1, "sft/tuning": "paper"}
    other = {"sft.tuning.learning_rate": "0.001", "alignment.tuning.epochs": 2, "sft/tuning": "quick", "lm.seed": 3}
    sweep(tmp_path, result(0.1, **long, seed=0), result(0.2, **other, seed=1))
    assert [row[0] for row in sweep_grid(read_jobs(tmp_path)).rows] == [
        "learning_rate=0.00538 epochs=1 tuning=paper seed=0",
        "learning_rate=0.001 epochs=2 tuning=quick seed=1 lm.seed=3",
    ]


def trial(number, **overrides):
    figures = {"valid/ndcg@8": number, "valid/hr@8": 0.5}
    told = {"objective": "valid/ndcg@8", "command": f"python train.py sft={overrides['sft']}"}
    return result(0.0, **overrides) | told | {"figures": figures}


def test_a_search_ends_with_its_best_trial_and_the_command_that_scores_it(tmp_path):
    failed = {"overrides": ["sft=c", "search=x"], "error": "ValueError: no"}
    trials = [trial(number, sft=name, search="x") for name, number in (("a", 0.2), ("b", 0.4), ("d", 0.4))]
    sweep(tmp_path, *trials, failed)
    text = printed(tmp_path)
    assert best_trial(read_jobs(tmp_path)).number == 1
    assert re.search(r"Best of 3 of 4 trials by valid/ndcg@8: run 1 *\n", text)
    assert text.rstrip().endswith("on the test users it is scored by\npython train.py sft=b")
    page = (tmp_path / "sweep.md").read_text()
    assert "| **sft=b** | **0.4000** | **0.5000** |" in page
    assert "## Best of 3 of 4 trials by valid/ndcg@8: run 1\n\n| setting | value |\n|---|---:|\n| sft | b |" in page
    assert page.endswith("```sh\npython train.py sft=b\n```\n")


def test_a_search_without_a_failure_has_the_best_of_all(tmp_path):
    sweep(tmp_path, *(trial(number, sft=name) for name, number in (("a", 0.2), ("b", 0.4))))
    assert "Best of 2 trials by valid/ndcg@8: run 1" in printed(tmp_path)


def test_a_search_of_which_every_trial_failed_has_no_best_one(tmp_path):
    sweep(tmp_path, {"overrides": ["sft=c"], "error": "ValueError: no"}, result(0.3, sft="d"))
    assert best_trial(read_jobs(tmp_path)) is None
    assert "Best" not in printed(tmp_path)


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


def app(folder, program, *arguments):
    (folder / "app.py").write_text(program)
    (folder / "run.yaml").write_text(CONFIG)
    return subprocess.run(
        [sys.executable, "app.py", "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(leadre.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_hydra_calls_the_table_at_the_end_of_a_multirun_and_nothing_heavy_is_imported(tmp_path):
    done = app(tmp_path, APP, "lr=0.25,0.75")
    assert done.returncode == 0, done.stderr
    assert "Sweep of 2 runs" in done.stdout
    assert "lr=0.25" in done.stdout
    assert "heavy: []" in done.stdout
    assert (tmp_path / "sweep" / "sweep.csv").exists()
    assert "| lr=0.75 |" in (tmp_path / "sweep" / "sweep.md").read_text()


def test_a_sweep_that_is_broken_off_has_its_table_and_says_how_to_make_it_anew(tmp_path):
    done = app(tmp_path, BREAKS, "lr=0.25,0.75,0.5")
    assert done.returncode == 143
    assert "lr=0.75 (run 1): it left no result.json" in done.stdout
    assert f"python -m leadre.report.sweep {tmp_path / 'sweep'}" in done.stderr
    assert "| lr=0.25 | 0.2500 |" in (tmp_path / "sweep" / "sweep.md").read_text()
