"""Checkpoints that are whole or absent, and known by the sha256 in their names."""

import hashlib
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

DIGEST = "SHA256"
"""What the digest of a file takes the place of in its name."""
_NAME = re.compile(r"(\d{8})\.([0-9a-f]{64})\.ckpt")


def name_at(step: int) -> str:
    """The name to save a checkpoint under; its digest is filled in once it is known.

    Example:
        >>> name_at(50)
        '00000050.SHA256.ckpt'
    """
    return f"{step:08}.{DIGEST}.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, flush to disk, then rename: the last whole checkpoint survives any kill.

    The name holds the sha256 of the bytes. So a checkpoint and its digest come to be in one rename, and no kill parts
    them. The one before is removed only then. ``TMPDIR`` is not used: a file that is moved to another file system can
    be cut short at its final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Save ``checkpoint`` at ``path``, whole or not at all, and remove older checkpoints beside it.

        Raises:
            OSError: If the disk is full, or cannot be written; what was there stays.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        try:
            with part.open("wb") as file:
                hashing = _Hashing(file)
                _save(checkpoint, hashing)
                file.flush()
                os.fsync(file.fileno())
            whole = target.with_name(target.name.replace(DIGEST, hashing.sha256.hexdigest()))
            os.replace(part, whole)
            _sync_folder(target.parent)
        except OSError as error:
            raise _told(error, target, checkpoint) from error
        finally:
            part.unlink(missing_ok=True)
        for other in target.parent.glob("*.ckpt"):
            if other != whole and _NAME.fullmatch(other.name):
                other.unlink()

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: Any = None) -> dict[str, Any]:  # noqa: ANN401
        """The content of a checkpoint: tensors and plain values, and never a pickle that runs code."""
        return super().load_checkpoint(path, map_location, weights_only=True)


def remove_debris(folder: Path) -> None:
    """Remove what killed processes left half written; whoever calls it must be the only writer."""
    for part in folder.glob("*.part"):
        part.unlink()


def newest(folder: Path) -> Path | None:
    """The checkpoint of the latest step, or what lies there under a name that is none; None in an empty folder."""
    return max(folder.glob("*.ckpt"), key=lambda path: path.name, default=None)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that is what was written: its tensors are mapped, and no code of it is run.

    Raises:
        ValueError: If the file is cut short, changed, of another program, or holds more than tensors and plain values.
    """
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise ValueError(f"{path} is no checkpoint of ours: its name tells no step and no sha256; {_remedy(path)}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != name[2]:
        raise ValueError(f"{path} is broken: its sha256 is {found}, but {name[2]} was written; {_remedy(path)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} (sha256 {found}) holds something else than tensors and plain values, of which nothing was run; "
            f"{_remedy(path)}"
        ) from error
    if not isinstance(content, dict) or content.get("global_step") != int(name[1]):
        raise ValueError(f"{path} (sha256 {found}) is no checkpoint of step {int(name[1])}; {_remedy(path)}")
    return content


def _remedy(path: Path) -> str:
    others = sorted(other.name for other in path.parent.glob("*.ckpt") if other != path)
    anew = f"delete the folder {path.parent} to start the stage anew"
    return f"delete it to go on from {others[-1]}, or {anew}" if others else anew


class _Hashing:
    """A file to write to that knows the sha256 of what was written, and why it could not be."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:  # noqa: ANN401  # bytes, or what looks like them
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _save(checkpoint: dict[str, Any], file: _Hashing) -> None:
    """`torch.save`, which hides a full disk behind an error of its own."""
    try:
        torch.save(checkpoint, file)  # type: ignore[arg-type]  # it asks for `write` and `flush` alone
    except RuntimeError as error:
        raise (file.error or error) from None


def _told(error: OSError, target: Path, checkpoint: dict[str, Any]) -> OSError:
    size = sum(tensor.nbytes for tensor in _tensors(checkpoint))
    free = shutil.disk_usage(target.parent).free
    return OSError(
        error.errno,
        f"cannot write a checkpoint of {size:,} bytes at step {checkpoint.get('global_step')} ({error.strerror}; "
        f"{free:,} bytes are free): the one before is kept, and nothing else was left; free some space, or set "
        "store.root to another disk, and run again: the training goes on from there",
        str(target.parent),
    )


def _tensors(content: Any) -> list[Tensor]:  # noqa: ANN401
    match content:
        case Tensor():
            return [content]
        case dict():
            return [tensor for value in content.values() for tensor in _tensors(value)]
        case list() | tuple():
            return [tensor for value in content for tensor in _tensors(value)]
    return []


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
