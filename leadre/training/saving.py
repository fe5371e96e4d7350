"""When a training is saved: every so many steps, before a validation, at its end, and when it is told to end."""

import logging
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from leadre.training.checkpoint import name_at
from leadre.training.signals import Signals

log = logging.getLogger(__name__)


class Saving(Checkpoint):
    """Save inside the hook at a step's end, where Lightning's counters allow an exact resume, and nowhere else.

    Args:
        folder: Of the checkpoints.
        name: The stage's, for the log.
        every_steps: Optimizer steps from one checkpoint to the next.
        valid_every_steps: A validation follows after so many; a kill in it then costs nothing of the training.
        num_steps: Optimizer steps of the whole training.
        signals: Tells when the process is to end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        every_steps: int,
        valid_every_steps: int | None,
        num_steps: int,
        signals: Signals,
    ) -> None:
        self.folder = folder
        self.name = name
        self.every_steps = every_steps
        self.valid_every_steps = valid_every_steps
        self.num_steps = num_steps
        self.signals = signals
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on from the step of the checkpoint."""
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401
        """Save if it is time, and end the process if it was told to.

        Raises:
            SystemExit: With 128 + the signal, after it was saved.
        """
        if trainer.global_step == self.step:  # a micro-batch that is not its step's last: gradients are not saved
            return
        self.step = trainer.global_step
        asked = trainer.strategy.reduce_boolean_decision(self.signals.asked is not None, all=False)
        if asked or self._is_time():
            # Lightning would log this step only after this hook: a kill in between would lose its metrics.
            trainer._logger_connector.update_train_step_metrics()
            trainer.save_checkpoint(self.folder / name_at(self.step))
        if asked:
            signum = self.signals.asked or signal.SIGTERM  # another rank was told
            told = signal.Signals(signum).name
            log.warning("%s: ends at step %s, saved, by %s: run again to go on", self.name, self.step, told)
            raise SystemExit(128 + signum)

    def _is_time(self) -> bool:
        validated = self.valid_every_steps is not None and self.step % self.valid_every_steps == 0
        return self.step % self.every_steps == 0 or validated or self.step == self.num_steps
