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

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from leadre import tables

LABEL = b"leadre"
"""The key, in a part's footer, of what it is a part of."""
POLL_S = 0.2
"""Seconds between two looks at what other processes have done."""
REMIND_S = 60.0
"""Seconds between two lines that say what is waited for."""

LOG_EVERY_S = 30.0
"""Seconds between two lines that tell the pace."""

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
        return self.folder / f"part-{shard:05d}.parquet"


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
    laid = _laid(plan)
    if laid is not None and laid["plan"] != plan.about:
        changed = sorted(key for key in plan.about if plan.about[key] != laid["plan"].get(key))
        parts = sorted(plan.folder.glob("part-*"))
        log.warning("generation: %s parts of another plan are removed (other %s)", len(parts), ", ".join(changed))
        (plan.folder / "plan.json").unlink()  # first: nobody takes up a part while they go
        for part in parts:
            part.unlink()
    _write_laid(plan, finished=False)


def join(plan: Plan) -> bool:
    """Wait until the leading process has laid this plan; False if there is nothing left to do."""
    while True:
        laid = _laid(plan)
        if laid is not None and laid["plan"] == plan.about:
            return not laid["finished"]
        if not plan.folder.parent.exists():  # the result was whole before this process came
            return False
        time.sleep(POLL_S)


def missing(plan: Plan, shards: Sequence[int]) -> list[int]:
    """Which of this process's shards have no whole part yet; what a kill or a bad disk left of them is removed."""
    found = []
    for shard in shards:
        for leftover in plan.folder.glob(f"{plan.part(shard).name}.*"):
            leftover.unlink()
        if plan.part(shard).exists() and (fault := fault_of(plan, shard)):
            log.warning("generation: %s %s; it is made anew", plan.part(shard), fault)
            plan.part(shard).unlink()
        if not plan.part(shard).exists():
            found.append(shard)
    return found


def is_open(plan: Plan) -> bool:
    """Whether the plan still lies there unfinished; asked after `missing`, it tells lost parts from published ones."""
    laid = _laid(plan)
    return laid is not None and not laid["finished"]


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
        return "is missing"
    except (pa.ArrowException, OSError, ValueError) as error:
        return f"is broken ({error})"
    return None


def write_part(plan: Plan, shard: int, lists: pl.DataFrame, *, told: Mapping[str, Any]) -> None:
    """Write a shard's lists under a name of this process alone, then give them the part's name.

    Args:
        plan: The plan.
        shard: Which shard.
        lists: A table LISTS.
        told: What else the part's footer is to say, as JSON.
    """
    path = plan.part(shard)
    label = json.dumps({"plan": plan.key, "shard": shard, **told})
    table: Any = tables.check(tables.LISTS, lists, f"the lists of {path.name}").to_arrow()
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    with unfinished.open("wb") as file:
        pq.write_table(
            table.replace_schema_metadata({LABEL: label.encode()}), file, compression="zstd", write_page_checksum=True
        )
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def told_by(plan: Plan, shard: int) -> dict[str, Any]:
    """What a whole part's footer says."""
    told: dict[str, Any] = json.loads(pq.read_schema(plan.part(shard)).metadata[LABEL])
    return told


def wait(plan: Plan) -> None:
    """Wait until every part is there and whole: the other processes of a distributed run have their share of them."""
    left, reminded = list(range(len(plan.shards))), time.monotonic()
    while left := [shard for shard in left if fault_of(plan, shard)]:
        if time.monotonic() - reminded > REMIND_S:
            log.info("generation: waiting for %s parts of other processes, such as %s", len(left), plan.part(left[0]))
            reminded = time.monotonic()
        time.sleep(POLL_S)


def publish(plan: Plan, folder: Path) -> None:
    """Give all parts a second name in ``folder``. The first ones stay, so that a kill right after costs nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for shard in range(len(plan.shards)):
        path = plan.part(shard)
        try:
            os.link(path, folder / path.name)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, folder / path.name)
    _write_laid(plan, finished=True)


def _laid(plan: Plan) -> dict[str, Any] | None:
    try:
        laid: dict[str, Any] = json.loads((plan.folder / "plan.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return {"plan": {}, "finished": False}
    return laid


def _write_laid(plan: Plan, *, finished: bool) -> None:
    content = json.dumps({"plan": plan.about, "finished": finished}, indent=1) + "\n"
    unfinished = plan.folder / f"plan.json.{os.getpid()}"
    unfinished.write_text(content, encoding="utf-8")
    os.replace(unfinished, plan.folder / "plan.json")
