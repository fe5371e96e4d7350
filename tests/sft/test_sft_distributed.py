"""A stage of tuning on two ranks is that of one, however the weights are spread, and however a step is cut up."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from leadre.artifacts import Result, Store
from leadre.catalog import trie
from leadre.lm.model import AdLM, load, save
from leadre.sft.config import Lora, Stage, Tuning
from leadre.sft.module import Tuner
from leadre.sft.tune import tune
from leadre.training.config import ComputeConfig, FileLogs
from leadre.training.logs import read_metrics
from leadre.training.strategy import strategy_of
from tests.small_model import small_model

SIDS = torch.tensor([[0, 0], [0, 1], [1, 0], [2, 1]])
TEXT, LEVELS = 6, [3, 2]  # tokens 0..5 are text; 6, 7, 8 are <a_0> <a_1> <a_2>; 9, 10 are <b_0> <b_1>
STAGE = Stage(
    tasks={"main": 2.0},
    tuning=Tuning(
        loss_on="response",
        support="vocab",
        learning_rate=0.01,
        min_learning_rate=0.002,
        warmup_share=0.1,
        weight_decay=0.01,
        batch_size=5,  # of 21 rows: in each epoch there is a batch of one, in which a rank has none
        micro_batch_size=None,
        share_history=False,
        activation_checkpointing=False,
        gradient_clip=0.5,
        precision="32-true",
        lora=None,
        dropout=0.0,
        freeze_soft_tokens=False,
        validations=3,
        valid_users=8,
        valid_beam_width=4,
        seed=0,
    ),
)
COMPUTE = ComputeConfig(
    accelerator="cpu",
    devices=1,
    num_nodes=1,
    strategy="auto",
    compile=False,
    threads=1,
    checkpoint_every_steps=3,
    progress=False,
)
LORA = Lora(rank=2, alpha=4.0, targets=("q_proj", "v_proj"))
RUNS = {
    "ddp": ("ddp", {}),
    "fsdp": ("fsdp", {}),
    "ddp_parts": ("ddp", {"micro_batch_size": 1}),
    "fsdp_parts": ("fsdp", {"micro_batch_size": 1}),
    "fsdp_again": ("fsdp", {"activation_checkpointing": True}),
    "ddp_lora": ("ddp", {"lora": LORA}),
    "fsdp_lora": ("fsdp", {"lora": LORA}),
}
"""Strategy and changes of what two ranks are asked to do."""


def _inputs(root: Path) -> None:
    """A model, a catalog and tokens: prompts of one telling text token among others."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    save(AdLM(small_model(TEXT + sum(LEVELS)), tokenizer, (6, 9), (5,)), root / "model")
    (root / "catalog").mkdir()
    (root / "tokens").mkdir()
    trie.save(trie.build(SIDS), root / "catalog" / "trie.safetensors")
    (root / "catalog" / "tokens.json").write_text(json.dumps({"levels": LEVELS, "tokens": []}))
    for name, num_rows, seed in (("train", 21, 1), ("valid", 9, 2)):
        rng = np.random.default_rng(seed)
        rows = []
        targets = rng.integers(len(SIDS), size=num_rows)
        for target in targets:
            first, second = SIDS[target].tolist()
            rows.append([*[5] * int(rng.integers(1, 5)), target, TEXT + first, TEXT + LEVELS[0] + second])
        arrays = {
            "ids": np.int32(np.concatenate(rows)),
            "kinds": np.uint8(np.concatenate([[0] * (len(row) - 2) + [2, 2] for row in rows])),
            "offsets": np.cumsum([0, *map(len, rows)]),
            "targets": np.int32(targets),
        }
        save_file(arrays, root / "tokens" / f"main.{name}.safetensors")


def _tuned(root: Path, name: str, compute: ComputeConfig, **changes: object) -> Path:
    """Tune in a store of its own: the key knows nothing of the ranks."""
    inputs = [Result(stage, "given", root / stage, 0.0, reused=True) for stage in ("model", "catalog", "tokens")]
    stage = replace(STAGE, tuning=replace(STAGE.tuning, **changes))
    store, logger = Store(root / name), FileLogs(kind="csv")
    return store.make("sft", tune, stage, *inputs, together=True, compute=compute, logger=logger).path


def _result(root: Path, name: str) -> Path:
    return next(path.parent for path in (root / name / "sft").glob("*/manifest.json"))


