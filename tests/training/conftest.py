"""A small training that can die in any hook, as a killed process would."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from leadre.training import checkpoint
from leadre.training.batches import Batches, shuffled_plan
from leadre.training.fit import fit

ROWS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
STEPS = 12


class Killed(BaseException):
    """Nobody catches a kill."""


class Line(LightningModule):
    """A linear model with dropout, which draws from the global generator."""

    def __init__(self, dies_at=None, dies_in="step", poison=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(3, 1)
        self.dies_at, self.dies_in, self.poison = dies_at, dies_in, poison or (lambda module, loss: loss)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        if self.dies_in == "step" and self.global_step == self.dies_at:
            raise Killed
        kept = torch.nn.functional.dropout(batch, 0.2)
        loss = (self.line(kept).squeeze(1) - batch.sum(1)).square().sum() / 5 * self.trainer.accumulate_grad_batches
        self.log("train/loss", loss)
        return self.poison(self, loss)

    def validation_step(self, batch: torch.Tensor) -> None:
        if self.dies_in == "validation" and self.global_step == self.dies_at:
            raise Killed
        self.log("valid/loss", (self.line(batch).squeeze(1) - batch.sum(1)).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.fixture(scope="session")
def train(compute, logger):
    """Train the line in a folder; gives the bytes of its weights and of both metrics files."""

    def run(out, module=None, *, micro_batches=1, valid_every_steps=5, batch_size=5, **options):
        out.mkdir(exist_ok=True, parents=True)
        module = module or Line()
        plan = shuffled_plan(20, batch_size=batch_size, epochs=3, seed=0)
        fit(
            module,
            Batches(plan, lambda rows, whole: ROWS[rows], micro_batches=micro_batches),
            out=out,
            name="line",
            valid=[ROWS[:7], ROWS[7:]],
            valid_every_steps=valid_every_steps,
            **{"compute": compute, "logger": logger} | options,
        )
        weights = module.line.weight.detach().float().numpy()
        assert np.isfinite(weights).all()
        return weights.tobytes(), *((out / f"metrics.{kind}").read_bytes() for kind in ("jsonl", "csv"))

    return run


@pytest.fixture
def killed_at(monkeypatch):
    """Kill at a step: before its save, right after it, inside it, in the step after it, or in its validation."""

    def arrange(step, where, **options):
        if where in ("step", "validation"):
            return Line(step, where, **options)
        real = checkpoint.AtomicCheckpointIO.save_checkpoint

        def save(self, content, path, storage_options=None):
            if content["global_step"] == step:
                if where == "inside":
                    path.parent.mkdir(exist_ok=True)
                    path.with_name(path.name + ".part").write_bytes(b"half")
                if where == "after":
                    real(self, content, path)
                monkeypatch.undo()
                raise Killed
            real(self, content, path)

        monkeypatch.setattr(checkpoint.AtomicCheckpointIO, "save_checkpoint", save)
        return Line(**options)

    return arrange


@pytest.fixture(scope="session")
def examples():
    return ROWS


@pytest.fixture(scope="session")
def line():
    """The class of the module."""
    return Line
