import json
from dataclasses import replace

import polars as pl
import pytest
import torch

from leadre import tables
from leadre.lm.config import PretrainedLM, TinyLM
from leadre.lm.extend import extend, rows_from_codebooks, start_rows
from leadre.lm.model import load
from leadre.quantizer.load import save as save_quantizer
from leadre.quantizer.residual_kmeans import ResidualKMeans

TINY = TinyLM(
    kind="tiny",
    hidden_size=16,
    layers=1,
    heads=2,
    kv_heads=1,
    intermediate_size=32,
    text_tokens=300,
    initializer_range=0.02,
    sid_start="normal",
    seed=0,
)


@pytest.fixture
def folders(tmp_path):
    catalog, pairs = tmp_path / "catalog", tmp_path / "pairs"
    catalog.mkdir()
    pairs.mkdir()
    (catalog / "tokens.json").write_text(json.dumps({"levels": [4, 3, 2], "tokens": []}))
    (pairs / "prompts.json").write_text(json.dumps({"soft_tokens": 2}))
    text = [{"kind": "text", "value": "what ad will the user be interested in next time?"}]
    row = {"user_id": "u", "ad_id": "x", "head": text, "lead": text, "behaviors": [text], "tail": text, "following": []}
    frame = pl.DataFrame([row], schema=tables.PAIRS.schema)
    tables.write(tables.PAIRS, frame, pairs / "main.train.parquet")
    return catalog, pairs


def _extend(config, folders, out):
    out.mkdir()
    extend(config, *folders, out=out)
    return load(out)


def test_the_new_tokens_are_ids_behind_the_text_vocabulary(tmp_path, folders):
    lm = _extend(TINY, folders, tmp_path / "base")
    first = len(lm.tokenizer)
    assert lm.soft_ids == (first, first + 1)
    assert lm.sid_offsets == (first + 2, first + 6, first + 9)
    assert lm.model.get_input_embeddings().num_embeddings == first + 11


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path, folders):
    one, same = (_extend(TINY, folders, tmp_path / name).model.state_dict() for name in ("one", "same"))
    other = _extend(replace(TINY, seed=1), folders, tmp_path / "other").model.state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_new_rows_have_the_mean_of_the_old_ones_and_no_two_are_equal(tmp_path, folders, spread):
    model = _extend(TINY, folders, tmp_path / "base").model
    model.resize_token_embeddings(1300, mean_resizing=False)
    start_rows(model, 300, spread=spread, seed=0)
    weight = model.get_input_embeddings().weight.detach()
    old, new = weight[:300], weight[300:]
    assert torch.allclose(new.std(0), spread * old.std(0), rtol=0.15)
    assert torch.allclose(new.mean(0), old.mean(0), atol=0.2 * spread * float(old.std()))
    assert len(new.unique(dim=0)) == 1000


def test_codes_that_are_near_in_their_codebook_start_as_near_tokens(tmp_path, folders):
    model = _extend(replace(TINY, hidden_size=256), folders, tmp_path / "base").model
    model.resize_token_embeddings(300 + 64 + 4, mean_resizing=False)
    start_rows(model, 300, spread=1.0, seed=0)
    before = model.get_input_embeddings().weight.detach().clone()
    codebook = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    rows_from_codebooks(model, 300, [codebook], [300, 364], seed=0)
    weight = model.get_input_embeddings().weight.detach()
    rows = (weight[300:364] - weight[:300].mean(0)) / weight[:300].std(0)
    far, near = torch.pdist(codebook), torch.pdist(rows)
    assert torch.corrcoef(torch.stack([far, near]))[0, 1] > 0.95
    assert rows.std() == pytest.approx(1.0, rel=0.1)
    assert torch.equal(weight[:300], before[:300])  # the model's own words,
    assert torch.equal(weight[364:], before[364:])  # and the extra codes
    assert torch.equal(weight, model.get_output_embeddings().weight)


def test_the_codebooks_of_the_quantizer_are_read_where_rows_start_from_them(tmp_path, folders):
    codes = tmp_path / "codes"
    codes.mkdir()
    books = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    save_quantizer(codes, {"kind": "residual_kmeans", "codebook_sizes": [4, 4], "input_dim": 6}, ResidualKMeans(books))
    (folders[0] / "tokens.json").write_text(json.dumps({"levels": [4, 4, 2], "tokens": []}))
    config = replace(TINY, sid_start="codebook")
    lm = _extend(config, (*folders, codes), tmp_path / "base")
    plain = _extend(TINY, folders, tmp_path / "plain").model.get_input_embeddings().weight
    rows = lm.model.get_input_embeddings().weight
    first, last = lm.sid_offsets[0], lm.sid_offsets[2]
    assert torch.equal(rows[:first], plain[:first])
    assert not torch.isclose(rows[first:last], plain[first:last]).all(1).any()
    assert torch.equal(rows[last:], plain[last:])


def test_codes_without_codebooks_cannot_start_rows(tmp_path, folders):
    codes = tmp_path / "codes"
    codes.mkdir()
    with pytest.raises(
        ValueError, match=r"sid_start is 'codebook', but .* without codebooks: use lm\.sid_start=normal"
    ):
        _extend(replace(TINY, sid_start="codebook"), (*folders, codes), tmp_path / "base")


def test_a_pretrained_model_in_a_local_folder_keeps_its_own_rows(tmp_path, folders):
    own = _extend(TINY, folders, tmp_path / "own")
    config = PretrainedLM(
        kind="pretrained", model=str(tmp_path / "own"), revision=None, dtype="float32", sid_start="mean", seed=0
    )
    lm = _extend(config, folders, tmp_path / "base")
    size = own.model.get_input_embeddings().num_embeddings
    assert lm.soft_ids == (size, size + 1)
    weights = lm.model.get_input_embeddings().weight[:size]
    assert torch.equal(weights, own.model.get_input_embeddings().weight)


def test_weights_that_are_not_there_are_told_with_what_works_offline(tmp_path, folders):
    config = PretrainedLM(
        kind="pretrained", model="nobody/nothing", revision=None, dtype="float32", sid_start="mean", seed=0
    )
    with pytest.raises(ValueError, match=r"lm\.model is 'nobody/nothing'.*local folder, or use lm=tiny"):
        _extend(config, folders, tmp_path / "base")


def test_heads_that_do_not_divide_are_told_by_key():
    with pytest.raises(ValueError, match=r"lm\.hidden_size \(16\) must be divisible by lm\.heads \(3\)"):
        replace(TINY, heads=3)
