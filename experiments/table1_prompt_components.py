"""LEADRE's Table 1: what content behaviors and the interest summary in the prompt are worth (LEADRE 5.2.1).

In the controls a component is there and tells nothing of the user: content behaviors are another user's, or the names
that the summary counts are exchanged. What a control gains is not due to what the component tells.

    python -m experiments.table1_prompt_components                          # data=synthetic, seeds 0,1,2
    python -m experiments.table1_prompt_components data=completejourney data.root=PATH
    python -m experiments.table1_prompt_components prompts=paper sft/tuning=paper lm=local lm.model=PATH
"""

import sys

from experiments.run import run_study
from experiments.study import Claim, Row, Study

NONE = "alignment=none"
SOURCE = "LEADRE 5.2.1, Table 1"
FULL, NO_CONTENT, NO_SUMMARY = "LEADRE", "w.o. content", "w.o. summary"
OTHERS_CONTENT, OTHER_SUMMARY = "content of other users", "summary of other names"

STUDY = Study(
    name="table1_prompt_components",
    title="Table 1: prompt components",
    question="What are content behaviors and the interest summary worth? In the paper leaving out the content costs 12 "
    "to 14 per cent of every metric, leaving out the summary about one per cent, and HR@8 rises.",
    columns=("HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8"),
    rows=(
        Row(FULL, (NONE,), {"HR@1": 0.0764, "HR@4": 0.1567, "HR@8": 0.2021, "NDCG@4": 0.1199, "NDCG@8": 0.1360}),
        Row(
            NO_CONTENT,
            (NONE, "prompts.content_behaviors=false"),
            {"HR@1": 0.0660, "HR@4": 0.1343, "HR@8": 0.1773, "NDCG@4": 0.1029, "NDCG@8": 0.1181},
        ),
        Row(
            NO_SUMMARY,
            (NONE, "prompts.summary=false"),
            {"HR@1": 0.0760, "HR@4": 0.1543, "HR@8": 0.2043, "NDCG@4": 0.1181, "NDCG@8": 0.1358},
        ),
        Row(OTHERS_CONTENT, (NONE, "prompts.content_control=0"), control=True),
        Row(OTHER_SUMMARY, (NONE, "prompts.summary_control=0"), control=True),
    ),
    compared=("HR@8", "NDCG@8"),
    claims=tuple(
        Claim(f"{component} raise{s} {score}", FULL, without, score, (control, without), SOURCE)
        for component, s, without, control in (
            ("content behaviors", "", NO_CONTENT, OTHERS_CONTENT),
            ("the interest summary", "s", NO_SUMMARY, OTHER_SUMMARY),
        )
        for score in ("HR@8", "NDCG@8")
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
