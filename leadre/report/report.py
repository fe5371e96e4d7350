"""The page that a run ends with: what was found, in words, a table and pictures, and where everything lies."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from leadre.report import curves, table
from leadre.report.table import Grid

METRICS_FILE = "metrics.jsonl"

_READING = """\
**How to read it.** *HR@K* is the share of users who find the ad that they clicked next among the first K of their
list; *NDCG@K* counts a hit less the lower it stands; *LTRR@K* is the share of the ads of a ranker by value that the
first K hold; *Diversity@K* is the effective number of categories among the first K. Higher is better in all of them.
*Invalid* is the share of a system's ads that the catalog does not have, *Duplicate* of those twice in a list."""

_LONGEST_NAME = 80


class StageSummary(NamedTuple):
    """One result of a run.

    Attributes:
        name: What readers know the stage by, such as ``sft: main``.
        key: What addresses the result in the store.
        path: Its folder.
        seconds: How long it took to build.
        reused: Whether this run found it there.
    """

    name: str
    key: str
    path: Path
    seconds: float
    reused: bool


class Sample(NamedTuple):
    """What LEADRE recommends to one user, by names.

    Attributes:
        user: The user.
        behaviors: The last behaviors, oldest first.
        recommended: The recommended ads, best first.
        clicked: The ad that the user clicked next.
        rank: Where that ad stands in the list, from 1 on; None where it does not.
    """

    user: str
    behaviors: Sequence[str]
    recommended: Sequence[str]
    clicked: str
    rank: int | None


def write_report(
    folder: Path,
    *,
    title: str,
    command: str,
    stages: Sequence[StageSummary],
    scores: Mapping[str, Any],
    diagnostics: Mapping[str, Any],
    world: Mapping[str, Any],
    samples: Sequence[Sample] = (),
) -> Path:
    """Write ``report.md`` and its pictures.

    Args:
        folder: Where they go; it must exist.
        title: The headline.
        command: The command line that leads here again.
        stages: All results in the order of the run; training curves are read from those that have them.
        scores: The content of ``scores.json``.
        diagnostics: The content of the codes' ``diagnostics.json``; may be empty.
        world: The content of ``world.json``, the counts of quarantined rows included; may be empty.
        samples: A handful of users; may be empty.

    Returns:
        The path of ``report.md``.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If no system is scored.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: make the folder that the report goes to first")
    sections = [
        f"# {plain(title)}",
        f"```\n{command.replace('```', '')}\n```",
        *_scores(scores),
        *_samples(samples),
        *_pictures(folder, stages, diagnostics),
        *_world(world),
        *_stages(stages),
    ]
    path = folder / "report.md"
    path.write_text("\n\n".join(filter(None, sections)) + "\n", encoding="utf-8")
    return path


def differences_in_words(scores: Mapping[str, Any]) -> list[str]:
    """One sentence on LEADRE, then one a rival: how much more or less LEADRE hits, and whether these users can tell."""
    systems = scores["systems"]
    name = table.headline(systems.get(table.OURS, {}))
    if name is None:
        return []
    confidence = scores.get("bootstrap", {}).get("confidence", 0.95)
    k, share = name.removeprefix("HR@"), systems[table.OURS][name]
    ours = f"{table.OURS} finds the clicked ad among its first {k} for **{share:.1%}** of the users."
    rivals = {pair.removeprefix(f"{table.OURS} - "): found for pair, found in scores.get("differences", {}).items()}
    return [ours] + [
        _difference(rival, systems[rival][name], found[name], confidence)
        for rival, found in rivals.items()
        if name in found
    ]


def plain(text: str, *, longest: int = _LONGEST_NAME) -> str:
    r"""Text of others for a Markdown page: one line, not too long, and no character that would be markup.

    Example:
        >>> print(plain("50% | *off* <b>now</b>"))
        50% \| \*off\* \<b\>now\</b\>
    """
    line = " ".join(text.split())
    cut = line if len(line) <= longest else line[: longest - 1] + "…"
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", cut)


def duration(seconds: float) -> str:
    """Seconds for readers.

    Example:
        >>> duration(0.4), duration(75), duration(7300)
        ('0.4 s', '1 min 15 s', '2 h 1 min')
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _difference(rival: str, theirs: float, found: Mapping[str, float | None], confidence: float) -> str:
    mean, low, high = (100 * (found[end] or 0.0) for end in ("mean", "low", "high"))
    text = (
        f"{plain(table.plain_name(rival))}: {theirs:.1%}. {table.OURS} has {mean:+.1f} points "
        f"({confidence:.0%} interval {low:+.1f} to {high:+.1f})"
    )
    if low <= 0 <= high:
        return text + ", which these users are too few to tell from none."
    ratio = found.get("ratio")
    return text + (f", {ratio:.2f} times as many hits." if ratio else ".")


