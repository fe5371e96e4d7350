"""The whole stage on a toy world, its resume, and the modules' steps and guards."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import HunYuanDenseV1Config, HunYuanDenseV1ForCausalLM, PreTrainedTokenizerFast

from leadre import tables
from leadre.alignment import align as verb
from leadre.alignment.align import align
from leadre.alignment.config import AlignmentConfig, NoAlignment
from leadre.alignment.module import Dpo, Rrhf
from leadre.alignment.preferences import PREFERENCES
from leadre.alignment.reference import reference_logprobs, stored_logprobs
from leadre.alignment.rows import Rows
from leadre.lm.logprob import response_logprobs
from leadre.lm.model import AdLM, load, save
from leadre.training.batches import Batches, shuffled_plan
from leadre.training.fit import fit
from leadre.training.logs import read_metrics

OFFSETS = (20, 24, 28)
ADS = [(a, b, 0) for a in range(4) for b in range(4)]
STEP = {
    "learning_rate": 3e-3,
    "min_learning_rate": 3e-4,
    "warmup_share": 0.1,
    "weight_decay": 0.0,
}
DPO = {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 0.1, "max_chosen_drop": 2.0}
CONFIG = {
    "preferences": {
        "min_pctr_quantile": 0.5,
        "min_log_ecpm_gap": 0.2,
        "reject_train_targets": False,
        "max_ads_per_user": 10,
        "max_pairs_per_user": 4,
        "max_pairs_per_ad": 50,
        "max_pairs": 100,
        "seed": 0,
    },
    "tuning": {**STEP, "epochs": 3, "batch_size": 16, "gradient_clip": 1.0, "precision": "32-true", "seed": 0},
}


@pytest.fixture(scope="module")
def compute(compute):
    """Checkpoints are only written where they are read."""
    return replace(compute, checkpoint_every_steps=1000)


def config(kind="dpo", **changes):
    own = DPO if kind == "dpo" else {"sft_weight": 1.0}
    return read({"kind": kind, **own, **CONFIG, **changes})


def read(values):
    """As the run's configuration is read: through JSON, strictly."""
    return TypeAdapter(AlignmentConfig).validate_json(json.dumps(values), strict=True)


def lm(dropout=0.0):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = HunYuanDenseV1ForCausalLM(
        HunYuanDenseV1Config(
            vocab_size=32, head_dim=8, tie_word_embeddings=True, attention_dropout=dropout, pad_token_id=0, **shape
        )
    )
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return AdLM(model, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), OFFSETS, ())


