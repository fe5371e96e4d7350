"""Figure 5: what of a user's behavior sequence the lists hang on (LEADRE 5.2.5).

The paper removes the earliest behaviors and compares the lists with those of the whole sequence, by the Dice
coefficient. Here the latest, a window in the middle and as many at random are removed as well, in the ad domain, the
content domain and both, and the earliest are also replaced by another user's: what a single curve shows may come of
where a behavior stands, of its domain (the earliest behaviors that a prompt shows are mostly ads), or of the length
alone.

    python -m experiments.figure5_sequence_length compute.threads=1

All lists of a training seed are those of one tuned model. All rows and curves are of the same thousand users, drawn
from the test users of whom each cut finds enough behaviors. Sequence means what the prompt shows; the interest summary,
which counts the whole window, stays as it was (``prompts=without_summary`` leaves it out). Its picture
and ``curves.csv`` tell Dice and hits by the number of behaviors removed, with intervals over users, and by how many ad
behaviors a user has.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.figure5_curves import draw
from experiments.figure5_score import CompareConfig, compare
from experiments.figure5_shorten import Cut, Kind, Of, ShortenConfig, shorten
from experiments.run import run_study
from experiments.study import Claim, Row, Study, configured
from leadre import pipeline
from leadre.artifacts import Result, Store

USERS = 1000
NUMBERS: dict[Of, tuple[int, ...]] = {"ads": (1, 2, 4), "contents": (1, 2, 4, 8), "behaviors": (1, 2, 4, 8)}
"""How many are removed. A user needs that many: the default prompts show at most 12 contents, and few users have more
than a handful of ads."""
CURVES: tuple[Kind, ...] = ("earliest", "latest", "middle", "random", "replaced")
K, LONGEST = 4, 8
"""Behaviors removed in the claims on weight, and in that on length."""
SAME = ("alignment=none",)
"""Of all rows, so that they share one model with Tables 1 and 2."""


def cut(kind: Kind, number: int, of: Of) -> Cut:
    """One cut, by its place in the table."""
    return Cut(kind=kind, number=number, of=of)


CUTS = (
    *(cut(kind, number, of) for of, numbers in NUMBERS.items() for kind in CURVES for number in numbers),
    *(cut(kind, K, "behaviors") for kind in ("as_earliest", "as_latest", "coin", "other_side")),
    cut("again", K, "ads"),
)


def row(name: str, removed: Cut, *, control: bool = False) -> Row:
    """A row that shows one system of the one result that all rows share."""
    return Row(name, SAME, control=control, system=removed.name)


EARLY, LATE = f"{K} earliest removed", f"{K} latest removed"
EARLY_ADS, LATE_ADS = f"{K} earliest ads removed", f"{K} latest ads removed"
ANY_ADS, ANY_CONTENTS = f"{K} ads at random removed", f"{K} contents at random removed"
SHORT, FOREIGN = f"{LONGEST} earliest removed", f"{LONGEST} earliest another user's"
AS_EARLY, AS_LATE = f"{K} at random, as many ads as the earliest", f"{K} at random, as many ads as the latest"
ADS_AGAIN = f"{K} ads at random removed, another draw"
COIN, OTHER_SIDE = f"{K} of {K} ads and {K} contents by a coin", "the other side of the coin"

ROWS = (
    Row("the whole sequence", SAME),
    row(EARLY, cut("earliest", K, "behaviors")),
    row(LATE, cut("latest", K, "behaviors")),
    row(f"{K} in the middle removed", cut("middle", K, "behaviors")),
    row(f"{K} at random removed", cut("random", K, "behaviors")),
    row(SHORT, cut("earliest", LONGEST, "behaviors")),
    row(f"{LONGEST} latest removed", cut("latest", LONGEST, "behaviors")),
    row(EARLY_ADS, cut("earliest", K, "ads")),
    row(LATE_ADS, cut("latest", K, "ads")),
    row(ANY_ADS, cut("random", K, "ads")),
    row(f"{K} earliest contents removed", cut("earliest", K, "contents")),
    row(f"{K} latest contents removed", cut("latest", K, "contents")),
    row(ANY_CONTENTS, cut("random", K, "contents")),
    row(FOREIGN, cut("replaced", LONGEST, "behaviors"), control=True),
    row(AS_EARLY, cut("as_earliest", K, "behaviors"), control=True),
    row(AS_LATE, cut("as_latest", K, "behaviors"), control=True),
    row(ADS_AGAIN, cut("again", K, "ads"), control=True),
    row(COIN, cut("coin", K, "behaviors"), control=True),
    row(OTHER_SIDE, cut("other_side", K, "behaviors"), control=True),
)

CLAIMS = (
    Claim(
        "longer sequences tell more of what a user wants",
        better="the whole sequence",
        worse=SHORT,
        on="HR@8",
        control=(FOREIGN, SHORT),
        source="LEADRE 5.2.5, observation 1",
    ),
    Claim(
        "the earliest behaviors weigh more than the latest",
        better=LATE,
        worse=EARLY,
        on="Dice@8",
        control=(AS_LATE, AS_EARLY),
        source="LEADRE 5.2.5, observation 2",
    ),
    Claim(
        "among ads the earliest weigh more than the latest",
        better=LATE_ADS,
        worse=EARLY_ADS,
        on="Dice@8",
        control=(ADS_AGAIN, ANY_ADS),
        source="LEADRE 5.2.5, observation 3",
    ),
    Claim(
        "ads weigh more than as many contents",
        better=ANY_CONTENTS,
        worse=ANY_ADS,
        on="Dice@8",
        control=(OTHER_SIDE, COIN),
        source="LEADRE 5.2.5, observation 3",
    ),
)


def shortened(overrides: Sequence[str], seed: int, *, users: int = USERS) -> Result:
    """The scores of all systems with one training seed; whatever is in the store is reused."""
    run = configured(overrides, seed)
    store = Store(Path(run.store.root))
    prepared = pipeline.prepare(run, store, pipeline.index_ads(run, store))
    model = pipeline.train(run, store, prepared)
    world, catalog = prepared.world, prepared.catalog
    config = ShortenConfig(prompts=run.prompts, users=users, seed=0, cuts=CUTS)
    prompts = store.make("shortened", shorten, config, world, catalog, prepared.base)
    lists = pipeline.list_ads(run.decoding, store, model, catalog, prompts, compute=run.compute)
    scores = CompareConfig(hr_ks=run.metrics.hr_ks, ndcg_ks=run.metrics.ndcg_ks, k=8, rbo_p=0.9)
    return store.make("dice", compare, scores, world, catalog, prompts, lists)


STUDY = Study(
    name="figure5_sequence_length",
    title="What of a behavior sequence the lists hang on",
    question="Which behaviors change a user's list when they are removed? The paper found that the earliest, and ads, "
    "change it most (LEADRE 5.2.5, Figure 5).",
    columns=("HR@1", "HR@8", "NDCG@8", "Dice@8", "RBO@8"),
    rows=ROWS,
    compared=("Dice@8", "HR@8"),
    claims=CLAIMS,
    run=shortened,
    draw=draw,
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