def _scores(scores: Mapping[str, Any]) -> Iterator[str]:
    yield "## Scores"
    yield table.markdown(table.score_grid(scores))
    yield f"{table.caption(scores)} The best of each column is bold, the oracle left aside."
    yield _READING
    ours_in_words, *rivals = differences_in_words(scores) or [""]
    yield ours_in_words
    yield "\n".join(f"- {sentence}" for sentence in rivals)
    ours = scores["systems"].get(table.OURS, {})
    yield (
        f"Of LEADRE's ads {ours.get('invalid_ads', 0)} are not in the catalog and {ours.get('duplicate_ads', 0)} stand "
        f"twice in a list; {ours.get('short_lists', 0)} lists are shorter than the longest cut."
    )


def _samples(samples: Sequence[Sample]) -> Iterator[str]:
    if not samples:
        return
    yield "## What some users get"
    for sample in samples:
        place = f"place {sample.rank}" if sample.rank else "not in the list"
        ads = [
            f"{rank}. **{plain(ad)}** ← clicked" if rank == sample.rank else f"{rank}. {plain(ad)}"
            for rank, ad in enumerate(sample.recommended, start=1)
        ]
        history = " → ".join(plain(behavior) for behavior in sample.behaviors) or "no behavior"
        yield f"**User {plain(sample.user)}**: {history}"
        yield "\n".join(ads) or "No ad."
        yield f"Clicked next: {plain(sample.clicked)} ({place})."


def _pictures(folder: Path, stages: Sequence[StageSummary], diagnostics: Mapping[str, Any]) -> Iterator[str]:
    trained = [
        curves.read_curves(stage.name, stage.path / METRICS_FILE)
        for stage in stages
        if (stage.path / METRICS_FILE).exists()
    ]
    losses, hits = curves.draw_losses(trained, folder / "loss.png"), curves.draw_hits(trained, folder / "hr.png")
    if losses or hits:
        yield "## Training"
    if losses:
        yield "![Losses of each stage](loss.png)"
    if hits:
        yield "![Hits on validation users over the stages](hr.png)"
    if curves.draw_codebooks(diagnostics.get("counts", []), folder / "codebook.png"):
        yield "## Codebooks"
        yield "How many ads have each code: a flat curve uses all codes evenly, a cliff leaves codes unused."
        if "collision_rate" in diagnostics:
            yield f"Collision rate before the extra code: {diagnostics['collision_rate']:.1%} of the ads."
        yield "![Use of the codes of each level](codebook.png)"


def _world(world: Mapping[str, Any]) -> Iterator[str]:
    if world:
        yield "## World"
        yield "\n".join(f"- {plain(name)}: {plain(str(value))}" for name, value in _flat(world))


def _stages(stages: Sequence[StageSummary]) -> Iterator[str]:
    if not stages:
        return
    rows = [
        (stage.name, duration(stage.seconds), "reused" if stage.reused else "built", f"`{stage.path}`")
        for stage in stages
    ]
    yield "## Where everything lies"
    yield table.markdown(Grid(head=("stage", "took", "this run", "folder"), rows=tuple(rows)))
    yield "Each folder has a `manifest.json` with the settings, the inputs and the sha256 of every file."


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{table.plain_name(name)}, ")
        else:
            yield above + table.plain_name(name), value
