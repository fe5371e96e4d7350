"""The shards of a generation over Ray Data actors: an optional way to use a cluster (``requirements-ray.txt``)."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leadre.generation.shards import Pace, Plan
from leadre.generation.worker import Job, Worker, make_part


class ShardActor:
    """An actor that makes shards; it loads the model once, when it starts."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self._plan = plan
        self._worker = Worker(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the parts of some shards, and give back their numbers."""
        for shard in batch["shard"].tolist():
            make_part(self._worker, self._plan, shard)
        return batch


def make_parts(job: Job, plan: Plan, todo: Sequence[int], *, num_actors: int) -> None:
    """Make shards in a pool of actors: on the cluster that ``RAY_ADDRESS`` names, or on one started here.

    An actor reads the prompts of a shard from Parquet and writes its part itself, as a local run does, so parts are
    the same byte for byte on the same kind of machine, a run goes on where any other stopped, and nothing but shard
    numbers passes through Ray. All machines must see the store and the inputs under the same paths.

    Args:
        job: What the lists are made from.
        plan: The shards.
        todo: Which of them are missing.
        num_actors: Actors, each with a model of its own; with GPUs, each on its own GPU.

    Raises:
        ValueError: If Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            f"ray_actors is {num_actors}, but Ray is not installed: pip install -r requirements-ray.txt, or leave "
            "ray_actors out"
        ) from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = job.compute.accelerator != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    made = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo)).map_batches(
        ShardActor,
        batch_size=1,
        fn_constructor_args=(_absolute(job), plan._replace(folder=plan.folder.absolute())),
        compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(todo))),
        num_gpus=1 if gpus else 0,
        num_cpus=0 if gpus else job.compute.threads or 1,
    )
    pace = Pace(sum(len(plan.shards[shard]) for shard in todo))
    for row in made.iter_rows():
        pace.made(len(plan.shards[row["shard"]]))


def _absolute(job: Job) -> Job:
    """Actors have working folders of their own."""
    filters = job.config.filters and str(Path(job.config.filters).absolute())
    return job._replace(
        config=dataclasses.replace(job.config, filters=filters),
        model=job.model.absolute(),
        catalog=job.catalog.absolute(),
        groups=[group._replace(path=group.path.absolute()) for group in job.groups],
    )
