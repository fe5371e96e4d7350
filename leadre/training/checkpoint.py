"""Checkpoints that are whole or absent, also when the process is killed while one is written."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush to disk, then rename: the last whole checkpoint survives any kill."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Save ``checkpoint`` at ``path``, whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def progress_of(path: Path) -> tuple[int, int]:
    """The optimizer steps and the batches that a checkpoint has behind it; its tensors are mapped, not read."""
    checkpoint = torch.load(path, weights_only=True, mmap=True)
    return int(checkpoint["global_step"]), int(
        checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["done"]
    )