def toy_rows(num_rows=64):
    """The chosen ad starts with code 1 or 3, the rejected one with 0 or 2; prompts are noise."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, num_rows)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    first = rng.integers(0, 2, (num_rows, 2)) * 2 + np.array([1, 0])
    codes = np.stack([first, rng.integers(0, 4, (num_rows, 2)), np.zeros_like(first)], axis=2)
    return Rows(
        ids=rng.integers(1, 20, lengths.sum()).astype(np.int32),
        starts=starts,
        lengths=lengths,
        answers=codes + np.array(OFFSETS),
        ecpms=np.tile(np.array([2.0, 1.0], dtype=np.float32), (num_rows, 1)),
        reference=np.full((num_rows, 2), np.nan, dtype=np.float32),
    )


def with_reference(model, rows):
    found = reference_logprobs(model, rows, batch_size=7, device=torch.device("cpu"), autocast=False)
    return rows._replace(reference=found)


def trained(module, rows, out, compute, logger, epochs=6):
    out.mkdir(exist_ok=True)
    train = Batches(shuffled_plan(len(rows.lengths), batch_size=16, epochs=epochs, seed=0), rows.batch)
    fit(module, train, out=out, compute=compute, logger=logger, name="toy")
    return read_metrics(out / "metrics.jsonl")


# the modules


def test_the_reference_is_the_models_own_log_prob_row_by_row():
    rows, model = toy_rows(20), lm().model
    found = with_reference(model, rows).reference
    for row in (0, 7, 19):
        prompt = rows.ids[rows.starts[row] : rows.starts[row] + rows.lengths[row]]
        for answer in (0, 1):
            ids = torch.from_numpy(np.concatenate([prompt, rows.answers[row, answer]]))[None]
            positions = torch.arange(len(prompt), len(prompt) + 3)[None]
            alone = response_logprobs(model, ids, positions).sum().item()
            assert found[row, answer] == pytest.approx(alone, abs=1e-5)


def test_a_stored_reference_is_read_and_not_computed_again(tmp_path):
    rows, lm_ = toy_rows(8), lm()
    ask = {"batch_size": 4, "device": torch.device("cpu"), "autocast": False}
    first = stored_logprobs(tmp_path / "r.safetensors", lm_.model, rows, **ask)
    torch.nn.init.zeros_(lm_.model.get_input_embeddings().weight)  # a policy that has moved on
    assert np.array_equal(stored_logprobs(tmp_path / "r.safetensors", lm_.model, rows, **ask), first)
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]


def test_dpo_raises_the_margin_and_the_chosen_ads_likelihood(tmp_path, compute, logger):
    model = lm().model
    rows = with_reference(model, toy_rows())
    metrics = trained(Dpo(model, **DPO, **STEP), rows, tmp_path, compute, logger)
    after = with_reference(model, rows).reference
    gain = after - rows.reference
    assert gain[:, 0].mean() > 0.5
    assert (gain[:, 0] - gain[:, 1]).mean() > 0.5
    assert (gain[:, 0] > gain[:, 1]).mean() > 0.9
    assert set(metrics[-1]) >= {
        "train/loss",
        "train/chosen_logp",
        "train/rejected_logp",
        "train/reward_margin",
        "train/reward_accuracy",
    }
    assert metrics[-1]["train/reward_margin"] > metrics[0]["train/reward_margin"]
    assert metrics[-1]["train/reward_accuracy"] > 0.8


def test_the_first_loss_is_log_2_plus_the_likelihood_term(tmp_path, compute, logger):
    model = lm().model
    rows = with_reference(model, toy_rows())
    first = trained(Dpo(model, **DPO, **STEP), rows, tmp_path, compute, logger, epochs=1)[0]
    assert first["train/loss"] == pytest.approx(np.log(2) - 0.1 * first["train/chosen_logp"], abs=1e-5)
    assert first["train/reward_margin"] == pytest.approx(0, abs=1e-5)


def test_rrhf_orders_the_answers_without_a_reference(tmp_path, compute, logger):
    model = lm().model
    rows = toy_rows()
    before = with_reference(model, rows).reference
    trained(Rrhf(model, sft_weight=1.0, **STEP), rows, tmp_path, compute, logger)
    after = with_reference(model, rows).reference
    assert (after[:, 0] > after[:, 1]).mean() > 0.9 > (before[:, 0] > before[:, 1]).mean()


def test_training_stops_when_the_chosen_ads_become_unlikely(tmp_path, compute, logger):
    model = lm().model
    rows = with_reference(model, toy_rows())
    rows = rows._replace(reference=rows.reference + 3)  # as if the policy had lost three nats
    with pytest.raises(ValueError, match=r"max_chosen_drop is 2.0, but at step 0 .* 3 nats below .* raise sft_weight"):
        trained(Dpo(model, **DPO, **STEP), rows, tmp_path, compute, logger)


def test_training_stops_at_what_is_not_a_number(tmp_path, compute, logger):
    with pytest.raises(ValueError, match="nan nats below"):
        trained(Dpo(lm().model, **DPO, **STEP), toy_rows(), tmp_path, compute, logger)  # no reference


def test_dropout_is_off_in_training(tmp_path, compute, logger):
    weights = []
    for dropout in (0.0, 0.5):
        model = lm(dropout).model.train()
        rows = with_reference(model, toy_rows(16))
        trained(Dpo(model.train(), **DPO, **STEP), rows, tmp_path / str(dropout), compute, logger, epochs=1)
        weights.append(model.get_input_embeddings().weight.detach())
    assert torch.equal(*weights)


# the stage


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folders model, world, catalog, pairs, tokens: 20 users with 3 clicks (train, valid, test) and 5 impressions."""
    root = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(1)
    names = [f"ad{i:02}" for i in range(16)]
    split, impressions, samples = [], [], []
    for n in range(20):
        picks = [names[i] for i in rng.permutation(16)]
        user = f"u{n:02}"
        split += [(user, role, picks[i], 10 * (i + 1)) for i, role in enumerate(("train", "valid", "test"))]
        impressions += [(user, ad, 10 * (i + 1), float(rng.lognormal()), 0.1, True) for i, ad in enumerate(picks[:3])]
        impressions += [(user, ad, 12, float(rng.lognormal()), 0.2, False) for ad in picks[3:7]]
        samples.append([*rng.integers(1, 20, rng.integers(2, 9)), 20, 24, 28])
    folders = {name: root / name for name in ("model", "world", "catalog", "pairs", "tokens")}
    for folder in folders.values():
        folder.mkdir()
    save(lm(), folders["model"])
    frame = {"schema": tables.SPLIT.schema, "orient": "row"}
    tables.write(tables.SPLIT, pl.DataFrame(split, **frame), folders["world"] / "split.parquet")
    frame = {"schema": tables.IMPRESSIONS.schema, "orient": "row"}
    tables.write(tables.IMPRESSIONS, pl.DataFrame(impressions, **frame), folders["world"] / "impressions.parquet")
    sids = [(name, list(sid), "") for name, sid in zip(names, ADS, strict=True)]
    frame = {"schema": tables.SIDS.schema, "orient": "row"}
    tables.write(tables.SIDS, pl.DataFrame(sids, **frame), folders["catalog"] / "sids.parquet")
    pairs = [(f"u{n:02}", "ad00", [], [], [], [], []) for n in range(20)]
    frame = {"schema": tables.PAIRS.schema, "orient": "row"}
    tables.write(tables.PAIRS, pl.DataFrame(pairs, **frame), folders["pairs"] / "main.train.parquet")
    kinds = [[0] * (len(sample) - 3) + [2] * 3 for sample in samples]
    save_file(
        {
            "ids": np.concatenate(samples).astype(np.int32),
            "kinds": np.concatenate(kinds).astype(np.uint8),
            "offsets": np.cumsum([0, *map(len, samples)]).astype(np.int64),
        },
        folders["tokens"] / "main.train.safetensors",
    )
    return folders


