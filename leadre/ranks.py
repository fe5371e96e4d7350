"""Which process of a distributed run this one is, and of how many."""

import os


def global_rank() -> int:
    """This process's place among all of a distributed run, as torchrun, SLURM or Lightning tells it; 0 alone."""
    told = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))
    if told is not None:
        return int(told)
    # Lightning's own launch: any number will do as long as only the first process of the first node has 0.
    return 1000 * int(os.environ.get("NODE_RANK", "0")) + int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes torchrun or SLURM started; 1 where neither did.

    Lightning's own launch sets WORLD_SIZE alone, and only once a training begins: it does not count here.

    Raises:
        ValueError: If there is a RANK without a WORLD_SIZE.
    """
    if "RANK" in os.environ:
        if "WORLD_SIZE" not in os.environ:
            raise ValueError(
                f"RANK is {os.environ['RANK']}, but WORLD_SIZE is not set: start with torchrun, which sets both, or "
                "unset RANK"
            )
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))  # of srun; a batch script alone is one process
