"""Table 4: S-IDs from several text encoders under the same quantizer, tuning and decoding (LEADRE 5.2.4).

The paper compares Hunyuan's and E5's S-IDs. Encoders whose weights are not here are listed as not run. Two controls
stand below: random codes, and the codes of shuffled texts; S-IDs that are no better than these mean nothing.

    python -m experiments.table4_embedding_sids                        # the quickstart world, seeds 0,1,2
    python -m experiments.table4_embedding_sids seeds=0,1,2,3,4 data=completejourney data.root=PATH alignment=none
"""

import sys

from experiments.run import run_study
from experiments.study import Claim, Row, Study

NONE = "alignment=none"
SOURCE = "LEADRE 5.2.4, Table 4"
HUNYUAN, E5, RANDOM, SHUFFLED = "Hunyuan", "E5-large-instruct", "random codes", "codes of shuffled texts"

STUDY = Study(
    name="table4_embedding_sids",
    title="Table 4: S-IDs of several encoders",
    question="What are S-IDs of better text embeddings worth? In the paper Hunyuan's have 9 to 15 per cent more LTRR "
    "than E5's, at equal HR@8.",
    columns=("HR@4", "HR@8", "LTRR@4", "LTRR@8"),
    rows=(
        Row("LSA", (NONE, "embedding=lsa")),
        Row(
            HUNYUAN,
            (NONE, "embedding=hunyuan"),
            paper={"HR@4": 0.1070, "HR@8": 0.2140, "LTRR@4": 0.0294, "LTRR@8": 0.0443},
        ),
        Row(
            E5,
            (NONE, "embedding=e5_large_instruct"),
            paper={"HR@4": 0.1052, "HR@8": 0.2140, "LTRR@4": 0.0256, "LTRR@8": 0.0407},
        ),
        Row("Sentence-Bert/L6", (NONE, "embedding=sentence_bert_l6")),
        Row("hashed words", (NONE, "embedding=hashing")),
        Row(
            RANDOM,
            (NONE, "quantizer=random", "quantizer.levels={levels}", "quantizer.codebook_size={codebook_size}"),
            control=True,
        ),
        Row(SHUFFLED, (NONE, "quantizer.shuffled=true"), control=True),
    ),
    compared=("HR@8", "LTRR@8"),
    claims=(
        Claim("Hunyuan's S-IDs have more LTRR@8 than E5's", HUNYUAN, E5, "LTRR@8", (SHUFFLED, E5), SOURCE),
        Claim("S-IDs from text beat random codes", "LSA", RANDOM, "HR@8", (SHUFFLED, RANDOM), "LEADRE 3.2"),
    ),
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
