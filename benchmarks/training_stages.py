"""Our stages from rows to weights, without validations: what runs beside TRL's trainers."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.beam_peers import SID_TOKENS, catalog, language_model
from benchmarks.training_peers import BETA, Pairs
from leadre.alignment import methods
from leadre.alignment.module import Aligner
from leadre.alignment.reference import reference_logprobs
from leadre.alignment.rows import PreferenceRows
from leadre.lm.logprob import TrieSupport
from leadre.lm.rows import Rows
from leadre.sft.batches import collate, num_learned
from leadre.sft.module import Tuner
from leadre.sft.trees import alone
from leadre.training.batches import Batches, bucketed_plan
from leadre.training.config import ComputeConfig, FileLogs
from leadre.training.fit import fit

ADS = 1000
OPTIMIZER: dict[str, Any] = {"learning_rate": 1e-4, "min_learning_rate": 0.0, "warmup_share": 0.0, "weight_decay": 0.0}
MACHINE = ComputeConfig(
    accelerator="cpu",
    devices=1,
    num_nodes=1,
    strategy="auto",
    compile=False,
    threads=1,
    checkpoint_every_steps=1000,
    progress=False,
)


def small_model() -> PreTrainedModel:
    """Width 256, 4 layers."""
    return language_model(hidden=256, layers=4)


def tune(rows: Rows, *, batch_size: int) -> None:
    """One epoch of SFT, the loss on the response."""
    groups = alone(rows.offsets)
    known = TrieSupport(catalog(ADS)[0], SID_TOKENS)
    module = Tuner(small_model(), catalog=known, support="vocab", beam_width=1, ks=(1,), **OPTIMIZER)
    learned = num_learned(rows, groups.begins, loss_on="response")
    batches = Batches(
        bucketed_plan(groups.lengths, batch_size=batch_size, epochs=1, seed=0),
        partial(collate, rows, groups.begins, learned, loss_on="response"),
    )
    _fit(module, batches)


def align(pairs: Pairs, *, batch_size: int) -> None:
    """The reference of all pairs, then one epoch of DPO."""
    model = small_model()
    lengths = pairs.lengths.numpy()
    rows = PreferenceRows(
        ids=np.concatenate([row[:n].numpy() for row, n in zip(pairs.prompts, lengths, strict=True)]).astype(np.int32),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        answers=pairs.answers.numpy(),
        reference=np.empty((len(lengths), 2), dtype=np.float32),
    )
    known = reference_logprobs(
        model, rows, support=None, batch_size=batch_size, device=torch.device("cpu"), autocast=False
    )
    module = Aligner(
        model,
        loss=partial(methods.dpo, beta=BETA, label_smoothing=0.0, sft_weight=0.0),
        catalog=TrieSupport(catalog(ADS)[0], SID_TOKENS),
        support="vocab",
        reward_scale=BETA,
        max_chosen_drop=1000.0,
        batch_size=batch_size,
        valid=(),
        measure=lambda lists: {},
        beam_width=1,
        **OPTIMIZER,
    )
    _fit(
        module,
        Batches(bucketed_plan(lengths, batch_size=batch_size, epochs=1, seed=0), rows._replace(reference=known).batch),
    )


def _fit(module: Tuner | Aligner, batches: Batches) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fit(
            module,
            batches,
            out=Path(folder),
            compute=MACHINE,
            logger=FileLogs(kind="csv"),
            name="benchmark",
            gradient_clip=1.0,
        )
