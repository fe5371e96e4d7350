"""Tuning and alignment on a GPU: how much of the device a step uses, and the DPO step beside TRL's way.

    python -m benchmarks.training_gpu            # every figure, in a few minutes on an H200
    python -m benchmarks.training_gpu --quick    # fewer repetitions

Weights are random, of the shape of Llama-3.2-1B, in bfloat16. Goals are for an H200. Without a CUDA GPU every figure is
told as not run, and the command succeeds. Seconds are those of the wall, with the GPU waited for.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Figure, Setting, main, race

if TYPE_CHECKING:  # a measurement imports what it needs, so that a wrong option is told at once
    import torch
    from transformers import PreTrainedModel

    from benchmarks.training_peers import Pairs, Step

PEAK = 989e12
"""Floating-point operations a second of an H200's tensor cores in bfloat16, without sparsity."""
USE, TIMES = "SFT of a 1B shape: share of the peak, on real tokens", "DPO step: TRL's way / ours"
ROWS, MIDDLE, CAP = 64, 600, 2096


def sft_use(setting: Setting) -> Iterator[Figure]:
    """Tokens a second of SFT steps, optimizer included, as a share of what the device could do."""
    yield from _on_a_gpu(use_of_the_device, setting, (USE, ">=", 0.45))


def dpo_step(setting: Setting) -> Iterator[Figure]:
    """The DPO step against two padded rows a pair, all logits, and the reference in the step."""
    yield from _on_a_gpu(against_trl, setting, (TIMES, ">=", 3))


def _on_a_gpu(
    measure: "Callable[[Mapping[str, Any], int, int, torch.device], Iterator[Figure]]",
    setting: Setting,
    *told: tuple[str, Any, float],
) -> Iterator[Figure]:
    import torch

    from benchmarks import gpu

    if not torch.cuda.is_available():
        yield from gpu.not_run(*told)
        return
    device = torch.device("cuda", torch.cuda.current_device())
    yield from measure(gpu.FULL.llama, ROWS, 2 if setting.quick else 8, device)


def use_of_the_device(
    sizes: "Mapping[str, Any]", num_rows: int, repeats: int, device: "torch.device"
) -> Iterator[Figure]:
    """Steps of rows of like length, the head at the learned tokens alone."""
    import numpy as np
    import torch

    from benchmarks import gpu
    from benchmarks import training_peers as peers
    from leadre.sft.module import learned_logprobs
    from leadre.training.batches import bucketed_plan

    model = gpu.model_of("llama", sizes, device, torch.bfloat16).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    rng = np.random.default_rng(0)
    lengths = peers.prompt_lengths(num_rows * (repeats + 1), middle=MIDDLE, cap=CAP, rng=rng)
    rows = peers.random_rows(lengths, rng)
    read, seconds, tokens, operations = gpu.clock(device), 0.0, 0, 0.0
    for turn, which in enumerate(bucketed_plan(rows.lengths, batch_size=num_rows, epochs=1, seed=0)):
        batch = peers.batch_of(rows, which, device)
        begin = read()
        loss = -(batch.weights * learned_logprobs(model, batch)).sum() / batch.total
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if turn:  # the first warms up
            seconds += read() - begin
            tokens += int(rows.lengths[which].sum())
            operations += sum(operations_of(model, int(length)) for length in rows.lengths[which])
    yield Figure("SFT of a 1B shape: tokens a second", tokens / seconds, note=gpu.machine(device))
    yield Figure(USE, operations / seconds / PEAK, ">=", 0.45, f"peak {PEAK / 1e12:.0f} TFLOP/s, optimizer included")


def operations_of(model: "PreTrainedModel", length: int) -> float:
    """Operations of forward and backward over one row: matrices, causal attention, the head at the response."""
    from benchmarks.training_peers import LEVELS

    config = model.config
    head = config.vocab_size * config.hidden_size
    body = model.num_parameters() - head  # the embedding, which the head shares, is looked up
    attention = config.num_hidden_layers * config.hidden_size * length**2
    total: float = 6.0 * (body * length + head * LEVELS + attention)
    return total


def against_trl(sizes: "Mapping[str, Any]", num_rows: int, repeats: int, device: "torch.device") -> Iterator[Figure]:
    """A DPO step of 700 tokens a prompt, beside TRL's way with its reference in the step."""
    import numpy as np
    import torch

    from benchmarks import gpu
    from benchmarks import training_peers as peers

    model = gpu.model_of("llama", sizes, device, torch.bfloat16).train()
    reference = peers.copy_of(model).requires_grad_(False)
    lengths = np.full(num_rows // 8, min(700, CAP))

    def pairs(turn: int) -> "Pairs":
        return peers.pairs_of(lengths, reference, np.random.default_rng(turn), device)

    variants: dict[str, Callable[[Pairs], Step]] = {
        "ours": partial(peers.dpo_ours, model),
        "trl": partial(peers.dpo_plain, model, reference=reference),
    }
    seconds = race(variants, pairs, repeats=repeats, check=_near, clock=gpu.clock(device))
    yield Figure(
        TIMES, seconds["trl"] / seconds["ours"], ">=", 3, f"{len(lengths)} pairs, prompts of {lengths[0]} tokens"
    )


def _near(given: object, steps: "Mapping[str, Step]") -> None:
    """bfloat16 adds in another order: losses agree to a hundredth."""
    assert abs(steps["ours"].loss - steps["trl"].loss) <= 0.01, f"{steps}"


if __name__ == "__main__":
    sys.exit(main([sft_use, dpo_step]))
