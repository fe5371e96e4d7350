import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from leadre.artifacts import (
    ArtifactError,
    Store,
    _clear_all_but_checkpoints,
    differences,
    fingerprint,
    origins,
    verify,
)
from leadre.ranks import world_size
from leadre.settings import settings

VERSION = 1
built: list[str] = []


@settings
class Setting:
    size: int
    root: str = "somewhere"


def grow(config: Setting, *folders: Path, out: Path, shout: bool = False) -> None:
    built.append(out.name)
    content = "".join((folder / "tree.txt").read_text() for folder in folders) + "x" * config.size
    (out / "tree.txt").write_text(content)
    (out / "leaves").mkdir()
    (out / "leaves" / "one.json").write_text("{}")


def fail(config: Setting, *, out: Path) -> None:
    (out / "tree.txt").write_text("half")
    raise RuntimeError("no water")


@pytest.fixture(autouse=True)
def _nothing_built():
    built.clear()


def test_a_result_is_built_once_and_then_found(tmp_path):
    first = Store(tmp_path).make("tree", grow, Setting(size=2))
    second = Store(tmp_path).make("tree", grow, Setting(size=2), shout=True)
    assert len(built) == 1
    assert (first.path, first.reused, second.reused) == (second.path, False, True)
    assert (first.path / "tree.txt").read_text() == "xx"


def test_another_setting_input_or_source_is_another_result(tmp_path):
    store = Store(tmp_path)
    seed = store.make("seed", grow, Setting(size=0))
    other_seed = store.make("seed", grow, Setting(size=1))
    keys = {
        store.make("tree", grow, Setting(size=2)).key,
        store.make("tree", grow, Setting(size=3)).key,
        store.make("tree", grow, Setting(size=2), seed).key,
        store.make("tree", grow, Setting(size=2), other_seed).key,
        store.make("tree", grow, Setting(size=2), source="abc").key,
    }
    assert len(keys) == 5


def test_where_data_lies_is_not_part_of_the_key(tmp_path):
    here = Store(tmp_path).make("tree", grow, Setting(size=2, root="here"), source="abc")
    there = Store(tmp_path).make("tree", grow, Setting(size=2, root="there"), source="abc")
    assert here.key == there.key


def test_a_place_is_part_of_the_key_where_nothing_else_tells_what_lies_there(tmp_path):
    here = Store(tmp_path).make("tree", grow, Setting(size=2, root="here"))
    there = Store(tmp_path).make("tree", grow, Setting(size=2, root="there"))
    assert here.key != there.key


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"stage": "tree", "key": "other", "files": {}}'])
def test_a_folder_with_a_manifest_of_another_program_is_told_by_its_files(tmp_path, content):
    (tmp_path / "config.json").write_text("{}")
    plain = fingerprint(str(tmp_path))
    (tmp_path / "manifest.json").write_text(content)
    assert fingerprint(str(tmp_path)) == plain
    (tmp_path / "config.json").write_text("{ }")
    assert fingerprint(str(tmp_path)) != plain


def test_an_empty_folder_of_checkpoints_is_kept_for_the_ranks_that_look_at_it(tmp_path):
    checkpoints = tmp_path / "x.partial" / "checkpoints"
    checkpoints.mkdir(parents=True)
    before = checkpoints.stat().st_ino
    (checkpoints.parent / "debris").write_text("")
    _clear_all_but_checkpoints(checkpoints.parent)
    assert [path.name for path in checkpoints.parent.iterdir()] == ["checkpoints"]
    assert checkpoints.stat().st_ino == before


def test_a_rank_without_a_number_of_processes_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(
        ValueError, match=r"RANK is 1, but WORLD_SIZE is not set: start with torchrun, .*, or unset RANK"
    ):
        world_size()


