"""Index the ads alone: embeddings, codes, a catalog of S-IDs, and a page that shows how good they are.

python index.py data=tables data.root=my_tables                                      # the first day
python index.py data=tables data.root=today previous_catalog=store/catalog/KEY       # a day later: no S-ID moves
python index.py -m quantizer.levels=2,3,4 quantizer.codebook_size=64,256             # a sweep, one table at its end
"""

import sys

import hydra
from omegaconf import DictConfig

from leadre.command_line import check
from leadre.config import ConfigError, load


@hydra.main(config_path="conf", config_name="index", version_base="1.3")
def main(config: DictConfig) -> None:
    """One job."""
    from leadre.job import index_ads, run_job  # heavy: imported only when the configuration is right

    run_job(load(config), index_ads)


if __name__ == "__main__":
    try:
        check(sys.argv[1:], name="index")
    except ConfigError as error:
        sys.exit(str(error))
    main()
