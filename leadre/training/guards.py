"""A look at the loss and the gradient of every step before it is taken."""

import logging
import math
import statistics
from collections import deque
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from leadre.training.strategy import whole

WINDOW = 100
"""Steps that a loss is compared with, and steps that pass between two warnings."""
FEWEST = 20
"""Losses that are needed to tell what is usual."""
SPIKE = 5.0
"""A loss above so many times the running median is a spike, if it is above that of the start too. Our choice."""
START = 5
"""Losses whose median is the loss of the start."""
log = logging.getLogger(__name__)


class Guard(Callback):
    """Clip the gradient, stop before a step with a NaN or an infinity in it, warn of a loss that jumps.

    One NaN would poison all weights and moments at once, and clipping passes it on without a word. The norm that
    clipping needs anyway tells of any in the gradient; it and the loss reach the host in one transfer a step.

    The gradient is that of all ranks together, but the loss is this rank's own: with several, the first rank logs the
    jumps of its part of the batches, and another's NaN is seen in the gradient. Losses that have come near 0 may well
    be many times their median: it is no jump while they stay below the loss that the training started with.

    Args:
        name: The stage's, for the messages.
        gradient_clip: The largest gradient norm; None leaves the gradient as it is.
    """

    def __init__(self, *, name: str, gradient_clip: float | None) -> None:
        self.name = name
        self.gradient_clip = gradient_clip
        self.loss: Tensor | None = None
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.start = 0.0
        self.quiet_until = 0
        self.jump: float | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add up the losses of a step's micro-batches."""
        self.loss = loss.detach() if self.loss is None else self.loss + loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Check, then clip; Lightning calls it after the last backward and before anything is changed.

        Raises:
            ValueError: If the loss or the gradient is not finite.
        """
        parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = nn.utils.get_total_norm([weight.grad for weight in parameters if weight.grad is not None])
        loss, size = _on_host(self.loss, whole(norm))
        self.loss = None
        if not (math.isfinite(loss) and math.isfinite(size)):
            raise ValueError(_not_finite(self.name, trainer.global_step + 1, loss, size, pl_module))
        if self.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.gradient_clip, norm)
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # Lightning sets it
            pl_module.log("train/gradient_norm", size)
        self._compare(loss, trainer.global_step + 1)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: ANN401
        """Log a jump of the loss at its step."""
        if self.jump is not None:
            for sink in trainer.loggers:
                sink.log_metrics({"train/loss_spike": self.jump}, step=trainer.global_step)
            self.jump = None

    def state_dict(self) -> dict[str, Any]:
        """The losses so far: a resumed training warns of what the unbroken one warns of."""
        return {"losses": list(self.losses), "start": self.start, "quiet_until": self.quiet_until}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the losses so far."""
        self.losses.extend(state_dict["losses"])
        self.start = state_dict["start"]
        self.quiet_until = state_dict["quiet_until"]

    def _compare(self, loss: float, step: int) -> None:
        if len(self.losses) >= FEWEST and step >= self.quiet_until:
            usual = statistics.median(self.losses)
            if usual > 0 and loss > max(SPIKE * usual, self.start):
                log.warning(
                    "%s: the loss is %.4g at step %s, %.1f times the median of the last %s steps: if it does not fall "
                    "again, lower learning_rate",
                    self.name, loss, step, loss / usual, len(self.losses),
                )  # fmt: skip
                self.jump = loss / usual
                self.quiet_until = step + WINDOW
        self.losses.append(loss)
        if len(self.losses) == START:
            self.start = statistics.median(self.losses)


def _on_host(loss: Tensor | None, norm: Tensor) -> tuple[float, float]:
    """Both numbers in one transfer, so that a GPU is waited for once a step."""
    told = norm if loss is None else loss
    first, second = torch.stack([told.double().to(norm.device), norm.double()]).tolist()
    return first, second


def _not_finite(name: str, step: int, loss: float, norm: float, module: LightningModule) -> str:
    where = [
        name
        for name, weight in module.named_parameters()
        if weight.grad is not None and not whole(weight.grad).isfinite().all()
    ]
    found = f" (first in {where[0]}, {len(where)} in all)" if where else ""
    return (
        f"{name}: at step {step} the loss is {loss} and the norm of its gradient {norm}{found}: the step was not "
        "taken, and the last checkpoint is kept; lower learning_rate, set gradient_clip, or use precision=32-true"
    )