def aligned(inputs, out, compute, logger, kind="dpo", **changes):
    out.mkdir(exist_ok=True)
    align(config(kind, **changes), **inputs, out=out, compute=compute, logger=logger)
    return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def whole(inputs, compute, logger, tmp_path_factory):
    """The folder of an unbroken alignment of a kind, and its weights."""

    @cache
    def whole(kind):
        out = tmp_path_factory.mktemp(kind)
        return out, aligned(inputs, out, compute, logger, kind)

    return whole


@pytest.mark.parametrize("kind", ["dpo", "rrhf"])
def test_the_stage_writes_a_model_that_prefers_the_chosen_ads(whole, kind):
    out, _ = whole(kind)
    assert load(out).sid_offsets == OFFSETS
    pairs = tables.read(PREFERENCES, out / "preferences.parquet")
    account = json.loads((out / "preferences.json").read_text())
    assert account["pairs"] == len(pairs) > 20
    assert account["dropped"]["not_in_train_time"] == 40
    assert account["dropped"]["held_out_target"] == 0
    metrics = read_metrics(out / "metrics.jsonl")
    assert metrics[-1]["train/reward_margin"] > metrics[0]["train/reward_margin"]
    assert (out / "reference.safetensors").exists() == (kind == "dpo")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_reference_is_taken_in_the_precision_of_training(tmp_path, inputs, compute, logger, precision):
    (out := tmp_path / "out").mkdir()
    tuning = CONFIG["tuning"] | {"precision": precision}
    align(config(tuning=tuning), **inputs, out=out, compute=compute, logger=logger)
    first = read_metrics(out / "metrics.jsonl")[0]
    assert first["train/reward_margin"] == pytest.approx(0, abs=1e-3)
    assert load(out).model.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)


