import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from leadre.command_line import check
from leadre.config import CONF, ConfigError, load
from leadre.training import logs
from leadre.training.config import WandbLogs
from leadre.training.logs import FileLogger, Unfailing, log_scores, read_metrics, wandb_run

ROOT = Path(__file__).parent.parent.parent
SECRET = "s3cr3t" * 6 + "0123"  # as long as a key


@pytest.fixture
def config(tmp_path):
    place = str(tmp_path / "wandb")
    return WandbLogs(kind="wandb", project="p", entity=None, group=None, tags=(), folder=place, settings={})


class _Run:
    """A W&B run that fails where it is told to."""

    name = version = "fake"

    def __init__(self, fails_in=()):
        self.fails_in = fails_in
        self.rows = []
        self.ended = []

    def _may_fail(self, where):
        if where in self.fails_in:
            raise ConnectionError(f"{where}: no route to host\nand more")

    @property
    def experiment(self):
        self._may_fail("init")
        return self

    def log_metrics(self, metrics, step):
        self._may_fail("log")
        self.rows.append((step, metrics))

    def save(self):
        self._may_fail("save")

    def finalize(self, status):
        self._may_fail("finalize")
        self.ended.append(status)

    def finish(self, exit_code):
        self._may_fail("finish")
        self.ended.append(exit_code)


@pytest.fixture
def fake(monkeypatch):
    """Put runs in the place of W&B's: the online one, then the offline one."""

    def put(online, offline=None):
        monkeypatch.setattr(logs, "has_wandb_key", lambda: True)
        monkeypatch.setattr(logs, "_wandb_logger", lambda *_, offline, **__: second if offline else online)

    second = _Run()
    return put, second


@pytest.mark.parametrize("where", ["log", "save", "finish"])
def test_a_run_that_fails_in_the_training_costs_it_nothing(tmp_path, train, config, fake, caplog, where):
    put, _ = fake
    put(_Run({where}))
    plain = train(tmp_path / "plain")
    assert train(tmp_path / "out", logger=config) == plain
    (told,) = [message for message in caplog.messages if "W&B" in message]
    assert told.startswith(f"W&B failed (ConnectionError: {where}: no route to host): it goes on without; all metrics")
    assert told.endswith(f"can be sent with `wandb sync {config.folder}/wandb/offline-run-*`")


def test_a_run_gets_every_row_once(tmp_path, train, config, fake):
    put, _ = fake
    online = _Run()
    put(online)
    train(tmp_path / "out", logger=config)
    rows = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [set(metrics) - {"epoch"} for _, metrics in online.rows] == [set(row) - {"step"} for row in rows]
    assert online.ended == ["success", 0]


def test_when_it_cannot_be_reached_the_run_is_kept_offline(config, fake, caplog):
    put, offline = fake
    put(_Run({"init"}))
    assert wandb_run(config, name="n", job_type="j") is offline
    assert caplog.messages[0].startswith("W&B cannot be had (ConnectionError: init: no route to host): it goes on")
    offline.fails_in = {"init"}
    assert wandb_run(config, name="n", job_type="j") is None
    log_scores(config, {"LEADRE": {"HR@8": 0.5}})  # no error either


