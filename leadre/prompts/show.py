r"""Show one user's prompt as the model reads it: part after part, with the tokens of each.

python -m leadre.prompts.show                                            # the first test user of the embedded world
python -m leadre.prompts.show data=tables data.root=my_tables user=u7 task=implicit role=valid

Beside its own ``user``, ``task`` (main, implicit, explicit, next_n, next_n_control) and ``role`` (test, valid, train)
it takes the overrides of ``conf/run.yaml``, as train.py does: ``prompts=paper`` needs ``sft/tuning=paper`` here too.
What is missing of the prompts is built and kept, so a training finds it there.
"""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from safetensors import safe_open

from leadre import pipeline, tables
from leadre.artifacts import ArtifactError, Store
from leadre.command_line import check, configured
from leadre.config import ConfigError
from leadre.job import quiet_libraries
from leadre.lm.encode import encode_pairs
from leadre.lm.fragments import Fragments
from leadre.lm.vocabulary import load_vocabulary
from leadre.prompts.compose import arrow
from leadre.prompts.segments import LEARNABLE, Segment, ad, display_name

TASKS, ROLES = ("main", "implicit", "explicit", "next_n", "next_n_control"), ("test", "valid", "train")
ONLY_TRAIN = ("explicit", "next_n", "next_n_control")
STYLES = {"text": "", "ad": "cyan", "soft": "magenta"}
NUM_NAMED = 3
"""Users that an error names."""


class Asked(NamedTuple):
    """Which prompt to show; of the explicit task, which belongs to no user, ``user`` names the ad."""

    user: str | None
    task: str
    role: str


class Part(NamedTuple):
    """A part of a prompt and its number of tokens, None if it did not fit."""

    name: str
    segments: Sequence[Segment]
    tokens: int | None


class Shown(NamedTuple):
    """A prompt and what a reader must know of it.

    Attributes:
        user: Whose prompt it is; None in the explicit task.
        ad_id: The target.
        time: The target's, in UTC seconds, if known.
        tokens: Of prompt and response together.
        max_tokens: How many there may be.
        parts: In the order in which they are read.
        display: ad_id -> its S-ID as the paper shows it.
    """

    user: str | None
    ad_id: str
    time: int | None
    tokens: int
    max_tokens: int
    parts: Sequence[Part]
    display: Mapping[str, str]


def asked_and_overrides(arguments: Sequence[str]) -> tuple[Asked, list[str]]:
    """Take ``user``, ``task`` and ``role`` out of a command line; the rest are overrides of ``conf/run.yaml``.

    Raises:
        ConfigError: If a word is no ``key=value``, if a key stands twice, if there is no such task or role, or if a
            role other than train is asked of a task that has no other.
    """
    if words := [word for word in arguments if "=" not in word and not word.startswith("~")]:
        raise ConfigError(
            f"{words[0]!r} is no key=value: give user=ID, task=, role=, or an override such as data=tables"
        )
    keys = [word.partition("=")[0] for word in arguments]
    if twice := [key for place, key in enumerate(keys) if key in keys[:place]]:
        raise ConfigError(f"{twice[0]} stands twice: give it once")
    own = {key: value for key, _, value in (word.partition("=") for word in arguments) if key in Asked._fields}
    task = own.get("task", "main")
    role = own.get("role", "train" if task in ONLY_TRAIN else "test")
    for name, value, known in (("task", task, TASKS), ("role", role, ROLES)):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}: choose from {', '.join(known)}")
    if task in ONLY_TRAIN and role != "train":
        raise ConfigError(f"role is {role!r}, but the task {task} is for training alone: leave role out")
    rest = [word for word in arguments if word.partition("=")[0] not in Asked._fields]
    return Asked(own.get("user"), task, role), rest


def read_prompt(asked: Asked, *, world: Path, catalog: Path, pairs: Path, base: Path, tokens: Path) -> Shown:
    """The prompt that was asked for, from the files that a training reads; of several, the last.

    Raises:
        ValueError: If the task or the user has no prompt, or if the parts do not add up to the row of the tokens file.
    """
    path = pairs / f"{asked.task}.{asked.role}.parquet"
    row = _row_of(path, asked)
    pair = pl.scan_parquet(path).slice(row, 1).collect()
    about = json.loads((pairs / "prompts.json").read_text(encoding="utf-8"))
    sids = tables.read(tables.SIDS, catalog / "sids.parquet")
    ids = _ids(tokens / f"{path.stem}.safetensors", row)
    parts = parts_of(
        pair,
        ids,
        Fragments(load_vocabulary(base), sids),
        max_tokens=about["max_tokens"],
        num_ads=1 + (pl.scan_parquet(path).select(pl.col("following").list.len().max()).collect().item() or 0),
        cut=asked.task == "explicit",
    )
    return Shown(
        user=pair["user_id"].item(),
        ad_id=pair["ad_id"].item(),
        time=_time(world, pair, asked.role),
        tokens=len(ids),
        max_tokens=about["max_tokens"],
        parts=parts,
        display={ad_id: display_name(name) for ad_id, name in sids.select("ad_id", "name").iter_rows()},
    )


