"""Ads to S-IDs: the quantizer's speed against the libraries that users have, and how well its codes tell ads apart.

    python -m benchmarks.indexing            # every figure, within ten minutes
    python -m benchmarks.indexing --quick    # without the real catalogs, in a minute and a half

Seconds are those of one thread on a CPU. "The library" is vector-quantize-pytorch's ResidualVQ between the same
perceptrons; its default learns its codebooks by moving averages.
"""

import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Figure, Setting, main, race

if TYPE_CHECKING:  # a measurement imports what it needs, so that a wrong option is told at once
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from leadre.config import RunConfig

BATCH = 2048
BLOCK = 4096
"""Ads coded at once, as the stage `codes` does."""
ADS = 1_000_000
KMEANS_STEPS = 20
"""As ``conf/quantizer/paper.yaml`` has it."""


def training_step(setting: Setting) -> Iterator[Figure]:
    """One step of training as the stage `codes` takes it, all but Lightning's loop.

    Each step starts from the same weights and codebooks with a batch of its own, so that in every repetition the losses
    must be the same, and with moving averages the codebooks after the step; gradients are compared once before.
    """
    from benchmarks import residual_vq as peers

    network = peers.network()
    peers.assert_same_batch(network, peers.embeddings(BATCH, 0))
    steps = {
        "ours": peers.our_step(network),
        "learned": peers.library_step(network, peers.LEARNED),
        "our ema": peers.our_step(network, ema_decay=peers.EMA_DECAY),
        "default": peers.library_step(network, peers.MOVING),
        "perceptrons": peers.perceptrons_step(network),
    }

    def batch(turn: int) -> "Tensor":
        for step in steps.values():
            step.restart()
        return peers.embeddings(BATCH, turn)

    def check(_: "Tensor", losses: Mapping[str, float]) -> None:
        for ours, other in (("ours", "learned"), ("our ema", "default"), ("ours", "our ema")):
            peers.assert_equal_first_steps(
                steps[ours], steps[other], (losses[ours], losses[other]), same_codebooks=other == "default"
            )

    seconds = race(steps, batch, repeats=8 if setting.quick else 24, check=check)
    learned, moving = (
        seconds[theirs] / seconds[ours] for theirs, ours in (("learned", "ours"), ("default", "our ema"))
    )
    same = "losses equal in each repetition; "
    floor = seconds["perceptrons"]
    yield Figure("training step: ms", 1000 * seconds["ours"], note="gradient codebooks, the default")
    yield Figure("training step: library with learned codebooks / ours", learned, ">=", 1.8, same + "gradients before")
    yield Figure("training step: library / ours with codebook=ema", moving, ">=", 1.8, same + "codebooks after it too")
    yield Figure("training step: library / ours", seconds["default"] / seconds["ours"], ">=", 1.8, "each its default")
    yield Figure("training step: ours / perceptrons alone", seconds["ours"] / floor, "<=", 1.2)
    yield Figure("training step: ours with codebook=ema / perceptrons alone", seconds["our ema"] / floor, "<=", 1.2)
    if setting.quick:
        return
    x, begin = peers.embeddings(BATCH, 0), time.process_time()
    for _ in range(peers.RESTART_EVERY):
        steps["ours"](x)
    mean = (time.process_time() - begin) / peers.RESTART_EVERY
    note = f"mean of {peers.RESTART_EVERY} steps on end, a restart of codes and five times metrics among them"
    yield Figure("training step: mean / median", mean / seconds["ours"], note=note)


def encoding(setting: Setting) -> Iterator[Figure]:
    """Embeddings to codes, in blocks."""
    from benchmarks import residual_vq as peers

    network = peers.network()
    library = peers.LibraryRQVAE(network, {}).eval()
    ties = []

    def check(x: "Tensor", results: Mapping[str, "Tensor"]) -> None:
        ties.append(peers.assert_ties(network, x, results["ours"], results["library"]))

    rows = (2 if setting.quick else 8) * BLOCK
    seconds = race(
        {
            "ours": _in_blocks(network.encode),
            "library": _in_blocks(library.encode),
            "perceptrons": _in_blocks(network.latents),
        },
        lambda turn: peers.embeddings(rows, turn),
        repeats=5,
        check=check,
    )
    same = f"same codes, but for {sum(ties)} ties among {len(ties) * rows:,} ads"
    yield Figure("encoding: ads a second", rows / seconds["ours"])
    yield Figure("encoding: library / ours", seconds["library"] / seconds["ours"], ">=", 1.8, same)
    yield Figure("encoding: ours / perceptrons alone", seconds["ours"] / seconds["perceptrons"])
    count = ADS // 10 if setting.quick else ADS
    taken = 0.0
    for start in range(0, count, BLOCK):
        block = peers.embeddings(min(BLOCK, count - start), start)
        begin = time.process_time()
        network.encode(block)
        taken += time.process_time() - begin
    note = f"the network alone; {count:,} ads, fresh in blocks of {BLOCK}" + (", scaled up" if count < ADS else "")
    yield Figure("encoding: s for 1,000,000 ads", taken * ADS / count, "<=", 20, note)


