"""All six orders of the three tasks, and their mix (LEADRE 5.2.2 tries one order; its second open question).

Every row sees each pair as often, so all read the same tokens in about as many steps. In the control the paper's order
has other training seeds.

    python -m experiments.open_question2_all_orders
"""

import sys

from experiments.run import run_study
from experiments.study import Claim, Row, Study

NONE = "alignment=none"
SOURCE = "LEADRE 5.2.2, of one order and the mix"
ORDERS = {
    "EX -> IM -> Main": "ex_im_main",
    "IM -> EX -> Main": "im_ex_main",
    "EX -> Main -> IM": "ex_main_im",
    "IM -> Main -> EX": "im_main_ex",
    "Main -> EX -> IM": "main_ex_im",
    "Main -> IM -> EX": "main_im_ex",
    "Main+IM+EX mix": "mix_main_im_ex",
}
PAPERS, *OTHERS = ORDERS
OTHER_SEEDS = f"{PAPERS}, other seeds"
SEEDS_APART = 100

STUDY = Study(
    name="open_question2_all_orders",
    title="Open question 2: all orders of the tasks",
    question="Is EX -> IM -> Main the best order? The paper compares it with mixes, not with other orders.",
    columns=("HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8"),
    rows=(
        *(Row(name, (NONE, f"sft={option}")) for name, option in ORDERS.items()),
        Row(OTHER_SEEDS, (NONE, f"sft={ORDERS[PAPERS]}"), control=True, shift=SEEDS_APART),
    ),
    compared=("HR@8", "NDCG@8"),
    claims=tuple(
        Claim(f"{PAPERS} beats {other}", PAPERS, other, "HR@8", (OTHER_SEEDS, PAPERS), SOURCE) for other in OTHERS
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
