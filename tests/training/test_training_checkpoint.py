import errno
import hashlib
import os
import pickle
import resource
import shutil
from dataclasses import replace

import pytest
import torch

from leadre.training import checkpoint
from leadre.training.checkpoint import AtomicCheckpointIO, name_at, newest, read, remove_debris


def _save(folder, step, **content):
    AtomicCheckpointIO().save_checkpoint({"global_step": step} | content, folder / name_at(step))
    return newest(folder)


def test_a_checkpoint_is_named_by_its_step_and_its_sha256_and_takes_the_place_of_the_one_before(tmp_path):
    weights = torch.arange(5.0)
    for step in (7, 12):
        path = _save(tmp_path, step, weights=weights)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.name == f"00000012.{hashlib.sha256(path.read_bytes()).hexdigest()}.ckpt"
    content = read(path)
    assert content["global_step"] == 12
    assert torch.equal(content["weights"], weights)


def test_a_save_that_fails_leaves_the_last_checkpoint_and_no_debris(tmp_path):
    path = _save(tmp_path, 7)
    with pytest.raises(AttributeError):
        _save(tmp_path, 8, weights=lambda: 8)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert read(path)["global_step"] == 7


def test_a_name_without_a_place_for_the_digest_is_kept(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"global_step": 7}, tmp_path / "last.ckpt")
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt") == {"global_step": 7}


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_told_with_path_size_and_remedy_and_the_last_checkpoint_stays(
    tmp_path, monkeypatch, call, number
):
    before = _save(tmp_path, 7)

    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(checkpoint.os, call, full)
    told = rf"cannot write a checkpoint of 4,000 bytes at step 8 \({os.strerror(number)}; .* bytes are free\): the one "
    with pytest.raises(OSError, match=told + r"before is kept.*free some space.*run again.*" + tmp_path.name) as caught:
        _save(tmp_path, 8, weights=[{"a": torch.zeros(1000)}])
    assert caught.value.errno == number
    assert list(tmp_path.iterdir()) == [before]


def test_a_file_that_may_not_grow_is_told_like_a_full_disk(tmp_path):
    """A true failure of the system in the middle of `torch.save`, which would hide it behind an error of its own."""
    before = _save(tmp_path, 7)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write a checkpoint of 400,000 bytes at step 8 \(File too large"):
            _save(tmp_path, 8, weights=torch.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [before]


def test_a_full_disk_in_a_training_leaves_what_it_goes_on_from(tmp_path, train, compute, monkeypatch):
    compute = replace(compute, checkpoint_every_steps=5)
    whole = train(tmp_path / "whole", compute=compute)
    real = os.fsync
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) > 2:  # of the first checkpoint and its folder
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(OSError, match=r"at step 10 .No space left on device"):
            train(tmp_path / "full", compute=compute)
    (kept,) = (tmp_path / "full" / "checkpoints").iterdir()
    assert read(kept)["global_step"] == 5
    assert train(tmp_path / "full", compute=compute) == whole


class _Malicious:
    """A pickle that runs a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def _named(folder, step, data):
    path = folder / f"{step:08}.{hashlib.sha256(data).hexdigest()}.ckpt"
    path.write_bytes(data)
    return path


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flipped(path):
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((1000,), 3.0).numpy().tobytes()) + 1234] ^= 1  # one bit of a weight
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # PyTorch says nothing


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [_truncated, _flipped, _empty])
def test_a_changed_file_is_refused_with_both_hashes_and_the_remedy(tmp_path, spoil):
    path = _save(tmp_path, 7, weights=torch.full((1000,), 3.0))
    written = path.name.split(".")[1]
    spoil(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    told = rf"{path.name} is broken: its sha256 is {found}, but {written} was written; delete the folder {tmp_path}"
    with pytest.raises(ValueError, match=told):
        read(path)


def test_beside_an_older_checkpoint_the_remedy_is_to_go_on_from_it(tmp_path):
    """As a kill leaves them between the rename and the removal of the one before."""
    older = _save(tmp_path / "older", 7)
    path = _save(tmp_path, 12)
    shutil.copy(older, tmp_path)
    assert newest(tmp_path) == path
    _truncated(path)
    with pytest.raises(ValueError, match=rf"delete it to go on from {older.name}, or delete the folder"):
        read(path)
    path.unlink()
    assert read(newest(tmp_path))["global_step"] == 7


@pytest.mark.parametrize("how", ["pickle", "torch", "legacy torch"])
def test_no_code_of_a_pickle_runs_though_its_name_has_the_right_hash(tmp_path, train, how):
    evil, proof = tmp_path / "evil", tmp_path / "proof"
    folder = tmp_path / "out" / "checkpoints"
    folder.mkdir(parents=True)
    if how == "pickle":
        evil.write_bytes(pickle.dumps(_Malicious(proof)))
    else:
        torch.save({"global_step": 5, "x": _Malicious(proof)}, evil, _use_new_zipfile_serialization=how == "torch")
    path = _named(folder, 5, evil.read_bytes())
    with pytest.raises(ValueError, match=r"holds something else than tensors and plain values, .* nothing was run"):
        train(tmp_path / "out")
    with pytest.raises(Exception, match=r"weights_only|WeightsUnpickler|Weights only"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not proof.exists()
    pickle.loads(pickle.dumps(_Malicious(proof)))
    assert proof.exists()  # so it would have


def test_a_file_under_another_name_or_of_another_step_or_program_is_refused(tmp_path):
    path = _save(tmp_path, 7)
    for wrong in ("last.ckpt", "00000007.ckpt"):
        with pytest.raises(ValueError, match=rf"{wrong} is no checkpoint of ours: its name tells no step and no"):
            read(path.rename(tmp_path / wrong))
        (tmp_path / wrong).rename(path)
    with pytest.raises(ValueError, match=r"is no checkpoint of step 8; delete"):
        read(path.rename(tmp_path / path.name.replace("07", "08", 1)))
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(ValueError, match=r"is no checkpoint of step 9; delete"):
        read(_named(tmp_path, 9, (tmp_path / "list").read_bytes()))


def test_debris_of_earlier_kills_is_removed_and_nothing_else(tmp_path):
    path = _save(tmp_path, 7)
    (tmp_path / "00000008.SHA256.ckpt.part").write_bytes(b"half")
    remove_debris(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    remove_debris(tmp_path / "missing")
    assert newest(tmp_path / "missing") is None
