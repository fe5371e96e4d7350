"""Tuning and alignment: our steps against the plain Transformers and TRL way, on the same rows.

    python -m benchmarks.training            # every figure, within fifteen minutes
    python -m benchmarks.training --quick    # a narrower model, one repetition

Seconds are those of one thread on a CPU. The model has Qwen2's form, 8 layers of width 512, random weights, 12,544
tokens. A step is loss and gradients; both must be equal to 1e-5 in the same run.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Figure, Setting, main, race
from benchmarks.prompt_ids import grouping, prompt_ids

if TYPE_CHECKING:  # a measurement imports what it needs, so that a wrong option is told at once
    from transformers import PreTrainedModel

    from benchmarks.training_peers import Pairs, Step
    from leadre.lm.rows import Rows

BATCH = 8
TARGETS = 6


def sft_step(setting: Setting) -> Iterator[Figure]:
    """Rows in the order they come, padded, with all logits; against rows of like length, with those to be learned."""
    import numpy as np

    from benchmarks import training_peers as peers
    from leadre.sft.trees import alone

    model, num_rows = _model(setting.quick), 24 if setting.quick else 160

    def rows(turn: int) -> "Rows":
        rng = np.random.default_rng(turn)
        lengths = peers.prompt_lengths(num_rows, middle=48, cap=400, rng=rng)
        return peers.random_rows(lengths, rng)

    lengths = np.concatenate([rows(turn).lengths for turn in range(40)])
    as_they_come = np.array_split(np.arange(len(lengths)), len(lengths) // BATCH)
    efficiency = peers.pad_efficiency(lengths, as_they_come)
    variants: dict[str, Callable[[Rows], Step]] = {
        "ours": lambda given: peers.sft_ours(model, given, alone(given.offsets), batch_size=BATCH),
        "plain": partial(peers.sft_plain, model, batch_size=BATCH),
    }
    seconds = race(variants, rows, repeats=1, check=_same_steps)
    note = f"{num_rows} rows in batches of {BATCH}; as they come {efficiency:.0%} of the tokens are no padding"
    yield Figure("SFT step: labels= of Transformers / ours", seconds["plain"] / seconds["ours"], ">=", 2.4, note)


def dpo_step(setting: Setting) -> Iterator[Figure]:
    """Two padded rows a pair, all logits, the reference in the step; against the prompt once, the reference ahead."""
    import numpy as np

    from benchmarks import training_peers as peers

    model = _model(setting.quick)
    reference = peers.copy_of(model).requires_grad_(False)
    with _no_gradients():
        for weight in model.parameters():
            weight.mul_(1.01)  # a policy that has moved

    def pairs(turn: int) -> "Pairs":
        rng = np.random.default_rng(turn)
        return peers.pairs_of(np.full(BATCH, 64 if setting.quick else 192), reference, rng)

    variants: dict[str, Callable[[Pairs], Step]] = {
        "ours": partial(peers.dpo_ours, model),
        "plain": partial(peers.dpo_plain, model, reference=reference),
        "ahead": partial(peers.dpo_plain, model, reference=None),
    }
    seconds = race(variants, pairs, repeats=1 if setting.quick else 3, check=_same_steps)
    yield Figure("DPO step: TRL's way / ours", seconds["plain"] / seconds["ours"], ">=", 3, "reference in the step")
    yield Figure("DPO step: TRL's way, reference ahead / ours", seconds["ahead"] / seconds["ours"])


def shared_history(setting: Setting) -> Iterator[Figure]:
    """Six targets of one history as six rows, with all logits; against one tree."""
    import numpy as np

    from benchmarks import training_peers as peers
    from leadre.sft.trees import alike

    model, history = _model(setting.quick), 96 if setting.quick else 240

    def rows(turn: int) -> "Rows":
        rng = np.random.default_rng(turn)
        texts = []
        for _ in range(2):
            ends = np.linspace(0.5 * history, history, TARGETS).astype(int)  # of the behaviors before each target
            told, *questions = peers.random_texts(np.array([history] + [8] * TARGETS), rng)
            for end, question in zip(ends, questions, strict=True):
                texts.append(np.concatenate([told[:end], question, peers.random_sids(1, rng)[0]]))
        return peers.rows_of(texts)

    variants: dict[str, Callable[[Rows], Step]] = {
        "ours": lambda given: peers.sft_ours(
            model, given, alike(given.ids, given.offsets, most=TARGETS), batch_size=2 * TARGETS
        ),
        "plain": partial(peers.sft_plain, model, batch_size=TARGETS),
    }
    seconds = race(variants, rows, repeats=1 if setting.quick else 3, check=_same_steps)
    note = f"history of {history} tokens, {TARGETS} targets in its second half"
    yield Figure("six targets: a row each / one tree", seconds["plain"] / seconds["ours"], ">=", 5, note)


def trl(setting: Setting) -> Iterator[Figure]:
    """The real SFTTrainer and DPOTrainer, an epoch from rows to weights, against our stages; width 256, 4 layers."""
    import numpy as np

    from benchmarks import training_peers as peers
    from benchmarks import training_stages as stages
    from leadre.job import quiet_libraries

    quiet_libraries()
    num_rows = 64 if setting.quick else 128
    rng = np.random.default_rng(0)
    lengths = peers.prompt_lengths(num_rows, middle=96, cap=400, rng=rng)
    rows = peers.random_rows(lengths, rng)
    model = stages.small_model()
    pairs = peers.pairs_of(lengths[: num_rows // 2], model, rng)
    races: Mapping[str, tuple[int, dict[str, Callable[[int], None]]]] = {
        "SFTTrainer": (
            len(rows.ids),
            {
                "ours": lambda _: stages.tune(rows, batch_size=BATCH),
                "trl": lambda _: peers.train_with_trl_sft(stages.small_model(), rows, batch_size=BATCH),
            },
        ),
        "DPOTrainer": (
            int(pairs.lengths.sum()) + pairs.answers.numel(),
            {
                "ours": lambda _: stages.align(pairs, batch_size=BATCH),
                "trl": lambda _: peers.train_with_trl_dpo(
                    stages.small_model(), stages.small_model(), pairs, batch_size=BATCH
                ),
            },
        ),
    }
    for name, (tokens, variants) in races.items():
        seconds = race(variants, lambda turn: turn, repeats=1, check=lambda *_: None)
        yield Figure(f"{name}: tokens/s", tokens / seconds["trl"], note="of rows without padding, from data to weights")
        yield Figure(
            f"{name}: ours / theirs", seconds["trl"] / seconds["ours"], ">=", 1, "end to end, reference included"
        )


@cache
def _model(quick: bool) -> "PreTrainedModel":
    from benchmarks.beam_peers import language_model

    model = language_model(hidden=256, layers=4) if quick else language_model(hidden=512, layers=8)
    model.train()
    return model


def _no_gradients() -> Any:  # noqa: ANN401  # a context
    import torch

    return torch.no_grad()


def _same_steps(given: object, steps: Mapping[str, "Step"]) -> None:
    """Losses and gradient norms are equal to 1e-5."""
    first = steps["ours"]
    for name, step in steps.items():
        for ours, theirs in zip(first, step, strict=True):
            assert abs(ours - theirs) <= 1e-5 * abs(theirs), f"{name}: {step}, ours: {first}"


if __name__ == "__main__":
    sys.exit(main([prompt_ids, grouping, sft_step, dpo_step, shared_history, trl]))
