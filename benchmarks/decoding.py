"""Lists of ads from prompts: our beam search against Transformers' ``generate``, and against what it cannot go below.

    python -m benchmarks.decoding            # every figure, within ten minutes
    python -m benchmarks.decoding --quick    # generate at 20 beams alone, in a minute and a half

Seconds are those of one thread on a CPU. The model has Qwen2's form, 4 layers of width 256, random weights, and
12,544 tokens, 4,352 of them codes. A batch is 8 prompts of 256 tokens. A tenth of the ads have an extra code above 0.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Figure, Setting, main, race

if TYPE_CHECKING:  # a measurement imports what it needs, so that a wrong option is told at once
    from benchmarks.beam_peers import Prompts
    from leadre.decoding.beam_search import Beams
    from leadre.decoding.config import Normalizer

USERS, PROMPT = 8, 256
ADS, MANY_ADS = 10_000, 1_000_000
GOALS = {20: (15, 1.4), 50: (30, 3), 100: (35, 3.5)}
"""Beams: how many times as fast as ``generate``, and as a cache that is copied a beam."""


def against_generate(setting: Setting) -> Iterator[Figure]:
    """Against Transformers' ``generate`` over a dictionary trie, which reads the prompt once a beam."""
    from benchmarks import beam_peers as peers

    model, trie, root = peers.language_model(), *peers.catalog(ADS)
    for width, (goal, _) in GOALS.items():
        what = f"{width} beams: generate with a dictionary / ours"
        if setting.quick and width > min(GOALS):
            yield Figure(what, None, ">=", goal, "left out of a quick run")
            continue
        variants: dict[str, Callable[[Prompts], Beams]] = {
            "ours": partial(peers.search, model, trie=trie, beam_width=width, normalizer="full"),
            "generate": partial(peers.generate, model, root=root, beam_width=width),
        }
        seconds = race(variants, _batch, repeats=1 if setting.quick else 3, check=_same_lists("ours", "generate"))
        yield Figure(f"{width} beams: s a batch of generate", seconds["generate"])
        yield Figure(what, seconds["generate"] / seconds["ours"], ">=", goal, "same ads in the same order")


def against_the_floor(setting: Setting) -> Iterator[Figure]:
    """Against a cache that is copied a beam, and against reading the prompts alone."""
    from benchmarks import beam_peers as peers

    model, trie = peers.language_model(), peers.catalog(ADS)[0]
    for width, (_, goal) in GOALS.items():
        variants: dict[str, Callable[[Prompts], Any]] = {
            "full": partial(peers.search, model, trie=trie, beam_width=width, normalizer="full"),
            "trie": partial(peers.search, model, trie=trie, beam_width=width, normalizer="trie"),
            "expand": partial(peers.expand, model, trie=trie, beam_width=width),
            "prefill": partial(peers.prefill, model),
        }
        seconds = race(variants, _batch, repeats=2 if setting.quick else 7, check=_same_lists("full", "expand"))
        each = f"{width} beams: "
        yield Figure(each + "users a second", USERS / seconds["full"], note="normalizer full, the default")
        ratio, note = seconds["expand"] / seconds["full"], "same ads in the same order"
        yield Figure(each + "one prefill, cache copied a beam / ours", ratio, ">=", goal, note)
        tokens = 1 + (len(peers.SID_TOKENS) - 1) * width / PROMPT
        floor = seconds["prefill"] * tokens
        what, note = f"{each}time / (one prefill * {tokens:.2f})", "codes that are certain are not read"
        yield Figure(f"{what}, normalizer trie", seconds["trie"] / floor, "<=", 1.2, note)
        yield Figure(f"{what}, normalizer full", seconds["full"] / floor)


