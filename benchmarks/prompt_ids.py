"""Prompts to token ids, and events to histories, against the ways that others take.

    python -m benchmarks.prompt_ids            # every figure, in two to four minutes
    python -m benchmarks.prompt_ids --quick    # smaller inputs, in one

Seconds are those of one thread on a CPU. The plain way writes each prompt as one string, in which S-IDs are added
tokens, and has the tokenizer of Hugging Face encode many at once; ours is `leadre.lm.encode.encode_pairs`.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from benchmarks.measure import Figure, Setting, main, race

if TYPE_CHECKING:  # a measurement imports what it needs, so that a wrong option is told at once
    import polars as pl
    from transformers import PreTrainedTokenizerFast

    from leadre.lm.encode import Encoded

PandasFrame = Any  # pandas has no types

LEVELS, CODEBOOK_SIZE = 4, 64
PROMPTS, QUICK_PROMPTS = 1500, 300
"""In each repetition, others each time."""
VOCABULARY = 8000
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""What Llama 3 cuts text into; Qwen's and Hunyuan's tokenizers differ in the number of digits at most."""
SOFT = "<soft_0>"
WORLD = ("data/world=small", "data.world.days=45")
"""Its histories are about as long as the paper's: prompts of six hundred tokens."""
WORLD_USERS, QUICK_WORLD_USERS = 5000, 1000
USERS, QUICK_USERS = 20_000, 5_000
EVENTS_A_USER = 64
DAYS = 180


class _Inputs(NamedTuple):
    """Pairs of one repetition: as Arrow for ours, as lists of pieces for the plain way."""

    batch: Any
    pieces: list[list[tuple[str, str]]]


class _Log(NamedTuple):
    """Behaviors and targets, for ours and for pandas."""

    ours: "tuple[pl.DataFrame, pl.DataFrame]"
    pandas: tuple[PandasFrame, PandasFrame]


def prompt_ids(setting: Setting) -> Iterator[Figure]:
    """Pairs of the main task by the paper's settings to token ids, with two tokenizers.

    In each repetition, both get the same pairs that neither has seen, and every id must be the same. The plain way
    gets the pieces of each prompt as Python strings in a list, and makes one string of them; ours gets them as Arrow,
    as they lie in Parquet.
    """
    with tempfile.TemporaryDirectory() as folder:
        pairs, sids = _pairs(Path(folder), setting)
        texts = _texts(pairs)
        for name, tokenizer, goal in (("Llama 3's words", llama_like(texts), 20), ("lm=tiny", _tiny(texts), None)):
            yield from _against_strings(name, tokenizer, pairs, sids, setting, goal=goal)


def grouping(setting: Setting) -> Iterator[Figure]:
    """Events to the histories of targets: those of the same user before the target and in a window of 90 days."""
    from leadre.data.split import histories

    users = QUICK_USERS if setting.quick else USERS

    def inputs(turn: int) -> _Log:
        frames = events(users, seed=turn)
        return _Log(frames, (_pandas(frames[0]), _pandas(frames[1])))

    ways: dict[str, Callable[[_Log], Any]] = {
        "ours": lambda log: histories(*log.ours, 90),
        "slices": lambda log: sliced(*log.pandas, 90),
        "merge": lambda log: merged(*log.pandas, 90),
    }
    seconds = race(ways, inputs, repeats=3 if setting.quick else 5, check=_assert_same_histories)
    count, ours = users * EVENTS_A_USER, seconds.pop("ours")
    yield Figure("grouping: million events/s", count / ours / 1e6, note=f"{count:,} events, histories of 90 days")
    fastest = min(seconds, key=seconds.__getitem__)
    note = f"its faster way, by {fastest}; equal frames in each repetition"
    yield Figure("grouping: pandas / ours", seconds[fastest] / ours, ">=", 4, note)
    for way, taken in seconds.items():
        yield Figure(f"grouping: pandas by {way} / ours", taken / ours)


