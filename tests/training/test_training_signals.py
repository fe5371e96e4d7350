import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from leadre.training.checkpoint import AtomicCheckpointIO, newest, read
from leadre.training.signals import Signals

ROOT = Path(__file__).parent.parent.parent


def _at(step, signum, times=1):
    """Send this process a signal in the forward pass of a step."""

    left = [signum] * times

    def send(module, loss):
        while module.global_step == step - 1 and left:
            os.kill(os.getpid(), left.pop())
        return loss

    return send


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_at_the_present_step_and_a_rerun_ends_the_same(
    tmp_path, train, line, compute, caplog, signum, status
):
    settings = {"compute": replace(compute, checkpoint_every_steps=50), "micro_batches": 2}
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    whole = train(tmp_path / "whole", **settings)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "out", line(poison=_at(7, signum)), **settings)
    assert ended.value.code == status
    assert read(newest(tmp_path / "out" / "checkpoints"))["global_step"] == 7
    assert f"line: ends at step 7, saved, by {signum.name}: run again to go on" in caplog.messages
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert train(tmp_path / "out", **settings) == whole


def test_a_second_signal_ends_at_once_and_goes_on_from_the_last_checkpoint(tmp_path, train, line):
    whole = train(tmp_path / "whole")
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "out", line(poison=_at(8, signal.SIGINT, times=2)))
    assert ended.value.code == 130
    assert read(newest(tmp_path / "out" / "checkpoints"))["global_step"] == 6
    assert train(tmp_path / "out") == whole


@pytest.mark.parametrize("step", [5, 12])  # a validation in the training, and the one at its end
def test_a_signal_in_a_validation_ends_at_once_at_the_step_that_is_saved(tmp_path, train, line, compute, step):
    settings = {"compute": replace(compute, checkpoint_every_steps=50)}
    whole = train(tmp_path / "whole", **settings)
    module = line()
    validate = module.validation_step

    def validation_step(batch):
        if module.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        validate(batch)

    module.validation_step = validation_step
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "out", module, **settings)
    assert ended.value.code == 143
    assert read(newest(tmp_path / "out" / "checkpoints"))["global_step"] == step
    assert train(tmp_path / "out", **settings) == whole


