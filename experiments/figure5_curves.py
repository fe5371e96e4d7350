"""The curves of Figure 5: lists' likeness and hits by what was removed, with intervals over users (LEADRE 5.2.5)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from experiments.figure5_shorten import FULL
from experiments.result import read_result
from leadre.metrics.ranking import Scores
from leadre.metrics.uncertainty import bootstrap_interval

SAMPLES, CONFIDENCE = 2000, 0.95
CURVES = ("earliest", "latest", "middle", "random", "replaced")
SHOWN = {"ads": "ad behaviors", "contents": "content behaviors", "behaviors": "behaviors of both domains"}
COLORS = {
    "earliest": "tab:red",
    "latest": "tab:blue",
    "middle": "tab:green",
    "random": "tab:gray",
    "replaced": "tab:purple",
}
EVERYONE = "all"
LOST = "HR@8 less the whole's"
"""Hits less those of the same users' whole sequences: users differ more from one another than from themselves."""


class Scored(NamedTuple):
    """The scores of U users by S systems, means over the training seeds.

    Attributes:
        systems: ``(S,)`` names.
        ads: ``(U,)`` how many ad behaviors each user's whole sequence has.
        values: A score's ``(U, S)`` numbers, by name.
    """

    systems: tuple[str, ...]
    ads: pl.Series
    values: dict[str, Scores]


def draw(folder: Path, store: Path) -> None:
    """Write ``curves.csv`` and ``figure.png`` of a study into its folder.

    Args:
        folder: Holds ``result.json``.
        store: The root that its results lie in.
    """
    row = next((row for row in read_result(folder).rows if row.runs), None)
    if row is None:
        raise ValueError(f"{folder / 'result.json'} has no row that was run: there is nothing to draw")
    found = curves(read([store / run.path for run in row.runs]))
    found.write_csv(folder / "curves.csv")
    picture(found).savefig(folder / "figure.png", dpi=150)


def read(results: Sequence[Path]) -> Scored:
    """The means over training seeds of results of stage ``dice``."""
    frames = [pl.read_parquet(path / "per_user.parquet").sort("system", "user_id") for path in results]
    names = ["user_id", "system", "ads"]
    if any(not frame.select(names).equals(frames[0].select(names)) for frame in frames):
        raise ValueError(f"{[str(path) for path in results]} are not of the same users and systems")
    systems = tuple(frames[0]["system"].unique().sort())
    users = frames[0].height // len(systems)
    hits = [frame.with_columns(**{"HR@8": pl.col("rank").fill_null(0).is_between(1, 8)}) for frame in frames]
    values = {
        name: np.mean([frame[name].cast(pl.Float64).to_numpy() for frame in hits], axis=0).reshape(-1, users).T
        for name in ("Dice@8", "RBO@8", "HR@8")
    }
    whole = values["HR@8"][:, [systems.index(FULL)]]
    return Scored(systems, frames[0]["ads"][:users], values | {LOST: values["HR@8"] - whole})


def curves(scored: Scored) -> pl.DataFrame:
    """The mean and the interval of each score: one row a system, score and bucket of users.

    Buckets are thirds of the users by how many ad behaviors they have, as far as whole numbers allow.
    """
    rows = []
    for bucket, chosen in buckets(scored.ads):
        for score, values in scored.values.items():
            ends = bootstrap_interval(
                values[chosen], samples=SAMPLES, confidence=CONFIDENCE, generator=np.random.default_rng(0)
            )
            for place, system in enumerate(scored.systems):
                mean = float(values[chosen, place].mean())
                rows.append((*parted(system), bucket, len(chosen), score, mean, ends.low[place], ends.high[place]))
    names = ["kind", "removed", "of", "ads", "users", "score", "mean", "low", "high"]
    return pl.DataFrame(rows, schema=names, orient="row").sort("score", "ads", "of", "kind", "removed")


def parted(system: str) -> tuple[str, int, str]:
    """Kind, number and domain of a system's name.

    Example:
        >>> parted("as latest 4 behaviors")
        ('as latest', 4, 'behaviors')
    """
    if system == FULL:
        return "whole", 0, "behaviors"
    kind, number, of = system.rsplit(" ", 2)
    return kind, int(number), of


def buckets(ads: pl.Series) -> Iterator[tuple[str, Any]]:
    """Names of groups of users, and the places of these: everyone, then up to three groups by how many ads they have.

    Example:
        >>> [(name, places.tolist()) for name, places in buckets(pl.Series([4, 9, 5, 4, 5, 7]))]
        [('all', [0, 1, 2, 3, 4, 5]), ('4', [0, 3]), ('5', [2, 4]), ('7-9', [1, 5])]
    """
    counts = ads.to_numpy()
    yield EVERYONE, np.arange(len(counts))
    cuts = np.unique(np.quantile(counts, [1 / 3, 2 / 3], method="inverted_cdf"))
    group = np.searchsorted(cuts, counts)
    for number in np.unique(group):
        places = np.flatnonzero(group == number)
        low, high = counts[places].min(), counts[places].max()
        yield str(low) if low == high else f"{low}-{high}", places


def picture(found: pl.DataFrame) -> Any:  # noqa: ANN401  # matplotlib's own type
    """Dice and lost hits by the number of behaviors removed, and Dice at both ends by the users' number of ads."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 10), layout="constrained")
    panels = figure.subplots(3, len(SHOWN), sharey="row")
    for column, (of, told) in enumerate(SHOWN.items()):
        for axes, score in zip(panels[:2, column], ("Dice@8", LOST), strict=True):
            for kind in CURVES:
                some = found.filter(of=of, score=score, ads=EVERYONE, kind=kind)
                _line(axes, _from_whole(some, found, score, EVERYONE), label=kind, color=COLORS[kind])
        _by_bucket(panels[2, column], found, of)
        panels[0, column].set_title(told)
        panels[2, column].set_xlabel("behaviors removed")
    for axes, score in zip(panels[:, 0], ("Dice@8", LOST, "Dice@8"), strict=True):
        axes.set_ylabel(score)
    panels[0, 0].legend(title="removed (replaced: the earliest,\nby another user's)", fontsize="small")
    panels[2, 0].legend(title="ad behaviors a user has", fontsize="small")
    figure.suptitle(f"Means over training seeds, {CONFIDENCE:.0%} intervals over users")
    return figure


def _by_bucket(axes: Any, found: pl.DataFrame, of: str) -> None:  # noqa: ANN401
    names = found.filter(pl.col("ads") != EVERYONE)["ads"].unique().to_list()
    for shade, bucket in enumerate(sorted(names, key=lambda name: int(name.split("-")[0]))):
        for kind, style in (("earliest", "-"), ("latest", "--")):
            some = found.filter(of=of, score="Dice@8", ads=bucket, kind=kind)
            color = (0.15 + 0.3 * shade,) * 3
            told = _from_whole(some, found, "Dice@8", bucket)
            _line(axes, told, label=f"{bucket}, {kind}", color=color, linestyle=style)


def _from_whole(some: pl.DataFrame, found: pl.DataFrame, score: str, bucket: str) -> pl.DataFrame:
    """A curve that begins at the whole sequence."""
    return pl.concat([found.filter(kind="whole", score=score, ads=bucket), some]).sort("removed")


def _line(axes: Any, some: pl.DataFrame, **looks: Any) -> None:  # noqa: ANN401
    axes.plot(some["removed"], some["mean"], marker="o", markersize=3, **looks)
    axes.fill_between(some["removed"], some["low"], some["high"], color=looks["color"], alpha=0.15, linewidth=0)
    axes.set_xticks(some["removed"])
    axes.grid(alpha=0.3)
