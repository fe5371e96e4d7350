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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch.utils.data import DataLoader

from leadre.ranks import global_rank
from leadre.training.batches import Batches
from leadre.training.checkpoint import AtomicCheckpointIO, remove_debris
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.device import accelerator_of, set_up_device
from leadre.training.guards import Guard
from leadre.training.identity import Identity, found_in, made_of
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

    The whole plan of batches is one Lightning epoch. A checkpoint is left in ``out/checkpoints`` every
    ``compute.checkpoint_every_steps`` steps, before each validation and after the last step; a fit that finds one goes
    on from it as if it had never stopped. SIGTERM and Ctrl-C leave one at the present step and end the process with 143
    and 130. ``metrics.jsonl`` and ``metrics.csv`` are written to ``out``.

    Args:
        module: Holds a built network.
        train: The batches of the whole training; the gradients of a step's micro-batches are added up.
        out: The folder of the result under way.
        compute: Devices, threads, checkpoints, progress.
        logger: Where metrics go beside the files.
        name: The stage's name, shown in the progress bar and in W&B.
        valid: Batches for ``validation_step``; every rank gets all of them.
        valid_every_steps: Validate after so many steps, and once at the end.
        gradient_clip: The largest gradient norm.
        precision: Lightning's precision flag; it changes numbers, so it comes from the room's config.
        seed: With the batch it fixes what the module draws from the global generator.

    Raises:
        ValueError: If the checkpoint that is there is broken or of another training, or if the loss or a gradient is
            not finite.
        OSError: If a checkpoint cannot be written.
        SystemExit: After a signal.
    """
    module.train()
    set_up_device(compute)
    num_steps = len(train.plan)
    valid_every_steps = None if valid is None else valid_every_steps or num_steps
    what = made_of(
        module,
        train,
        stage=name,
        valid_every_steps=valid_every_steps,
        gradient_clip=gradient_clip,
        precision=precision,
        seed=seed,
    )
    if global_rank() == 0:
        remove_debris(out / "checkpoints")
    found = found_in(out / "checkpoints")
    resume_step = found.step if found else 0
    identity = Identity(what, found=found)
    if found:
        log.info("%s: going on from step %s", name, resume_step)
    # Lightning restores the state of a loader only if nothing has looked at the loader before, and a schedule over
    # `estimated_stepping_batches` has; so it is restored here.
    train.load_state_dict({"done": resume_step * train.micro_batches})
    signals = Signals()
    trainer = Trainer(
        accelerator=accelerator_of(compute),
        devices=compute.devices,
        num_nodes=compute.num_nodes,
        strategy=strategy_of(compute, module),
        precision=precision,  # type: ignore[arg-type]  # a plain string here, a long Literal there
        max_epochs=1,
        accumulate_grad_batches=train.micro_batches,
        logger=loggers(
            logger, out, name=name, resume_step=resume_step, step=lambda: max(module.global_step, resume_step)
        ),
        callbacks=[
            Seeding(seed),
            Guard(name=name, gradient_clip=gradient_clip),
            signals,
            identity,
            *([Validation(every_steps=valid_every_steps, num_steps=num_steps)] if valid_every_steps else []),
            Saving(
                out / "checkpoints",
                name=name,
                every_steps=compute.checkpoint_every_steps,
                valid_every_steps=valid_every_steps,
                num_steps=num_steps,
                signals=signals,
            ),
            *_progress(compute),
        ],
        plugins=[AtomicCheckpointIO()],
        check_val_every_n_epoch=None,
        val_check_interval=valid_every_steps * train.micro_batches if valid_every_steps else None,
        limit_val_batches=None if valid is not None else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=max(1, min(10, num_steps // 20)),
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=_watched(compute),
        default_root_dir=out,
    )
    with warnings.catch_warnings(), signals.heard():
        # The collate functions here are cheap and in process: no worker is missing.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning.*_pytree")
        # A bare list would be taken for several loaders.
        loader = DataLoader[Any](valid, batch_size=None) if valid is not None else None  # type: ignore[arg-type]
        trainer.fit(module, train, loader, ckpt_path=found.path if found else None, weights_only=True)
    whole_weights(module)
    if trainer.is_global_zero:
        write_csv(out)


def _progress(compute: ComputeConfig) -> list[Callback]:
    return [RichProgressBar()] if _watched(compute) else []


def _watched(compute: ComputeConfig) -> bool:
    return compute.progress and sys.stderr.isatty()
