"""Lists of ads on a GPU: the graph of the search, its kernels and its 8-bit weights (LEADRE 4.4.2).

    python -m benchmarks.decoding_gpu            # every figure, in a quarter of an hour on an H200
    python -m benchmarks.decoding_gpu --quick    # fewer repetitions

Weights are random, of the shapes of Llama-3.2-1B and Qwen3-1.7B. Goals are for an H200. Without a CUDA GPU every figure
is told as not run, and the command succeeds. Seconds are those of the wall, with the GPU waited for.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Figure, Setting, main, race

if TYPE_CHECKING:  # a measurement imports what it needs, so that a wrong option is told at once
    import torch
    from torch import Tensor

    from benchmarks.beam_peers import Prompts
    from benchmarks.gpu import Scale
    from leadre.decoding.beam_search import Beams
    from leadre.lm.config import EightBit

USERS_A_SECOND, GENERATE, FLOAT8, STEP = 260.0, 30.0, 1.4, 0.05
"""Goals: 60 % of the floor, as many times as ``generate``, as many times as bf16, milliseconds."""
PACE, TIMES = "users a second", "ours / generate with a dictionary"
SAME = "float32: largest difference of a score to generate"
SAME_TO = 1e-3


def users_a_second(setting: Setting) -> Iterator[Figure]:
    """The LEADRE shape, beside Transformers' ``generate`` over a dictionary trie."""
    from benchmarks import gpu

    what = throughput_name(gpu.FULL)
    yield from _on_a_gpu(throughput, setting, (what + PACE, ">=", USERS_A_SECOND), (what + TIMES, ">=", GENERATE))


def same_lists(setting: Setting) -> Iterator[Figure]:
    """A small model in float32 gives the lists of ``generate``."""
    yield from _on_a_gpu(same_lists_in_float32, setting, (SAME, "<=", SAME_TO))


def latency(setting: Setting) -> Iterator[Figure]:
    """The shape that NVIDIA publishes: Qwen3-1.7B, 256 beams, 3 tokens."""
    from benchmarks import gpu

    told = [(latency_name(*case), "<=", case[2]) for case in gpu.FULL.contexts]
    yield from _on_a_gpu(latencies, setting, *told)


def w8a8(setting: Setting) -> Iterator[Figure]:
    """8-bit integers against bf16, and what they do to lists."""
    yield from _on_a_gpu(partial(beside_bf16, "w8a8"), setting)


def fp8(setting: Setting) -> Iterator[Figure]:
    """8-bit floats against bf16, and what they do to lists."""
    yield from _on_a_gpu(partial(beside_bf16, "fp8"), setting, (eight_bits_name("fp8"), ">=", FLOAT8))


def kernels(setting: Setting) -> Iterator[Figure]:
    """The other items of the paper's section 4.4.2, each beside what it replaces."""
    yield from _on_a_gpu(single_steps, setting, ("mask and selection of a step: ms, 256 beams", "<=", STEP))


def _on_a_gpu(
    measure: "Callable[[Scale, torch.device], Iterator[Figure]]", setting: Setting, *told: tuple[str, Any, float]
) -> Iterator[Figure]:
    """Measure where there is a GPU, by whose Triton kernels is told; else name the figures that have a goal."""
    import torch

    from benchmarks import gpu
    from leadre.decoding.kernels import FUSED

    if not torch.cuda.is_available():
        yield from gpu.not_run(*told)
        return
    device = torch.device("cuda", torch.cuda.current_device())
    yield Figure("Triton is installed", float(FUSED), ">=", 1, gpu.machine(device))
    try:
        yield from measure(gpu.FULL._replace(repeats=3) if setting.quick else gpu.FULL, device)
    finally:
        gc.collect()  # models and graphs refer to themselves
        torch.cuda.empty_cache()


