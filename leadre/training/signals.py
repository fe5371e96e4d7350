"""SIGTERM and Ctrl-C while a network is trained: the step under way is finished and kept, then the process ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

HEARD = (signal.SIGTERM, signal.SIGINT)


class Signals(Callback):
    """Note a signal while steps are taken, so that `Saving` ends the training at the next one's end.

    Elsewhere (while the training is set up, in a validation, after the last step) the process ends at once with
    128 + the signal: a checkpoint of the present step is there. So it does at a second signal.

    Lightning's own handling is replaced: it ends with status 1 after Ctrl-C, stops between micro-batches after SIGTERM,
    and talks to other ranks from inside a signal handler. A cluster's signal to requeue a job stays Lightning's.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.training = False
        self.validating = False
        self.trainer: Trainer | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen, and give the signals back at the end. Other threads than the main one hear no signals."""
        before = {each: signal.getsignal(each) for each in HEARD}
        self._listen()
        try:
            yield
        finally:
            if _may_listen():
                for each, handler in before.items():
                    signal.signal(each, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps begin; Lightning has just put a handler of its own in front."""
        self._listen()
        self.trainer = trainer
        self.training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No step comes any more."""
        self.training = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No step comes for a while, and the last one is saved."""
        self.validating = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Steps go on."""
        self.validating = False

    def _listen(self) -> None:
        if _may_listen():
            for each in HEARD:
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