def parts_of(
    pair: pl.DataFrame, ids: NDArray[np.int32], fragments: Fragments, *, max_tokens: int, num_ads: int, cut: bool
) -> list[Part]:
    """Part a prompt, and count the tokens of each part.

    A token belongs to the part in which it ends: where the tokenizer joins the end of one part and the beginning of the
    next, the token is the later part's.

    Args:
        pair: One row of the table PAIRS.
        ids: ``(T,)`` its tokens, as the tokens file has them.
        fragments: The cache of token ids.
        max_tokens: As for `leadre.lm.encode.encode_pairs`, like the other two.
        num_ads: The same.
        cut: The same.

    Raises:
        ValueError: If the pair, encoded, is not ``ids``.
    """
    whole = encode_pairs(_batch(pair), fragments, max_tokens=max_tokens, num_ads=num_ads, cut=cut)
    if not np.array_equal(whole.ids, ids):
        raise ValueError(
            f"the tokens file has {len(ids)} tokens for this prompt, which is {len(whole.ids)} others: it was made "
            "from another prompt or with other code; remove the folder of the stage tokens"
        )
    row = pair.row(0, named=True)
    given = [("behavior", behavior) for behavior in row["behaviors"]]
    gone, stay = given[: whole.dropped], given[whole.dropped :]
    lead = [("lead", row["lead"])]
    kept = [("opening", []), ("head", row["head"]), *(lead if stay else []), *stay, ("tail", row["tail"])]
    response = [ad(ad_id) for ad_id in (row["ad_id"], *row["following"])]
    ends = _ends(pair, ids, fragments, [segments for _, segments in kept], num_ads=num_ads, num_cut=whole.cut)
    parts = [
        Part(name, segments, count) for (name, segments), count in zip(kept, np.diff(ends, prepend=0), strict=True)
    ]
    dropped = [Part(name, segments, None) for name, segments in [*([] if stay or not gone else lead), *gone]]
    place = 2 + (1 if stay else 0)
    parts = [*parts[:place], *dropped, *parts[place:], Part("response", response, len(ids) - ends[-1])]
    parts = [part._replace(tokens=None if part.tokens is None else int(part.tokens)) for part in parts]
    return parts if parts[0].tokens else parts[1:]  # the opening of most tokenizers is nothing


def show(prompt: Shown, console: Console) -> None:
    """Print a prompt: a line of what it is, then a row a part; what did not fit is struck out."""
    whose = "an ad's own" if prompt.user is None else f"user {escaped(prompt.user)}"
    when = "" if prompt.time is None else f", at {datetime.fromtimestamp(prompt.time, UTC):%Y-%m-%d %H:%M:%S} UTC"
    target = f"target ad {escaped(prompt.ad_id)} {prompt.display[prompt.ad_id]}{when}"
    console.print(Text(f"{whose}: {target}, {prompt.tokens} of {prompt.max_tokens} tokens"))
    any_dropped = any(part.tokens is None for part in prompt.parts)
    table = Table("part", "tokens", "text", *[""] * any_dropped)
    table.columns[1].justify, table.columns[2].overflow = "right", "fold"
    for part in prompt.parts:
        is_dropped = part.tokens is None
        cells = [Text(part.name), Text("-" if is_dropped else str(part.tokens)), _text(part, prompt.display)]
        cells += [Text("dropped" if is_dropped else "")] * any_dropped
        table.add_row(*cells, style="dim strike" if is_dropped else "")
    console.print(table)
    console.print(Text(f"sum {sum(part.tokens or 0 for part in prompt.parts)}"))