def throughput(scale: "Scale", device: "torch.device") -> Iterator[Figure]:
    """Users a second of the graph, alone, and then beside ``generate``, whose lists are compared."""
    import torch

    from benchmarks import beam_peers as peers
    from benchmarks import gpu

    model = gpu.model_of("llama", scale.llama, device, torch.bfloat16)
    trie, rows = peers.sorted_catalog(scale.ads)
    search = gpu.static(model, trie, peers.SID_TOKENS, scale.beams, device)
    given = partial(gpu.prompts, scale.users, scale.prompt, device)
    kept: list[float] = []

    def whole(_: "Prompts", results: Mapping[str, "Beams"]) -> None:
        assert bool((results["ours"].rows >= 0).all()), "a list is short"

    def compare(_: "Prompts", results: Mapping[str, "Beams"]) -> None:
        theirs = results["generate"].rows
        kept.append(gpu.overlap(results["ours"].rows[: len(theirs)].cpu(), theirs))

    variants: dict[str, Callable[[Prompts], Beams]] = {"ours": partial(gpu.lists, search)}
    seconds = race(variants, given, repeats=scale.repeats, check=whole, clock=gpu.clock(device))
    what = throughput_name(scale)
    note = f"bf16, {scale.ads:,} ads, normalizer full"
    yield Figure(what + PACE, scale.users / seconds["ours"], ">=", USERS_A_SECOND, note)
    root = peers.nested(peers.as_tokens(rows))
    variants["generate"] = lambda given: peers.generate(
        model, gpu.first(given, scale.peer_users), root=root, beam_width=scale.beams
    )
    seconds = race(variants, given, repeats=max(2, scale.repeats // 3), check=compare, clock=gpu.clock(device))
    ours, theirs = scale.users / seconds["ours"], scale.peer_users / seconds["generate"]
    note = f"{theirs:.3g} users a second, {scale.peer_users} at once: its cache holds a prompt a beam"
    yield Figure(what + TIMES, ours / theirs, ">=", GENERATE, note)
    yield Figure(what + "ads in common with generate, %", 100 * sum(kept) / len(kept), note="both bf16")


def same_lists_in_float32(scale: "Scale", device: "torch.device") -> Iterator[Figure]:
    """A small model in float32: the same ads in the same order as ``generate``, and nearly the same scores."""
    from torch import nn

    from benchmarks import beam_peers as peers
    from benchmarks import gpu

    model = peers.language_model()
    nn.Module.to(model, device)
    trie, root = peers.catalog(min(scale.ads, 10_000))
    given = peers.prompts([scale.prompt // 10, scale.prompt // 7, scale.prompt // 4], seed=0)
    given = peers.Prompts(given.ids.to(device), given.mask.to(device))
    width = min(scale.beams, 20)
    ours = gpu.lists(gpu.static(model, trie, peers.SID_TOKENS, width, device), given)
    theirs = peers.generate(model, given, root=root, beam_width=width)
    ours, theirs = (type(found)(found.rows.cpu(), found.scores.cpu()) for found in (ours, theirs))
    assert ours.rows.tolist() == theirs.rows.tolist(), "float32: other ads than generate's"
    apart = float((ours.scores - theirs.scores).abs().max())
    yield Figure(SAME, apart, "<=", SAME_TO, "same ads, same order")


def throughput_name(scale: "Scale") -> str:
    """What the figures of the LEADRE shape begin with."""
    return f"1B, {scale.users} users, {scale.prompt} tokens, {scale.beams} beams: "


def latency_name(context: int, users: int, _: float) -> str:
    """What a latency is called."""
    return f"1.7B, 3 codes, 256 beams, context {context}, batch {users}: ms"


def eight_bits_name(kind: str) -> str:
    """What the speed of 8-bit weights is called."""
    return f"{kind} / bf16 users a second"


def latencies(scale: "Scale", device: "torch.device") -> Iterator[Figure]:
    """Milliseconds from prompts on the device to lists."""
    import torch

    from benchmarks import gpu

    model = gpu.model_of("qwen", scale.qwen, device, torch.bfloat16)
    trie, tokens = gpu.three_levels(scale.ads, scale.qwen["vocab_size"])
    published = {(1000, 1): 17.6, (1000, 8): 93.2, (5000, 8): 307.9}
    for context, users, goal in scale.contexts:
        search = gpu.static(model, trie, tokens, scale.wide_beams, device)
        given = gpu.prompts(users, context, device, 0)
        taken = gpu.milliseconds(partial(gpu.lists, search, given), device, scale.repeats)
        note = f"NVIDIA's engine on an H100: {published.get((context, users), float('nan'))}; normalizer full"
        yield Figure(latency_name(context, users, goal), taken, "<=", goal, note)


def beside_bf16(kind: "EightBit", scale: "Scale", device: "torch.device") -> Iterator[Figure]:
    """How many times as fast one kind of 8-bit numbers is, and which ads stay."""
    import torch

    from benchmarks import beam_peers as peers
    from benchmarks import gpu
    from leadre.lm.quantized import quantize

    trie = peers.sorted_catalog(scale.ads)[0]
    given = partial(gpu.prompts, scale.users, scale.prompt, device)
    models = {name: gpu.model_of("llama", scale.llama, device, torch.bfloat16) for name in ("bf16", kind)}
    quantize(models[kind], kind, [gpu.first(given(100 + turn), scale.peer_users) for turn in range(4)])
    kept: list[float] = []

    def compare(_: "Prompts", results: Mapping[str, "Beams"]) -> None:
        kept.append(gpu.overlap(results["bf16"].rows, results[kind].rows))

    variants: dict[str, Callable[[Prompts], Beams]] = {
        name: partial(gpu.lists, gpu.static(model, trie, peers.SID_TOKENS, scale.beams, device))
        for name, model in models.items()
    }
    seconds = race(variants, given, repeats=scale.repeats, check=compare, clock=gpu.clock(device))
    goal = FLOAT8 if kind == "fp8" else None
    note = f"{scale.users / seconds[kind]:.4g} users a second; {scale.users} users, {scale.beams} beams"
    yield Figure(eight_bits_name(kind), seconds["bf16"] / seconds[kind], ">=" if goal else None, goal, note)
    note = "random weights: scores lie nearer than those of a trained model"
    yield Figure(f"{kind}: ads in common with bf16, %", 100 * sum(kept) / len(kept), note=note)


def single_steps(scale: "Scale", device: "torch.device") -> Iterator[Figure]:
    """A step of the search, the head after the prompt, and how a list is read from the beams."""
    yield from step_of_the_search(scale, device)
    yield from head_after_the_prompt(scale, device)
    yield from end_of_the_search(scale, device)


def step_of_the_search(scale: "Scale", device: "torch.device") -> Iterator[Figure]:
    """Softmax, mask and top-k in fused kernels, against torch over the whole vocabulary."""
    import torch

    from benchmarks import beam_peers as peers
    from benchmarks import gpu
    from leadre.catalog.trie import move
    from leadre.decoding.branches import branches
    from leadre.decoding.kernels import log_normalizer, select
    from leadre.decoding.selection import Frontier

    vocabulary, width = scale.qwen["vocab_size"], scale.wide_beams
    below = branches(move(peers.sorted_catalog(scale.ads)[0], device))[2]
    counts = below.first_child[1:] - below.first_child[:-1]
    nodes = counts.topk(width).indices.sort().values[None]  # those with the most children
    generator = torch.Generator(device).manual_seed(0)
    scores = -torch.rand(1, width, device=device, generator=generator)
    logits = torch.randn(width, vocabulary, device=device, generator=generator).to(torch.bfloat16)
    beams, first_code = Frontier(nodes, scores, torch.zeros_like(nodes)), peers.SID_TOKENS[2].start
    norms = log_normalizer(logits, nodes, below, "full")
    calls: dict[str, Callable[[], Any]] = {
        "all": lambda: select(
            logits,
            log_normalizer(logits, nodes, below, "full"),
            beams,
            below,
            first_code=first_code,
            beam_width=width,
        ),
        "select": lambda: select(logits, norms, beams, below, first_code=first_code, beam_width=width),
        "unfused": lambda: unfused(logits, scores, nodes, below.codes, below.first_child, below.most, first_code),
    }
    best = calls["all"]().scores.sort(1, descending=True).values
    apart = float((best - calls["unfused"]()).abs().max())
    assert apart <= 1e-3, f"the best scores of the fused and the unfused step are {apart:.2g} apart"
    taken = {name: gpu.graph_milliseconds(call, device, scale.repeats) for name, call in calls.items()}
    note = f"the {width} nodes with the most children of {scale.ads:,} ads; in a CUDA graph"
    yield Figure(f"mask and selection of a step: ms, {width} beams", taken["select"], "<=", STEP, note)
    yield Figure("softmax, mask and selection of a step: ms, fused", taken["all"], note=f"{vocabulary:,} tokens")
    note = f"{taken['unfused']:.3g} ms: log_softmax, mask and topk over the vocabulary"
    yield Figure("softmax, mask and selection: unfused / fused", taken["unfused"] / taken["all"], note=note)


def unfused(
    logits: "Tensor",
    scores: "Tensor",
    nodes: "Tensor",
    codes: "Tensor",
    first_child: "Tensor",
    most: int,
    first_code: int,
) -> "Tensor":
    """The best scores ``(1, W)`` of the next step, as torch has it: everything over the vocabulary.

    Args:
        logits: ``(W, V)``.
        scores: ``(1, W)`` of the beams.
        nodes: ``(1, W)`` of the level above.
        codes: ``(n,)`` codes of the level.
        first_child: ``(n_above + 1,)``.
        most: The most children of a node.
        first_code: Column of code 0.
    """
    import torch

    width = nodes.shape[1]
    first, end = first_child[nodes[0]].long(), first_child[nodes[0] + 1].long()
    children = first[:, None] + torch.arange(most, device=logits.device)
    columns = codes[children.clamp(max=len(codes) - 1)].long() + first_code
    columns = torch.where(children < end[:, None], columns, logits.shape[1])  # one column too many, cut off
    mask = torch.ones(width, logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    mask = mask.scatter(1, columns, False)[:, :-1]
    total = logits.float().log_softmax(1).masked_fill(mask, -torch.inf) + scores[0, :, None]
    return total.flatten()[None].topk(width).values


def head_after_the_prompt(scale: "Scale", device: "torch.device") -> Iterator[Figure]:
    """The paper's ``ComputeMode``: a probability after the prompt for the one position and beam that need it."""
    import torch

    from benchmarks import gpu

    model: Any = gpu.model_of("llama", scale.llama, device, torch.bfloat16)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    given = gpu.prompts(scale.peer_users, scale.prompt, device, 0)

    def read() -> "Tensor":
        hidden: Tensor = decoder(input_ids=given.ids, use_cache=False).last_hidden_state
        return hidden

    def once() -> "Tensor":
        last: Tensor = head(read()[:, -1:]).log_softmax(2)
        return last

    def everywhere() -> "Tensor":
        last: Tensor = head(read()).log_softmax(2)[:, -1:]
        return last

    with torch.no_grad():
        torch.testing.assert_close(once(), everywhere(), atol=0.1, rtol=0.02)
        ours, theirs = (gpu.milliseconds(call, device, scale.repeats) for call in (once, everywhere))
    note = f"{ours:.3g} ms; the paper: 3 to 4 times in prefill"
    yield Figure("prompt and softmax: at all positions / at the last", theirs / ours, note=note)


def end_of_the_search(scale: "Scale", device: "torch.device") -> Iterator[Figure]:
    """The paper's finalize kernel walks back from beam to parent; here the last node is the ad's row."""
    import torch

    from benchmarks import beam_peers as peers
    from benchmarks import gpu

    rows = peers.sorted_catalog(scale.ads)[1].to(device).long()
    levels, shape = rows.shape[1], (scale.users, scale.beams)
    generator = torch.Generator(device).manual_seed(0)
    found = torch.randint(len(rows), shape, device=device, generator=generator)
    last = torch.arange(scale.beams, device=device).expand(shape)
    # Where the beam stood at each level that led to each ad, as if they had been sorted there in some other order.
    slots = [torch.rand(shape, device=device, generator=generator).argsort(1) for _ in range(levels - 1)] + [last]
    codes = [last.scatter(1, slot, rows[found, level]) for level, slot in enumerate(slots)]
    parents = [last.scatter(1, slot, slots[max(0, level - 1)]) for level, slot in enumerate(slots)]

    def walk() -> "Tensor":
        beam, sid = last, []
        for level in reversed(range(levels)):
            sid.append(codes[level].gather(1, beam))
            beam = parents[level].gather(1, beam)
        return torch.stack(sid[::-1], 2)

    def look_up() -> "Tensor":
        return rows[found]

    assert torch.equal(walk(), look_up()), "walking back gives other S-IDs than the rows"
    ours, theirs = (gpu.graph_milliseconds(call, device, scale.repeats) for call in (look_up, walk))
    note = f"{theirs:.3g} ms; the list needs no S-ID at all: a node is a row"
    yield Figure("end of the search: walking back / S-IDs of rows", theirs / ours, note=note)


MEASUREMENTS = (users_a_second, same_lists, latency, w8a8, fp8, kernels)

if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