def test_a_model_folder_is_told_by_its_files_and_a_hub_name_by_itself(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    before = fingerprint(str(tmp_path))
    (tmp_path / "config.json").write_text("{ }")
    assert fingerprint(str(tmp_path)) != before
    assert fingerprint("someone/model") == "someone/model"


def test_a_raised_version_makes_old_results_stale(tmp_path, monkeypatch):
    Store(tmp_path).make("tree", grow, Setting(size=2))
    monkeypatch.setattr(sys.modules[__name__], "VERSION", 2)
    Store(tmp_path).make("tree", grow, Setting(size=2))
    assert len(built) == 2


def test_the_manifest_holds_the_settings_and_the_hash_of_every_file(tmp_path):
    result = Store(tmp_path).make("tree", grow, Setting(size=2), source="abc")
    manifest = json.loads((result.path / "manifest.json").read_text())
    assert set(manifest["files"]) == {"tree.txt", "leaves/one.json"}
    assert manifest["config"] == {"size": 2}
    verify(result.path)


def test_a_build_that_fails_leaves_no_result_and_its_debris_is_not_taken_up(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="no water"):
        store.make("tree", fail, Setting(size=2))
    assert not list(tmp_path.rglob("manifest.json"))
    partial = next(tmp_path.glob("tree/*.partial"))
    (partial / "debris.txt").write_text("from the killed run")
    key = partial.name.removesuffix(".partial")
    result = store.make("tree", grow, Setting(size=2))
    assert result.key == key
    assert not (result.path / "debris.txt").exists()


def test_checkpoints_outlive_a_kill_and_are_not_part_of_the_result(tmp_path):
    key = Store(tmp_path).make("tree", grow, Setting(size=2)).key
    other = Store(tmp_path / "other")
    partial = tmp_path / "other" / "tree" / f"{key}.partial"
    (partial / "checkpoints").mkdir(parents=True)
    (partial / "checkpoints" / "last.ckpt").write_text("step 5")
    (partial / "metrics.jsonl").write_text("{}")
    (partial / "debris.txt").write_text("half")
    seen = []

    def look(config: Setting, *, out: Path) -> None:
        seen.extend(sorted(path.name for path in out.iterdir()))
        grow(config, out=out)

    look.__module__ = grow.__module__
    result = other.make("tree", look, Setting(size=2))
    assert seen == ["checkpoints", "metrics.jsonl"]
    assert not (result.path / "checkpoints").exists()


def test_a_store_that_may_not_build_says_what_to_run(tmp_path):
    with pytest.raises(ArtifactError, match=r"no result of stage 'tree'.*run train\.py with the same settings"):
        Store(tmp_path, build=False).make("tree", grow, Setting(size=2))


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: (folder / "tree.txt").write_text("xy"), "tree.txt differs from its sha256"),
        (lambda folder: (folder / "tree.txt").unlink(), "tree.txt is missing"),
        (lambda folder: (folder / "more.txt").write_text("m"), "more.txt is not in the manifest"),
        (lambda folder: (folder / "manifest.json").unlink(), "not whole"),
    ],
)
def test_a_harmed_result_is_told_by_file(tmp_path, harm, told):
    folder = Store(tmp_path).make("tree", grow, Setting(size=2)).path
    harm(folder)
    with pytest.raises(ArtifactError, match=told):
        verify(folder)


def test_a_harmed_result_is_not_reused(tmp_path):
    folder = Store(tmp_path).make("tree", grow, Setting(size=2)).path
    (folder / "tree.txt").write_text("xy")
    with pytest.raises(ArtifactError, match=r"tree\.txt differs from its sha256; delete the folder to build it anew"):
        Store(tmp_path).make("tree", grow, Setting(size=2))


def test_two_processes_that_want_the_same_result_build_it_once(tmp_path):
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from leadre.artifacts import Store
        VERSION = 1
        def slow(*, out):
            time.sleep(0.5)
            (out / "done.txt").write_text("x")
            with open(sys.argv[2], "a") as file: file.write("built\\n")
        Store(Path(sys.argv[1])).make("slow", slow, None)
    """)
    arguments = [sys.executable, "-c", program, str(tmp_path / "store"), str(tmp_path / "log")]
    processes = [subprocess.Popen(arguments) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_killed_build_frees_its_lock_and_is_built_by_the_next(tmp_path):
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from leadre.artifacts import Store
        VERSION = 1
        def dies(*, out):
            (out / "done.txt").write_text("half")
            if len(sys.argv) > 2: os.kill(os.getpid(), signal.SIGKILL)
            (out / "done.txt").write_text("whole")
        print(Store(Path(sys.argv[1])).make("dies", dies, None).path)
    """)
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run([*arguments, "die"], check=False).returncode == -signal.SIGKILL
    done = subprocess.run(arguments, check=True, capture_output=True, text=True, env=os.environ)
    assert (Path(done.stdout.strip()) / "done.txt").read_text() == "whole"


TOGETHER = textwrap.dedent("""
    import os, sys, time
    from pathlib import Path
    from leadre.artifacts import Store
    VERSION = 1
    def share(*, out):
        rank, shared = os.environ["RANK"], out / "checkpoints"
        (shared / f"rank{rank}.txt").write_text(rank)
        (out / "own.txt").write_text(rank)
        while rank == "0" and len(list(shared.iterdir())) < int(os.environ["WORLD_SIZE"]):
            time.sleep(0.01)
        if rank == "0":
            (out / "all.txt").write_text("".join(sorted(path.read_text() for path in shared.iterdir())))
    if os.environ["RANK"] == sys.argv[2]: time.sleep(1)
    result = Store(Path(sys.argv[1])).make("share", share, None, together=True)
    print((result.path / "all.txt").read_text(), (result.path / "own.txt").read_text(), result.reused)
""")


@pytest.mark.parametrize("late", ["0", pytest.param("1", marks=pytest.mark.slow)])
def test_processes_of_torchrun_that_start_at_once_build_a_result_together(tmp_path, late):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path), late],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"RANK": rank, "WORLD_SIZE": "2"},
        )
        for rank in ("0", "1")
    ]
    assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["01 0 False\n"] * 2
    assert len(list(tmp_path.glob("share/*/"))) == 1


def test_a_kill_between_the_manifest_and_the_move_costs_nothing(tmp_path, monkeypatch):
    replace = os.replace

    def die_at_the_move(source, target):
        if Path(source).suffix == ".partial":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die_at_the_move)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path).make("tree", grow, Setting(size=2))
    assert [path.parent.suffix for path in tmp_path.glob("tree/*/manifest.json")] == [".partial"]
    result = Store(tmp_path).make("tree", grow, Setting(size=2))
    assert (len(built), result.path.suffix) == (1, "")
    verify(result.path)


