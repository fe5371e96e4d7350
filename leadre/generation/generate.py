"""The verbs ``generate`` and ``generate_audience``: a list of ads for every test user, or for a whole user base."""

import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import Progress

from leadre import tables
from leadre.artifacts import CHECKPOINTS, fingerprint
from leadre.decoding.config import DecodingConfig
from leadre.generation import shards
from leadre.generation.requests import fingerprint as fingerprint_filters
from leadre.generation.requests import not_running
from leadre.generation.shards import Plan
from leadre.generation.users import check_users, row_groups, user_ids
from leadre.generation.worker import Job, Worker, make_part
from leadre.ranks import global_rank, world_size
from leadre.training.config import ComputeConfig

VERSION = 2

log = logging.getLogger(__name__)


def generate(
    config: DecodingConfig, model: Path, catalog: Path, pairs: Path, *, out: Path, compute: ComputeConfig
) -> None:
    """Generate ``num_ads`` ads for every test user by constrained decoding (LEADRE 3.4, A.3).

    The prompts are those of ``main.test.parquet``, whose responses are not read. See `generate_audience`.
    """
    files = [pairs / "main.test.parquet"]
    _generate(config, model, catalog, pairs, files, out, compute, world=None, ray_actors=None)


def generate_audience(
    config: DecodingConfig,
    model: Path,
    catalog: Path,
    audience: Path,
    world: Path | None = None,
    *,
    out: Path,
    compute: ComputeConfig,
    ray_actors: int | None = None,
) -> None:
    """Generate ``num_ads`` ads for every user of an audience: what a platform makes every day.

    Writes ``lists/part-0000000.parquet`` and so on, tables LISTS in the order of the users, ``shard_users`` users each,
    and ``generation.json``: what is wrong with the written lists, and how fast they were made. Ads of the catalog that
    the platform no longer has, or whose life span does not hold the time of the prompts, are shown to nobody.

    Finished parts lie in ``checkpoints/lists`` until the last is there; a run that was killed goes on at the next
    shard. Under torchrun every process makes its share of the shards, shard ``i`` that of rank ``i % world_size``,
    and rank 0 waits for them all, and makes a broken one anew. Memory is that of one shard a
    process, whatever the number of users.

    Args:
        config: The settings; ``filters`` names a folder that is read as `leadre.generation.requests` tells.
        model: The folder of the model.
        catalog: The folder of the catalog that the model was made for.
        audience: Tables PROMPTS in ``prompts-*.parquet``, taken in the order of their names, and ``prompts.json``.
        world: The folder whose ``ads.parquet`` tells which ads run; None where nothing is known of it: all do.
        out: Where the lists go.
        compute: Where it runs.
        ray_actors: The shards go to so many Ray actors, each with a model of its own; None makes them here.

    Raises:
        ValueError: If there is no prompt file, a prompt has no user, a user has two prompts, the inputs and the
            settings do not belong together, no ad of the catalog runs, the filters change meanwhile, or Ray is asked
            for under torchrun.
        TableError: If a table is not as declared.
    """
    files = sorted(audience.glob("prompts-*.parquet"))
    if not files:
        raise ValueError(f"audience is {audience}, which has no prompts-*.parquet: compose an audience first")
    _generate(config, model, catalog, audience, files, out, compute, world=world, ray_actors=ray_actors)


def check_lists(lists: pl.DataFrame, users: pl.Series, ads: pl.Series) -> dict[str, int]:
    """Count what must not be: ads outside of the catalog, ads twice in a list, and users without a list."""
    return {
        "users": len(users),
        "listed_ads": len(lists),
        "invalid_ads": int((~lists["ad_id"].is_in(ads.implode())).sum()),
        "duplicate_ads": lists.height - lists.select("user_id", "ad_id").n_unique(),
        "users_without_list": int((~users.is_in(lists["user_id"].implode())).sum()),
    }


