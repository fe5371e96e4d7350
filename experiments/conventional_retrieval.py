"""LEADRE beside conventional retrieval, in one table: the same users, catalog and test targets.

The paper's own baselines are private. Here: popularity, own history, a linear model, and the learned ones of
``baselines=learned`` (docs/baselines.md): two-tower, SASRec and TIGER. `python train.py -m search=sasrec` and its kin
tune each in as many trials (docs/sweeps.md); the defaults of the rows are as far as docs/baselines.md says. In the
control LEADRE's codes are those of shuffled texts.

    python -m experiments.conventional_retrieval                        # data=synthetic, seeds 0,1,2
    python -m experiments.conventional_retrieval data=completejourney data.root=PATH
"""

import sys

from experiments.run import run_study
from experiments.study import Claim, Row, Study
from leadre.report.table import OURS

RUN = ("alignment=none", "baselines=learned")
SHUFFLED = "LEADRE, codes of shuffled texts"
RIVALS = ("popularity", "own_history", "linear", "two_tower", "two_tower_ads", "sasrec", "tiger")

STUDY = Study(
    name="conventional_retrieval",
    title="LEADRE beside conventional retrieval",
    question="Does LEADRE find more than conventional retrieval? The paper tells it by online lifts alone.",
    columns=("HR@1", "HR@4", "HR@8", "NDCG@8", "LTRR@8", "Diversity@8", "Value@8"),
    rows=(
        Row(OURS, RUN),
        *(Row(name, RUN, system=name) for name in RIVALS),
        Row("oracle", RUN, system="oracle"),
        Row(SHUFFLED, ("alignment=none", "quantizer.shuffled=true"), control=True),
    ),
    compared=("HR@8", "NDCG@8"),
    claims=(
        *(
            Claim(f"LEADRE finds more than {rival}", OURS, rival, "HR@8", (SHUFFLED, rival), "LEADRE 1, 5.3")
            for rival in RIVALS
        ),
        Claim(
            "LEADRE's lists are more diverse than the two-tower's",
            OURS,
            "two_tower",
            "Diversity@8",
            (SHUFFLED, "two_tower"),
            "LEADRE 5.3",
        ),
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
