"""Results of stages on disk: addressed by what made them, whole or absent, shared by every run that asks for the same.

``<root>/<stage>/<key>/manifest.json`` is written last, with the sha256 of every file: its presence means whole.
``<root>/<stage>/<key>.partial/`` is a build under way, or one that a kill left to be taken up again.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from leadre.ranks import global_rank

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""The folder of a partial result that outlives a kill, so that a training can go on; whole results have none."""


class ArtifactError(RuntimeError):
    """A stored result is missing, broken, or not what its manifest says."""


class Result(NamedTuple):
    """A whole result: its stage, its key, its folder, how long the build took, and whether this run found it there."""

    stage: str
    key: str
    path: Path
    seconds: float
    reused: bool


class Store:
    """A memo on disk for stages.

    Args:
        root: The folder of all results; several runs and processes may share it.
        build: With False nothing is built: a missing result is an error that says what to run.
    """

    def __init__(self, root: Path, *, build: bool = True) -> None:
        self.root = root
        self.build = build
        self.results: list[Result] = []

    def make(
        self,
        stage: str,
        verb: Callable[..., None],
        config: object | None,
        *inputs: Result,
        source: str = "",
        together: bool = False,
        **unhashed: object,
    ) -> Result:
        """The stage's result: from disk if it is there, else built by ``verb(config, *folders, out=..., **unhashed)``.

        Args:
            stage: The name of the stage, and of its folder in the store.
            verb: A room's stage function; ``VERSION`` of its module is part of the key.
            config: The room's settings, part of the key as validated; None for a stage without any.
            inputs: Results that the stage reads; their keys are part of this key.
            source: A fingerprint of files outside the store that the stage reads.
            together: The stage splits its work, so every rank of a distributed run takes part in its build;
                rank 0 alone builds any other stage, and the rest wait for it.
            unhashed: What does not change the numbers: devices, progress, loggers.

        Raises:
            ArtifactError: If a stored result is broken, or is missing while ``build`` is False.
        """
        key = _key(stage, verb, config, inputs, source)
        folder = self.root / stage / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        reused = _is_whole(folder)
        if reused:
            verify(folder)  # a flipped bit in a model would load without a word
        else:
            if not self.build:
                raise ArtifactError(
                    f"there is no result of stage {stage!r} for this configuration (looked for {folder}): "
                    "run train.py with the same settings first"
                )
            if global_rank() == 0:
                with _lock(folder):
                    reused = _is_whole(folder)  # another process may have built it while this one waited
                    if not reused:
                        _build(folder, stage, verb, config, inputs, source, unhashed, together)
            else:
                _join_build(folder, verb, config, inputs, unhashed, together)
        result = Result(stage, key, folder, float(_manifest(folder)["seconds"]), reused)
        log.info("%s %s %s", stage, key, "reused" if reused else f"built in {result.seconds:.1f} s")
        self.results.append(result)
        return result


def origins(folder: Path, wanted: Collection[str] | None = None) -> dict[str, Result]:
    """A stored result and the results that it was made from, by stage; of several of one stage the nearest.

    Args:
        folder: The folder of a whole result in a store.
        wanted: The stages that are read, beside the result itself; None is all. Others are not checked, and may be
            missing.

    Raises:
        ArtifactError: If a wanted one is missing or broken, or is not found because one between is missing.
    """
    found: dict[str, Result] = {}
    gone: dict[str, Path] = {}
    open_folders = [folder]
    while open_folders:
        at = open_folders.pop(0)
        stage = at.parent.name
        if stage in found or stage in gone:
            continue
        if at != folder and not _is_whole(at):
            gone[stage] = at
            continue
        if at == folder or wanted is None or stage in wanted:
            verify(at)
        manifest = _manifest(at)
        found[stage] = Result(stage, manifest["key"], at, manifest["seconds"], reused=True)
        open_folders += [at.parent.parent / name / key for name, key in manifest["inputs"].items()]
    lacking = gone if wanted is None else set(wanted) - set(found)
    if gone and lacking:
        missing = next((gone[stage] for stage in lacking if stage in gone), next(iter(gone.values())))
        raise ArtifactError(f"{missing} is missing: copy it from the store of the training")
    return found


def differences(result: Result, config: object, *, passed_over: Collection[str] = ()) -> list[str]:
    """The settings, as ``key=then, now value``, in which a stored result was made otherwise than ``config`` says."""
    then, now = _manifest(result.path)["config"], _plain(config)
    keys = [key for key in {**then, **now} if then.get(key) != now.get(key) and key not in {*PLACES, *passed_over}]
    return [f"{key}={then.get(key)}, now {now.get(key)}" for key in keys]


def fingerprint(model: str) -> str:
    """What tells one pre-trained model from another: the sha256 of its files in a folder, else its hub name.

    It tells any folder from others; the files of a stored result are not read for it, since its manifest has them.
    """
    folder = Path(model)
    if not folder.is_dir():
        return model
    stored = _stored_files(folder)
    hashes = {name: _sha256(folder / name) for name in _files(folder)} if stored is None else stored
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _stored_files(folder: Path) -> Any:  # noqa: ANN401
    """The sha256 of each file of a stored result; None for any other folder, whatever its manifest.json may be."""
    try:
        match _manifest(folder):
            case {"stage": stage, "key": key, "files": files} if (stage, key) == (folder.parent.name, folder.name):
                return files
    except (FileNotFoundError, ValueError):  # of another program
        pass
    return None