def mixed_lengths(_: Setting) -> Iterator[Figure]:
    """Prompts of many lengths, padded on the left, under both of ``generate``'s normalizers."""
    from benchmarks import beam_peers as peers

    model, trie, root = peers.language_model(), *peers.catalog(ADS)
    given, width = peers.prompts([1, 40, 100, 160], seed=0), 20
    apart: dict[Normalizer, float] = {}
    both: tuple[tuple[Normalizer, bool], ...] = (("full", False), ("trie", True))
    for normalizer, renormalize in both:
        ours = peers.search(model, given, trie=trie, beam_width=width, normalizer=normalizer)
        for theirs in (
            peers.generate(model, given, root=root, beam_width=width, renormalize=renormalize),
            peers.expand(model, given, trie=trie, beam_width=width, normalizer=normalizer),
        ):
            peers.assert_same_lists(ours, theirs)
            apart[normalizer] = max(apart.get(normalizer, 0.0), float((ours.scores - theirs.scores).abs().max()))
    for normalizer, most in apart.items():
        note = "to generate and to a copied cache; same ads in the same order"
        yield Figure(f"left padding, {normalizer}: largest difference of a score", most, "<=", peers.TOLERANCE, note)


def trie_share(setting: Setting) -> Iterator[Figure]:
    """What of the search goes to the trie, to the choice of the best and to keeping the books, at a million ads.

    That is all but the prompts' and codes' reading and the head with its softmax.
    """
    from benchmarks import beam_peers as peers
    from leadre.decoding import beam_search

    model, trie = peers.language_model(), peers.sorted_catalog(MANY_ADS)[0]
    goals: dict[Normalizer, float | None] = {"full": 2, "trie": None}
    for width in GOALS:
        for normalizer, goal in goals.items():
            shares = []
            for turn in range(1, 3 if setting.quick else 8):
                given = _batch(turn)
                with _clocked(beam_search, "read_prompt", "_read_codes", "gains_of") as model_s:
                    begin = time.process_time()
                    found = peers.search(model, given, trie=trie, beam_width=width, normalizer=normalizer)
                    whole = time.process_time() - begin
                shares.append(100 * (whole - sum(model_s)) / whole)
                assert bool((found.rows >= 0).all()), "a list is short"
            what = f"{width} beams: % of the search beside the model, normalizer {normalizer}"
            yield Figure(what, statistics.median(shares), "<=" if goal else None, goal, f"{MANY_ADS:,} ads")


def user_base(setting: Setting) -> Iterator[Figure]:
    """A whole user base from Parquet to Parquet, by the quickstart's model with random weights."""
    from benchmarks.user_base import run, write_inputs

    small, large = (1_000, 10_000) if setting.quick else (10_000, 100_000)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name, "user_base")
        write_inputs(root)
        if not setting.quick:
            pace = run(root, 500, behaviors=40, max_tokens=256).users_per_second
            yield Figure("user base: users a second", pace, note="20 beams, 256 tokens, the default; one thread")
        short = ("decoding.beam_width=2", "decoding.num_ads=2", f"decoding.shard_users={small}")
        few, many = (run(root, users, *short, behaviors=2, max_tokens=24) for users in (small, large))
    note = f"{many.peak_bytes / 1e6:.0f} MB; 2 beams, 24 tokens: {many.users_per_second:.0f} users a second"
    what = f"user base: memory of {large:,} users / of {small:,}"
    yield Figure(what, many.peak_bytes / few.peak_bytes, "<=", 1.1, note)


@contextmanager
def _clocked(module: ModuleType, *names: str) -> Iterator[list[float]]:
    """Within it, the seconds of every call of a module's functions are told."""
    taken: list[float] = []

    def clocked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  # whatever the function takes
            begin = time.process_time()
            result = function(*args, **kwargs)
            taken.append(time.process_time() - begin)
            return result

        return call

    functions = {name: getattr(module, name) for name in names}
    try:
        for name, function in functions.items():
            setattr(module, name, clocked(function))
        yield taken
    finally:
        for name, function in functions.items():
            setattr(module, name, function)


def _batch(turn: int) -> "Prompts":
    """Fresh prompts; two short ones to warm up."""
    from benchmarks.beam_peers import prompts

    return prompts([PROMPT] * USERS if turn else [16, 16], seed=turn)


def _same_lists(ours: str, theirs: str) -> Callable[["Prompts", Mapping[str, "Beams"]], None]:
    def check(_: "Prompts", results: Mapping[str, "Beams"]) -> None:
        from benchmarks.beam_peers import assert_same_lists

        assert_same_lists(results[ours], results[theirs])

    return check


MEASUREMENTS = (against_generate, against_the_floor, mixed_lengths, trie_share, user_base)

if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
