"""LEADRE's Figure 4(b): DPO and RRHF beside no alignment: diversity, LTRR and what lists are worth (LEADRE 5.2.3).

All aligned rows but one have as many pairs of ads of the model's own beam, the same steps, batches and rate; they
differ in the loss, or in what the ads are compared by; SFT on the chosen ads compares nothing. The row of the paper's
pairs compares likely ads of the log and the beam by their ECPM. Value@8, the true ECPM of the lists, only a simulated
world knows: LTRR alone may merely show that the ranker that ordered the pairs is imitated. In the controls a coin
orders the pairs.

    python -m experiments.figure4_alignment
"""

import sys

from experiments.alignment_value import DPO as PAPERS_PAIRS
from experiments.run import run_study
from experiments.study import Claim, Row, Study

PAPERS, OURS = "LEADRE 5.2.3, Figure 4(b)", "ours, of LEADRE 5.2.3"
NONE, DPO, RRHF = "no alignment", "DPO", "RRHF"
CHOSEN, BY_ECPM, PAPERS_DPO = "SFT on the chosen ads", "DPO, ordered by ECPM alone", "DPO, the paper's pairs"
COIN = "alignment.preferences.control=random"
DPO_COIN, RRHF_COIN, PAPERS_COIN = (f"{row}, order by a coin" for row in (DPO, RRHF, PAPERS_DPO))

STUDY = Study(
    name="figure4_alignment",
    title="Figure 4(b): alignment with business value",
    question="Do DPO and RRHF raise diversity and LTRR, and DPO more so? In the paper both do, by amounts that only a "
    "picture tells; how pairs, rates and steps were chosen is not told.",
    columns=("Diversity@8", "LTRR@4", "LTRR@8", "Value@8", "HR@8"),
    rows=(
        Row(NONE, ("alignment=none",)),
        Row(DPO, ("alignment=dpo",)),
        Row(RRHF, ("alignment=rrhf",)),
        Row(CHOSEN, ("alignment=sft_on_chosen",)),
        Row(BY_ECPM, ("alignment=dpo", "alignment.preferences.worth=ecpm")),
        Row(PAPERS_DPO, PAPERS_PAIRS),
        Row(DPO_COIN, ("alignment=dpo", COIN), control=True),
        Row(RRHF_COIN, ("alignment=rrhf", COIN), control=True),
        Row(PAPERS_COIN, (*PAPERS_PAIRS, COIN), control=True),
    ),
    compared=("Diversity@8", "LTRR@8", "Value@8", "HR@8"),
    claims=(
        *(
            Claim(f"the paper's pairs raise {what}", PAPERS_DPO, NONE, score, (PAPERS_COIN, NONE), PAPERS)
            for what, score in (("LTRR@8", "LTRR@8"), ("diversity", "Diversity@8"), ("the true value", "Value@8"))
        ),
        *(
            Claim(f"{row} on our pairs raises {what}", row, NONE, score, (coin, NONE), OURS)
            for row, coin in ((DPO, DPO_COIN), (RRHF, RRHF_COIN))
            for what, score in (("LTRR@8", "LTRR@8"), ("diversity", "Diversity@8"), ("the true value", "Value@8"))
        ),
        Claim("SFT on the chosen ads raises the true value", CHOSEN, NONE, "Value@8", (RRHF_COIN, NONE), "ours"),
        Claim("DPO has more value than SFT on the chosen ads", DPO, CHOSEN, "Value@8", (DPO_COIN, CHOSEN), "ours"),
        Claim("RRHF has more value than SFT on the chosen ads", RRHF, CHOSEN, "Value@8", (RRHF_COIN, CHOSEN), "ours"),
        Claim("DPO has a higher LTRR@8 than RRHF", DPO, RRHF, "LTRR@8", (DPO_COIN, RRHF_COIN), PAPERS),
        Claim("DPO has more diversity than RRHF", DPO, RRHF, "Diversity@8", (DPO_COIN, RRHF_COIN), PAPERS),
        Claim("value orders better than ECPM alone", DPO, BY_ECPM, "Value@8", (DPO_COIN, BY_ECPM), "ours"),
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
