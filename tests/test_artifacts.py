import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from leadre.artifacts import ArtifactError, Store, differences, fingerprint, origins, verify
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
    here = Store(tmp_path).make("tree", grow, Setting(size=2, root="here"))
    there = Store(tmp_path).make("tree", grow, Setting(size=2, root="there"))
    assert here.key == there.key


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
    result = Store(tmp_path).make("tree", grow, Setting(size=2))
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


def test_settings_that_changed_are_told_then_and_now(tmp_path):
    tree = Store(tmp_path).make("tree", grow, Setting(size=1))
    assert differences(tree, Setting(size=1, root="elsewhere")) == []
    assert differences(tree, Setting(size=4)) == ["size=1, now 4"]
    assert differences(tree, Setting(size=4), passed_over={"size"}) == []
