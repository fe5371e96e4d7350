"""A list of ads for every user, with a model that train.py has made: what an ad platform runs every day.

python generate.py model=store/aligned/KEY                                 # the users it was trained with
python generate.py model=store/aligned/KEY data=tables data.root=today     # today's tables
python generate.py model=store/aligned/KEY decoding.beam_width=50 decoding.num_ads=50
"""

import sys

import hydra
from omegaconf import DictConfig

from leadre.command_line import check
from leadre.config import ConfigError, load_generate


@hydra.main(config_path="conf", config_name="generate", version_base="1.3")
def main(config: DictConfig) -> None:
    """One job."""
    from leadre.job import generate_lists, run_job  # heavy: imported only when the configuration is right

    run_job(load_generate(config), generate_lists)


if __name__ == "__main__":
    try:
        check(sys.argv[1:], name="generate")
    except ConfigError as error:
        sys.exit(str(error))
    main()