def codes_stage(setting: Setting) -> Iterator[Figure]:
    """The whole stage `codes` on new ads: files read and written, codes, the last level spread, the report."""
    what = "stage codes: s for 1,000,000 new ads"
    if setting.quick:
        yield Figure(what, None, note="left out of a quick run")
        return
    from benchmarks.inputs import settings, write_embeddings
    from benchmarks.residual_vq import embeddings

    known, new = 2000, 200_000
    run, x = settings("quantizer=medium", "quantizer.steps=300"), embeddings(known + new, 0)
    with tempfile.TemporaryDirectory() as name:
        first, second = Path(name, "first"), Path(name, "second")
        write_embeddings(first / "embeddings", x[:known])
        write_embeddings(second / "embeddings", x)
        _quantized(run, first)
        begin = time.process_time()
        told = _quantized(run, second, first)
        taken = time.process_time() - begin
    assert told["new"]["num_ads"] == new, "not all of the new ads are coded"
    yield Figure(what, taken * ADS / new, note=f"{new:,} new texts, scaled up; quantizer=medium, last level spread")


def kmeans_start(setting: Setting) -> Iterator[Figure]:
    """k-means of 65,536 vectors of the codes' width: as the stage `codes` calls it, and scikit-learn's.

    A thousand tight clusters suit a start that is greedy, vectors without structure and those of a tree less so.
    """
    import torch
    from sklearn.cluster import KMeans

    from benchmarks import inputs
    from benchmarks.residual_vq import CODE_DIM, CODEBOOK_SIZE
    from leadre.quantizer.diagnostics import relative_error
    from leadre.quantizer.kmeans import kmeans
    from leadre.quantizer.residual import nearest

    def ours(x: "Tensor") -> "Tensor":
        return kmeans(x, CODEBOOK_SIZE, iterations=KMEANS_STEPS, generator=torch.Generator().manual_seed(0))

    def theirs(x: "Tensor", **stop: int) -> "Tensor":
        found = KMeans(CODEBOOK_SIZE, n_init=1, init="k-means++", random_state=0, **stop).fit(x.numpy())
        return torch.from_numpy(found.cluster_centers_)

    def stopped(x: "Tensor") -> "Tensor":
        return theirs(x, max_iter=KMEANS_STEPS)

    make: dict[str, Callable[..., Tensor]] = {"isotropic": inputs.isotropic, "hierarchical": inputs.hierarchical}
    variants = {"ours": ours, "theirs": theirs}
    if not setting.quick:
        make["clustered"] = inputs.clustered
        variants["stopped"] = stopped
    gains, errors, early = {}, {}, {}
    for kind, vectors in make.items():
        ratios: list[float] = []

        def keep_error(x: "Tensor", results: Mapping[str, "Tensor"], ratios: list[float] = ratios) -> None:
            error = {name: relative_error(x, centers[nearest(x, centers)]) for name, centers in results.items()}
            ratios.append(error["ours"] / error["theirs"])

        def fresh(turn: int, vectors: Callable[..., "Tensor"] = vectors) -> "Tensor":
            return vectors(65_536 if turn else 4096, CODE_DIM, seed=turn)  # a few to warm up

        seconds = race(variants, fresh, repeats=2, check=keep_error)
        gains[kind], errors[kind] = seconds["theirs"] / seconds["ours"], statistics.median(ratios[1:])
        yield Figure(f"k-means, {kind}: s", seconds["ours"])
        if "stopped" in seconds:
            early[kind] = seconds["stopped"] / seconds["ours"]
    yield Figure("k-means: scikit-learn / ours, the least", min(gains.values()), ">=", 5, _by_kind(gains, 1))
    yield Figure("k-means: our error / scikit-learn's, the most", max(errors.values()), "<=", 1.01, _by_kind(errors, 4))
    if early:
        what = f"k-means: scikit-learn stopped after {KMEANS_STEPS} steps / ours, the least"
        yield Figure(what, min(early.values()), note=_by_kind(early, 1))