def verify(folder: Path) -> None:
    """Check every file of a result against its manifest.

    Raises:
        ArtifactError: If there is no manifest, or a file is missing, unknown, or differs from its sha256.
    """
    if not _is_whole(folder):
        raise ArtifactError(
            f"{folder} has no manifest.json: the result is not whole; delete the folder to build it anew"
        )
    files = _manifest(folder)["files"]
    found = _files(folder)
    faults = [f"{name} is missing" for name in files if name not in found]
    faults += [f"{name} is not in the manifest" for name in found if name not in files]
    faults += [
        f"{name} differs from its sha256" for name in found if name in files and _sha256(folder / name) != files[name]
    ]
    if faults:
        raise ArtifactError(f"{folder} is broken: {'; '.join(faults)}; delete the folder to build it anew")


def _key(stage: str, verb: Callable[..., None], config: object | None, inputs: tuple[Result, ...], source: str) -> str:
    made_of = {
        "stage": stage,
        "version": sys.modules[verb.__module__].VERSION,
        "config": _plain(config, source),
        "inputs": [given.key for given in inputs],
        "source": source,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


PLACES = ("root", "path", "filters")
"""Settings that say where files lie: they do not matter where a ``source`` tells what lies there."""


def _plain(config: object | None, source: str = "") -> Any:  # noqa: ANN401
    if config is None:
        return None
    plain = TypeAdapter(type(config)).dump_python(config, mode="json")
    if isinstance(plain, dict):
        for place in PLACES:
            if source or plain.get(place) is None:
                plain.pop(place, None)
    return plain


def _build(
    folder: Path,
    stage: str,
    verb: Callable[..., None],
    config: object | None,
    inputs: tuple[Result, ...],
    source: str,
    unhashed: dict[str, object],
    together: bool,
) -> None:
    partial = folder.with_name(folder.name + ".partial")
    if _is_whole(partial):  # a kill came between the manifest and the move
        _publish(partial, folder)
        return
    _clear_all_but_checkpoints(partial)
    if together:
        (partial / CHECKPOINTS).mkdir(exist_ok=True)  # the other ranks wait for it
    log.info("%s %s starts", stage, folder.name)
    start = time.monotonic()
    _call(verb, config, inputs, partial, unhashed)
    seconds = time.monotonic() - start
    manifest = {
        "stage": stage,
        "key": folder.name,
        "config": _plain(config, source),
        "inputs": {given.stage: given.key for given in inputs},
        "source": source,
        "compute": _plain(unhashed.get("compute")),
        "files": {name: _sha256(partial / name) for name in _files(partial) if not name.startswith(f"{CHECKPOINTS}/")},
        "seconds": round(seconds, 2),
        **_surroundings(),
    }
    unfinished = partial / "manifest.json.part"
    with unfinished.open("w") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, partial / "manifest.json")
    _publish(partial, folder)


def _publish(partial: Path, folder: Path) -> None:
    """Move a build to its place; its checkpoints go only now that nothing needs them any more."""
    shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # without a manifest it is no result
    os.replace(partial, folder)


def _call(
    verb: Callable[..., None],
    config: object | None,
    inputs: tuple[Result, ...],
    out: Path,
    unhashed: dict[str, object],
) -> None:
    arguments = ([] if config is None else [config]) + [given.path for given in inputs]
    verb(*arguments, out=out, **unhashed)


def _join_build(
    folder: Path,
    verb: Callable[..., None],
    config: object | None,
    inputs: tuple[Result, ...],
    unhashed: dict[str, object],
    together: bool,
) -> None:
    """Take part in a build that rank 0 leads, or wait for it.

    Lightning starts the other ranks from inside rank 0's fit by running the script again: at the lock
    they would wait for the very fit that waits for them. torchrun starts all at once, and rank 0 may be the
    last to come. They share rank 0's checkpoints, and whatever else they write is thrown away, so that no two
    processes write one file.
    """
    shared = folder.with_name(folder.name + ".partial") / CHECKPOINTS
    if together:
        _wait_until(lambda: shared.exists() or _is_whole(folder), folder)
    if together and not _is_whole(folder):
        scratch = folder.with_name(f"{folder.name}.rank{global_rank()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        (scratch / CHECKPOINTS).symlink_to(shared.absolute())
        _call(verb, config, inputs, scratch, unhashed)
        shutil.rmtree(scratch)
    _wait_until(lambda: _is_whole(folder), folder)


def looks(folder: Path) -> Iterator[None]:
    """Endless looks, a moment apart, at what the leading process of a distributed run has done in ``folder``.

    Raises:
        ArtifactError: If what started this process ends meanwhile.
    """
    launcher = os.getppid()  # rank 0 itself where Lightning started this process, else torchrun
    while True:
        yield
        if os.getppid() != launcher:
            raise ArtifactError(f"{folder} was not finished: rank 0 has ended; its output says why")
        time.sleep(0.2)


def _wait_until(holds: Callable[[], bool], folder: Path) -> None:
    for _ in looks(folder):
        if holds():
            return


def _clear_all_but_checkpoints(partial: Path) -> None:
    """Begin with an empty folder, save for what lets a killed training go on: its checkpoints and its metrics.

    The folder of checkpoints is never removed here, not even for a moment: to other ranks its end means that the result
    is whole.
    """
    partial.mkdir(parents=True, exist_ok=True)
    checkpoints = partial / CHECKPOINTS
    kept = {CHECKPOINTS} | ({"metrics.jsonl"} if checkpoints.is_dir() and any(checkpoints.iterdir()) else set())
    for path in partial.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the key's lock; the system frees it when a process dies."""
    lock = FileLock(str(folder) + ".lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.info("%s is being built by another process: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _is_whole(folder: Path) -> bool:
    return (folder / "manifest.json").exists()


def _manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def _files(folder: Path) -> list[str]:
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != "manifest.json")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _surroundings() -> dict[str, object]:
    """What is recorded, and not part of the key."""
    return {
        "git": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "lightning", "transformers", "polars")},
        "machine": platform.machine(),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
