"""Whether lists are better that come from several ads a pass (the first future work of LEADRE 6, docs/next_n.md).

The same world, S-IDs, first two stages and number of steps; the last stage answers with one ad or with four, and lists
are those of the plain beam or of four ads a pass. In the control the ads that follow are those of other users.

    python -m experiments.next_n compute.threads=1
    python -m experiments.next_n compute.threads=1 data.seed=3 decoding.normalizer=trie

Seconds are those of the processor for the whole stage, the model's loading included. HR looks for the next ad alone,
also where a list is made of the next four.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache

import polars as pl

from experiments.run import run_study
from experiments.study import Claim, Row, Study
from leadre import tables
from leadre.artifacts import Result, origins

SAME = ("alignment=none", "prompts.next_n=4", "prompts.next_n_control=0")
"""Of all rows: so they have one tokenizer, one base model, and share the stages of explicit and implicit alignment."""
FOUR_A_PASS = ("decoding.next_n=4", "decoding.beam_width=50")


def stages(last: str) -> str:
    """The curriculum that ends with a task, as a row's override: that of ``sft=ex_im_main`` but for the last task.

    Example:
        >>> stages("main").format()
        'sft.stages=[{explicit: 8},{implicit: 1},{main: 5}]'
    """
    return f"sft.stages=[{{{{explicit: 8}}}},{{{{implicit: 1}}}},{{{{{last}: 5}}}}]"


@cache
def measured(scores: Result) -> Mapping[str, float | None]:
    """What ``scores.json`` does not tell: of the lists, and of what they cost.

    ``filled`` is the share of the lists' places that hold an ad, ``distinct`` the number of ads that any list holds,
    ``seconds`` those of the processor for a thousand users (None where a run only found the lists of one that was
    killed).
    """
    made_from = origins(scores.path)
    generations = made_from["generations"].path
    lists = tables.read(tables.LISTS, generations / "lists")
    about = json.loads((generations / "generation.json").read_text(encoding="utf-8"))
    users, seconds = about["users_of_this_run"], about["cpu_seconds"]
    return {
        "distinct": lists["ad_id"].n_unique(),
        "filled": lists.select(pl.len()).item() / (about["users"] * about["settings"]["num_ads"]),
        "seconds": 1000 * seconds / users if users else None,
    }


STUDY = Study(
    name="next_n",
    title="Several ads a pass",
    question="Are lists better that come from several ads a pass? The paper names it as future work.",
    columns=("HR@1", "HR@4", "HR@8", "NDCG@8", "Diversity@8"),
    rows=(
        Row("one ad, plain list", (*SAME, stages("main"))),
        Row("four ads, plain list", (*SAME, stages("next_n"))),
        Row("four ads, four a pass", (*SAME, stages("next_n"), *FOUR_A_PASS)),
        Row(
            "four ads, four a pass, 20 beams",
            (*SAME, stages("next_n"), "decoding.next_n=4", "decoding.beam_width=20"),
        ),
        Row("other users' ads, four a pass", (*SAME, stages("next_n_control"), *FOUR_A_PASS), control=True),
    ),
    compared=("HR@8",),
    claims=(
        Claim(
            "four ads a pass find more than the plain list",
            "four ads, four a pass",
            "one ad, plain list",
            "HR@8",
            ("other users' ads, four a pass", "one ad, plain list"),
            "LEADRE 6",
        ),
    ),
    measures={
        "distinct ads": lambda scores: measured(scores)["distinct"],
        "filled": lambda scores: measured(scores)["filled"],
        "CPU s/1,000 users": lambda scores: measured(scores)["seconds"],
    },
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