def _against_strings(
    name: str,
    tokenizer: "PreTrainedTokenizerFast",
    pairs: "pl.DataFrame",
    sids: "pl.DataFrame",
    setting: Setting,
    *,
    goal: int | None,
) -> Iterator[Figure]:
    from leadre.lm.encode import encode_pairs
    from leadre.lm.fragments import Fragments
    from leadre.lm.vocabulary import Vocabulary

    first = len(tokenizer)
    offsets = tuple(first + 1 + level * CODEBOOK_SIZE for level in range(LEVELS))
    extra = 1 + max(sid[-1] for sid in sids["sid"])
    vocabulary = Vocabulary(tokenizer, (*offsets, first + 1 + LEVELS * CODEBOOK_SIZE), (first,))
    fragments = Fragments(vocabulary, sids)
    peer = with_sids(tokenizer, [CODEBOOK_SIZE] * LEVELS + [extra])
    longest = 1_000_000  # nothing is cut: the plain way would cut strings elsewhere

    def ours(given: _Inputs) -> "Encoded":
        return encode_pairs(given.batch, fragments, max_tokens=longest, num_ads=1, cut=False)

    def theirs(given: _Inputs) -> list[list[int]]:
        strings = ["".join([value for _, value in row]) for row in given.pieces]
        ids: list[list[int]] = peer(strings, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return ids

    tokens: list[float] = []

    def check(_: _Inputs, results: Mapping[str, Any]) -> None:
        encoded, ids = results["ours"], results["strings"]
        assert encoded.ids.tolist() == [token for row in ids for token in row], "ids differ"
        assert (encoded.offsets[1:] - encoded.offsets[:-1]).tolist() == [len(row) for row in ids], "lengths differ"
        tokens.append(len(encoded.ids) / len(ids))

    repeats = 3 if setting.quick else 5
    some = QUICK_PROMPTS if setting.quick else PROMPTS
    turns = _turns(pairs, sids, some, 1 + repeats)
    seconds = race({"ours": ours, "strings": theirs}, turns.__getitem__, repeats=repeats, check=check)
    mean = sum(tokens) / len(tokens)
    note = f"{some} prompts of {mean:.0f} tokens each time; identical ids on each; vocabulary {first}"
    yield Figure(f"prompt ids, {name}: million tokens/s", mean * some / seconds["ours"] / 1e6)
    yield Figure(
        f"prompt ids, {name}: string + tokenizer / ours",
        seconds["strings"] / seconds["ours"],
        ">=" if goal else None,
        goal,
        note,
    )


def llama_like(texts: Iterable[str], vocabulary: int = VOCABULARY) -> "PreTrainedTokenizerFast":
    """A byte-level BPE with the words and the normal form of the tokenizers of today's models, trained on texts."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    wrap: Any = PreTrainedTokenizerFast  # Transformers leaves its __init__ untyped
    return cast("PreTrainedTokenizerFast", wrap(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False))


def with_sids(tokenizer: "PreTrainedTokenizerFast", num_codes: Sequence[int]) -> "PreTrainedTokenizerFast":
    """A copy that has a learnable token and the S-IDs' tokens as added tokens, as in LC-Rec and its kin."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from leadre.catalog.sids import token_names

    copied = Tokenizer.from_str(cast(Any, tokenizer.backend_tokenizer).to_str())
    wrap: Any = PreTrainedTokenizerFast
    extended = cast("PreTrainedTokenizerFast", wrap(tokenizer_object=copied, clean_up_tokenization_spaces=False))
    extended.add_tokens([SOFT, *token_names(list(num_codes))])
    return extended


def sliced(behaviors: PandasFrame, targets: PandasFrame, window_days: int) -> PandasFrame:
    """Histories by pandas: sorted once, grouped by user, and for each target a slice of its user's times."""
    import numpy as np

    ordered = behaviors.sort_values(["user_id", "time"], kind="stable", ignore_index=True)
    times = ordered["time"].to_numpy()
    places = ordered.groupby("user_id", sort=False).indices
    taken, numbers = [], []
    for number, (user, time) in enumerate(zip(targets["user_id"], targets["time"], strict=True)):
        mine = places.get(user)
        if mine is None:
            continue
        begin, end = mine[0] + np.searchsorted(times[mine[0] : mine[-1] + 1], [time - window_days * 86_400, time])
        taken.append(np.arange(begin, end))
        numbers.append(np.full(end - begin, number))
    history = ordered.iloc[np.concatenate(taken)][["item_id", "domain", "action", "time"]]
    history.insert(0, "target", np.concatenate(numbers))
    return history.reset_index(drop=True)


def merged(behaviors: PandasFrame, targets: PandasFrame, window_days: int) -> PandasFrame:
    """Histories by pandas: every target with every behavior of its user, then those of the window."""
    asked = targets[["user_id", "time"]].rename(columns={"time": "asked"}).assign(target=range(len(targets)))
    ordered = behaviors.sort_values(["user_id", "time"], kind="stable")
    every = asked.merge(ordered, on="user_id")
    inside = (every["time"] < every["asked"]) & (every["time"] >= every["asked"] - window_days * 86_400)
    history = every.loc[inside, ["target", "item_id", "domain", "action", "time"]]
    return history.sort_values("target", kind="stable", ignore_index=True)


def events(users: int, *, seed: int) -> "tuple[pl.DataFrame, pl.DataFrame]":
    """Behaviors of so many users, most of them few and some many, and each user's last three ads as targets."""
    import numpy as np
    import polars as pl

    from leadre import tables
    from leadre.data.split import leave_one_out

    rng = np.random.default_rng(seed)
    counts = rng.multinomial(users * EVENTS_A_USER, rng.dirichlet(np.full(users, 1.5)))
    owners = np.repeat(np.arange(users), counts)
    is_ad = rng.random(len(owners)) < 0.2
    times = 1_700_000_000 + rng.integers(DAYS * 86_400, size=len(owners))
    order = np.argsort(times, kind="stable")  # as a log comes
    behaviors = pl.DataFrame(
        {
            "user_id": np.char.add("u", owners[order].astype(str)),
            "item_id": np.char.add("i", rng.integers(5000, size=len(owners)).astype(str)),
            "domain": np.where(is_ad, "ad", "content"),
            "action": np.where(is_ad, "click", "play short video"),
            "time": times[order],
        }
    ).cast(tables.BEHAVIORS.schema)
    split = leave_one_out(behaviors, min_ads=3)
    return behaviors, split.group_by("user_id", maintain_order=True).tail(3)


def _assert_same_histories(_: object, results: "Mapping[str, Any]") -> None:
    ours = results["ours"]
    for way in ("slices", "merge"):
        theirs = results[way]
        assert len(ours) == len(theirs), f"{way}: {len(ours)} behaviors in ours, {len(theirs)} in theirs"
        for name in ours.columns:
            assert ours[name].to_list() == theirs[name].tolist(), f"{way}: {name} differs"


def _pandas(frame: "pl.DataFrame") -> PandasFrame:
    import pandas as pd  # type: ignore[import-untyped]

    return pd.DataFrame({name: frame[name].to_list() for name in frame.columns})


def _pairs(folder: Path, setting: Setting) -> "tuple[pl.DataFrame, pl.DataFrame]":
    """Training pairs of a simulated world by the paper's prompts, in no order, and the S-IDs of its ads."""
    import polars as pl

    from benchmarks.inputs import settings, zipf_sids
    from leadre import tables
    from leadre.catalog.sids import in_order, names
    from leadre.data.gather import gather
    from leadre.prompts.compose import compose

    users = QUICK_WORLD_USERS if setting.quick else WORLD_USERS
    run = settings("prompts=paper", "sft/tuning=paper", *WORLD, f"data.world.users.num_users={users}")
    for name in ("world", "catalog", "pairs"):
        (folder / name).mkdir()
    gather(run.data, out=folder / "world")
    ads = pl.read_parquet(folder / "world" / "ads.parquet")["ad_id"]
    sids = zipf_sids(len(ads), seed=0, levels=LEVELS, codebook_size=CODEBOOK_SIZE)
    sids = sids[in_order(sids)[0]]
    listed = pl.DataFrame({"ad_id": ads, "sid": pl.Series(sids.tolist(), dtype=pl.List(pl.Int32)), "name": names(sids)})
    tables.write(tables.SIDS, listed, folder / "catalog" / "sids.parquet")
    compose(run.prompts, folder / "world", folder / "catalog", out=folder / "pairs")
    pairs = tables.read(tables.PAIRS, folder / "pairs" / "main.train.parquet")
    return pairs.sample(fraction=1, shuffle=True, seed=0), listed


def _texts(pairs: "pl.DataFrame") -> list[str]:
    """The texts of some pairs, what a tokenizer is trained on."""
    return [value for row in _pieces(pairs.head(3000)) for kind, value in row if kind == "text"]


def _pieces(pairs: "pl.DataFrame") -> list[list[tuple[str, str]]]:
    """Kind and value of each segment of each prompt, in turn."""
    return [
        [
            (segment["kind"], segment["value"])
            for part in (row["head"], row["lead"], *row["behaviors"], row["tail"])
            for segment in part
        ]
        for row in pairs.iter_rows(named=True)
    ]


def _turns(pairs: "pl.DataFrame", sids: "pl.DataFrame", some: int, turns: int) -> list[_Inputs]:
    """The pairs of each repetition: as Arrow, and as what the plain way writes one after the other."""
    from leadre.prompts.compose import arrow

    assert pairs.height >= turns * some, f"{pairs.height} pairs are too few for {turns} times {some}"
    names = {ad_id: name.replace(" ", "") for ad_id, name in sids.select("ad_id", "name").iter_rows()}

    def shown(kind: str, value: str) -> str:
        return SOFT if kind == "soft" else str(names[value]) if kind == "ad" else value

    found = []
    for turn in range(turns):
        part = pairs.slice(turn * some, some)
        rows = [[(kind, shown(kind, value)) for kind, value in row] for row in _pieces(part)]
        answers = [names[ad_id] for ad_id in part["ad_id"]]
        rows = [[*row, ("ad", answer)] for row, answer in zip(rows, answers, strict=True)]
        (batch,) = arrow(part).combine_chunks().to_batches()
        found.append(_Inputs(batch, rows))
    return found


def _tiny(texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    from benchmarks.inputs import settings
    from leadre.lm.config import TinyLM
    from leadre.lm.tokenizer import train_tokenizer

    lm = settings("lm=tiny").lm
    assert isinstance(lm, TinyLM)
    return train_tokenizer(texts, lm.text_tokens)


MEASUREMENTS = (prompt_ids, grouping)

if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
