"""A long job cut into shards of users: what is done stays done, whoever is killed and whenever.

``plan.json`` says what the parts beside it are parts of; every part says so itself. A part has its name only once it is
whole on disk, so parts that are there are never made again, and no user is lost or comes twice.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from leadre import tables
from leadre.artifacts import ArtifactError, looks

LABEL = b"leadre"
"""The key, in a part's footer, of what it is a part of."""
FINISHED = "finished.json"
"""The name of the plan once its parts are published: nobody begins to make what will be removed."""
MISSING = "is missing"
"""The fault of a part that nobody has made yet."""
LOG_EVERY_S = 30.0
"""Seconds between two lines that tell the pace, or what is waited for."""

log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """A job, its shards, and the folder where its parts lie while it is under way.

    Attributes:
        about: What the lists are made from: two plans with the same words have the same lists.
        shards: The users of each shard, counted over the whole input.
        folder: Outlives a kill.
    """

    about: Mapping[str, Any]
    shards: Sequence[range]
    folder: Path

    @property
    def key(self) -> str:
        """A short name of what the plan is about."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]

    def part(self, shard: int) -> Path:
        """The file of a shard's lists."""
        return self.folder / f"part-{shard:07d}.parquet"


class Pace:
    """Tells in the log, every now and then, how fast shards are made and how long the rest may take.

    Args:
        left: Users of all shards that are to be made.
    """

    def __init__(self, left: int) -> None:
        self.left = left
        self._all, self._start = left, time.monotonic()
        self._told = self._start

    def made(self, users: int) -> None:
        """A shard of so many users has been written."""
        self.left -= users
        now = time.monotonic()
        if now - self._told < LOG_EVERY_S and self.left:
            return
        self._told = now
        done, seconds = self._all - self.left, now - self._start
        rest = self.left * seconds / max(1, done)
        log.info("generation: %.1f users/s; %s users left, about %.0f s", done / max(seconds, 1e-9), self.left, rest)


def make_plan(about: Mapping[str, Any], folder: Path, *, users: int, shard_users: int) -> Plan:
    """Cut users into shards; without any user there is one empty shard, so that the lists are a table all the same.

    Args:
        about: What the lists are made from, as JSON.
        folder: Where parts are to lie.
        users: Users of the whole input.
        shard_users: Users a shard; the last one may have fewer.
    """
    starts = range(0, max(1, users), shard_users)
    shards = [range(start, min(start + shard_users, users)) for start in starts]
    known = json.loads(json.dumps({**about, "users": users, "shards": len(shards)}))  # as it will be read again
    return Plan(known, shards, folder)


