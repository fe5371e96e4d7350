import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from leadre.training.batches import shuffled_plan
from leadre.training.guards import FEWEST, WINDOW, Guard
from leadre.training.logs import read_metrics


def _loss(value):
    """The loss becomes ``value``, its gradient stays what it was."""
    return lambda module, loss: loss + (value if module.global_step == 6 else 0.0)


def _gradient(value):
    """The loss stays what it was, its gradient becomes ``value``."""

    def poison(module, loss):
        if module.global_step != 6:
            return loss
        bias = module.line.bias.sum()
        return loss + bias * value - (bias * value).detach() if math.isfinite(value) else loss + (bias * 0).sqrt()

    return poison


LOSS, GRADIENT = (
    r"the loss is {} and the norm of its gradient \d",
    r"the loss is \d.* gradient nan \(first in line\.bias, 1 in",
)
NAN, INF = (_loss(math.nan), LOSS.format("nan")), (_loss(math.inf), LOSS.format("inf"))
OF_GRADIENT = (_gradient(math.nan), GRADIENT)


@pytest.mark.parametrize(
    ("poison", "told", "precision"),
    [
        (*NAN, "32-true"),
        (*OF_GRADIENT, "bf16-mixed"),
        pytest.param(*NAN, "bf16-mixed", marks=pytest.mark.slow),
        pytest.param(*NAN, "bf16-true", marks=pytest.mark.slow),
        *(
            pytest.param(*INF, precision, marks=pytest.mark.slow)
            for precision in ("32-true", "bf16-mixed", "bf16-true")
        ),
        *(pytest.param(*OF_GRADIENT, precision, marks=pytest.mark.slow) for precision in ("32-true", "bf16-true")),
    ],
)
def test_what_is_not_finite_stops_before_its_step_and_the_last_checkpoint_goes_on(
    tmp_path, train, line, compute, poison, told, precision
):
    compute = replace(compute, checkpoint_every_steps=4)
    settings = {"compute": compute, "gradient_clip": 1.0, "precision": precision, "valid_every_steps": 50}
    module = _typed(line(poison=poison), precision)
    weights = []
    module.on_train_batch_end = lambda *_: weights.append(module.line.weight.detach().clone())
    told = rf"line: at step 7 {told}.*: the step was not taken, and the last checkpoint is kept; lower learning_rate"
    with pytest.raises(ValueError, match=told):
        train(tmp_path / "poisoned", module, **settings)
    assert len(weights) == 6
    assert torch.equal(module.line.weight.cpu(), weights[-1])
    (kept,) = (tmp_path / "poisoned" / "checkpoints").iterdir()
    assert kept.name.startswith("00000004.")
    whole = train(tmp_path / "whole", _typed(line(), precision), **settings)
    assert train(tmp_path / "poisoned", _typed(line(), precision), **settings) == whole


def _typed(module, precision):
    return module.to(torch.bfloat16) if precision == "bf16-true" else module


def test_a_nan_in_any_micro_batch_stops_the_step(tmp_path, train, line):
    seen = []

    def first_of_the_fourth_step(module, loss):
        seen.append(loss)
        return loss * (math.nan if len(seen) == 7 else 1.0)

    with pytest.raises(ValueError, match="line: at step 4 the loss is nan"):
        train(tmp_path / "out", line(poison=first_of_the_fourth_step), micro_batches=2)
    assert len(seen) == 8


@pytest.mark.parametrize("clip", [None, 0.5])
def test_the_step_is_that_of_pytorch_alone_clipped_or_not(tmp_path, train, line, examples, monkeypatch, clip):
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda batch, p: batch)
    mine = line()
    train(tmp_path / "out", mine, gradient_clip=clip)
    plain = line()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1)
    norms = []
    for step, rows in enumerate(shuffled_plan(20, batch_size=5, epochs=3, seed=0)):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 12)
        optimizer.zero_grad()
        ((plain.line(examples[rows]).squeeze(1) - examples[rows].sum(1)).square().sum() / 5).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(plain.parameters(), clip or math.inf).item())
        optimizer.step()
    assert torch.equal(mine.line.weight, plain.line.weight)
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["train/gradient_norm"] for row in rows if "train/loss" in row] == pytest.approx(norms, rel=1e-6)


def test_a_loss_that_jumps_is_told_once_a_window_and_the_usual_noise_is_not(caplog):
    guard = Guard(name="line", gradient_clip=None)
    noise = np.random.default_rng(0).lognormal(0.0, 0.2, 400)
    losses = dict(enumerate(noise, start=1)) | {FEWEST // 2: 50.0, 60: 50.0, 61: 60.0, 60 + WINDOW: 70.0}
    jumps = {}
    with caplog.at_level(logging.WARNING):
        for step, loss in losses.items():
            guard.jump = None
            guard._compare(float(loss), step)
            jumps |= {step: guard.jump} if guard.jump else {}
    assert list(jumps) == [60, 60 + WINDOW]
    assert jumps[60] == pytest.approx(50.0, rel=0.2)
    assert len(caplog.messages) == 2
    assert "line: the loss is 50 at step 60, " in caplog.messages[0]
    assert "lower learning_rate" in caplog.messages[0]


def test_noise_that_stays_below_the_loss_of_the_start_is_no_jump_however_small_the_median():
    guard = Guard(name="line", gradient_clip=None)
    noise = np.random.default_rng(0).lognormal(0.0, 1.5, 400)  # one in seven is above five medians
    for step in range(400):
        guard._compare(float(0.7 * max(0.9**step, 1e-3 * noise[step])), step)
        assert guard.jump is None
    guard._compare(0.8, 400)
    assert guard.jump > 100


def test_losses_that_are_zero_or_negative_are_no_jump():
    guard = Guard(name="line", gradient_clip=None)
    for step in range(2 * FEWEST):
        guard._compare([0.0, -1.0][step % 2], step)
    guard._compare(5.0, 2 * FEWEST)
    assert guard.jump is None


def test_a_jump_is_logged_at_its_step_also_by_a_resumed_training(tmp_path, train, line, killed_at):
    def jump(module, loss):
        return loss - loss.detach() + (9.0 if module.global_step == 29 else 1.0)

    settings = {"batch_size": 2}  # 30 steps
    whole = train(tmp_path / "whole", line(poison=jump), **settings)
    rows = read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss_spike" in row] == [30]
    with pytest.raises(BaseException):  # noqa: B017, PT011  # a kill
        train(tmp_path / "killed", killed_at(27, "after", poison=jump), **settings)
    assert train(tmp_path / "killed", line(poison=jump), **settings) == whole
