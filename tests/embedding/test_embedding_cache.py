"""The cache of vectors: what is there is not embedded again, and what is broken is told by name."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from leadre.embedding import cache as module
from leadre.embedding import embed as stage
from leadre.embedding import transformer
from leadre.embedding.cache import read_cache, write_cache
from leadre.embedding.embed import embed
from leadre.embedding.keyed import Keyed, rows_of

FIRST = ["red tea", "blue car", "red tea", "a road"]


def _keyed(*keys, start=0.0):
    return Keyed(list(keys), np.arange(start, start + 2 * len(keys), dtype=np.float32).reshape(-1, 2))


def _found(folder, *keys):
    return {key: row.tolist() for part in read_cache(folder, keys) for key, row in zip(*part, strict=True)}


def test_what_was_written_is_read_and_what_was_not_is_not(tmp_path):
    write_cache(tmp_path, _keyed("a", "b"))
    write_cache(tmp_path, _keyed("c", start=10))
    assert _found(tmp_path, "c", "b", "z") == {"b": [2, 3], "c": [10, 11]}
    assert _found(tmp_path / "nowhere", "a") == {}
    assert not list(tmp_path.glob("*.part"))


def test_of_two_vectors_of_a_text_the_older_one_counts(tmp_path):
    write_cache(tmp_path, _keyed("a"))
    write_cache(tmp_path, _keyed("a", "b", start=10))
    assert _found(tmp_path, "a", "b") == {"a": [0, 1], "b": [12, 13]}


def test_only_shards_that_hold_a_text_are_opened(tmp_path, monkeypatch):
    for number in range(3):
        write_cache(tmp_path, _keyed(f"text{number}"))
    opened = []
    monkeypatch.setattr(module, "_vectors", lambda shard: opened.append(shard) or np.zeros((1, 2), np.float32))
    read_cache(tmp_path, ["text1"])
    assert opened == [sorted(tmp_path.glob("*.parquet"))[1]]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from leadre.embedding.cache import write_cache
from leadre.embedding.keyed import Keyed
for number in range(20):
    write_cache(Path(sys.argv[1]), Keyed([f"{sys.argv[2]}{number}", "shared"], np.ones((2, 2), np.float32)))
"""


def test_two_processes_write_at_once_and_nothing_is_lost(tmp_path):
    place = {"cwd": Path(__file__).parents[2]}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], **place) for name in "ab"]
    while any(writer.poll() is None for writer in writers):
        _found(tmp_path, "shared")  # a reader takes what is whole
        time.sleep(0.01)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert len(_found(tmp_path, "shared", *(f"{name}{number}" for name in "ab" for number in range(20)))) == 41


