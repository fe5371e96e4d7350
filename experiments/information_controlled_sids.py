"""Whether S-IDs serve better whose levels share the information (the second future work of LEADRE 6).

The same embeddings, tuning and decoding under three quantizers of three levels: the RQ-VAE, which gives most bits to
the first level; residual k-means, the same idea without learning; and `graded_kmeans`, which gives each level a budget.
The control has graded codes handed to the wrong texts. How the codes differ: `python index.py quantizer=graded_kmeans`.

    python -m experiments.information_controlled_sids data.seed=3 alignment=none 'sft.stages=[{main: 5}]'

Choices were made on the world of seed 0, so a world of another seed is the one to judge by.
"""

import sys

from experiments.run import run_study
from experiments.study import Claim, Row, Study

GRADED = ("quantizer=graded_kmeans", "quantizer.levels=3", "quantizer.codebook_size=128")
STUDY = Study(
    name="information_controlled_sids",
    title="S-IDs whose levels share the information",
    question="Do S-IDs serve better whose levels share the information? The paper names it as future work.",
    columns=("HR@1", "HR@4", "HR@8", "NDCG@8", "LTRR@8"),
    rows=(
        Row("RQ-VAE", ("quantizer=small",)),
        Row("graded k-means", GRADED),
        Row(
            "residual k-means",
            (
                "quantizer=residual_kmeans",
                "quantizer.levels=3",
                "quantizer.codebook_size=64",
                "quantizer.spread_last_level=true",
            ),
        ),
        Row("graded, codes of shuffled texts", (*GRADED, "quantizer.shuffled=true"), control=True),
    ),
    compared=("HR@8",),
    claims=(
        Claim(
            "graded codes find more than the RQ-VAE's",
            "graded k-means",
            "RQ-VAE",
            "HR@8",
            ("graded, codes of shuffled texts", "RQ-VAE"),
            "LEADRE 6",
        ),
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
