"""SIGTERM and Ctrl-C while a network is trained: the step under way is finished and kept, then the process ends."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

HEARD = (signal.SIGTERM, signal.SIGINT)
log = logging.getLogger(__name__)


class Signals(Callback):
    """Note a signal while steps are taken, so that `Saving` ends the training at the next one's end.

    Elsewhere (while the training is set up, in a validation, after the last step) the process ends at once with
    128 + the signal: a checkpoint of the present step is there. So it does at a second signal.

    Lightning's own handling is replaced: it ends with status 1 after Ctrl-C, stops between micro-batches after SIGTERM,
    and talks to other ranks from inside a signal handler. In a SLURM job SIGUSR1, which SLURM can send before the time
    is up, is heard as well. The job is not requeued: Lightning would save in the middle of a step for that, and later
    prefer that file to our checkpoints. Run the job again, or have ``sbatch --requeue`` do it, to go on.

    Args:
        name: The stage's, for the log.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard_here = (*HEARD, signal.SIGUSR1) if SLURMEnvironment.detect() else HEARD
        self.asked: int | None = None
        self.training = False
        self.validating = False
        self.trainer: Trainer | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen, and give the signals back at the end. Other threads than the main one hear no signals.

        A handler that is not Python's cannot be given back: its signal ends the process from then on.
        """
        before = {each: signal.getsignal(each) for each in self.heard_here}
        self._listen()
        try:
            yield
        finally:
            if _may_listen():
                for each, handler in before.items():
                    if handler is not None:
                        signal.signal(each, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps begin; Lightning has just put a handler of its own in front."""
        self._listen()
        self.trainer = trainer
        self.training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No step comes any more; a signal that came in after the last one's end is heard now."""
        self.training = False
        self._end_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No step comes for a while, and the last one is saved; a signal that came in since then is heard now."""
        self.validating = True
        self._end_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps go on."""
        self.validating = False

    def asked_of_any(self, trainer: Trainer) -> bool:
        """Whether a signal came in on any rank; all ranks must call it."""
        return trainer.strategy.reduce_boolean_decision(self.asked is not None, all=False)

    def end(self, trainer: Trainer) -> NoReturn:
        """End the process at a step that is saved.

        Raises:
            SystemExit: With 128 + the signal.
        """
        signum = self.asked or signal.SIGTERM  # another rank was told
        told = signal.Signals(signum).name
        log.warning("%s: ends at step %s, saved, by %s: run again to go on", self.name, trainer.global_step, told)
        raise SystemExit(128 + signum)

    def _end_if_asked(self, trainer: Trainer) -> None:
        if self.asked_of_any(trainer):
            self.end(trainer)

    def _listen(self) -> None:
        if _may_listen():
            for each in self.heard_here:
                signal.signal(each, self._hear)

    def _hear(self, signum: int, frame: FrameType | None) -> Any:  # noqa: ANN401
        if self.training and not self.validating and self.asked is None:
            self.asked = signum
            return
        launcher = self.trainer.strategy.launcher if self.trainer is not None else None
        if launcher is not None:  # ranks that Lightning started here would wait for this one
            launcher.kill(signum)
        raise SystemExit(128 + signum)


def _may_listen() -> bool:
    return threading.current_thread() is threading.main_thread()