def test_no_pair_of_the_stage_holds_a_held_out_target(inputs, whole):
    pairs = tables.read(PREFERENCES, whole("dpo")[0] / "preferences.parquet")
    split = tables.read(tables.SPLIT, inputs["world"] / "split.parquet")
    held_out = split.filter(pl.col("role") != "train")
    for column in ("chosen_ad", "rejected_ad"):
        assert pairs.join(held_out, left_on=["user_id", column], right_on=["user_id", "ad_id"]).is_empty()
    assert pairs.join(split, left_on=["user_id", "rejected_ad"], right_on=["user_id", "ad_id"]).is_empty()


@pytest.mark.parametrize("kind", ["dpo", "rrhf"])
def test_a_killed_alignment_goes_on_to_the_same_weights(tmp_path, inputs, whole, compute, logger, monkeypatch, kind):
    out, weights = whole(kind)
    module = {"dpo": Dpo, "rrhf": Rrhf}[kind]
    step = module.training_step

    def dies(self, batch):
        if self.global_step == 5:
            raise RuntimeError("killed")
        return step(self, batch)

    monkeypatch.setattr(module, "training_step", dies)
    often = replace(compute, checkpoint_every_steps=3)
    with pytest.raises(RuntimeError, match="killed"):
        aligned(inputs, tmp_path / "killed", often, logger, kind)
    monkeypatch.undo()
    resumed = aligned(inputs, tmp_path / "killed", often, logger, kind)
    assert weights.keys() == resumed.keys()
    assert all(weights[name].tobytes() == resumed[name].tobytes() for name in weights)
    assert (out / "metrics.csv").read_text() == (tmp_path / "killed/metrics.csv").read_text()


def test_seed_0_is_a_seed(tmp_path, inputs, whole, compute, logger):
    runs = [
        aligned(inputs, tmp_path / str(seed), compute, logger, tuning=CONFIG["tuning"] | {"seed": seed})
        for seed in (0, 1)
    ]
    first, again, other = (run["model.embed_tokens.weight"].tobytes() for run in (whole("dpo")[1], *runs))
    assert first == again != other


def test_a_world_without_pairs_says_so_before_any_model_is_loaded(tmp_path, inputs, compute, logger, monkeypatch):
    monkeypatch.setattr(verb, "load", lambda folder: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"left no pair of 140 impressions \(.*ecpms_too_close: .*alignment=none"):
        aligned(
            inputs, tmp_path / "out", compute, logger, preferences=CONFIG["preferences"] | {"min_log_ecpm_gap": 99.0}
        )


# the settings


def test_the_kind_tells_which_settings_apply():
    assert read({"kind": "none"}) == NoAlignment(kind="none")
    assert config("rrhf").sft_weight == 1.0
    with pytest.raises(ValidationError, match="beta"):
        config("rrhf", beta=0.1)
    with pytest.raises(ValidationError, match="label_smoothing"):
        config("dpo", label_smoothing=0.5)


@pytest.mark.parametrize("name", ["none", "dpo", "rrhf"])
def test_every_yaml_of_the_group_is_valid(name):
    omegaconf = pytest.importorskip("omegaconf")
    group = omegaconf.OmegaConf.load(Path(__file__).parents[2] / "conf/alignment" / f"{name}.yaml")
    whole = omegaconf.OmegaConf.create({"seed": 0, "alignment": group})
    assert read(omegaconf.OmegaConf.to_container(whole.alignment, resolve=True)).kind == name
