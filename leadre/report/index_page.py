"""The page of an index: its numbers, one picture, and sample ads beside their neighbors, for a person to judge."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter
from rich.console import Console

from leadre.report import table
from leadre.report.curves import COLORS
from leadre.report.report import plain
from leadre.report.table import NOTHING, Grid

PICTURE = "index.png"

_READING = """\
**How to read it.** *Bits* is what a level adds to the levels before it, H(c\\_l | c\\_<l), over the ads. *Bits left*
is what the levels before have left to tell, H(text) - H(c\\_<l): ads of one text have the same codes, so that no
level can tell more than which text an ad has, each weighing as many ads as have it. A level that adds little although
little is left has not failed, it came too late. *Energy left* is the share that a level leaves over of what it had to
code, the first level's measured from the mean; the product of all is the squared error of the nearest codes over that
of the mean, of an RQ-VAE in the space of its encoder. *Category bits* is what a level adds to the knowledge of a
text's category; the estimate lies too high, for in the end each text has codes of its own, so hold it against *by
chance*, the same with the categories dealt out anew among the texts that the levels before cannot tell apart. *Same
category* is the share of the pairs of texts with the same codes up to the level that share their category."""


def show_index(inspection: Mapping[str, Any], *, console: Console) -> None:
    """Print the levels of an index as a table, and below it how many ads collide."""
    grid = levels_grid(inspection)
    console.print(table.rich_table(grid, title="The index, level by level", caption="\n".join(in_words(inspection))))


def write_index_page(
    folder: Path,
    *,
    title: str,
    command: str,
    inspection: Mapping[str, Any],
    neighbors: Sequence[Mapping[str, Any]],
) -> Path:
    """Write ``index.md`` and ``index.png``.

    Args:
        folder: Where they go; it must exist.
        title: The headline.
        command: The command line that leads here again.
        inspection: The content of ``inspection.json``.
        neighbors: The content of ``neighbors.json``.

    Returns:
        The path of ``index.md``.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: make the folder that the page goes to first")
    draw_index(inspection, folder / PICTURE)
    sections = [
        f"# {plain(title)}",
        f"```\n{command.replace('```', '')}\n```",
        "\n".join(f"- {sentence}" for sentence in in_words(inspection)),
        f"![Use of codes, bits, group sizes and likeness]({PICTURE})",
        "## Levels",
        table.markdown(levels_grid(inspection)),
        _READING,
        *_collisions(inspection),
        *_neighbors(neighbors),
    ]
    path = folder / "index.md"
    path.write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")
    return path


def in_words(inspection: Mapping[str, Any]) -> list[str]:
    """The index in a few sentences of plain text."""
    ads, texts, bits = inspection["before"]["ads"], inspection["before"]["texts"], inspection["bits"]
    catalog = inspection["catalog"]
    told = [
        f"{inspection['ads']:,} ads with {inspection['distinct_texts']:,} distinct texts, coded by "
        f"{inspection['kind']}; {inspection['active']:,} S-IDs are active and {inspection['retired']:,} retired.",
        f"Before the extra code {_percent(texts['rate'])} of the texts and {_percent(ads['rate'])} of the ads collide; "
        f"at most {ads['largest_group']:,} ads share their codes. Of {catalog['extra_codes']:,} extra codes "
        f"{catalog['extra_codes_used']:,} are used, and {catalog['spilled']:,} ads are spilled.",
        f"The codes carry {bits['whole']:.2f} bits of the {bits['most']:.2f} that the ads' texts tell"
        f"{_evenness(bits['evenness'])}.",
    ]
    if (error := inspection["reconstruction_error"]) is not None:
        told.append(f"They rebuild the embeddings up to {_percent(error)} of the squared error of the mean.")
    if (category := inspection["category"])["texts"]:
        told.append(
            f"Categories are those of {category['column']}: {category['categories']:,}, of {category['texts']:,} "
            "distinct texts."
        )
    return told


def levels_grid(inspection: Mapping[str, Any]) -> Grid:
    """Lay out the levels: one row each, and a last row of sums."""
    category = inspection["category"]
    told = category.get("bits_by_level", []), category.get("bits_by_level_shuffled", [])
    purity = [length["same_category"] for length in category.get("purity", [])[1:]]
    levels = inspection["levels"]
    rows = [
        (
            f"level {place + 1}",
            f"{level['used']:,} of {level['codes']:,}",
            f"{level['dead']:,}",
            f"{level['perplexity']:.1f}",
            f"{level['bits']:.2f}",
            f"{level['bits_left']:.2f}",
            _percent(level["share"]),
            _percent(level["energy_left"]),
            *(f"{numbers[place]:.2f}" if numbers else NOTHING for numbers in told),
            _percent(purity[place]) if purity else NOTHING,
        )
        for place, level in enumerate(levels)
    ]
    of_category = f"{sum(told[0]):.2f}" if told[0] else NOTHING
    whole = f"{inspection['bits']['whole']:.2f}"
    dead = f"{sum(level['dead'] for level in levels):,}"
    rows.append(("all", "", dead, "", whole, "", "", _energy(levels), of_category, "", ""))
    head = ("", "codes used", "dead", "perplexity", "bits", "bits left", "share", "energy left")
    return Grid(head=(*head, "category bits", "by chance", "same category"), rows=tuple(rows))