def test_a_kill_between_the_two_files_leaves_what_counts_for_nothing(tmp_path, monkeypatch):
    write_cache(tmp_path, _keyed("a"))
    write_whole = module._write_whole

    def killed(path, content):
        if path.suffix == ".parquet":
            raise KeyboardInterrupt
        write_whole(path, content)

    with monkeypatch.context() as dying:
        dying.setattr(module, "_write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            write_cache(tmp_path, _keyed("b"))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert _found(tmp_path, "a", "b") == {"a": [0, 1]}
    write_cache(tmp_path, _keyed("b"))
    assert _found(tmp_path, "a", "b") == {"a": [0, 1], "b": [0, 1]}


@pytest.mark.parametrize(
    ("suffix", "change", "told"),
    [
        ("safetensors", lambda path: path.unlink(), "safetensors is missing"),
        ("safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1]), "safetensors differs from its sha256"),
        ("safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), "differs from its sha256"),
        ("parquet", lambda path: path.write_bytes(path.read_bytes()[:20]), "."),
    ],
)
def test_a_broken_shard_is_refused_by_name_with_the_remedy(tmp_path, suffix, change, told):
    write_cache(tmp_path, _keyed("a"))
    (shard,) = tmp_path.glob("*.parquet")
    change(shard.with_suffix(f".{suffix}"))
    remedy = rf"delete {shard.name} and {shard.stem}.safetensors, and their texts are embedded anew"
    with pytest.raises(ValueError, match=rf"the shard {shard} .* is broken \(.*{told}.*\): {remedy}"):
        read_cache(tmp_path, ["a"])


@pytest.fixture
def run(tmp_path, make_world, compute, monkeypatch):
    """Embed ads with a cache; returns the texts that the encoder was given, and the vectors."""

    def counted(*arguments, **options):
        encode = transformer_encoder(*arguments, **options)
        return lambda texts: given.append(list(texts)) or encode(texts)

    given, transformer_encoder = [], transformer.transformer_encoder
    monkeypatch.setattr(transformer, "transformer_encoder", counted)

    def run(config, ads, name):
        given.clear()
        (tmp_path / name).mkdir()
        world = make_world(ads, name=f"{name}_world")
        embed(config, world, out=tmp_path / name, compute=compute, cache=tmp_path / "cache")
        return list(given), load_file(tmp_path / name / "vectors.safetensors")["x"]

    return run


def test_the_second_day_embeds_the_new_texts_alone(run, bert_config):
    given, first = run(bert_config, FIRST, "first")
    assert [sorted(texts) for texts in given] == [sorted(set(FIRST))]
    given, second = run(bert_config, ["blue road", "a road", "red tea"], "second")
    assert given == [["blue road"]]
    assert second[1:].tobytes() == first[[3, 0]].tobytes()
    given, third = run(bert_config, FIRST, "third")
    assert given == []
    assert third.tobytes() == first.tobytes()


def test_whatever_changes_the_numbers_has_a_folder_of_its_own(run, bert_config, tmp_path):
    changes = [{}, {"pooling": "cls"}, {"instruction": "query "}, {"normalize": False}, {"max_tokens": 8}]
    for number, change in enumerate([*changes, {"precision": "bf16"}]):
        given, _ = run(replace(bert_config, **change), ["red car"], f"run{number}")
        assert given == [["red car"]]
    assert len(list((tmp_path / "cache").iterdir())) == 6
    given, _ = run(replace(bert_config, batch_tokens=7), ["red car"], "batch")
    assert given == []


def test_a_new_version_of_the_encoders_begins_a_new_folder_and_one_of_the_stage_does_not(
    run, bert_config, tmp_path, monkeypatch
):
    run(bert_config, ["red car"], "first")
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    assert run(bert_config, ["red car"], "stage")[0] == []
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert run(bert_config, ["red car"], "encoders")[0] == [["red car"]]


def test_long_work_is_stored_as_it_goes(run, bert_config, monkeypatch, tmp_path):
    monkeypatch.setattr(stage, "_SHARD", 2)
    given, x = run(bert_config, ["a", "red car", "blue car for a road"], "first")
    assert given == [["blue car for a road", "red car"], ["a"]]  # longest first
    assert len(list((tmp_path / "cache").glob("*/*.parquet"))) == 2
    monkeypatch.undo()
    assert x.shape == (3, 16)


def test_vectors_that_are_not_finite_are_never_stored(run, bert_config, tmp_path, monkeypatch):
    monkeypatch.setattr(transformer, "pool", lambda states, mask, pooling: states[:, 0] * float("nan"))
    with pytest.raises(ValueError, match=r"vectors of 1 texts are not finite, the first is that of 'red car'"):
        run(bert_config, ["red car"], "broken")
    assert not list(tmp_path.glob("cache/*/*"))


def test_rows_are_put_together_by_key():
    parts = [_keyed("a", "b"), Keyed([], np.empty((0, 0), np.float32)), _keyed("c", start=10)]
    assert rows_of(parts, ["c", "a", "c", "b"]).tolist() == [[10, 11], [0, 1], [10, 11], [2, 3]]
    assert rows_of([], []).shape == (0, 0)
    with pytest.raises(KeyError):
        rows_of(parts, ["unknown"])
