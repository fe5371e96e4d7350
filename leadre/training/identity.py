"""What a checkpoint is of: a training goes on from its own alone."""

import hashlib
import logging
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from leadre.training.batches import Batches
from leadre.training.checkpoint import newest, read

MADE_OF, MADE_ON = "made_of", "made_on"
"""Where a checkpoint tells what must be the same, and what may differ."""
SAMPLE = 64
"""First numbers of each parameter that tell where a training started."""
log = logging.getLogger(__name__)


class Found(NamedTuple):
    """A checkpoint to go on from: after which step, of what training, and where that ran."""

    path: Path
    step: int
    made_of: Mapping[str, str]
    made_on: Mapping[str, str]


def found_in(folder: Path) -> Found | None:
    """The newest checkpoint in a folder, if there is one.

    Raises:
        ValueError: If it is not what was written, see `leadre.training.checkpoint.read`.
    """
    path = newest(folder)
    if path is None:
        return None
    content = read(path)
    return Found(path, content["global_step"], content.get(MADE_OF, {}), content.get(MADE_ON, {}))


class Identity(Callback):
    """Write into each checkpoint what the training is made of and on; refuse one of another, warn of another place.

    Refused are other shapes of the network, other batches, other settings of the optimizer, and other numbers that
    `made_of` was given. Other machines, libraries, ranks, threads and first weights are warned of: weights that are
    computed, as by k-means, differ in their last digits from one machine to the next. What ``training_step`` does is
    not compared: the key of the stage tells that.

    Args:
        made_of: See `made_of`.
        first_weights: See `first_weights`.
        found: The checkpoint to go on from.

    Raises:
        ValueError: If the checkpoint is of another training.
    """

    def __init__(self, made_of: Mapping[str, str], *, first_weights: str, found: Found | None) -> None:
        self.made_of = dict(made_of)
        self.first_weights = first_weights
        self.found = found
        if found is not None:
            check(self.made_of, found)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimizer is set up, and its numbers are not yet those of the checkpoint."""
        for place, optimizer in enumerate(trainer.optimizers):
            for part, group in enumerate(optimizer.param_groups):
                kind = f"{type(optimizer).__name__} {place}.{part}"
                self.made_of |= {f"{kind} {key}": str(value) for key, value in group.items() if key != "params"}
        if self.found is not None:
            check(self.made_of, self.found)
            _warn_of_place(self._made_on(trainer), self.found.made_on)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Tell what the checkpoint is of."""
        checkpoint |= {MADE_OF: self.made_of, MADE_ON: self._made_on(trainer)}

    def _made_on(self, trainer: Trainer) -> dict[str, str]:
        return {
            "machine": f"{platform.machine()} {trainer.strategy.root_device.type}",
            "ranks": str(trainer.world_size),
            "strategy": type(trainer.strategy).__name__,
            "threads": str(torch.get_num_threads()),
            "torch": str(torch.__version__),
            "lightning": lightning.__version__,
            "first weights": self.first_weights,
        }


def made_of(module: LightningModule, train: Batches, **numbers: object) -> dict[str, str]:
    """What a checkpoint must share: names and shapes of the parameters, the rows of all batches, and some numbers.

    The number of micro-batches follows from the devices where the size of one is set. It is told with them: Lightning
    counts a training in micro-batches, and cannot go on with others.

    Args:
        module: With all its parameters.
        train: All batches of the training.
        numbers: Whatever else, by name.
    """
    weights = list(module.named_parameters())
    shapes = "".join(f"{name} {tuple(weight.shape)} {weight.requires_grad};" for name, weight in weights)
    sizes = np.array([len(rows) for rows in train.plan])
    return {
        "network": f"{len(weights)} parameters, {_digest([shapes.encode()])}",
        "batches": f"{len(train.plan)} steps, {_digest([sizes.tobytes(), *(rows.tobytes() for rows in train.plan)])}",
        "micro_batches (of micro_batch_size on compute.devices)": str(train.micro_batches),
        **{name: str(value) for name, value in numbers.items()},
    }


def first_weights(module: LightningModule) -> str:
    """A digest of the weights that a training from the first step starts from."""
    starts = (weight.detach().flatten()[:SAMPLE].float().cpu().numpy() for weight in module.parameters())
    return _digest(start.tobytes() for start in starts)


def check(now: Mapping[str, str], found: Found) -> None:
    """Refuse the checkpoint of another training.

    Args:
        now: What is known of this training by now.
        found: The checkpoint.

    Raises:
        ValueError: If they differ in anything; it tells in what.
    """
    changed = _differences(now, found.made_of)
    if changed:
        raise ValueError(
            f"{found.path} is of another training: {changed}; go back to the settings of then to go on, or delete the "
            f"folder {found.path.parent} to start the stage anew"
        )


def _warn_of_place(now: Mapping[str, str], then: Mapping[str, str]) -> None:
    changed = _differences(now, then)
    if changed:
        log.warning("the training goes on, but not bit for bit as it would have: %s", changed)


def _differences(now: Mapping[str, str], then: Mapping[str, str]) -> str:
    return "; ".join(
        f"{key} was {then.get(key, 'not told')}, now {now[key]}" for key in now if then.get(key) != now[key]
    )


def _digest(parts: Iterable[bytes]) -> str:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return sha256.hexdigest()[:12]