def _generate(
    config: DecodingConfig,
    model: Path,
    catalog: Path,
    prompts: Path,
    files: Sequence[Path],
    out: Path,
    compute: ComputeConfig,
    *,
    world: Path | None,
    ray_actors: int | None,
) -> None:
    start, cpu_start = time.monotonic(), time.process_time()
    if ray_actors and world_size() > 1:
        raise ValueError(
            f"ray_actors is {ray_actors} in {world_size()} processes: either shares out the shards; start one process "
            "for Ray, or leave ray_actors out"
        )
    about = json.loads((prompts / "prompts.json").read_text(encoding="utf-8"))
    ads = tables.read(tables.SIDS, catalog / "sids.parquet")["ad_id"]
    closed = not_running(ads, world, about["as_of"]) if world else ads.clear()
    job = Job(config, model, catalog, row_groups(files), about["max_tokens"], about["soft_tokens"], compute, closed)
    plan = _plan(job, prompts, out / CHECKPOINTS / "lists")
    if global_rank() == 0:
        check_users(job.groups)
        shards.lay(plan)
    elif not shards.join(plan):
        return
    before = sum(len(users) for shard, users in enumerate(plan.shards) if plan.part(shard).exists())
    log.info("generation: %s users in %s parts, %s users done", plan.about["users"], len(plan.shards), before)
    _make_missing(job, plan, _share(plan, ray_actors), ray_actors)
    if global_rank() == 0:
        while shards_to_make := shards.wait(plan, alone=world_size() == 1):
            _make_missing(job, plan, shards_to_make, ray_actors)
        seconds = time.monotonic() - start
        cpu_seconds = time.process_time() - cpu_start
        summary = _summary(job, plan, ads, made=plan.about["users"] - before, seconds=seconds, cpu_seconds=cpu_seconds)
        if plan.about["filters"] != _filters(config):
            raise ValueError(
                "decoding.filters changed while lists were made: give each day a folder of its own, and start again"
            )
        (out / "generation.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        shards.publish(plan, out / "lists")
        log.info("generation: %s", {name: value for name, value in summary.items() if name != "settings"})


def _plan(job: Job, prompts: Path, folder: Path) -> Plan:
    about = {
        "version": VERSION,
        "model": fingerprint(str(job.model)),
        "catalog": fingerprint(str(job.catalog)),
        "prompts": fingerprint(str(prompts)),
        "closed": hashlib.sha256(json.dumps(job.closed.to_list()).encode()).hexdigest(),
        "filters": _filters(job.config),
        "settings": dataclasses.asdict(job.config) | {"filters": None},  # what lies there counts, not where
    }
    users = job.groups[-1].users.stop if job.groups else 0
    return shards.make_plan(about, folder, users=users, shard_users=job.config.shard_users)


def _filters(config: DecodingConfig) -> str | None:
    return fingerprint_filters(Path(config.filters)) if config.filters else None


def _share(plan: Plan, ray_actors: int | None) -> Sequence[int]:
    """The shards that this process makes."""
    return range(len(plan.shards)) if ray_actors else range(global_rank(), len(plan.shards), world_size())


def _make_missing(job: Job, plan: Plan, share: Sequence[int], ray_actors: int | None) -> None:
    """Make the parts of a share that are not there yet."""
    todo = shards.missing(plan, share)
    if not todo or not shards.is_open(plan):
        return
    if not plan.about["users"]:
        nobody = pl.DataFrame(schema=tables.LISTS.schema)
        shards.write_part(plan, 0, nobody, told={"kept": None, "filtered": {}})  # there is nothing to calibrate on
        return
    if ray_actors:
        from leadre.generation.ray_actors import make_parts

        make_parts(job, plan, todo, num_actors=ray_actors)
        return
    worker = Worker(job)
    pace = shards.Pace(sum(len(plan.shards[shard]) for shard in todo))
    watched = job.compute.progress and sys.stderr.isatty() and global_rank() == 0
    with Progress(console=Console(stderr=True), disable=not watched) as progress:
        bar = progress.add_task("Generating", total=pace.left)
        for shard in todo:
            make_part(worker, plan, shard, done=lambda users: progress.advance(bar, users))
            pace.made(len(plan.shards[shard]))


def _summary(job: Job, plan: Plan, ads: pl.Series, *, made: int, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    """What is in the written parts, read one at a time, and how fast this run made its share of them."""
    counted: Counter[str] = Counter()
    filtered: Counter[str] = Counter()
    for shard, users in enumerate(plan.shards):
        counted.update(check_lists(tables.read(tables.LISTS, plan.part(shard)), user_ids(job.groups, users), ads))
        filtered.update(shards.told_by(plan, shard)["filtered"])
    if counted["users_without_list"]:
        log.warning("generation: %s users have no list: no ad may be shown to them", counted["users_without_list"])
    for name in [name for name, users_with in filtered.items() if not users_with]:
        log.warning("generation: %s is 0: no user of the prompts is in this table of %s", name, job.config.filters)
    listed = max(1, counted["listed_ads"])
    return {
        **counted,
        **filtered,
        "ads_not_running": len(job.closed),
        "invalid_rate": counted["invalid_ads"] / listed,
        "duplicate_rate": counted["duplicate_ads"] / listed,
        **(shards.told_by(plan, 0)["kept"] or {}),
        "parts": len(plan.shards),
        "users_of_this_run": made,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),  # of this process, all its threads together
        "users_per_second": round(made / seconds, 2) if made else None,
        "settings": dataclasses.asdict(job.config),
    }
