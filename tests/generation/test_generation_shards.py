"""Shards of a long job: no user lost, none twice, whoever is killed and whenever."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from leadre import tables
from leadre.artifacts import ArtifactError
from leadre.generation import shards
from leadre.generation import worker as workers
from leadre.generation.generate import generate_audience

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def run(tiny, compute):
    def run(out=tiny.out, **changes):
        generate_audience(tiny.config(**changes), *tiny.inputs, out=out, compute=compute)
        return {path.name: path.read_bytes() for path in sorted((out / "lists").iterdir())}

    return run


@pytest.fixture
def expected(tiny, run):
    """The parts of a run that nobody stopped, in a folder of its own."""
    whole = tiny.out.with_name("whole")
    whole.mkdir()
    return run(whole)


@pytest.fixture
def shards_made(monkeypatch):
    """The shards that are made, as they are."""
    seen = []
    write = shards.write_part
    monkeypatch.setattr(
        workers, "write_part", lambda plan, shard, *a, **k: (seen.append(shard), write(plan, shard, *a, **k))
    )
    return seen


def kept(tiny):
    return tiny.out / "checkpoints" / "lists"


def plan_in(folder, **changes):
    return shards.make_plan({"model": "m"} | changes, folder, users=5, shard_users=2)


def lists_of(*users):
    return pl.DataFrame([(user, 1, "ad0", 0.0) for user in users], schema=tables.LISTS.schema, orient="row")


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_run_that_was_killed_goes_on_at_the_next_shard(tiny, run, expected, shards_made, monkeypatch, after):
    write = workers.write_part

    def write_or_die(plan, shard, *arguments, **keywords):
        if shard == after:
            raise Killed
        write(plan, shard, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "write_part", write_or_die)
        with pytest.raises(Killed):
            run()
    assert not (tiny.out / "lists").exists()
    shards_made.clear()
    assert run() == expected
    assert shards_made == list(range(after, 4))
    assert json.loads((tiny.out / "generation.json").read_text())["users_of_this_run"] == 10 - 3 * after


def test_a_kill_while_a_part_is_written_leaves_no_part_and_no_debris(tiny, run, expected, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "fsync", lambda _: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run()
    assert not list(kept(tiny).glob("*.parquet"))
    assert list(kept(tiny).glob("part-0000000.parquet.*"))
    assert run() == expected
    names = {f"part-000000{shard}.parquet" for shard in range(4)}
    assert {path.name for path in kept(tiny).iterdir()} == names | {"finished.json"}


def test_a_kill_right_after_the_last_part_costs_no_shard(tiny, run, expected, shards_made, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shards, "publish", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run()
    shards_made.clear()
    assert run() == expected
    assert shards_made == []


def test_where_files_cannot_be_linked_they_are_copied(run, expected, monkeypatch):
    monkeypatch.setattr(shards.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    assert run() == expected


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda part: part.write_bytes(part.read_bytes()[:-20]), "is broken"),
        (lambda part: part.write_bytes(part.read_bytes()[:40]), "is broken"),
        (lambda part: part.write_bytes(b""), "is broken"),
        (lambda part: part.write_bytes(_flipped(part.read_bytes())), "is broken"),
        (
            lambda part: part.write_bytes(part.with_name("part-0000000.parquet").read_bytes()),
            "is of another plan or shard",
        ),
        (lambda part: lists_of("stranger").write_parquet(part), "is of another plan or shard"),
    ],
    ids=["cut at the end", "cut early", "empty", "a bit flipped", "another shard", "foreign"],
)
def test_a_part_that_is_not_whole_or_not_ours_is_made_anew_by_name(
    tiny, run, expected, shards_made, caplog, harm, told
):
    run()
    harm(kept(tiny) / "part-0000002.parquet")
    shards_made.clear()
    assert run() == expected
    assert shards_made == [2]
    assert f"part-0000002.parquet {told}" in caplog.text


def _flipped(content):
    return content[:40] + bytes([content[40] ^ 1]) + content[41:]


def test_parts_of_another_plan_are_not_reused_and_the_difference_is_told(tiny, run, expected, shards_made, caplog):
    run(num_ads=2)
    shards_made.clear()
    assert run() == expected
    assert shards_made == [0, 1, 2, 3]
    assert "4 parts of another plan are removed (other settings)" in caplog.text


def test_more_and_smaller_shards_leave_none_of_the_old_parts(tiny, run):
    run(shard_users=1)
    assert len(run(shard_users=5)) == 2
    assert len(list(kept(tiny).glob("part-*"))) == 2


def test_a_plan_that_is_no_json_is_another_plan(tmp_path):
    plan = plan_in(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    (tmp_path / "part-0000000.parquet").write_text("old")
    shards.lay(plan)
    assert shards.missing(plan, [0, 1, 2]) == [0, 1, 2]
    assert json.loads((tmp_path / "plan.json").read_text()) == plan.about


def test_users_are_cut_into_shards_that_hold_each_once():
    assert [list(shard) for shard in plan_in(Path()).shards] == [[0, 1], [2, 3], [4]]
    assert shards.make_plan({}, Path(), users=0, shard_users=2).shards == [range(0)]


def test_a_part_is_only_known_by_its_plan_and_shard(tmp_path):
    plan = plan_in(tmp_path)
    shards.lay(plan)
    shards.write_part(plan, 1, lists_of("u"), told={"kept": None})
    assert shards.fault_of(plan, 1) is None
    assert shards.told_by(plan, 1)["shard"] == 1
    assert shards.fault_of(plan, 0) == "is missing"
    assert "another plan" in str(shards.fault_of(plan_in(tmp_path, model="n"), 1))
    assert tables.read(tables.LISTS, plan.part(1)).equals(lists_of("u"))


def test_lists_that_are_no_table_are_not_written(tmp_path):
    plan = plan_in(tmp_path)
    with pytest.raises(tables.TableError, match=r"the lists of part-0000000\.parquet is no lists table"):
        shards.write_part(plan, 0, lists_of("u").drop("rank"), told={})
    assert not list(tmp_path.iterdir())


def test_another_process_waits_for_the_plan_of_the_leading_one(tmp_path):
    parts = tmp_path / "parts"
    old, new = plan_in(parts, model="old"), plan_in(parts, model="new")
    shards.lay(old)
    found = []
    waiting = threading.Thread(target=lambda: found.append(shards.join(new)))
    waiting.start()
    time.sleep(0.05)
    assert found == []
    shards.lay(new)
    waiting.join(5)
    assert found == [True]


def test_a_process_that_comes_when_all_is_done_has_nothing_to_do(tmp_path):
    plan = plan_in(tmp_path / "checkpoints" / "lists")
    shards.lay(plan)
    for shard in range(3):
        shards.write_part(plan, shard, lists_of("u"), told={})
    shards.publish(plan, tmp_path / "lists")
    assert not shards.is_open(plan)
    shards.write_part(plan, 1, lists_of("v"), told={})  # by one that is late: needed no more
    assert tables.read(tables.LISTS, plan.part(1)).equals(lists_of("u"))
    shutil.rmtree(tmp_path / "checkpoints")  # as the store does
    assert not shards.join(plan)


def test_a_kill_after_the_last_part_was_published_does_not_send_other_ranks_away(tmp_path):
    plan = plan_in(tmp_path / "checkpoints" / "lists")
    shards.lay(plan)
    for shard in range(3):
        shards.write_part(plan, shard, lists_of("u"), told={})
    shards.publish(plan, tmp_path / "lists")
    found = []
    waiting = threading.Thread(target=lambda: found.append(shards.join(plan)))  # before the leading one lays it again
    waiting.start()
    time.sleep(0.3)
    assert found == []
    shards.lay(plan)
    waiting.join(5)
    assert found == [True]


def test_waiting_for_the_plan_of_the_leading_process_is_told(tmp_path, monkeypatch, caplog):
    plan = plan_in(tmp_path)
    monkeypatch.setattr(shards, "LOG_EVERY_S", 0.0)
    leading = threading.Timer(0.3, lambda: shards.lay(plan))
    leading.start()
    with caplog.at_level("INFO"):
        assert shards.join(plan)
    assert f"waiting for rank 0 to lay the plan {plan.key} in {tmp_path}" in caplog.text


def test_waiting_for_the_parts_of_others_is_told(tmp_path, monkeypatch, caplog):
    plan = plan_in(tmp_path)
    shards.lay(plan)
    monkeypatch.setattr(shards, "LOG_EVERY_S", 0.0)
    others = threading.Timer(0.3, lambda: [shards.write_part(plan, n, lists_of("u"), told={}) for n in range(3)])
    others.start()
    with caplog.at_level("INFO"):
        assert shards.wait(plan, alone=False) == []
    assert "waiting for 3 parts of other processes; " in caplog.text


def test_nobody_waits_for_a_part_that_nobody_will_make(tmp_path):
    plan = plan_in(tmp_path)
    shards.lay(plan)
    shards.write_part(plan, 0, lists_of("u"), told={})
    assert shards.wait(plan, alone=True) == [1, 2]
    plan.part(2).write_bytes(b"")
    assert shards.wait(plan, alone=False) == [2]


@pytest.mark.parametrize("waits", [shards.join, lambda plan: shards.wait(plan, alone=False)], ids=["join", "wait"])
def test_waiting_ends_with_the_launcher(tmp_path, monkeypatch, waits):
    parents = iter([7, 7, 1])
    monkeypatch.setattr("leadre.artifacts.os.getppid", lambda: next(parents))
    plan = plan_in(tmp_path)
    if waits is not shards.join:
        shards.lay(plan)
    with pytest.raises(ArtifactError, match="was not finished: rank 0 has ended; its output says why"):
        waits(plan)


def test_a_plan_that_is_cleared_away_is_not_waited_for(tmp_path):
    plan = plan_in(tmp_path / "lists")
    shards.lay(plan)
    shutil.rmtree(plan.folder)
    with pytest.raises(ArtifactError, match="was cleared away while lists were made: start again"):
        shards.wait(plan, alone=True)


def test_a_part_that_breaks_while_others_are_made_is_made_anew(tiny, run, expected, shards_made, monkeypatch):
    write = workers.write_part

    def write_and_harm(plan, shard, *arguments, **keywords):
        write(plan, shard, *arguments, **keywords)
        if shard == 3 and shards_made.count(1) == 1:
            plan.part(1).write_bytes(b"")

    monkeypatch.setattr(workers, "write_part", write_and_harm)
    assert run() == expected
    assert shards_made == [0, 1, 2, 3, 1]


def test_another_launch_that_clears_leftovers_costs_no_part(tmp_path, monkeypatch):
    plan = plan_in(tmp_path)
    shards.lay(plan)
    kill = iter([lambda: shards.lay(plan), lambda: None])
    monkeypatch.setattr(shards.os, "fsync", lambda _: next(kill)())
    shards.write_part(plan, 1, lists_of("u"), told={})
    assert shards.fault_of(plan, 1) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0000001.parquet", "plan.json"]


def test_looking_for_missing_parts_leaves_the_unfinished_ones_of_others(tmp_path):
    plan = plan_in(tmp_path)
    shards.lay(plan)
    unfinished = tmp_path / "part-0000001.parquet.abc.unfinished"
    unfinished.write_text("")
    assert shards.missing(plan, [0, 1, 2]) == [0, 1, 2]
    assert unfinished.exists()
    shards.lay(plan)
    assert not unfinished.exists()


def test_parts_stand_in_their_order_beyond_a_hundred_thousand():
    plan = plan_in(Path())
    assert plan.part(99_999).name < plan.part(100_000).name


def test_the_pace_is_told_now_and_then_and_at_the_end(monkeypatch, caplog):
    clock = iter([0.0, 10.0, 40.0, 50.0])
    monkeypatch.setattr(shards.time, "monotonic", lambda: next(clock))
    pace = shards.Pace(100)
    with caplog.at_level("INFO"):
        for users in (20, 60, 20):
            pace.made(users)
    assert [record.getMessage() for record in caplog.records] == [
        "generation: 2.0 users/s; 20 users left, about 10 s",
        "generation: 2.0 users/s; 0 users left, about 0 s",
    ]


def test_every_rank_makes_its_share_and_the_leading_one_the_result(tiny, run, expected, shards_made, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "missing", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run()
    scratch = tiny.out.with_name("scratch")
    scratch.mkdir()
    (scratch / "checkpoints").symlink_to(tiny.out / "checkpoints")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(FileNotFoundError):
        run(scratch)  # it has parts, and no result
    assert shards_made == [1, 3]
    assert [path.name for path in scratch.iterdir()] == ["checkpoints"]
    shards_made.clear()
    monkeypatch.setenv("RANK", "0")
    assert run() == expected
    assert shards_made == [0, 2]
    shards_made.clear()
    shutil.rmtree(tiny.out / "checkpoints")  # as the store does
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(FileNotFoundError):
        run(scratch)  # it came too late
    assert shards_made == []


PROGRAM = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from leadre.artifacts import Store
    from leadre.generation import worker
    from leadre.decoding.config import DecodingConfig
    from leadre.generation.generate import generate_audience
    from leadre.training.config import ComputeConfig
    import json
    VERSION = 1
    root, model, catalog, audience = map(Path, sys.argv[1:5])
    config = DecodingConfig(**json.loads(sys.argv[5]))
    compute = ComputeConfig(accelerator="cpu", devices=1, num_nodes=1, strategy="auto", compile=False, threads=1,
                            checkpoint_every_steps=1, progress=False)
    write = worker.write_part
    def write_and_die(plan, shard, *arguments, **keywords):
        write(plan, shard, *arguments, **keywords)
        if os.environ.get("DIE_AFTER") == str(shard):
            os.kill(os.getpid(), signal.SIGKILL)  # as the out-of-memory killer does
    worker.write_part = write_and_die
    def make(config, *, out, compute):
        generate_audience(config, model, catalog, audience, out=out, compute=compute)
    print(Store(root).make("generations", make, config, together=True, compute=compute).path)
""")


