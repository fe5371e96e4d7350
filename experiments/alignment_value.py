"""Whether preference pairs teach business value, and what that costs in hits (LEADRE 4.3.2, docs/alignment.md).

All rows have the same world, tuned model, pairs, steps and batches; the first is the control that most papers leave
out: the likelihood of the chosen ads alone. In the negative controls the pairs are turned round, or ordered by a coin.

    python -m experiments.alignment_value compute.threads=1
    python -m experiments.alignment_value compute.threads=1 data.seed=5 alignment.tuning.learning_rate=5e-5

Value@K is the mean true ECPM of the first K ads, which only a simulated world knows. LTRR@K is measured on users that
are in no pair. ``prefix mass`` is the probability of the codes that both ads of a pair share, ``chosen drop`` by how
many nats the chosen ads' log-probability has fallen below the tuned model's: both at the end of the alignment.
"""

import csv
import sys
from functools import cache

from experiments.study import Row, Study, run_study
from leadre.artifacts import Result, origins


@cache
def at_the_end(scores: Result, name: str) -> float | None:
    """The last value of a metric of the alignment, which are running means; None where it was never logged."""
    aligned = origins(scores.path).get("aligned")
    if aligned is None:
        return None
    with (aligned.path / "metrics.csv").open(newline="", encoding="utf-8") as file:
        values = [float(row[name]) for row in csv.DictReader(file) if row.get(name)]
    return values[-1] if values else None


STUDY = Study(
    name="alignment_value",
    title="Alignment with business value",
    columns=("HR@8", "LTRR@8", "Value@8", "Diversity@8"),
    rows=(
        Row("SFT on chosen", ("alignment=sft_on_chosen",)),
        Row("DPO", ("alignment=dpo",)),
        Row("DPO without SFT", ("alignment=dpo_without_sft",)),
        Row("S-DPO", ("alignment=sdpo",)),
        Row("RRHF", ("alignment=rrhf",)),
        Row("no alignment", ("alignment=none",)),
        Row("DPO, pairs turned round", ("alignment=dpo", "alignment.preferences.control=flipped"), control=True),
        Row("DPO, order by a coin", ("alignment=dpo", "alignment.preferences.control=random"), control=True),
    ),
    compared=("HR@8", "LTRR@8", "Value@8"),
    measures={
        "prefix mass": lambda scores: at_the_end(scores, "train/prefix_mass"),
        "chosen drop": lambda scores: at_the_end(scores, "train/chosen_drop"),
    },
)


if __name__ == "__main__":
    run_study(STUDY, sys.argv[1:])