def draw_index(inspection: Mapping[str, Any], path: Path) -> None:
    """Draw use of codes, bits a level, group sizes, and cosine by shared prefix, as one PNG."""
    figure = Figure(figsize=(11.5, 8.0), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)  # no window system and no global state
    (use, bits), (groups, cosine) = figure.subplots(2, 2)
    _draw_use(use, inspection["levels"])
    _draw_bits(bits, inspection["levels"])
    _draw_groups(groups, inspection["before"]["sizes"])
    _draw_cosine(cosine, inspection["cosine"])
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_use(axes: Axes, levels: Sequence[Mapping[str, Any]]) -> None:
    for place, level in enumerate(levels):
        counts = [count for count in level["counts"] if count]
        ranks = [100 * (rank + 0.5) / level["codes"] for rank in range(len(counts))]
        label = f"level {place + 1}: {100 * level['usage']:.0f} % used, perplexity {level['perplexity']:.0f}"
        color = COLORS[place % len(COLORS)]
        alone = "o" if len(counts) == 1 else None  # one point has no line
        axes.plot(ranks, counts, color=color, linewidth=1.6, drawstyle="steps-mid", marker=alone, label=label)
    _label(axes, title="Use of the codes", x="codes of the level, most used first", y="ads with the code")
    axes.set_xlim(0, 100)
    axes.set_yscale("log")
    axes.set_ylim(0.7, 3 * max(max(level["counts"]) for level in levels))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(PercentFormatter(symbol=" %"))
    axes.legend(frameon=False, fontsize=8.5)


def _draw_bits(axes: Axes, levels: Sequence[Mapping[str, Any]]) -> None:
    places = range(1, len(levels) + 1)
    bounds = [min(math.log2(level["codes"]), level["bits_left"]) for level in levels]
    axes.bar(places, bounds, width=0.62, color="#eeeeee", edgecolor="#999999", linewidth=0.8, label="most it could add")
    added = [level["bits"] for level in levels]
    axes.bar(places, added, width=0.62, color=COLORS[0], alpha=0.85, label="added by the level")
    for place, level, bound in zip(places, levels, bounds, strict=True):
        text = f"{level['bits']:.2f}\n{_percent(level['share'])}"
        axes.annotate(
            text, (place, max(bound, level["bits"])), (0, 4), textcoords="offset points", ha="center", fontsize=8.5
        )
    _label(axes, title="Information a level adds", x="level", y="bits")
    axes.set_ylim(0, 1.35 * max([*bounds, *added, 0.1]))  # room for the numbers, and for the legend above them
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8.5, loc="upper right", ncols=2)


def _draw_groups(axes: Axes, sizes: Sequence[Mapping[str, int]]) -> None:
    places = range(len(sizes))
    ads = [one["ads"] for one in sizes]
    axes.bar(places, ads, width=0.7, color=[COLORS[2], *[COLORS[1]] * (len(sizes) - 1)], alpha=0.85)
    for place, count in zip(places, ads, strict=True):
        if count:
            text = f"{count:,}\n{_percent(count / sum(ads))}"
            axes.annotate(text, (place, count), (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    _label(axes, title="Ads by the size of their group", x="ads with the same codes, before the extra code", y="ads")
    axes.set_yscale("log")
    axes.set_ylim(0.7, 6 * max(ads, default=1))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-0.6, max(len(sizes), 3) - 0.4)
    axes.set_xticks(places, [_size_name(one) for one in sizes])


def _draw_cosine(axes: Axes, cosine: Mapping[str, Any]) -> None:
    lengths = [length for length in cosine["by_shared_prefix"] if length["pairs"]]
    places, means = [length["shared"] for length in lengths], [length["mean"] for length in lengths]
    below = [length["mean"] - length["low"] for length in lengths]
    above = [length["high"] - length["mean"] for length in lengths]
    # A skewed tenth may lie beyond the mean: an error bar has no negative length.
    bars = [[max(0.0, reach) for reach in reaches] for reaches in (below, above)]
    axes.errorbar(
        places, means, bars, color=COLORS[0], marker="o", markersize=6, linewidth=1.6, elinewidth=1.2, capsize=4,
        label="mean, and the middle 80 % of the pairs",
    )  # fmt: skip
    if cosine["any_pair"]["pairs"]:
        random = cosine["any_pair"]["mean"]
        axes.axhline(random, color="#666666", linewidth=1.0, linestyle="--", label=f"any two ads: {random:.2f}")
    for place, mean in zip(places, means, strict=True):
        axes.annotate(f"{mean:.2f}", (place, mean), (7, -13), textcoords="offset points", fontsize=8.5)
    _label(axes, title="Likeness by shared prefix", x="codes shared from the first on", y="cosine of the embeddings")
    axes.set_xlim(-0.4, len(cosine["by_shared_prefix"]) - 0.4)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.15 * (high - low))  # room for the legend
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8.5, loc="upper left")


