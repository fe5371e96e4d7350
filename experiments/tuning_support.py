"""Whether a code's probability is better learned among all tokens or among the codes that lead to an ad (LEADRE 4.3.1).

The paper's loss is over the whole vocabulary; at decoding codes that lead to no ad are left out (A.3). With
``sft.tuning.support=trie`` they are left out of the loss too. All rows but the first are decoded alike, so that only
the loss differs. In the control only the training seeds do.

    python -m experiments.tuning_support
    python -m experiments.tuning_support data=amazon_beauty data.root=PATH quantizer=medium prompts.reuse_every=null
"""

import sys

from experiments.run import run_study
from experiments.study import Claim, Row, Study

NONE, SO_DECODED = "alignment=none", "decoding=trie"
AS_IN_PAPER, VOCAB, TRIE = "all tokens, decoded so", "all tokens", "codes that lead to an ad"
OTHER_SEEDS = f"{VOCAB}, other seeds"
SEEDS_APART = 100

STUDY = Study(
    name="tuning_support",
    title="What a code's probability is learned among",
    question="Is a model better that learns each code's probability among the codes that lead to an ad, as decoding "
    "takes it, than among all tokens, as the paper has it?",
    columns=("HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8"),
    rows=(
        Row(AS_IN_PAPER, (NONE,)),
        Row(VOCAB, (NONE, SO_DECODED)),
        Row(TRIE, (NONE, SO_DECODED, "sft.tuning.support=trie")),
        Row(OTHER_SEEDS, (NONE, SO_DECODED), control=True, shift=SEEDS_APART),
    ),
    compared=("HR@8", "NDCG@8"),
    claims=tuple(
        Claim(
            f"learning among codes that lead to an ad raises {score}", TRIE, VOCAB, score, (OTHER_SEEDS, VOCAB), "ours"
        )
        for score in ("HR@8", "NDCG@8")
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
