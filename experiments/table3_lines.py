"""The lines of Table 3: what is counted of each encoder, how sure it is, and how it is laid out."""

import csv
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from leadre.inspection import accuracy
from leadre.inspection.accuracy import Shares, Task
from leadre.inspection.neighbors import Rows
from leadre.report.curves import COLORS
from leadre.report.table import NOTHING, Grid, markdown

KS = (1, 10, 50, 100)
DRAWS, SHUFFLES = 1000, 20
"""Of the bootstrap over texts, and of the control: ads of one text share their neighbors, so one shuffle is noisy."""
COMPARED = 10
"""The K at which encoders are held against the best."""

PAPER = {
    "hunyuan": (98.03, 96.46, 86.61, 65.67),
    "e5_large_instruct": (97.21, 96.48, 87.42, 66.38),
    "bge_m3": (95.00, 91.07, 78.76, 59.64),
    "bert_chinese": (97.24, 92.65, 74.12, 50.20),
    "electra_chinese": (94.60, 85.98, 63.09, 43.62),
    "sentence_bert_l12": (95.40, 90.11, 70.15, 48.44),
    "sentence_bert_l6": (81.97, 72.65, 53.61, 37.97),
    "xlnet_chinese": (80.31, 63.32, 38.27, 26.14),
    "clip_32": (80.32, 67.91, 45.90, 29.87),
    "clip_16": (81.57, 67.40, 45.20, 30.33),
    "t5": (67.10, 51.22, 33.90, 23.89),
}
"""Table 3 of the paper, in percent, on Tencent's private ads: the order can be compared, the numbers cannot."""

Pool = Literal["sample", "catalog"]
Texts = Literal["all", "distinct"]
POOLS: dict[Pool, str] = {"sample": "(a) the sampled ads", "catalog": "(b) the full catalog"}
TEXTS: dict[Texts, str] = {"all": "all ads", "distinct": "one ad a text"}


class Line(NamedTuple):
    """One line of the table: Top-K accuracy for each K, in 0..1, NaN where the pool is too small.

    Attributes:
        name: The encoder, or what else it is.
        mean: ``(len(KS),)``.
        draws: ``(DRAWS, len(KS))`` of the bootstrap, the same draws of texts for all encoders; None for what is none.
    """

    name: str
    mean: Shares
    draws: Shares | None = None


def measured(name: str, task: Task, neighbors: Rows, texts: Rows, *, seed: int) -> Line:
    """An encoder's macro means, and what they are with the queries of each category drawn anew.

    Args:
        name: The encoder.
        task: The queries and the pool.
        neighbors: ``(Q, k)`` rows, nearest first.
        texts: ``(N,)`` number of each ad's text.
        seed: The same seed draws the same texts, so that lines can be compared draw by draw.
    """
    values = accuracy.accuracy(task, neighbors, KS)
    category, generator = task.category[task.queries], np.random.default_rng(seed)
    parts = [category == number for number in np.unique(category)]
    draws = [resampled(values[part], texts[task.queries][part], generator) for part in parts]
    return Line(name, accuracy.macro(values, task), np.mean(draws, axis=0))


def resampled(values: Shares, texts: Rows, generator: np.random.Generator) -> Shares:
    """Means over queries whose texts are drawn anew, with replacement: ``(Q, V)`` gives ``(DRAWS, V)``.

    A text comes with all its queries (the cluster bootstrap): ads of one text have the same neighbors, so that a
    hundred of them say no more than one.
    """
    number, sizes = np.unique(texts, return_inverse=True, return_counts=True)[1:]
    sums = np.stack([np.bincount(number, weights=column) for column in values.T], axis=1)
    times = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=DRAWS)
    return np.asarray(times @ sums / (times @ sizes)[:, None])


def interval(draws: Shares) -> Shares:
    """The ends of the 95 % interval: ``(DRAWS, V)`` gives ``(2, V)``."""
    return np.asarray(np.percentile(draws, [2.5, 97.5], axis=0))


def best(lines: Sequence[Line], k: int) -> int | None:
    """The place of the encoder with the highest Top-K accuracy, of equal ones the first; None without a number."""
    means = {row: line.mean[KS.index(k)] for row, line in enumerate(lines) if line.draws is not None}
    return max((row for row, mean in means.items() if not np.isnan(mean)), key=means.__getitem__, default=None)


def behind(line: Line, lines: Sequence[Line], k: int) -> tuple[float, float, float] | None:
    """How much an encoder has more than the best at Top-K, and the paired 95 % interval; None for the best itself."""
    row, place = best(lines, k), KS.index(k)
    leader = None if row is None else lines[row]
    if leader is None or leader.draws is None or line.draws is None or line is leader:
        return None
    low, high = interval(line.draws - leader.draws)[:, place]
    return float((line.mean - leader.mean)[place]), float(low), float(high)


def references(task: Task, neighbors: Rows, *, seed: int) -> list[Line]:
    """What is to be had at most, by chance, and where each ad of the pool takes another's place."""
    generator = np.random.default_rng(seed)
    mixed = [accuracy.accuracy(task, accuracy.shuffled(task, neighbors, generator), KS) for _ in range(SHUFFLES)]
    values = {
        "at most": accuracy.ceiling(task, KS),
        "chance": accuracy.chance(task, KS),
        "shuffled ads": np.asarray(np.mean(mixed, axis=0)),
    }
    return [Line(name, accuracy.macro(numbers, task)) for name, numbers in values.items()]


