"""Score a model that train.py has made, with other decoding or metric settings; the language model is not trained.

python evaluate.py decoding.beam_width=50 decoding.num_ads=50
"""

import sys

import hydra
from omegaconf import DictConfig

from leadre.command_line import check
from leadre.config import ConfigError, load


@hydra.main(config_path="conf", config_name="run", version_base="1.3")
def main(config: DictConfig) -> None:
    """One job."""
    from leadre.job import evaluate, run_job  # heavy: imported only when the configuration is right

    run_job(load(config), evaluate)


if __name__ == "__main__":
    try:
        check(sys.argv[1:])
    except ConfigError as error:
        sys.exit(str(error))
    main()