def escaped(text: str) -> str:
    r"""Text that is safe on a terminal: what cannot be seen is spelled out.

    Example:
        >>> print(escaped("red\x1b[31m \u202eleft\n汉"))
        red\x1b[31m \u202eleft\n汉
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def main(arguments: Sequence[str]) -> None:
    """Build what is missing, and print the prompt."""
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}\n")
        return
    try:
        asked, overrides = asked_and_overrides(arguments)
        check(overrides)
    except ConfigError as error:
        sys.exit(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    quiet_libraries()
    run = configured(overrides)
    store = Store(Path(run.store.root))
    try:
        prepared = pipeline.prepare(run, store, pipeline.index_ads(run, store))
        prompt = read_prompt(
            asked,
            world=prepared.world.path,
            catalog=prepared.catalog.path,
            pairs=prepared.pairs.path,
            base=prepared.base.path,
            tokens=prepared.tokens.path,
        )
    except (ValueError, ArtifactError) as error:
        sys.exit(str(error))
    show(prompt, Console(width=None if sys.stdout.isatty() else 120))


def _row_of(path: Path, asked: Asked) -> int:
    """The last row of a pairs file that is the user's, or of the explicit task the ad's."""
    if not path.is_file():
        raise ValueError(
            f"task is {asked.task}, but the prompts were composed without it: set prompts.next_n above 1, and for "
            "next_n_control a seed in prompts.next_n_control"
        )
    what = "ad" if asked.task == "explicit" else "user"
    names = pl.read_parquet(path, columns=[f"{what}_id"]).to_series()
    name = names.first() if asked.user is None else asked.user
    rows = (names == name).arg_true()
    if rows.is_empty():
        known = names.unique(maintain_order=True)
        such_as = f", such as {', '.join(map(repr, known.head(NUM_NAMED)))}" if len(known) else ""
        raise ValueError(
            f"user is {name!r}, but {path.name} has no prompt of such {'an ad' if what == 'ad' else 'a user'}: it has "
            f"those of {len(known)} {what}s{such_as}; name one of them, or another role"
        )
    return int(rows[-1])


def _ids(path: Path, row: int) -> NDArray[np.int32]:
    with safe_open(path, framework="np") as file:
        start, end = file.get_slice("offsets")[row : row + 2]
        ids: NDArray[np.int32] = file.get_slice("ids")[int(start) : int(end)]
    return ids


def _time(world: Path, pair: pl.DataFrame, role: str) -> int | None:
    """The time of the pair's target; None if its user has several targets of this role with that ad, or none."""
    split = tables.read(tables.SPLIT, world / "split.parquet").filter(role=role)
    times = split.join(pair, on=["user_id", "ad_id"], how="semi")["time"]
    return int(times[0]) if len(times) == 1 else None


def _ends(
    pair: pl.DataFrame,
    ids: NDArray[np.int32],
    fragments: Fragments,
    parts: Sequence[Sequence[Segment]],
    *,
    num_ads: int,
    num_cut: int,
) -> NDArray[np.int64]:
    """How many of the tokens lie wholly in the first n parts, for each n: ``(P,)``.

    They are those that the first n parts have in common with the whole prompt when they are encoded alone.
    """
    heads = [[segment for part in parts[: place + 1] for segment in part] for place in range(len(parts))]
    empty = [pl.lit([], dtype=tables.PAIRS.columns[name].dtype).alias(name) for name in ("lead", "behaviors", "tail")]
    prefixes = pl.concat([pair] * len(parts)).with_columns(
        pl.Series("head", heads, dtype=tables.PAIRS.columns["head"].dtype), *empty
    )
    long_enough = 2 * (len(ids) + num_cut + num_ads * fragments.num_levels)
    encoded = encode_pairs(_batch(prefixes), fragments, max_tokens=long_enough, num_ads=num_ads, cut=False)
    num_response = fragments.num_levels * (1 + len(pair["following"].item()))
    prompt = ids[: len(ids) - num_response]
    found = np.split(encoded.ids, encoded.offsets[1:-1])
    ends = np.array([_num_common(prefix[: len(prefix) - num_response], prompt) for prefix in found])
    if num_cut:  # the head lost its end: what it has in common may go on by chance
        ends[1] = min(ends[1], len(found[1]) - num_response - num_cut)
    ends[-1] = len(prompt)
    return np.maximum.accumulate(ends)


def _num_common(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """How many tokens two rows begin with alike."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length


def _batch(pairs: pl.DataFrame) -> object:
    """Pairs as one record batch of pyarrow."""
    return arrow(pairs).combine_chunks().to_batches()[0]


def _text(part: Part, display: Mapping[str, str]) -> Text:
    text = Text()
    for segment in part.segments:
        value = {"ad": display.get(segment["value"], ""), "soft": LEARNABLE}.get(segment["kind"], segment["value"])
        text.append(escaped(value), style=STYLES[segment["kind"]])
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
