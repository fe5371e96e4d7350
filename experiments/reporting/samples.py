"""What a few users get: the prompt as the model reads it, the ads of two rows side by side, and the ad clicked next."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from leadre import tables
from leadre.artifacts import ArtifactError, Result, origins
from leadre.prompts.segments import LEARNABLE
from leadre.prompts.show import Asked, Part, Shown, read_prompt
from leadre.report.table import OURS

NUM_ADS = 8
READ_BY_THE_MODEL = ("pairs", "base", "tokens")


class Source(NamedTuple):
    """Where the lists of a row are: its name, whose lists are scored, and the folder of its scores."""

    row: str
    system: str
    scores: Path


class Ad(NamedTuple):
    """An ad for readers: its name, its categories, and the codes of its S-ID, such as ``a_51``."""

    name: str
    about: str
    codes: tuple[str, ...]


class Piece(NamedTuple):
    """A piece of a prompt: ``kind`` text, ad or soft; its text; and of an ad, its name."""

    kind: str
    text: str
    name: str = ""


class Passage(NamedTuple):
    """A part of a prompt; its number of tokens is None where it did not fit."""

    name: str
    tokens: int | None
    pieces: Sequence[Piece]


class Prompt(NamedTuple):
    """A prompt as the model reads it; ``dropped`` behaviors did not fit."""

    rows: Sequence[str]
    tokens: int
    max_tokens: int
    parts: Sequence[Passage]
    dropped: int


class Listed(NamedTuple):
    """The first ads of a row's list, and where the clicked ad stands in the whole of it, from 1 on."""

    row: str
    ads: Sequence[Ad]
    rank: int | None


class Sample(NamedTuple):
    """One user: the ad clicked next, what each row recommends, and what its model read."""

    user: str
    clicked: Ad
    lists: Sequence[Listed]
    prompts: Sequence[Prompt]


class Group(NamedTuple):
    """Users that fare alike, such as those whose ad the first row finds and the second does not.

    Attributes:
        finds: The rows whose first ads hold the clicked one.
        misses: The other rows.
        users: How many users fare so.
        share: Their share of all users.
        samples: Some of them, evenly spaced: none is picked for how it looks.
    """

    finds: Sequence[str]
    misses: Sequence[str]
    users: int
    share: float
    samples: Sequence[Sample]


def read_groups(sources: Sequence[Source], *, users_each: int) -> list[Group]:
    """The scored users by the rows that find their ad, those of most rows first, with some samples of each group.

    Args:
        sources: The rows; the first says who the users are.
        users_each: Samples of a group at most.

    Raises:
        ArtifactError: If a result that the lists come from is missing or broken.
        ValueError: If a prompt is not what its tokens file says.
    """
    found = [_origins(source) for source in sources]
    groups = _by_rows_that_find(sources)
    total = sum(len(users) for users in groups.values())
    chosen = {finds: _spaced(users, users_each) for finds, users in groups.items()}
    samples = _samples([user for users in chosen.values() for user in users], sources, found)
    return [
        Group(
            [source.row for source, finds in zip(sources, group, strict=True) if finds],
            [source.row for source, finds in zip(sources, group, strict=True) if not finds],
            len(groups[group]),
            len(groups[group]) / total,
            [samples[user] for user in users],
        )
        for group, users in sorted(chosen.items(), reverse=True)
    ]


def _samples(
    users: Sequence[str], sources: Sequence[Source], found: Sequence[Mapping[str, Result]]
) -> dict[str, Sample]:
    """Of each user what they clicked, what every row lists for them, and their prompts."""
    world, catalog = found[0]["world"].path, found[0]["catalog"].path
    targets = pl.scan_parquet(world / "split.parquet").filter(pl.col("role") == "test", pl.col("user_id").is_in(users))
    clicked = dict(targets.select("user_id", "ad_id").collect().iter_rows())
    lists = [_lists(source, at, users) for source, at in zip(sources, found, strict=True)]
    ads = _ads(world, catalog)
    return {
        user: Sample(
            user,
            ads[clicked[user]],
            [_listed(source.row, of[user], clicked[user], ads) for source, of in zip(sources, lists, strict=True)],
            _prompts(user, sources, found, ads),
        )
        for user in users
    }


def _origins(source: Source) -> dict[str, Result]:
    """What is behind the lists, checked; of a baseline, what no model read is left out."""
    model = ("generations", *READ_BY_THE_MODEL) if source.system == OURS else ("baselines",)
    wanted = ("world", "catalog", *model)
    found = origins(source.scores, wanted)
    if lacking := [stage for stage in wanted if stage not in found and stage not in READ_BY_THE_MODEL]:
        raise ArtifactError(f"{source.scores} was not made from any {' or '.join(lacking)}: it has no lists to show")
    return found


