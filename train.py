"""Run the main job: prepare, tune, align, generate, score; print the table and where everything lies.

python train.py                                                  # the embedded world
python train.py data=tables data.root=my_tables                  # your own
python train.py -m sft=ex_im_main,main_only alignment=none,dpo   # a sweep, with one table at its end
python train.py -m search=leadre                                 # a search by validation, docs/sweeps.md
"""

import os
import sys

import hydra
from omegaconf import DictConfig

from leadre.command_line import check
from leadre.config import ConfigError, load


@hydra.main(config_path="conf", config_name="run", version_base="1.3")
def main(config: DictConfig) -> float | None:
    """One job; of a search it gives the number that the search wants to be large."""
    from leadre.job import run_job, train  # heavy: imported only when the configuration is right

    return run_job(load(config), train)


if __name__ == "__main__":
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # Optuna's storage, of its time
    try:
        check(sys.argv[1:])
    except ConfigError as error:
        sys.exit(str(error))
    main()
