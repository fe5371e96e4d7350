"""The same shards over Ray Data actors."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from leadre import tables
from leadre.generation.generate import generate_audience

ROOT = Path(__file__).parents[2]
PROGRAM = textwrap.dedent("""
    import json, sys
    from pathlib import Path
    from leadre.decoding.config import DecodingConfig
    from leadre.generation.generate import generate_audience
    from leadre.training.config import ComputeConfig
    model, catalog, audience, out = map(Path, sys.argv[1:5])
    compute = ComputeConfig(accelerator="cpu", devices=1, num_nodes=1, strategy="auto", compile=False, threads=1,
                            checkpoint_every_steps=1, progress=False)
    config = DecodingConfig(**json.loads(sys.argv[5]))
    generate_audience(config, model, catalog, audience, out=out, compute=compute, ray_actors=2)
""")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is an extra: requirements-ray.txt")
def test_actors_write_the_parts_of_a_local_run_byte_for_byte_and_go_on_where_it_stopped(tiny, compute):
    generate_audience(tiny.config(), *tiny.inputs, out=tiny.out, compute=compute)
    expected = {path.name: path.read_bytes() for path in (tiny.out / "lists").iterdir()}
    for shard in (1, 3):
        (tiny.out / "checkpoints" / "lists" / f"part-000000{shard}.parquet").unlink()
    before = os.stat(tiny.out / "checkpoints" / "lists" / "part-0000002.parquet").st_mtime_ns
    arguments = [*map(str, (*tiny.inputs, tiny.out)), json.dumps(vars(tiny.config()))]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        cwd=tiny.out,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name: path.read_bytes() for path in (tiny.out / "lists").iterdir()} == expected
    assert os.stat(tiny.out / "checkpoints" / "lists" / "part-0000002.parquet").st_mtime_ns == before
    told = json.loads((tiny.out / "generation.json").read_text())
    assert (told["users"], told["users_of_this_run"]) == (10, 4)
    assert len(tables.read(tables.LISTS, tiny.out / "lists")) == 30


def test_without_ray_it_says_what_to_install(tiny, compute, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"ray_actors is 2, but Ray is not installed: pip install -r requirements-ray"):
        generate_audience(tiny.config(), *tiny.inputs, out=tiny.out, compute=compute, ray_actors=2)


def test_ray_under_torchrun_is_refused(tiny, compute, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="ray_actors is 2 in 4 processes: either shares out the shards; start one"):
        generate_audience(tiny.config(), *tiny.inputs, out=tiny.out, compute=compute, ray_actors=2)
