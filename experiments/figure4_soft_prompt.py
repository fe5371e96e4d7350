"""LEADRE's Figure 4(a): the learnable token at the beginning of the prompt (LEADRE 5.2.1).

In the control the token is there and stays as it was drawn: what it gains, a place in the prompt gains, not learning.

    python -m experiments.figure4_soft_prompt
"""

import sys

from experiments.run import run_study
from experiments.study import Claim, Row, Study

NONE = "alignment=none"
SOURCE = "LEADRE 5.2.1, Figure 4(a)"
WITH, WITHOUT, FROZEN = "w. SoftPrompt", "w.o. SoftPrompt", "a token that does not learn"

STUDY = Study(
    name="figure4_soft_prompt",
    title="Figure 4(a): the learnable token",
    question="Does a learnable token in the instruction help? In the paper it does, by what only a picture tells.",
    columns=("HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8"),
    rows=(
        Row(WITH, (NONE,)),
        Row(WITHOUT, (NONE, "prompts.soft_tokens=0")),
        Row(FROZEN, (NONE, "sft.tuning.freeze_soft_tokens=true"), control=True),
    ),
    compared=("HR@8", "NDCG@8"),
    claims=tuple(
        Claim(f"the learnable token raises {score}", WITH, WITHOUT, score, (FROZEN, WITHOUT), SOURCE)
        for score in ("HR@8", "NDCG@8")
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