def lay(plan: Plan) -> None:
    """Begin, or go on after a kill. The leading process does this; parts of another plan are not taken up, but removed.

    Raises:
        OSError: If the folder cannot be written.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    for unfinished in plan.folder.glob("*.unfinished"):
        unfinished.unlink()
    if (plan.folder / FINISHED).exists():  # a kill came before the result was moved to its place
        os.replace(plan.folder / FINISHED, plan.folder / "plan.json")
    laid = _laid(plan)
    if laid is not None and laid != plan.about:
        changed = sorted(key for key in plan.about if plan.about[key] != laid.get(key))
        parts = sorted(plan.folder.glob("part-*"))
        log.warning("generation: %s parts of another plan are removed (other %s)", len(parts), ", ".join(changed))
        (plan.folder / "plan.json").unlink()  # first: nobody takes up a part while they go
        for part in parts:
            part.unlink()
    unfinished = _unfinished(plan.folder / "plan.json")
    unfinished.write_text(json.dumps(plan.about, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, plan.folder / "plan.json")


def join(plan: Plan) -> bool:
    """Wait until the leading process has laid this plan; False if its result is whole, so nothing is left to do.

    Raises:
        ArtifactError: If what started this process ends meanwhile.
    """
    told = time.monotonic()
    for _ in looks(plan.folder):
        if is_open(plan) or not plan.folder.parent.exists():  # it goes when the result has been moved to its place
            break
        if time.monotonic() - told > LOG_EVERY_S:
            log.info("generation: waiting for rank 0 to lay the plan %s in %s", plan.key, plan.folder)
            told = time.monotonic()
    return is_open(plan)


def is_open(plan: Plan) -> bool:
    """Whether the plan lies there, unfinished."""
    return _laid(plan) == plan.about


def missing(plan: Plan, shards: Sequence[int]) -> list[int]:
    """Which of some shards have no whole part yet; one that a bad disk has harmed is removed."""
    faults = {shard: fault for shard in shards if (fault := fault_of(plan, shard))}
    for shard, fault in faults.items():
        if fault != MISSING:
            log.warning("generation: %s %s; it is made anew", plan.part(shard), fault)
            plan.part(shard).unlink(missing_ok=True)
    return list(faults)


def fault_of(plan: Plan, shard: int) -> str | None:
    """What is wrong with a part, read whole with its checksums; None if nothing is."""
    try:
        with pq.ParquetFile(plan.part(shard), page_checksum_verification=True) as file:
            told = json.loads((file.schema_arrow.metadata or {}).get(LABEL, b"{}"))
            if told.get("plan") != plan.key or told.get("shard") != shard:
                return f"is of another plan or shard ({told.get('plan')}, {told.get('shard')})"
            for _ in file.iter_batches():
                pass
    except FileNotFoundError:
        return MISSING
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"is broken ({error})"
    return None


def write_part(plan: Plan, shard: int, lists: pl.DataFrame, *, told: Mapping[str, Any]) -> None:
    """Write a shard's lists under a name that nobody else has, then give them the part's name.

    Another process may have finished the plan meanwhile: then the part is needed no more.

    Args:
        plan: The plan.
        shard: Which shard.
        lists: A table LISTS.
        told: What else the part's footer is to say, as JSON.
    """
    path = plan.part(shard)
    label = json.dumps({"plan": plan.key, "shard": shard, **told})
    table: Any = tables.check(tables.LISTS, lists, f"the lists of {path.name}").to_arrow()
    metadata = {LABEL: label.encode()}
    while is_open(plan):
        unfinished = _unfinished(path)
        try:
            with unfinished.open("wb") as file:
                pq.write_table(
                    table.replace_schema_metadata(metadata), file, compression="zstd", write_page_checksum=True
                )
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
            return
        except FileNotFoundError:
            log.info("generation: %s was cleared away before it was whole", unfinished)


def told_by(plan: Plan, shard: int) -> dict[str, Any]:
    """What a whole part's footer says."""
    told: dict[str, Any] = json.loads(pq.read_schema(plan.part(shard)).metadata[LABEL])
    return told


def wait(plan: Plan, *, alone: bool) -> list[int]:
    """Wait until every part is there and whole, or this process has to help.

    Args:
        plan: The plan.
        alone: No other process makes shards.

    Returns:
        Shards that this process is to make: those whose parts are broken and, alone, those without one. None: all done.

    Raises:
        ArtifactError: If what started this process ends meanwhile, or the plan is taken away.
    """
    left, told = list(range(len(plan.shards))), time.monotonic()
    to_make: list[int] = []
    for _ in looks(plan.folder):
        faults = {shard: fault for shard in left if (fault := fault_of(plan, shard))}
        if faults and not is_open(plan):
            raise ArtifactError(f"{plan.folder} was cleared away while lists were made: start again")
        to_make = [shard for shard, fault in faults.items() if alone or fault != MISSING]
        if to_make or not faults:
            break
        left = list(faults)
        if time.monotonic() - told > LOG_EVERY_S:
            log.info(
                "generation: waiting for %s parts of other processes; %s is missing", len(left), plan.part(left[0])
            )
            told = time.monotonic()
    return to_make


def publish(plan: Plan, folder: Path) -> None:
    """Give all parts a second name in ``folder``. The first ones stay, so that a kill right after costs nothing.

    The plan gets another name, so that no process that comes late begins to make what will be removed.
    """
    os.replace(plan.folder / "plan.json", plan.folder / FINISHED)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for shard in range(len(plan.shards)):
        path = plan.part(shard)
        try:
            os.link(path, folder / path.name)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, folder / path.name)


def _laid(plan: Plan) -> dict[str, Any] | None:
    try:
        laid: dict[str, Any] = json.loads((plan.folder / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return laid


def _unfinished(path: Path) -> Path:
    """A name for a file that is to be ``path``, which no other process has."""
    return path.with_name(f"{path.name}.{uuid4().hex}.unfinished")