def test_where_wandb_is_disabled_there_is_no_run(tmp_path, config, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(logs, "_wandb_logger", lambda *_, **__: pytest.fail("a run was begun"))
    (files,) = logs.loggers(config, tmp_path, name="sft.main", resume_step=0, step=lambda: 0)
    assert isinstance(files, FileLogger)
    log_scores(config, {"LEADRE": {"HR@8": 0.5}})
    assert not Path(config.folder).exists()


def test_a_run_shows_the_settings_and_the_result_it_makes(tmp_path, config, monkeypatch):
    given = {}
    monkeypatch.setattr(logs, "has_wandb_key", lambda: False)
    monkeypatch.setattr(logs, "WandbLogger", lambda **options: given.update(options) or _Run())
    config = replace(config, settings={"seed": 3, "sft": {"stages": []}}, group="table2", tags=("a",))
    folder = tmp_path / "sft" / "0123.partial"
    folder.mkdir(parents=True)
    logs.loggers(config, folder, name="sft.main", resume_step=0, step=lambda: 0)
    assert given["config"] == {"seed": 3, "sft": {"stages": []}, "stage": "sft.main", "result": "sft/0123"}
    assert (given["group"], given["tags"], given["job_type"]) == ("table2", ["a"], "sft")
    assert (given["project"], given["mode"]) == ("p", "offline")


def test_the_command_line_gives_wandb_all_settings_that_results_hang_on():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = load(compose("run", ["logger=wandb", "sft=main_only", "seed=7", "previous_catalog=store/catalog/k"]))
    assert run.logger.settings["seed"] == 7
    assert run.logger.settings["previous_catalog"] == "store/catalog/k"
    assert run.logger.settings["sft"]["stages"] == [{"main": 5}]
    no_result = {"store", "inspection", "logger", "objective"}
    assert set(run.logger.settings) == {*run.__dataclass_fields__} - no_result


def test_a_tag_that_wandb_would_refuse_is_refused_before():
    with pytest.raises(ConfigError, match=r"logger.tags.1: String should have at most 64 characters"):
        check(["logger=wandb", f"logger.tags=[a,{'x' * 65}]"])


@pytest.mark.parametrize(("host", "found"), [("127.0.0.1", True), ("example.org", False)])
def test_a_key_is_looked_for_under_the_server_that_runs_go_to(tmp_path, monkeypatch, host, found):
    (tmp_path / "netrc").write_text(f"machine {host} login user password {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert logs.has_wandb_key() is found
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not logs.has_wandb_key()


def test_scores_are_logged_without_what_is_undefined_and_the_run_is_finished(config, fake):
    put, _ = fake
    online = _Run()
    put(online)
    log_scores(config, {"LEADRE": {"HR@8": 0.5, "LTRR@8": None}})
    assert online.rows == [(None, {"test/LEADRE/HR@8": 0.5})]
    assert online.ended == ["success", 0]
    broken = _Run({"finish"})
    put(broken)
    log_scores(config, {"LEADRE": {"HR@8": 0.5}})


def test_rows_that_are_kept_on_a_resume_survive_a_kill_while_they_are_written(tmp_path, monkeypatch):
    rows = "".join(json.dumps({"step": step, "a": 1.0}) + "\n" for step in range(1, 9))
    (tmp_path / "metrics.jsonl").write_text(rows)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(logs.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            FileLogger(tmp_path, resume_step=5, step=lambda: 5)
    assert (tmp_path / "metrics.jsonl").read_text() == rows
    FileLogger(tmp_path, resume_step=5, step=lambda: 5)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_logger_that_failed_is_left_alone():
    run = _Run({"log"})
    sink = Unfailing(run, remedy="")
    sink.log_metrics({"a": 1.0}, step=1)
    run.fails_in = ()
    sink.log_metrics({"a": 1.0}, step=2)
    sink.finalize("success")
    assert (run.rows, run.ended, sink.name) == ([], [], None)


PROGRAM = textwrap.dedent("""
    import logging, sys, time
    from pathlib import Path
    import torch
    from lightning.pytorch import LightningModule
    from leadre.training.batches import Batches, shuffled_plan
    from leadre.training.config import ComputeConfig, WandbLogs
    from leadre.training.fit import fit
    class Line(LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.line = torch.nn.Linear(3, 1)
        def training_step(self, batch):
            loss = self.line(batch).square().mean()
            self.log("train/loss", loss)
            return loss
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.1)
    logging.basicConfig(level=logging.INFO)
    out = Path(sys.argv[1])
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    compute = ComputeConfig(accelerator="cpu", devices=1, num_nodes=1, compile=False, threads=1, strategy="auto",
        checkpoint_every_steps=1, progress=False)
    config = WandbLogs(kind="wandb", project="p", entity=None, group=None, tags=(), folder=str(out),
        settings={})
    for stage in ("first", "second"):
        (out / stage).mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        fit(Line(), Batches(shuffled_plan(20, batch_size=5, epochs=2, seed=0), lambda rows, whole: x[rows]),
            out=out / stage, compute=compute, logger=config, name=stage)
        print("SECONDS", time.monotonic() - start)
""")


def _run(folder, **environment):
    program = folder / "program.py"
    program.write_text(PROGRAM)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(program), str(folder / "out")],
        env=inherited | {"PYTHONPATH": str(ROOT), "HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done, time.monotonic() - start


def _read_all(folder):
    return [(path, path.read_bytes()) for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "silent", "errors"])
def test_when_wandb_is_down_both_stages_are_trained_and_nothing_hangs(tmp_path, kind):
    """Nobody listens; somebody listens and never answers; somebody answers 500."""
    server = socket.create_server(("127.0.0.1", 0), backlog=100)
    port = 9 if kind == "refused" else server.getsockname()[1]
    if kind == "errors":
        threading.Thread(target=_answer_500, args=(server,), daemon=True).start()
    done, seconds = _run(tmp_path, WANDB_API_KEY=SECRET, WANDB_BASE_URL=f"http://127.0.0.1:{port}")
    server.close()
    print(kind, f"{seconds:.1f} s", [line for line in done.stdout.splitlines() if "SECONDS" in line])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("W&B cannot be had") == 1  # the second stage does not wait again
    assert "wandb sync" in done.stderr
    for stage in ("first", "second"):
        assert len(read_metrics(tmp_path / "out" / stage / "metrics.jsonl")) == 8
    assert len(list((tmp_path / "out" / "wandb").glob("offline-run-*"))) == 2
    assert seconds < 150


def _answer_500(server):
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.mark.slow
def test_no_secret_of_the_environment_reaches_a_file(tmp_path):
    """W&B is online in name: its key is in the environment and in the settings that it hands about."""
    done, _ = _run(tmp_path, WANDB_API_KEY=SECRET, WANDB_BASE_URL="http://127.0.0.1:9", HF_TOKEN=SECRET)
    assert done.returncode == 0, done.stderr[-3000:]
    files = _read_all(tmp_path)
    assert len(files) > 8
    assert [str(path) for path, content in files if SECRET.encode() in content] == []
    assert SECRET not in done.stdout + done.stderr


def test_no_secret_of_the_environment_reaches_checkpoints_or_metrics(tmp_path, train, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    train(tmp_path / "out")
    files = _read_all(tmp_path / "out")
    assert len(files) == 3
    assert not [path for path, content in files if SECRET.encode() in content]
