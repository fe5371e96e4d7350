"""LEADRE's Figure 4(b): DPO and RRHF on pairs ordered by ECPM, beside no alignment: diversity and LTRR (LEADRE 5.2.3).

All aligned rows have the same pairs, steps, batches and rate. Value@8, the true ECPM of the lists, only a simulated
world knows: LTRR alone may merely show that one channel imitates another. In the controls a coin orders the pairs.

    python -m experiments.figure4_alignment
"""

import sys

from experiments.alignment_value import RATE
from experiments.run import run_study
from experiments.study import Claim, Row, Study

SOURCE = "LEADRE 5.2.3, Figure 4(b)"
NONE, DPO, RRHF = "no alignment", "DPO", "RRHF"
COIN = "alignment.preferences.control=random"
DPO_COIN, RRHF_COIN = "DPO, order by a coin", "RRHF, order by a coin"

STUDY = Study(
    name="figure4_alignment",
    title="Figure 4(b): alignment with business value",
    question="Do DPO and RRHF raise diversity and LTRR, and DPO more so? In the paper both do, by amounts that only a "
    "picture tells; how pairs, rates and steps were chosen is not told.",
    columns=("Diversity@8", "LTRR@4", "LTRR@8", "Value@8", "HR@8"),
    rows=(
        Row(NONE, ("alignment=none",)),
        Row(DPO, ("alignment=dpo", *RATE)),
        Row(RRHF, ("alignment=rrhf", *RATE)),
        Row(DPO_COIN, ("alignment=dpo", *RATE, COIN), control=True),
        Row(RRHF_COIN, ("alignment=rrhf", *RATE, COIN), control=True),
    ),
    compared=("Diversity@8", "LTRR@8", "Value@8", "HR@8"),
    claims=(
        Claim("DPO raises LTRR@8", DPO, NONE, "LTRR@8", (DPO_COIN, NONE), SOURCE),
        Claim("RRHF raises LTRR@8", RRHF, NONE, "LTRR@8", (RRHF_COIN, NONE), SOURCE),
        Claim("DPO raises diversity", DPO, NONE, "Diversity@8", (DPO_COIN, NONE), SOURCE),
        Claim("RRHF raises diversity", RRHF, NONE, "Diversity@8", (RRHF_COIN, NONE), SOURCE),
        Claim("DPO has a higher LTRR@8 than RRHF", DPO, RRHF, "LTRR@8", (DPO_COIN, RRHF_COIN), SOURCE),
        Claim("DPO has more diversity than RRHF", DPO, RRHF, "Diversity@8", (DPO_COIN, RRHF_COIN), SOURCE),
        Claim("DPO raises the true value of lists", DPO, NONE, "Value@8", (DPO_COIN, NONE), "LEADRE 4.3.2, on truth"),
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