def grid(lines: Sequence[Line], *, paper: bool) -> Grid:
    """The table as texts: ours with intervals and against the best, and the paper's beside it."""
    less = f"Top-{COMPARED} less the best's"
    head = ("encoder", *(f"Top-{k}" for k in KS), less, *(f"paper Top-{k}" for k in KS if paper))
    rows = []
    for line in lines:
        theirs = [f"{n:.2f}" for n in PAPER[line.name]] if line.name in PAPER else [NOTHING] * len(KS)
        rows.append((line.name, *_cells(line), _difference(behind(line, lines, COMPARED)), *(theirs if paper else ())))
    strong = {(row, column) for column, k in enumerate(KS, start=1) if (row := best(lines, k)) is not None}
    return Grid(head, tuple(rows), frozenset(strong))


def write(
    folder: Path,
    lines: Mapping[tuple[Pool, Texts], Sequence[Line]],
    not_run: Mapping[str, str],
    told: Mapping[str, Any],
    command: str,
) -> None:
    """Write ``table3.csv``, ``table3.md`` and ``table3.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table3.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        less = ["less_best", "less_best_low", "less_best_high"]
        writer.writerow(["pool", "texts", "encoder", "k", "accuracy", "low", "high", *less, "paper"])
        for ((pool, texts), table), (place, k) in product(lines.items(), enumerate(KS)):
            for line in table:
                ends = (None, None) if line.draws is None else interval(line.draws)[:, place]
                theirs = PAPER[line.name][place] / 100 if line.name in PAPER else None
                numbers = (line.mean[place], *ends, *(behind(line, table, k) or (None, None, None)), theirs)
                cells = ("" if number is None or np.isnan(number) else f"{number:.6f}" for number in numbers)
                writer.writerow([pool, texts, line.name, k, *cells])
    sections = ["# Table 3: accuracy of the nearest ads by embedding", f"```\n{command}\n```", _in_words(told)]
    sections.append("![Accuracy by K](table3.png)")
    for pool, texts in product(POOLS, TEXTS):
        sections.append(f"## Pool: {POOLS[pool]}, {TEXTS[texts]}")
        sections.append(markdown(grid(lines[pool, texts], paper=(pool, texts) == ("sample", "all"))))
    if not_run:
        sections += ["## Not run", "\n".join(f"- {name}: {reason}" for name, reason in not_run.items())]
    (folder / "table3.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    draw(lines, folder / "table3.png")


def draw(lines: Mapping[tuple[Pool, Texts], Sequence[Line]], path: Path) -> None:
    """Draw accuracy by K, one panel a pool, over all ads; the paper's numbers of the same encoder are dotted."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    FigureCanvasAgg(figure)  # no window system and no global state
    places = np.arange(len(KS))
    for axes, pool in zip(figure.subplots(1, 2, sharey=True), POOLS, strict=True):
        colors = iter(COLORS * 3)
        for line in lines[pool, "all"]:
            if line.draws is None:
                style = {"at most": "--", "chance": ":"}.get(line.name)
                if style:
                    axes.plot(places, 100 * line.mean, color="#888888", linewidth=1.0, linestyle=style, label=line.name)
                continue
            color = next(colors)
            axes.fill_between(places, *(100 * interval(line.draws)), color=color, alpha=0.2, linewidth=0)
            axes.plot(places, 100 * line.mean, color=color, marker="o", markersize=4, linewidth=1.6, label=line.name)
            if line.name in PAPER and pool == "sample":
                label = f"{line.name}, the paper's ads"
                axes.plot(places, PAPER[line.name], color=color, linestyle=(0, (1, 1.5)), linewidth=1.4, label=label)
        axes.set_title(f"Pool: {POOLS[pool]}", fontsize=11, loc="left", weight="bold")
        axes.set_xticks(places, [f"Top-{k}" for k in KS])
        axes.set_ylim(0, 102)
        axes.tick_params(labelsize=9)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8.5, loc="lower left")
        axes.set_ylabel("same category, % (mean over the categories)" if pool == "sample" else "", fontsize=9.5)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _cells(line: Line) -> list[str]:
    means = [NOTHING if np.isnan(mean) else f"{100 * mean:.2f}" for mean in line.mean]
    if line.draws is None:
        return means
    ends = (100 * interval(line.draws)).T
    return [
        f"{mean} ({low:.2f}–{high:.2f})" if mean != NOTHING else mean
        for mean, (low, high) in zip(means, ends, strict=True)
    ]


def _difference(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return NOTHING
    mean, low, high = (100 * number for number in found)
    return f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"


def _in_words(told: Mapping[str, Any]) -> str:
    text = "the full description, which names the category" if told["text"] == "full" else "the name alone"
    return f"""\
{told["data"]}: {told["ads"]:,} ads with {told["texts"]:,} distinct texts. Queries: {told["queries"]:,} ads of
{told["categories"]} categories (`{told["category"]}`, at most {told["ads_a_category"]} ads each, seed {told["seed"]});
with one ad a text {told["queries_distinct"]:,}. Embedded is {text}. Accuracy: the share of the Top-K ads by cosine that
have the query's category; the query left out, ties by ad_id; in percent, mean over a category's queries, then over the
categories; in brackets the 95 % bootstrap interval: each category's texts drawn anew, a text with all its queries, for
ads of one text share their neighbors. *Top-{COMPARED} less the best's*: the difference from the encoder with the
highest Top-{COMPARED}, its interval from the same draws of both; where that holds 0, the order is open. *At most*: a
category has no more ads to be found. *Chance*: a random order. *Shuffled ads*: the neighbors of the first encoder, the
other ads of the pool in each other's place. The paper's numbers are on its private ads: their order can be compared,
their height cannot."""