def _collisions(inspection: Mapping[str, Any]) -> Iterator[str]:
    yield "## Ads that share all their codes"
    names = {
        "rate": "collision rate: 1 - code lists / ads",
        "colliding_share": "share that has another's codes",
        "pair_rate": "share of pairs with the same codes",
    }
    before = inspection["before"]
    rows = [(text, *(_percent(before[over][name]) for over in ("ads", "texts"))) for name, text in names.items()]
    rows.append(("largest group", *(f"{before[over]['largest_group']:,}" for over in ("ads", "texts"))))
    yield table.markdown(Grid(("before the extra code", "of the ads", "of the distinct texts"), tuple(rows)))
    if before["largest"]:
        yield "The largest groups:"
        yield "\n".join(
            f"- {group['ads']:,} ads, of distinct texts {group['texts']:,}, have the codes "
            f"{', '.join(map(str, group['codes']))}: {'; '.join(map(plain, group['names']))}"
            f"{' …' if group['ads'] > len(group['names']) else ''}"
            for group in before["largest"]
        )


def _neighbors(neighbors: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not neighbors:
        return
    yield "## Ads and their neighbors"
    yield (
        "Ads drawn at random, each text once. A good index puts the same ads into both tables of an ad. The shared "
        "codes are bold; ✓ is the same category."
    )
    for sample in neighbors:
        ad = sample["ad"]
        yield f"### {plain(ad['name'])}"
        yield " · ".join(filter(None, [plain(ad["category"] or ""), _sid(ad, 0), _times(ad), plain(ad["ad_id"])]))
        yield f"> {plain(ad['description'], longest=400)}" if ad["description"] else ""
        for what, found in (("nearest by cosine", sample["nearest"]), ("longest shared prefix", sample["prefix"])):
            yield _beside(what, ad, found)


def _beside(what: str, ad: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return f"{what.capitalize()}: none."
    rows = [
        (
            " ".join(filter(None, [plain(other["name"]), _times(other)])),
            "✓" if ad["category"] and other["category"] == ad["category"] else plain(other["category"] or NOTHING),
            f"{other['cosine']:.3f}",
            str(other["shared"]),
            _sid(other, other["shared"]),
        )
        for other in found
    ]
    # The names are escaped already: a table that escaped their bars again would show the backslashes.
    lines = [f"| {what} | category | cosine | codes shared | S-ID |", "|---|---|---:|---:|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _sid(ad: Mapping[str, Any], shared: int) -> str:
    if not ad["sid"]:
        return "not in the catalog"
    tokens = ad["sid"].split()
    same, other = " ".join(tokens[:shared]), " ".join(tokens[shared:])
    return f"**`{same}`** `{other}`" if same else f"`{other}`"


def _times(ad: Mapping[str, Any]) -> str:
    return f"({ad['same_text']:,} ads with this text)" if ad["same_text"] > 1 else ""


def _energy(levels: Sequence[Mapping[str, Any]]) -> str:
    left = 1.0
    for level in levels:
        if level["energy_left"] is None:
            return NOTHING
        left *= level["energy_left"]
    return _percent(left)


def _evenness(evenness: float | None) -> str:
    return f"; the levels share them {100 * evenness:.0f} % evenly" if evenness is not None else ""


def _percent(share: float | None) -> str:
    """A share for readers, with the digits that matter.

    Example:
        >>> _percent(0.25), _percent(0.00012), _percent(0.0), _percent(None)
        ('25.0 %', '0.012 %', '0 %', '–')
    """
    if share is None:
        return NOTHING
    if not share:
        return "0 %"
    return f"{100 * share:.1f} %" if abs(share) >= 0.01 else f"{100 * share:.2g} %"


def _size_name(one: Mapping[str, int]) -> str:
    return str(one["smallest"]) if one["smallest"] == one["largest"] else f"{one['smallest']}–{one['largest']}"


def _label(axes: Axes, *, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11, loc="left", weight="bold")
    axes.set_xlabel(x, fontsize=9.5)
    axes.set_ylabel(y, fontsize=9.5)
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
