"""LEADRE's Table 2: the alignment tasks, and whether they come in order or mixed (LEADRE 5.2.2).

The rows of the paper see each pair as often as one another, so the model reads more where there are more tasks; a row
of ours reads as many tokens of the main task alone (as on the embedded world: its claim is left open where they
differ). In the controls every ad has another ad's description, or the same order has other training seeds: an order
must gain more than two trainings of one recipe differ by.

    python -m experiments.table2_task_order                                 # data=synthetic, seeds 0,1,2
    python -m experiments.table2_task_order data=completejourney data.root=PATH
"""

import sys

from experiments.run import run_study
from experiments.study import Claim, Row, Study

NONE = "alignment=none"
SOURCE = "LEADRE 5.2.2, Table 2"
ORDER, EX_MAIN, MIX, EX_MIX, MAIN = "EX -> IM -> Main", "EX -> Main", "Main+IM+EX mix", "Main+EX mix", "Main only"
AS_MANY, OTHER_ADS, EX_OTHER_ADS = "Main only, as many tokens", "descriptions of other ads", "EX of other ads -> Main"
OTHER_SEEDS = "EX -> IM -> Main, other seeds"
COLUMNS = ("HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8")
SEEDS_APART = 100


def paper(*scores: float) -> dict[str, float]:
    """A row of the paper's table."""
    return dict(zip(COLUMNS, scores, strict=True))


STUDY = Study(
    name="table2_task_order",
    title="Table 2: tuning tasks and their order",
    question="Do the explicit (EX) and implicit (IM) alignment tasks help, and does a fixed order beat mixing them? In "
    "the paper EX and IM add 10 per cent to Main alone, and the order 3 per cent to the mix.",
    columns=COLUMNS,
    rows=(
        Row(ORDER, (NONE, "sft=ex_im_main"), paper(0.0780, 0.1610, 0.2062, 0.1232, 0.1391)),
        Row(EX_MAIN, (NONE, "sft=ex_main"), paper(0.0767, 0.1566, 0.1998, 0.1201, 0.1354)),
        Row(MIX, (NONE, "sft=mix_main_im_ex"), paper(0.0745, 0.1523, 0.2009, 0.1165, 0.1337)),
        Row(EX_MIX, (NONE, "sft=mix_main_ex"), paper(0.0766, 0.1516, 0.1948, 0.1174, 0.1327)),
        Row(MAIN, (NONE, "sft=main_only"), paper(0.0707, 0.1444, 0.1879, 0.1107, 0.1260)),
        Row(AS_MANY, (NONE, "sft.stages=[{{main: 6.67}}]")),
        Row(OTHER_ADS, (NONE, "sft=ex_im_main", "prompts.description_control=0"), control=True),
        Row(EX_OTHER_ADS, (NONE, "sft=ex_main", "prompts.description_control=0"), control=True),
        Row(OTHER_SEEDS, (NONE, "sft=ex_im_main"), control=True, shift=SEEDS_APART),
    ),
    compared=("HR@8", "NDCG@8"),
    claims=(
        Claim("EX and IM raise HR@8", ORDER, MAIN, "HR@8", (OTHER_ADS, MAIN), SOURCE),
        Claim("EX raises HR@8", EX_MAIN, MAIN, "HR@8", (EX_OTHER_ADS, MAIN), SOURCE),
        Claim("IM raises HR@8", ORDER, EX_MAIN, "HR@8", (OTHER_ADS, EX_OTHER_ADS), SOURCE),
        Claim("the fixed order beats the mix of the three", ORDER, MIX, "HR@8", (OTHER_SEEDS, ORDER), SOURCE),
        Claim("the fixed order beats the mix of Main and EX", EX_MAIN, EX_MIX, "HR@8", (OTHER_SEEDS, ORDER), SOURCE),
        Claim(
            "EX and IM raise HR@8 over Main with as many tokens",
            ORDER,
            AS_MANY,
            "HR@8",
            (OTHER_ADS, AS_MANY),
            "ours",
            same_tokens=True,
        ),
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