def test_checkpoints_outlive_a_kill_while_the_result_is_hashed(tmp_path, monkeypatch):
    def save(config: Setting, *, out: Path) -> None:
        (out / "checkpoints").mkdir(exist_ok=True)
        (out / "checkpoints" / "last.ckpt").write_text("step 5")
        grow(config, out=out)

    save.__module__ = grow.__module__
    with monkeypatch.context() as patch:
        patch.setattr("leadre.artifacts._sha256", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path).make("tree", save, Setting(size=2))
    assert [path.name for path in tmp_path.glob("tree/*.partial/checkpoints/*")] == ["last.ckpt"]
    assert Store(tmp_path).make("tree", save, Setting(size=2)).path.is_dir()


def test_metrics_without_a_checkpoint_are_not_taken_up(tmp_path):
    key = Store(tmp_path / "first").make("tree", grow, Setting(size=2)).key
    partial = tmp_path / "second" / "tree" / f"{key}.partial"
    (partial / "checkpoints").mkdir(parents=True)
    (partial / "metrics.jsonl").write_text("{}")
    assert not (Store(tmp_path / "second").make("tree", grow, Setting(size=2)).path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, 1),  # Lightning's own launch
        ({"RANK": "1", "WORLD_SIZE": "4"}, 4),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 1),  # a batch script without srun
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"}, 8),
    ],
)
def test_the_number_of_processes_is_that_of_torchrun_or_srun(monkeypatch, told, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert world_size() == expected


def test_a_stored_result_has_the_fingerprint_of_its_files_without_reading_them(tmp_path):
    result = Store(tmp_path).make("tree", grow, Setting(size=2))
    told = fingerprint(str(result.path))
    (result.path / "manifest.json").rename(tmp_path / "manifest.json")
    assert fingerprint(str(result.path)) == told


def test_a_result_leads_back_to_all_that_it_was_made_from_and_to_the_nearest_of_a_stage(tmp_path):
    store = Store(tmp_path)
    seed = store.make("seed", grow, Setting(size=0))
    older = store.make("tree", grow, Setting(size=1), seed)
    newer = store.make("tree", grow, Setting(size=2), seed, older)
    forest = store.make("forest", grow, Setting(size=3), newer)
    found = origins(forest.path)
    assert {stage: result.key for stage, result in found.items()} == {
        "forest": forest.key,
        "tree": newer.key,
        "seed": seed.key,
    }


def test_origins_that_are_missing_or_broken_are_refused(tmp_path):
    store = Store(tmp_path)
    seed = store.make("seed", grow, Setting(size=0))
    tree = store.make("tree", grow, Setting(size=1), seed)
    (seed.path / "tree.txt").write_text("other")
    with pytest.raises(ArtifactError, match=r"tree\.txt differs from its sha256"):
        origins(tree.path)
    with pytest.raises(ArtifactError, match="has no manifest"):
        origins(tmp_path / "tree" / "nothing")


def test_of_origins_only_those_that_are_read_are_checked_and_need_to_be_there(tmp_path):
    store = Store(tmp_path)
    seed = store.make("seed", grow, Setting(size=0))
    branch = store.make("branch", grow, Setting(size=1), seed)
    tree = store.make("tree", grow, Setting(size=2), seed, branch)
    (branch.path / "tree.txt").write_text("other")
    assert set(origins(tree.path, {"seed"})) == {"tree", "branch", "seed"}  # the broken one is not read
    with pytest.raises(ArtifactError, match=r"differs from its sha256"):
        origins(tree.path, {"branch"})
    (tree.path / "tree.txt").write_text("other")
    with pytest.raises(ArtifactError, match=r"differs from its sha256"):
        origins(tree.path, {"seed"})


def test_an_origin_that_was_cleaned_away_is_missed_only_where_it_is_read(tmp_path):
    store = Store(tmp_path)
    seed = store.make("seed", grow, Setting(size=0))
    older = store.make("branch", grow, Setting(size=1), seed)
    newer = store.make("branch", grow, Setting(size=2), older)
    root = store.make("root", grow, Setting(size=3), older, seed)
    tree = store.make("tree", grow, Setting(size=4), newer, root)
    shutil.rmtree(newer.path)
    # The older branch does not stand for the newer.
    assert set(origins(tree.path, {"seed"})) == {"tree", "root", "seed"}
    for wanted in (None, {"branch"}, {"branch", "seed"}):
        with pytest.raises(ArtifactError, match=rf"{newer.path} is missing: copy it from the store of the training"):
            origins(tree.path, wanted)


def test_settings_that_changed_are_told_then_and_now(tmp_path):
    tree = Store(tmp_path).make("tree", grow, Setting(size=1))
    assert differences(tree, Setting(size=1, root="elsewhere")) == []
    assert differences(tree, Setting(size=4)) == ["size=1, now 4"]
    assert differences(tree, Setting(size=4), passed_over={"size"}) == []