def _start(tiny, rank, ranks, **environment):
    arguments = [*map(str, (tiny.out, *tiny.inputs)), json.dumps(vars(tiny.config()))]
    told = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | told | environment,
    )


def _parts(told):
    folder = Path(told.strip().splitlines()[-1])
    assert sorted(path.name for path in folder.iterdir()) == ["generation.json", "lists", "manifest.json"]
    return {path.name: path.read_bytes() for path in sorted((folder / "lists").iterdir())}


@pytest.mark.slow
def test_two_processes_of_torchrun_share_the_shards_of_one_result(tiny, expected):
    ranks = [_start(tiny, rank, 2) for rank in (1, 0)]  # the leading one comes last
    told = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert _parts(told[0][0]) == _parts(told[1][0]) == expected
    assert not list(tiny.out.glob("generations/*.rank*"))


@pytest.mark.slow
def test_kill_9_after_a_shard_and_then_fewer_processes(tiny, expected):
    ranks = [_start(tiny, rank, 2, DIE_AFTER="1") for rank in (0, 1)]
    assert ranks[1].wait(120) == -signal.SIGKILL
    ranks[0].kill()  # torchrun kills the others of a process that died
    for rank in ranks:
        rank.communicate()
    (partial,) = tiny.out.glob("generations/*.partial")
    assert (partial / "checkpoints" / "lists" / "part-0000001.parquet").exists()
    alone = _start(tiny, 0, 1)
    told = alone.communicate(timeout=120)
    assert alone.returncode == 0, told
    assert _parts(told[0]) == expected