def _on_two_ranks(root: Path, *arguments: str) -> tuple[list[int], str]:
    """Run this file on two ranks, as torchrun does: it ends the other when one fails. Their statuses and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    log = root / "errors.log"
    ranks = []
    for rank in ("0", "1"):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
        environment = os.environ | address | place | {"PYTHONPATH": os.pathsep.join(sys.path)}
        with log.open("a") as errors:
            command = [sys.executable, __file__, str(root), *arguments]
            ranks.append(subprocess.Popen(command, env=environment, stderr=errors))
    while None in (statuses := [rank.poll() for rank in ranks]):
        if any(statuses):
            for rank in ranks:
                rank.kill()
        time.sleep(0.1)
    return statuses, log.read_text()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    _inputs(folder)
    return folder


@pytest.fixture(scope="module")
def runs(root) -> Path:
    """Everything that two ranks tune, in one start of them, and what one process makes of the same."""
    statuses, errors = _on_two_ranks(root, *RUNS)
    assert statuses == [0, 0], errors
    _tuned(root, "one", COMPUTE)
    _tuned(root, "one_parts", COMPUTE, micro_batch_size=2)
    _tuned(root, "one_lora", COMPUTE, lora=LORA)
    return root


def _assert_equal(root: Path, one: str, two: str) -> None:
    ones, twos = (read_metrics(_result(root, name) / "metrics.jsonl") for name in (one, two))
    assert len(ones) == len(twos)
    for expected, found in zip(ones, twos, strict=True):
        assert found == pytest.approx(expected, rel=1e-6 if "train/gradient_norm" not in expected else 1e-5)
    assert {"train/loss", "train/gradient_norm", "valid/hr@1", "valid/ndcg@4"} <= {name for row in ones for name in row}
    expected, found = (load(_result(root, name)).model.state_dict() for name in (one, two))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-5)
    budgets = [(_result(root, name) / "budget.json").read_text() for name in (one, two)]
    assert budgets[0] == budgets[1]


@pytest.mark.slow
@pytest.mark.parametrize("two", ["ddp", "fsdp", "one_parts", "ddp_parts", "fsdp_parts", "fsdp_again"])
def test_ranks_and_micro_batches_and_activations_computed_again_leave_the_numbers_alone(runs, two):
    _assert_equal(runs, "one", two)


@pytest.mark.slow
@pytest.mark.parametrize("two", ["ddp_lora", "fsdp_lora"])
def test_adapters_are_tuned_alike_on_ranks(runs, two):
    _assert_equal(runs, "one_lora", two)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_that_were_killed_go_on_to_the_same_bytes(runs, strategy):
    statuses, _ = _on_two_ranks(runs, f"{strategy}_killed", "7")
    assert statuses == [-signal.SIGKILL, -signal.SIGKILL]
    left = list((runs / f"{strategy}_killed" / "sft").glob("*.partial/checkpoints/*.ckpt"))
    assert [path.name[:8] for path in left] == ["00000006"]
    statuses, errors = _on_two_ranks(runs, f"{strategy}_killed")
    assert statuses == [0, 0], errors
    for name in ("model.safetensors", "metrics.csv"):
        unbroken, resumed = ((_result(runs, run) / name).read_bytes() for run in (strategy, f"{strategy}_killed"))
        assert unbroken == resumed, name


def test_activations_computed_again_give_the_same_weights(root):
    compute = replace(COMPUTE, checkpoint_every_steps=100)
    plain, again = (
        load(_tuned(root, f"again_{value}", compute, activation_checkpointing=value, validations=0)).model.state_dict()
        for value in (False, True)
    )
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_a_tuner_shares_its_weights_out_where_fsdp_is_asked_for():
    assert isinstance(
        strategy_of(replace(COMPUTE, devices=2, strategy="fsdp"), Tuner.__new__(Tuner)), ModelParallelStrategy
    )


def _on_rank(root: Path, names: list[str]) -> None:
    if names[-1].isdigit():  # where to die
        step, plain = int(names.pop()), Tuner.training_step

        def dies(self, batch):
            if self.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(self, batch)

        Tuner.training_step = dies
    for name in names:
        strategy, changes = RUNS[name.removesuffix("_killed")]
        _tuned(root, name, replace(COMPUTE, devices=2, strategy=strategy), **changes)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _on_rank(Path(sys.argv[1]), sys.argv[2:])
