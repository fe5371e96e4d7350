"""What the benchmark on GPUs works with: shapes, models of random weights, catalogs, and clocks that wait for a GPU."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from benchmarks.beam_peers import Prompts
from benchmarks.beam_peers import prompts as texts
from benchmarks.measure import Figure
from leadre.catalog.trie import Trie, build
from leadre.decoding.beam_search import Beams
from leadre.decoding.static_search import StaticSearch

_KINDS: dict[str, Callable[..., PretrainedConfig]] = {"llama": LlamaConfig, "qwen": Qwen3Config}


class Scale(NamedTuple):
    """How large everything is.

    Attributes:
        llama: Settings of a Llama's shape.
        qwen: Settings of a Qwen3's shape.
        ads: Ads of the catalogs.
        users: A batch.
        peer_users: A batch of ``generate``, whose cache holds every prompt once a beam.
        prompt: Tokens a prompt.
        beams: Beams of the LEADRE shape.
        contexts: Context and batch of the latencies, each with its goal in milliseconds.
        wide_beams: Beams of the latencies and of single steps.
        repeats: Repetitions that count.
    """

    llama: Mapping[str, Any]
    qwen: Mapping[str, Any]
    ads: int
    users: int
    peer_users: int
    prompt: int
    beams: int
    contexts: Sequence[tuple[int, int, float]]
    wide_beams: int
    repeats: int


LLAMA = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
QWEN = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
FULL = Scale(
    llama=LLAMA,
    qwen=QWEN,
    ads=1_000_000,
    users=64,
    peer_users=8,
    prompt=700,
    beams=50,
    contexts=((1000, 1, 12), (1000, 8, 70), (5000, 8, 275)),
    wide_beams=256,
    repeats=10,
)


def not_run(*told: tuple[str, Literal["<=", ">="], float]) -> list[Figure]:
    """Figures with a goal, as a machine without a GPU tells them."""
    return [Figure(name, None, relation, goal, "there is no CUDA GPU here") for name, relation, goal in told]


def model_of(kind: str, sizes: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A model with random weights, the same for the same sizes; it is made on the device, as a saved one is loaded.

    Its rotary frequencies stay in float32, whatever the data type of the weights.
    """
    config = _KINDS[kind](**sizes, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    torch.manual_seed(0)
    with device:
        model: Any = cast(Any, AutoModelForCausalLM).from_config(config, dtype=dtype)
    return cast(PreTrainedModel, model.eval())


def machine(device: torch.device) -> str:
    """What was measured on: the device, and the versions of what runs there."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    versions = [f"{package} {_version(package)}" for package in ("torch", "transformers", "triton")]
    return ", ".join([name, *versions, f"CUDA {torch.version.cuda}"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def static(
    model: PreTrainedModel, trie: Trie, tokens: Sequence[range], beams: int, device: torch.device
) -> StaticSearch:
    """The search that is measured, with the default normalizer."""
    return StaticSearch(model, trie=trie, sid_tokens=tokens, beam_width=beams, normalizer="full", device=device)


def three_levels(ads: int, vocabulary: int, *, codes: int = 1024) -> tuple[Trie, tuple[range, ...]]:
    """A catalog of random S-IDs of three codes, which are the last tokens of the vocabulary."""
    packed = torch.unique(torch.randint(codes**3, (2 * ads,), generator=torch.Generator().manual_seed(0)))
    packed = packed[torch.randperm(len(packed), generator=torch.Generator().manual_seed(0))[:ads]].sort().values
    rows = torch.stack([packed // codes**2, packed // codes % codes, packed % codes], 1)
    start = vocabulary - 3 * codes
    return build(rows), tuple(range(start + level * codes, start + (level + 1) * codes) for level in range(3))


def prompts(users: int, length: int, device: torch.device, seed: int) -> Prompts:
    """Random texts, all of one length."""
    made = texts([length] * users, seed=seed)
    return Prompts(made.ids.to(device), made.mask.to(device))


def first(given: Prompts, users: int) -> Prompts:
    """Some of the prompts."""
    return type(given)(given.ids[:users], given.mask[:users])


def overlap(rows: Tensor, others: Tensor) -> float:
    """The share of the ads ``(B, W)`` that are among the others ``(B, W)`` of their user."""
    return float((rows[:, :, None] == others[:, None, :]).any(2).float().mean())


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds of the wall, once the device has done what it was given."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def milliseconds(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median milliseconds of a call, by the device's own events where it is a GPU."""
    taken = []
    for turn in range(3 + repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize(device)
            passed = float(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            call()
            passed = 1000 * (time.perf_counter() - start)
        if turn >= 3:  # those before warm up
            taken.append(passed)
    return statistics.median(taken)


def graph_milliseconds(call: Callable[[], Any], device: torch.device, repeats: int, *, times: int = 20) -> float:
    """The milliseconds of a call inside a CUDA graph, where nothing waits for the host; on the CPU of a plain call."""
    if device.type != "cuda":
        return milliseconds(call, device, repeats)
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # its own declaration
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        call()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            call()
    return milliseconds(graph.replay, device, repeats) / times


def lists(search: StaticSearch, given: Prompts) -> Beams:
    """The lists of some prompts."""
    return search(given.ids, given.mask)
