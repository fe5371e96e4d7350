import json

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from leadre.training.batches import Batches, shuffled_plan
from leadre.training.checkpoint import AtomicCheckpointIO, progress_of
from leadre.training.fit import fit
from leadre.training.logs import read_metrics, write_csv

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


class _Line(LightningModule):
    """A linear model that can die at a step, as a killed process would."""

    def __init__(self, dies_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = torch.nn.Linear(3, 1)
        self.dies_at = dies_at

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        if self.global_step == self.dies_at:
            raise RuntimeError("killed")
        loss = (self.line(batch).squeeze(1) - batch.sum(1)).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: torch.Tensor) -> None:
        self.log("valid/loss", (self.line(batch).squeeze(1) - batch.sum(1)).square().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _train(out, compute, logger, dies_at=None):
    out.mkdir(exist_ok=True)
    module = _Line(dies_at)
    plan = shuffled_plan(20, batch_size=5, epochs=3, seed=0)
    train = Batches(plan, lambda rows: X[rows])
    fit(module, train, out=out, compute=compute, logger=logger, name="line", valid=[X], valid_every_steps=5)
    return module.line.weight.detach().numpy(), (out / "metrics.csv").read_text()


@pytest.mark.parametrize("dies_at", [1, 3, 4, 6, 7, 11])
def test_a_killed_training_goes_on_to_the_same_weights_and_metrics(tmp_path, compute, logger, dies_at):
    weights, metrics = _train(tmp_path / "whole", compute, logger)
    with pytest.raises(RuntimeError, match="killed"):
        _train(tmp_path / "killed", compute, logger, dies_at)
    resumed, resumed_metrics = _train(tmp_path / "killed", compute, logger)
    assert resumed.tobytes() == weights.tobytes()
    assert resumed_metrics == metrics


def test_a_finished_training_that_is_run_again_changes_nothing(tmp_path, compute, logger):
    weights, metrics = _train(tmp_path / "out", compute, logger)
    again, metrics_again = _train(tmp_path / "out", compute, logger)
    assert again.tobytes() == weights.tobytes()
    assert metrics_again == metrics


def test_metrics_hold_the_training_loss_and_a_validation_at_the_end(tmp_path, compute, logger):
    _train(tmp_path / "out", compute, logger)
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in rows if "valid/loss" in row] == [5, 10, 12]
    assert all(np.isfinite(row["train/loss"]) for row in rows if "train/loss" in row)


def test_a_save_that_fails_leaves_the_last_checkpoint_and_no_debris(tmp_path):
    path = tmp_path / "last.ckpt"
    loops = {"fit_loop": {"state_dict": {"combined_loader": [{"done": 7}]}}}
    AtomicCheckpointIO().save_checkpoint({"global_step": 7, "loops": loops}, path)
    with pytest.raises(AttributeError):
        AtomicCheckpointIO().save_checkpoint({"global_step": lambda: 8}, path)
    assert progress_of(path) == (7, 7)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_metrics_row_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "a": 2.0}) + '\n{"step": 2, "a"')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 2.0}]
    write_csv(tmp_path)
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,a", "1,2.0"]
