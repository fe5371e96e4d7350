import json
import shutil
from dataclasses import replace

import pytest
import torch

from leadre.training import identity


@pytest.fixture(scope="module")
def killed(tmp_path_factory, train, line):
    out = tmp_path_factory.mktemp("killed")
    with pytest.raises(BaseException):  # noqa: B017, PT011  # a kill
        train(out, line(dies_at=7))
    return out


@pytest.fixture
def stopped(tmp_path, killed):
    """The folder of a training that was killed after the checkpoint of step 6."""
    return shutil.copytree(killed, tmp_path / "out")


def _wide(line):
    line.line = torch.nn.Linear(3, 2)


def _faster(line):
    line.configure_optimizers = lambda: torch.optim.AdamW(line.parameters(), lr=0.2)


def _plain(line):
    line.configure_optimizers = lambda: torch.optim.SGD(line.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"module": _wide}, r"network was 2 parameters, \w+, now 2 parameters, \w+; go back"),
        ({"module": _faster}, r"AdamW 0\.0 lr was 0\.1, now 0\.2; go back"),
        ({"module": _plain}, r"SGD 0\.0 lr was not told, now 0\.1"),
        ({"batch_size": 4}, r"batches was 12 steps, \w+, now 15 steps, \w+; go back"),
        ({"micro_batches": 2}, r"micro_batches .of micro_batch_size on compute\.devices. was 1, now 2"),
        ({"gradient_clip": 1.0}, r"gradient_clip was None, now 1\.0"),
        ({"precision": "bf16-mixed"}, r"precision was 32-true, now bf16-mixed"),
        ({"seed": 3}, r"seed was 0, now 3"),
        ({"valid_every_steps": 6}, r"valid_every_steps was 5, now 6"),
    ],
)
def test_a_training_with_other_settings_is_refused_with_the_difference(stopped, train, line, change, told):
    module, settings = line(), dict(change)
    settings.pop("module", lambda module: None)(module)
    metrics = (stopped / "metrics.jsonl").read_bytes()
    remedy = rf"go back to the settings of then to go on, or delete the folder {stopped}/checkpoints to start the"
    with pytest.raises(ValueError, match=rf"\.ckpt is of another training: .*{told}") as caught:
        train(stopped, module, **settings)
    assert remedy in str(caught.value)
    assert len(list((stopped / "checkpoints").iterdir())) == 1
    if "module" not in change:  # the optimizer is known only once Lightning has set it up
        assert (stopped / "metrics.jsonl").read_bytes() == metrics


def test_a_checkpoint_of_another_stage_is_refused(tmp_path, stopped, train):
    (file,) = (stopped / "checkpoints").iterdir()
    content = torch.load(file, weights_only=True)
    content["made_of"]["stage"] = "sft.main"
    from leadre.training.checkpoint import AtomicCheckpointIO, name_at

    AtomicCheckpointIO().save_checkpoint(content, file.parent / name_at(6))
    with pytest.raises(ValueError, match=r"is of another training: stage was sft\.main, now line; go back"):
        train(stopped)


def test_after_the_folder_is_deleted_the_stage_starts_anew(tmp_path, stopped, train):
    (file,) = (stopped / "checkpoints").iterdir()
    file.unlink()
    (stopped / "checkpoints").rmdir()
    assert train(stopped, batch_size=4) == train(tmp_path / "whole", batch_size=4)


def test_other_threads_or_versions_are_warned_of(tmp_path, stopped, train, monkeypatch, caplog, compute):
    monkeypatch.setattr(identity.torch, "__version__", "1.0")
    train(stopped, compute=replace(compute, checkpoint_every_steps=1))
    told = "the training goes on, but not bit for bit as it would have: torch was "
    assert [message for message in caplog.messages if message.startswith(told)]
    assert not [message for message in caplog.messages if "threads" in message]


@pytest.mark.parametrize("scale", [1 + 1e-6, 2.0])  # other last digits, as of k-means with other threads; other weights
def test_other_first_weights_are_warned_of_and_those_of_the_checkpoint_go_on(
    tmp_path, stopped, train, line, caplog, scale
):
    module = line()
    with torch.no_grad():
        module.line.weight.mul_(scale)
    assert train(stopped, module) == train(tmp_path / "whole")
    told = "the training goes on, but not bit for bit as it would have: first weights was "
    assert [message for message in caplog.messages if message.startswith(told)]


def test_what_a_checkpoint_is_of_is_plain_text(stopped):
    (file,) = (stopped / "checkpoints").iterdir()
    made_of = torch.load(file, weights_only=True)[identity.MADE_OF]
    assert json.loads(json.dumps(made_of)) == made_of
    assert (made_of["stage"], made_of["AdamW 0.0 lr"], made_of["AdamW 0.0 weight_decay"]) == ("line", "0.1", "0.01")
