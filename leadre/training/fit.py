"""One Lightning fit for every network: resumable at any step, logged to files, quiet when nobody watches."""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader

from leadre.training.batches import Batches
from leadre.training.checkpoint import AtomicCheckpointIO, progress_of
from leadre.training.config import ComputeConfig, LoggerConfig
from leadre.training.device import accelerator_of, set_up_device
from leadre.training.logs import loggers, write_csv

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
) -> None:
    """Train ``module`` on all batches of ``train``; the trained weights are in it afterwards.

    The whole plan of batches is one Lightning epoch. A checkpoint is left in ``out/checkpoints``
    every ``compute.checkpoint_every_steps`` steps, and a fit that finds one goes on from it with the
    same weights, optimizer state and batches as if it had never stopped (same machine type,
    thread count and library versions). ``metrics.jsonl`` and ``metrics.csv`` are written to ``out``.

    Args:
        module: Holds a built network; draws no randomness but from (seed, global_step).
        train: The batches of the whole training.
        out: The folder of the result under way.
        compute: Devices, threads, checkpoints, progress.
        logger: Where metrics go beside the files.
        name: The stage's name, shown in the progress bar and in W&B.
        valid: Batches for ``validation_step``.
        valid_every_steps: Validate after so many steps, and once at the end.
        gradient_clip: The largest gradient norm.
        precision: Lightning's precision flag; it changes numbers, so it comes from the room's config.
    """
    module.train()
    set_up_device(compute)
    checkpoint = out / "checkpoints" / "last.ckpt"
    resume_step, batches_done = progress_of(checkpoint) if checkpoint.exists() else (0, 0)
    if resume_step:
        log.info("%s: going on from step %s", name, resume_step)
        # Lightning restores the state of a loader only if nothing has looked at the loader before, and a
        # schedule over `estimated_stepping_batches` has; so it is restored here.
        train.load_state_dict({"done": batches_done})
    trainer = Trainer(
        accelerator=accelerator_of(compute),
        devices=compute.devices,
        num_nodes=compute.num_nodes,
        strategy=compute.strategy,
        precision=precision,  # type: ignore[arg-type]  # a plain string here, a long Literal there
        max_epochs=1,
        logger=loggers(logger, out, name=name, resume_step=resume_step, step=lambda: module.global_step),
        callbacks=_callbacks(out, compute),
        plugins=[AtomicCheckpointIO()],
        check_val_every_n_epoch=None,
        val_check_interval=valid_every_steps if valid is not None else None,
        limit_val_batches=None if valid is not None else 0,
        num_sanity_val_steps=0,
        gradient_clip_val=gradient_clip,
        log_every_n_steps=max(1, min(10, len(train) // 20)),
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=_watched(compute),
        default_root_dir=out,
    )
    with warnings.catch_warnings():
        # The collate functions here are cheap and in process: no worker is missing.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning.*_pytree")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory.*exists and is not empty.*")
        # A bare list would be taken for several loaders.
        loader = DataLoader[Any](valid, batch_size=None) if valid is not None else None  # type: ignore[arg-type]
        trainer.fit(module, train, loader, ckpt_path=str(checkpoint) if resume_step else None, weights_only=True)
        if valid_every_steps and len(train) % valid_every_steps:
            trainer.validate(module, loader, verbose=False)
    for sink in trainer.loggers:
        sink.finalize("success")
    if trainer.is_global_zero:
        write_csv(out)


def _callbacks(out: Path, compute: ComputeConfig) -> list[Callback]:
    callbacks: list[Callback] = [
        ModelCheckpoint(
            dirpath=out / "checkpoints",
            filename="last",
            every_n_train_steps=compute.checkpoint_every_steps,
            save_top_k=1,
            monitor=None,
            enable_version_counter=False,
        )
    ]
    if _watched(compute):
        callbacks.append(RichProgressBar())
    return callbacks


def _watched(compute: ComputeConfig) -> bool:
    return compute.progress and sys.stderr.isatty()
