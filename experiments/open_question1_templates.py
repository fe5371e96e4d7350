"""What several templates and a reordered profile do to diversity and value (LEADRE 4.2.2; its first open question).

The paper trains with several templates and reordered profiles and does not tell what either changes. Lists are made
from the paper's template in all rows. In the control nothing differs but the training seeds.

    python -m experiments.open_question1_templates
"""

import sys

from experiments.run import run_study
from experiments.study import Claim, Row, Study

NONE = "alignment=none"
SOURCE = "LEADRE 4.2.2"
PLAIN, TEMPLATES, ORDERS, BOTH = "one template, one order", "four templates", "reordered profiles", "both"
OTHER_SEEDS = "one template, one order, other seeds"
SEEDS_APART = 100

STUDY = Study(
    name="open_question1_templates",
    title="Open question 1: templates and profile order",
    question="Do several templates and reordered profiles make lists more diverse and more valuable? The paper trains "
    "with both and gives no comparison.",
    columns=("Diversity@8", "Value@8", "LTRR@8", "HR@8", "NDCG@8"),
    rows=(
        Row(PLAIN, (NONE,)),
        Row(TEMPLATES, (NONE, "prompts.template_seed=${{seed}}")),
        Row(ORDERS, (NONE, "prompts.profile_seed=${{seed}}")),
        Row(BOTH, (NONE, "prompts.template_seed=${{seed}}", "prompts.profile_seed=${{seed}}")),
        Row(OTHER_SEEDS, (NONE,), control=True, shift=SEEDS_APART),
    ),
    compared=("Diversity@8", "Value@8", "HR@8"),
    claims=tuple(
        Claim(f"{name} raise {score}", row, PLAIN, score, (OTHER_SEEDS, PLAIN), SOURCE)
        for name, row in (("several templates", TEMPLATES), ("reordered profiles", ORDERS), ("both together", BOTH))
        for score in ("Diversity@8", "Value@8", "HR@8")
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