def collision_pass(setting: Setting) -> Iterator[Figure]:
    """The extra codes of a million ads, of which 29 % share their codes with another."""
    from benchmarks.inputs import shared_codes
    from leadre.catalog.sids import extra_codes

    few, many = (shared_codes(count, levels=4, codebook_size=1024) for count in (ADS // 10, ADS))
    repeats = 5 if setting.quick else 15

    def check(_: "NDArray[np.int32]", results: Mapping[str, "NDArray[np.int32]"]) -> None:
        assert (results["ours"] == results["loop"]).all(), "extra codes differ from those counted one by one"

    seconds = race({"ours": extra_codes, "loop": _counted_one_by_one}, lambda _: few, repeats=repeats, check=check)
    yield Figure("collision pass: loop with a dict / ours", seconds["loop"] / seconds["ours"], note="100,000 ads")
    whole = race({"ours": extra_codes}, lambda _: many, repeats=repeats, check=lambda *_: None)
    yield Figure("collision pass: s for 1,000,000 ads", whole["ours"], "<=", 0.2)


def collision_rates(setting: Setting) -> Iterator[Figure]:
    """How many distinct texts of real catalogs share their codes before the extra code, 4 levels of 256."""
    for name, goal in (("amazon_beauty", 0.5), ("completejourney", 1.0)):
        what = [f"{name}: % of its texts that collide", f"{name}: % of the codes of level 1 in use"]
        root = setting.data / name
        if setting.quick or not root.is_dir():
            why = "left out of a quick run" if setting.quick else f"there is no {root}"
            yield Figure(what[0], None, "<=", goal, why)
            yield Figure(what[1], None, ">=", 95, why)
            continue
        from benchmarks import inputs

        with tempfile.TemporaryDirectory() as folder:
            world, of_what = Path(folder, "day", "world"), "as imported"
            if name == "amazon_beauty":
                inputs.write_gathered(world, "data=amazon_beauty", f"data.root={root}", "alignment=none")
            else:
                inputs.write_completejourney(world, root)
                of_what = "of all products, not as imported: those are fewer and tell their manufacturers"
            told = _coded(inputs.settings("quantizer=medium"), Path(folder, "day"))
        nearest = 100 * told["collision_rate_nearest"]
        yield Figure(
            what[0], 100 * told["collision_rate_distinct"], "<=", goal, f"{told['num_distinct']:,} texts, {of_what}"
        )
        yield Figure(f"{name}: % that collide by nearest codes alone", nearest, note="before the last level is spread")
        yield Figure(what[1], 100 * told["usage"][0], ">=", 95)


def quickstart_codes(_: Setting) -> Iterator[Figure]:
    """The codes of the quickstart's world by the quickstart's quantizer."""
    from benchmarks import inputs

    with tempfile.TemporaryDirectory() as folder:
        inputs.write_gathered(Path(folder, "day", "world"), "data=synthetic", "data/world=small")
        told = _coded(inputs.settings("quantizer=small"), Path(folder, "day"))
    texts = f"{told['num_distinct']:,} texts"
    yield Figure("quickstart: % of its texts that collide", 100 * told["collision_rate_distinct"], note=texts)
    yield Figure("quickstart: % of the codes of level 1 in use", 100 * told["usage"][0], ">=", 95)


def appending(setting: Setting) -> Iterator[Figure]:
    """What 1 % new ads cost, against the same work for all others; nothing is fitted or trained in either.

    An index of a tenth of the ads stands before, so that to code the rest is coding alone. The same day again has no
    new ad: what that costs is the reading and writing of files, and is taken off.
    """
    from benchmarks.inputs import settings, texts, write_world
    from leadre import tables
    from leadre.catalog.index import index

    count = 20_000 if setting.quick else 200_000
    share, known = count // 100, count // 10
    run = settings("quantizer=medium", "quantizer.steps=300")
    ads = texts(count + share)
    with tempfile.TemporaryDirectory() as name:

        def day(called: str, active: int) -> Path:
            write_world(Path(name, called, "world"), ads.head(active))
            return Path(name, called)

        def code(called: str, before: Path) -> Callable[[int], None]:
            def work(turn: int) -> None:
                for stage in ("embeddings", "codes"):  # of the repetition before
                    shutil.rmtree(days[called] / stage, ignore_errors=True)
                _coded(run, days[called], before)

            return work

        def list_all(called: str, before: Path | None) -> Callable[[int], bytes]:
            def work(turn: int) -> bytes:
                out = days[called] / f"catalog{turn}"
                out.mkdir()
                index(run.catalog, days[called] / "world", days[called] / "codes", before, out=out)
                listed = tables.read(tables.SIDS, out / "sids.parquet")
                assert len(listed) == count + share * (called == "next"), "an ad is missing from the catalog"
                return listed.join(ads.head(count), on="ad_id", how="semi").sort("ad_id").write_ndjson().encode()

            return work

        def check(_: int, sids: Mapping[str, bytes]) -> None:
            assert sids["full"] == sids["next"], "an S-ID of an old ad has moved"

        first, full = day("first", known), day("full", count)
        days = {"full": full, "again": day("again", count), "next": day("next", count + share)}
        _coded(run, first)
        work = race(
            {"full": code("full", first), "again": code("again", full), "next": code("next", full)},
            lambda turn: turn,
            repeats=3,
            check=lambda *_: None,
        )
        catalog = race(
            {"full": list_all("full", None), "next": list_all("next", full / "catalog0")},
            lambda turn: turn,
            repeats=3,
            check=check,
        )
    of_all, of_new = (work[day] - work["again"] for day in ("full", "next"))
    measurable = 0 < of_new < of_all
    ratio = 100 * of_new / of_all if measurable else math.nan
    note = "medians of 3; S-IDs of old ads are the same bytes" if measurable else f"{of_new:.3g} s is lost in noise"
    yield Figure(f"append: s to embed and code {count - known:,} ads", of_all)
    what = "append: % of it for 1 % new ads"
    if setting.quick and measurable:
        yield Figure(what, ratio, note=f"{note}; no goal here: what no day is without weighs more on few ads")
    else:
        yield Figure(what, ratio, "<=", 5, note)
    yield Figure("append: s for files of embeddings and codes", work["again"], note="grows with all ads")
    yield Figure("append: s for the catalog and its trie", catalog["next"], note="grows with all ads")
    yield Figure("append: the same / that of the day before", catalog["next"] / catalog["full"])


def gpu(_: Setting) -> Iterator[Figure]:
    """The network on a GPU: a captured step of training, and codes of embeddings that lie there.

    Written without a GPU at hand: nothing but the line that there is none has ever been run.
    """
    import torch

    if not torch.cuda.is_available():
        yield Figure("GPU: captured step, encoding", None, note="not run: no GPU")
        return
    from benchmarks import residual_vq as peers

    network, x = peers.network(), peers.embeddings(65_536, 1)
    codes = network.encode(x)
    network, x = network.cuda(), x.cuda()
    same = float((network.encode(x).cpu() == codes).all(1).double().mean())
    assert same >= 0.999, f"of the codes, {100 * same:.2f} % are those of the CPU"
    resident = x.repeat(16, 1)
    each = peers.gpu_seconds(lambda: network.encode(resident), times=20)
    yield Figure("GPU: million ads coded a second", len(resident) / each / 1e6, ">=", 10, f"{100 * same:.3f} % as CPU")
    replay = peers.captured_step(network, x[:BATCH].clone())
    first = float(replay())
    ms = 1000 * peers.gpu_seconds(replay, times=500)
    last = float(replay())
    assert last < first, f"the loss went from {first} to {last}: the graph does not train"
    yield Figure("GPU: captured training step, ms", ms, "<=", 0.5, f"batch {BATCH}")


def _by_kind(ratios: Mapping[str, float], digits: int) -> str:
    return ", ".join(f"{kind} {ratio:.{digits}f}" for kind, ratio in ratios.items())


def _in_blocks(encode: Callable[["Tensor"], "Tensor"]) -> Callable[["Tensor"], "Tensor"]:
    import torch

    return lambda x: torch.cat([encode(block) for block in torch.split(x, BLOCK)])


def _counted_one_by_one(codes: "NDArray[np.int32]") -> "NDArray[np.int32]":
    import numpy as np

    seen: dict[tuple[int, ...], int] = defaultdict(int)
    extra = []
    for row in map(tuple, codes.tolist()):
        extra.append(seen[row])
        seen[row] += 1
    return np.array(extra, dtype=np.int32)


def _coded(run: "RunConfig", day: Path, previous: Path | None = None) -> dict[str, Any]:
    """Embed and code the ads of a day's world; what ``diagnostics.json`` tells."""
    from leadre.embedding.embed import embed

    embeddings = day / "embeddings"
    embeddings.mkdir()
    known = previous / "embeddings" if previous else None
    embed(run.embedding, day / "world", known, out=embeddings, compute=run.compute)
    return _quantized(run, day, previous)


def _quantized(run: "RunConfig", day: Path, previous: Path | None = None) -> dict[str, Any]:
    """Code a day's embeddings; what ``diagnostics.json`` tells."""
    from leadre.quantizer.quantize import quantize

    codes, known = day / "codes", previous / "codes" if previous else None
    codes.mkdir()
    quantize(run.quantizer, day / "embeddings", known, out=codes, compute=run.compute, logger=run.logger)
    told: dict[str, Any] = json.loads((codes / "diagnostics.json").read_text())
    return told


MEASUREMENTS = (
    training_step,
    encoding,
    codes_stage,
    kmeans_start,
    collision_pass,
    collision_rates,
    quickstart_codes,
    appending,
    gpu,
)

if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
