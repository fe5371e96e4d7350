"""Twenty kills of the main job, in every stage that trains and in others: the files are those of an unbroken run."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
JOB = (
    "data/world=tiny",
    "quantizer=tiny",
    "quantizer.steps=200",
    "lm.hidden_size=32",
    "lm.layers=1",
    "lm.intermediate_size=32",
    "lm.text_tokens=600",
    "sft.stages=[{explicit: 6},{implicit: 1},{main: 2}]",
    "sft.tuning.micro_batch_size=16",
    "sft.tuning.validations=2",
    "sft.tuning.valid_users=16",
    "alignment.preferences.max_pairs=128",
    "alignment.tuning.epochs=2",
    "decoding.beam_width=10",
    "compute.threads=1",
    "compute.checkpoint_every_steps=1",
)
TRAINED = ("codes", "sft", "aligned")
KILLS = {"world": 1, "codes": 4, "pairs": 1, "sft": 3, "preferences": 1, "aligned": 4}  # sft has three stages
COMPARED = (*TRAINED, "preferences", "generations", "scores")
TIMED = ("manifest.json", "generation.json")


def _start(store: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *JOB, f"store.root={store}"]
    with (store / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=store, env=environment, stdout=log, stderr=log)


def _hashes(store: Path) -> dict[str, str]:
    """The sha256 of every file of the compared stages, but for those that tell how long it took."""
    paths = [path for stage in COMPARED for path in (store / stage).rglob("*") if path.is_file()]
    kept = [path for path in paths if path.name not in TIMED and path.suffix != ".lock"]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def _stages(store: Path) -> list[tuple[Path, float]]:
    """The results in the order they were built, and how long each took."""
    manifests = sorted(store.glob("*/*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    return [(path.parent.relative_to(store), json.loads(path.read_text())["seconds"]) for path in manifests]


def _kill_in(store: Path, result: Path, delay: float) -> list[str]:
    """Start the job, kill it a while after a stage began, and tell in which stage that was: none if it ended first."""
    process = _start(store)
    partial = store / result.with_name(result.name + ".partial")
    while process.poll() is None and not partial.exists() and not (store / result / "manifest.json").exists():
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    under_way = [path.parent.name + "/" + path.stem for path in store.glob("*/*.partial")]
    status = process.wait()
    assert status in (0, -9), (store / "log").read_text()[-3000:]
    return [] if status == 0 else under_way[:1] or ["between stages"]


@pytest.mark.slow
def test_twenty_kills_over_all_stages_leave_the_files_of_an_unbroken_run(tmp_path, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for store in (whole, killed):
        store.mkdir()
    assert _start(whole).wait() == 0, (whole / "log").read_text()[-3000:]
    draw = random.Random(0)
    hits: Counter[str] = Counter()
    for result, seconds in _stages(whole):
        times = KILLS.get(result.parent.name, 0)
        for _ in range(times):
            if not (killed / result / "manifest.json").exists():
                hits.update(_kill_in(killed, result, draw.uniform(0, 1.2 * seconds / times)))
    trained = [str(result) for result, _ in _stages(whole) if result.parent.name in TRAINED]
    while sum(hits.values()) < 20:  # what a stage that was too quick has left over
        hits.update(_kill_in(killed, Path(trained[-1]).parent.parent / "generations", draw.uniform(0, 0.5)))
    assert _start(killed).wait() == 0, (killed / "log").read_text()[-3000:]
    with capsys.disabled():
        print(f"\n{sum(hits.values())} kills: {', '.join(f'{stage} {count}' for stage, count in hits.items())}")
    assert all(hits[stage] for stage in trained)
    assert _hashes(killed) == _hashes(whole)
