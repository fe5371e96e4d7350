"""When a training is saved: every so many steps, before a validation, at its end, and when it is told to end."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from leadre.training.checkpoint import name_at
from leadre.training.signals import Signals


class Saving(Checkpoint):
    """Save inside the hook at a step's end, where Lightning's counters allow an exact resume, and nowhere else.

    Lightning logs a step only after this hook: a kill in between would lose the metrics of a step that is saved and
    so never taken again. Therefore a step to be saved is logged here first, by a method of Lightning that is private;
    Lightning then logs it once more, and each of our loggers drops the second row.

    Args:
        folder: Of the checkpoints.
        every_steps: Optimizer steps from one checkpoint to the next.
        valid_every_steps: A validation follows after so many; a kill in it then costs nothing of the training.
        num_steps: Optimizer steps of the whole training.
        signals: Tells when the process is to end.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_steps: int,
        valid_every_steps: int | None,
        num_steps: int,
        signals: Signals,
    ) -> None:
        self.folder = folder
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
        asked = self.signals.asked_of_any(trainer)
        if asked or self._is_time():
            trainer._logger_connector.update_train_step_metrics()
            trainer.save_checkpoint(self.folder / name_at(self.step))
        if asked:
            self.signals.end(trainer)

    def _is_time(self) -> bool:
        validated = self.valid_every_steps is not None and self.step % self.valid_every_steps == 0
        return self.step % self.every_steps == 0 or validated or self.step == self.num_steps