def _by_rows_that_find(sources: Sequence[Source]) -> dict[tuple[bool, ...], list[str]]:
    """Users by whether each row has the clicked ad among its first."""
    ranks = [
        pl.scan_parquet(source.scores / "per_user.parquet")
        .filter(pl.col("system") == source.system)
        .select("user_id", pl.col("rank").is_between(1, NUM_ADS).fill_null(value=False).alias(str(place)))
        for place, source in enumerate(sources)
    ]
    both = ranks[0]
    for other in ranks[1:]:
        both = both.join(other, on="user_id")
    groups: dict[tuple[bool, ...], list[str]] = {}
    for user, *finds in both.sort("user_id").collect().iter_rows():
        groups.setdefault(tuple(finds), []).append(user)
    return groups


def _spaced(users: Sequence[str], most: int) -> list[str]:
    count = min(most, len(users))
    return [users[(2 * place + 1) * len(users) // (2 * count)] for place in range(count)]


def _lists(source: Source, found: Mapping[str, Result], users: Sequence[str]) -> dict[str, list[str]]:
    at = found["generations"].path / "lists" if source.system == OURS else found["baselines"].path
    path = at / "*.parquet" if source.system == OURS else at / f"{source.system}.parquet"
    rows = pl.scan_parquet(path).filter(pl.col("user_id").is_in(users)).sort("user_id", "rank").collect()
    lists: dict[str, list[str]] = {user: [] for user in users}
    for user, ad_id in rows.select("user_id", "ad_id").iter_rows():
        lists[user].append(ad_id)
    return lists


def _listed(row: str, ad_ids: Sequence[str], clicked: str, ads: Mapping[str, Ad]) -> Listed:
    rank = ad_ids.index(clicked) + 1 if clicked in ad_ids else None
    return Listed(row, [ads.get(ad_id, Ad(ad_id, "not in the catalog", ())) for ad_id in ad_ids[:NUM_ADS]], rank)


def _ads(world: Path, catalog: Path) -> dict[str, Ad]:
    sids = tables.read(tables.SIDS, catalog / "sids.parquet").select("ad_id", sid="name")
    frame = tables.read(tables.ADS, world / "ads.parquet").join(sids, on="ad_id", how="left")
    about = pl.concat_str("first_category", "second_category", separator=" › ", ignore_nulls=True)
    named = frame.select("ad_id", pl.coalesce("name", "ad_id"), about.alias("about"), pl.col("sid").fill_null(""))
    return {ad_id: Ad(name, about, tuple(re.findall(r"[^<> ]+", sid))) for ad_id, name, about, sid in named.iter_rows()}


def _prompts(
    user: str, sources: Sequence[Source], found: Sequence[Mapping[str, Result]], ads: Mapping[str, Ad]
) -> list[Prompt]:
    """The distinct prompts of a user, each with the rows that were asked by it."""
    asked: dict[tuple[str, ...], list[int]] = {}
    for place, (source, results) in enumerate(zip(sources, found, strict=True)):
        if source.system == OURS and all(stage in results for stage in READ_BY_THE_MODEL) and _was_asked(results):
            asked.setdefault(tuple(results[stage].key for stage in READ_BY_THE_MODEL), []).append(place)
    prompts = []
    for places in asked.values():
        folders = {stage: found[places[0]][stage].path for stage in ("world", "catalog", *READ_BY_THE_MODEL)}
        shown = read_prompt(Asked(user, "main", "test"), **folders)
        prompts.append(_prompt([sources[place].row for place in places], shown, ads))
    return prompts


def _was_asked(results: Mapping[str, Result]) -> bool:
    """Whether the lists were made from these very prompts, and not from others that were composed later."""
    manifest = json.loads((results["generations"].path / "manifest.json").read_text(encoding="utf-8"))
    return bool(manifest["inputs"].get("pairs") == results["pairs"].key)


def _prompt(rows: Sequence[str], shown: Shown, ads: Mapping[str, Ad]) -> Prompt:
    parts = [
        Passage(part.name, part.tokens, [*_pieces(part, shown.display, ads)])
        for part in shown.parts
        if part.tokens is not None
    ]
    dropped = sum(part.tokens is None and part.name == "behavior" for part in shown.parts)
    return Prompt(rows, shown.tokens, shown.max_tokens, parts, dropped)


def _pieces(part: Part, display: Mapping[str, str], ads: Mapping[str, Ad]) -> list[Piece]:
    return [
        Piece("ad", display.get(value, value), ads[value].name if value in ads else value)
        if kind == "ad"
        else Piece(kind, LEARNABLE if kind == "soft" else value)
        for kind, value in ((segment["kind"], segment["value"]) for segment in part.segments)
    ]