@pytest.mark.parametrize("step", [5, 12])  # a validation would follow, in the training and at its end
def test_a_signal_while_a_step_is_saved_is_heard_before_anything_follows(
    tmp_path, train, line, compute, monkeypatch, caplog, step
):
    settings = {"compute": replace(compute, checkpoint_every_steps=50)}
    whole = train(tmp_path / "whole", **settings)
    real = AtomicCheckpointIO.save_checkpoint

    def save(self, content, path, storage_options=None):
        real(self, content, path)
        if content["global_step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    module = line()
    validated = []
    module.on_validation_start = lambda: validated.append(module.global_step)
    with monkeypatch.context() as patched:
        patched.setattr(AtomicCheckpointIO, "save_checkpoint", save)
        with pytest.raises(SystemExit) as ended:
            train(tmp_path / "out", module, **settings)
    assert ended.value.code == 143
    assert step not in validated
    assert f"line: ends at step {step}, saved, by SIGTERM: run again to go on" in caplog.messages
    assert read(newest(tmp_path / "out" / "checkpoints"))["global_step"] == step
    assert train(tmp_path / "out", **settings) == whole


def test_in_a_slurm_job_its_warning_is_heard_as_sigterm_is_and_lightning_requeues_nothing(
    tmp_path, train, line, compute, monkeypatch
):
    settings = {"compute": replace(compute, checkpoint_every_steps=50)}
    whole = train(tmp_path / "whole", **settings)
    job = {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "12345", "JOB_NAME": "train"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = signal.getsignal(signal.SIGUSR1)
    module = line(poison=_at(7, signal.SIGUSR1))
    handlers = []
    module.on_train_batch_start = lambda *_: handlers.append(signal.getsignal(signal.SIGUSR1))
    with pytest.raises(SystemExit) as ended:
        train(tmp_path / "out", module, **settings)
    assert ended.value.code == 128 + signal.SIGUSR1
    assert {handler.__func__ for handler in handlers} == {Signals._hear}
    assert signal.getsignal(signal.SIGUSR1) is before
    assert not list((tmp_path / "out").glob("hpc_ckpt*"))
    assert read(newest(tmp_path / "out" / "checkpoints"))["global_step"] == 7
    assert train(tmp_path / "out", **settings) == whole


def test_a_handler_that_is_not_pythons_costs_no_training(monkeypatch):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(signal, "getsignal", lambda signum: None)  # as of one that a library installed in C
    with Signals("line").heard():
        pass
    for each, handler in before.items():
        signal.signal(each, handler)


def test_outside_of_steps_a_signal_ends_at_once_and_is_given_back_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, Signals("line").heard():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_in_another_thread_hears_no_signals(tmp_path, train):
    whole = train(tmp_path / "whole")
    results = []
    thread = threading.Thread(target=lambda: results.append(train(tmp_path / "out")))
    thread.start()
    thread.join()
    assert results == [whole]


PROGRAM = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    import torch
    from leadre.training.batches import Batches, shuffled_plan
    from leadre.training.config import ComputeConfig, FileLogs
    from leadre.training.fit import fit
    from lightning.pytorch import LightningModule
    class Slow(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.line = torch.nn.Linear(3, 1)
        def training_step(self, batch):
            time.sleep(float(sys.argv[2]))
            loss = self.line(torch.nn.functional.dropout(batch)).square().mean()
            self.log("train/loss", loss)
            return loss
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.1)
    if __name__ == "__main__":
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        plan = shuffled_plan(20, batch_size=5, epochs=10, seed=0)
        compute = ComputeConfig(accelerator="cpu", devices=int(sys.argv[3]), num_nodes=1, compile=False, threads=1,
            strategy="ddp" if sys.argv[3] != "1" else "auto", checkpoint_every_steps=1000, progress=False)
        out = Path(sys.argv[1])
        out.mkdir(exist_ok=True)
        module = Slow()
        fit(module, Batches(plan, lambda rows, whole: x[rows]), out=out, compute=compute, logger=FileLogs(kind="csv"),
            name="slow")
        torch.save(module.state_dict(), out / "weights")
""")


def _start(folder, out, seconds, devices):
    program = folder / "program.py"
    program.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(program), str(out), str(seconds), str(devices)], env=environment, start_new_session=True
    )


def _wait_for_steps(out):
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_process_that_is_told_to_end_exits_with_its_status_and_a_rerun_gives_the_same_files(
    tmp_path, signum, status, devices
):
    """SIGTERM goes to the first process alone, as a cluster may send it; Ctrl-C to all of them, as a terminal does."""
    assert _start(tmp_path, tmp_path / "whole", 0, devices).wait() == 0
    out = tmp_path / "out"
    process = _start(tmp_path, out, 0.3, devices)
    _wait_for_steps(out)
    if signum is signal.SIGTERM:
        process.send_signal(signum)
    else:
        os.killpg(process.pid, signum)
    assert process.wait(timeout=90) == status
    step = read(newest(out / "checkpoints"))["global_step"]
    assert 0 < step < 40
    assert _start(tmp_path, out, 0, devices).wait() == 0
    for name in ("weights", "metrics.jsonl", "metrics.csv"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_the_hash_seed_of_python_changes_nothing(tmp_path, monkeypatch):
    found = []
    for seed in ("0", "1"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        assert _start(tmp_path, tmp_path / seed, 0, 1).wait() == 0
        found.append([(tmp_path / seed / name).read_bytes() for name in ("weights", "metrics.jsonl", "metrics.csv")])
    assert found[0] == found[1]
