"""The validations that Lightning's loop leaves out: one that a kill cut short, and one after the last step."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Validation(Callback):
    """Validate where a resumed training starts, if it is time there, and at the end.

    A training that was saved before a validation cannot know whether it was finished: it is run again, and its metrics
    are logged once. It runs inside the training's own loop, where the weights are spread over the devices already.

    Args:
        every_steps: Optimizer steps from one validation to the next, which Lightning sees to.
        num_steps: Optimizer steps of the whole training.
    """

    def __init__(self, *, every_steps: int, num_steps: int) -> None:
        self.every_steps = every_steps
        self.num_steps = num_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate again what a kill may have cut short."""
        if trainer.global_step and trainer.global_step % self.every_steps == 0:
            _validate(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the last step, unless that was done."""
        if self.num_steps % self.every_steps:
            _validate(trainer)


def _validate(trainer: Trainer) -> None:
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # from its first batch
    trainer.validating = True
    loop.run()
    trainer.training = True
