import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from leadre.training.logs import read_metrics, write_csv

Killed = BaseException
STEPS = 12


@pytest.fixture(scope="module")
def unbroken():
    """What unbroken trainings gave, by their settings: each is run once."""
    return {}


def _whole(unbroken, tmp_path, train, **settings):
    key = tuple(settings.items())
    if key not in unbroken:
        unbroken[key] = train(tmp_path / "whole", **settings)
    return unbroken[key]


def _check(unbroken, tmp_path, train, killed_at, compute, *, step, where, every, **settings):
    compute = replace(compute, checkpoint_every_steps=every)
    whole = _whole(unbroken, tmp_path, train, **settings)
    out = tmp_path / "killed"
    with pytest.raises(Killed):
        train(out, killed_at(step, where), compute=compute, **settings)
    assert train(out, compute=compute, **settings) == whole
    left = [path.name[:9] for path in (out / "checkpoints").iterdir()]
    assert left == [f"{STEPS:08}."]  # no debris, and the last step alone
    assert train(out, compute=compute, **settings) == whole  # once more from the last step


FEW = [
    (1, "after", 1, 1, 5),
    (5, "after", 5, 2, 5),  # saved, and killed before its validation
    (5, "validation", 1, 1, 5),
    (5, "step", 5, 3, 5),  # in the first of the micro-batches after a checkpoint
    (6, "inside", 3, 1, 5),
    (12, "after", 50, 2, 4),  # the last step is a validation
    (12, "validation", 50, 1, 5),
]


@pytest.mark.parametrize(("step", "where", "every", "micro_batches", "valid_every_steps"), FEW)
def test_a_killed_training_goes_on_to_the_same_weights_and_metrics(
    unbroken, tmp_path, train, killed_at, compute, step, where, every, micro_batches, valid_every_steps
):
    settings = {"micro_batches": micro_batches, "valid_every_steps": valid_every_steps}
    _check(unbroken, tmp_path, train, killed_at, compute, step=step, where=where, every=every, **settings)


@pytest.fixture(scope="module")
def long(tmp_path_factory, train):
    out = tmp_path_factory.mktemp("long") / "whole"
    whole = train(out, **LONG)
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl") if "train/loss" in row] == [*range(3, 61, 3)]
    return whole


LONG = {"batch_size": 1, "valid_every_steps": 25, "micro_batches": 2}  # 60 steps, of which every third is logged


@pytest.mark.parametrize(("step", "where"), [(25, "validation"), (40, "inside"), (50, "step")])
def test_a_killed_training_that_does_not_log_every_step_goes_on_to_the_same_metrics(
    tmp_path, train, killed_at, compute, long, step, where
):
    settings = LONG | {"compute": replace(compute, checkpoint_every_steps=20)}
    with pytest.raises(Killed):
        train(tmp_path / "out", killed_at(step, where), **settings)
    assert train(tmp_path / "out", **settings) == long


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 5, 50])
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("step", range(1, STEPS + 1))
def test_a_training_killed_anywhere_goes_on_to_the_same_weights_and_metrics(
    unbroken, tmp_path, train, killed_at, compute, step, micro_batches, every
):
    places = ["step"] if step < STEPS else []
    places += ["inside", "after"] if step % every == 0 or step in (4, 8, STEPS) else []
    places += ["validation"] if step in (4, 8, STEPS) else []
    for where in places:
        settings = {"micro_batches": micro_batches, "valid_every_steps": 4}
        folder = tmp_path / where
        _check(unbroken, folder, train, killed_at, compute, step=step, where=where, every=every, **settings)


def test_the_same_seed_twice_gives_the_same_bytes_and_another_seed_others(tmp_path, train):
    first, again, other = (train(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert first == again
    assert first[0] != other[0]


def test_micro_batches_give_the_step_of_the_whole_batch(tmp_path, train, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda batch, p: batch)
    one, five = (np.frombuffer(train(tmp_path / str(n), micro_batches=n)[0], np.float32) for n in (1, 5))
    assert five == pytest.approx(one, rel=1e-5)


def test_metrics_hold_the_loss_the_gradient_and_a_validation_at_the_end(tmp_path, train):
    train(tmp_path / "out", micro_batches=2)
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows if "valid/loss" in row] == [5, 10, STEPS]
    trained = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in trained] == list(range(1, STEPS + 1))
    assert all(np.isfinite([row["train/loss"], row["train/gradient_norm"]]).all() for row in trained)


def test_a_metrics_row_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "a": 2.0}) + '\n{"step": 2, "a"')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 2.0}]
    write_csv(tmp_path)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a", "1,2.0"]


def test_a_folder_with_spaces_and_unicode_changes_nothing_and_nothing_is_written_elsewhere(
    tmp_path, train, monkeypatch
):
    plain = train(tmp_path / "plain")
    parent, elsewhere = tmp_path / "mein Ordner 广告 😀", tmp_path / "elsewhere"
    out = parent / "out put"
    out.mkdir(parents=True)
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("TMPDIR", str(elsewhere / "missing"))
    parent.chmod(0o555)  # as far as it binds this user
    try:
        assert train(out) == plain
    finally:
        parent.chmod(0o755)
    assert [path.name for path in parent.iterdir()] == ["out put"]
    assert not list(elsewhere.iterdir())
    assert sorted(os.listdir(out)) == ["checkpoints", "metrics.csv", "metrics.jsonl"]
