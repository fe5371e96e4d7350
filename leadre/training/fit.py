"""One Lightning fit for every network: resumable at any step, logged to files, quiet when nobody watches.

The promise: a training that is killed at any moment, or told to end, and started again, ends with the weights, the
optimizer state and the metrics of the unbroken one, bit for bit: from the first step, the last, a validation, and
between any two stages. It holds on the same type of machine, with the same numbers of threads and ranks and the same
versions of the libraries: others add in another order. It asks of a module that all its state is in its ``state_dict``
at the end of a step, and that it draws from the global generator of PyTorch, or from (seed, step).
"""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from leadre.ranks import global_rank
from leadre.training.batches import Batches
from leadre.training.checkpoint import AtomicCheckpointIO, remove_debris
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.device import accelerator_of, set_up_device
from leadre.training.guards import Guard
from leadre.training.identity import Found, Identity, first_weights, found_in, made_of
from leadre.training.logs import loggers, write_csv
from leadre.training.saving import Saving
from leadre.training.seeding import Seeding
from leadre.training.signals import Signals
from leadre.training.strategy import strategy_of, whole_weights
from leadre.training.validation import Validation

log = logging.getLogger(__name__)


def fit(
    module: LightningModule,
    train: Batches,
    *,
    out: Path,
    compute: ComputeConfig,
    logger: LoggerConfig,
    name: str,
    valid: Sequence[Any] | None = None,
    valid_every_steps: int | None = None,
    gradient_clip: float | None = None,
    precision: str = "32-true",
    seed: int = 0,
) -> None:
    """Train ``module`` on all batches of ``train``; the trained weights are in it afterwards.

    A checkpoint is left in ``out/checkpoints`` every ``compute.checkpoint_every_steps`` steps, before each validation,
    after the last step, and at a signal; a fit that finds one goes on from it as if it had never stopped.

    Args:
        module: Holds a built network.
        train: The batches of the whole training; the gradients of a step's micro-batches are added up.
        out: The folder of the result under way; ``metrics.jsonl`` and ``metrics.csv`` are written there.
        compute: Devices, threads, checkpoints, progress.
        logger: Where metrics go beside the files.
        name: The stage's name, shown in the progress bar and in W&B.
        valid: Batches for ``validation_step``; every rank gets all of them.
        valid_every_steps: Validate after so many steps, and once at the end.
        gradient_clip: The largest gradient norm.
        precision: Lightning's precision flag; it changes numbers, so it comes from the room's config.
        seed: With the batch it fixes what the module draws from the global generator.

    Raises:
        ValueError: If the checkpoint is broken or of another training, or a loss or a gradient is not finite.
        OSError: If a checkpoint cannot be written.
        SystemExit: After a signal, with 128 + the signal.
    """
    module.train()
    set_up_device(compute)
    every = None if valid is None else valid_every_steps or len(train.plan)
    numbers = {"valid_every_steps": every, "gradient_clip": gradient_clip, "precision": precision, "seed": seed}
    found = _found(out / "checkpoints", name)
    identity = Identity(made_of(module, train, stage=name, **numbers), first_weights=first_weights(module), found=found)
    step = found.step if found else 0
    train.start_at(step)
    signals = Signals(name)
    looks = [Seeding(seed), Guard(name=name, gradient_clip=gradient_clip), signals, identity]
    sinks = loggers(logger, out, name=name, resume_step=step, step=lambda: max(module.global_step, step))
    trainer = _trainer(
        module, train, looks, sinks, out=out, compute=compute, signals=signals, every=every, precision=precision
    )
    # A bare list would be taken for several loaders.
    loader = None if valid is None else DataLoader[Any](valid, batch_size=None)  # type: ignore[arg-type]
    with _quiet(), signals.heard():
        trainer.fit(module, train, loader, ckpt_path=found.path if found else None, weights_only=True)
    whole_weights(module)
    if trainer.is_global_zero:
        write_csv(out)


def _found(folder: Path, name: str) -> Found | None:
    """The checkpoint to go on from, in a folder without debris."""
    if global_rank() == 0:
        remove_debris(folder)
    found = found_in(folder)
    if found:
        log.info("%s: going on from step %s", name, found.step)
    return found


def _trainer(
    module: LightningModule,
    train: Batches,
    looks: list[Callback],
    sinks: list[Logger],
    *,
    out: Path,
    compute: ComputeConfig,
    signals: Signals,
    every: int | None,
    precision: str,
) -> Trainer:
    """Lightning's trainer of one epoch, that validates after ``every`` steps and saves when it is time."""
    num_steps = len(train.plan)
    saving = Saving(
        out / "checkpoints",
        every_steps=compute.checkpoint_every_steps,
        valid_every_steps=every,
        num_steps=num_steps,
        signals=signals,
    )
    validation = [Validation(every_steps=every, num_steps=num_steps)] if every else []
    watched = compute.progress and sys.stderr.isatty()
    return Trainer(
        accelerator=accelerator_of(compute),
        devices=compute.devices,
        num_nodes=compute.num_nodes,
        strategy=strategy_of(compute, module),
        precision=precision,  # type: ignore[arg-type]  # a plain string here, a long Literal there
        max_epochs=1,
        accumulate_grad_batches=train.micro_batches,
        logger=sinks,
        callbacks=[*looks, *validation, saving, *([RichProgressBar()] if watched else [])],
        plugins=[AtomicCheckpointIO(), *_slurm()],
        check_val_every_n_epoch=None,
        val_check_interval=every * train.micro_batches if every else None,
        limit_val_batches=None if every else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, min(10, num_steps // 20)),
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=watched,
        default_root_dir=out,
    )


def _slurm() -> list[SLURMEnvironment]:
    """SLURM's ranks where Lightning would find them, without its requeueing, see `Signals`; torchrun's go first."""
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [SLURMEnvironment(auto_requeue=False)]
    return []


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of what is meant."""
    with warnings.catch_warnings():
        # The collate functions here are cheap and in process: no worker is missing.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
        # `Batches` starts at the step of the checkpoint. Lightning restores the state of a loader only if nothing has
        # looked at the loader before, and a schedule over `estimated_stepping_batches` has.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning.*_pytree")
        yield
