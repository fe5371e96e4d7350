"""Lists for a whole user base, made in a process of their own, whose memory is read at its end.

``python -m benchmarks.user_base FOLDER [SETTING=VALUE ...]`` makes the lists of an audience and tells, as JSON, its
pace and the most memory that the process has held.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch

from benchmarks.inputs import settings, zipf_sids
from leadre import tables
from leadre.catalog import trie
from leadre.catalog.sids import in_order, names, token_names
from leadre.generation.generate import generate_audience
from leadre.lm.extend import extend

ADS, LEVELS, CODEBOOK_SIZE = 1_200, 3, 64
"""As in the quickstart."""
PROMPTS = 300
"""Different prompts; users share them."""


class Run(NamedTuple):
    """Users that got their lists each second, and the most bytes that the process held."""

    users_per_second: float
    peak_bytes: int


def write_inputs(root: Path) -> None:
    """A catalog, and the quickstart's model with random weights."""
    for name in ("catalog", "pairs", "model"):
        (root / name).mkdir(parents=True)
    sids = zipf_sids(ADS, seed=0, levels=LEVELS, codebook_size=CODEBOOK_SIZE)
    sids = sids[in_order(sids)[0]]
    num_codes = [CODEBOOK_SIZE] * LEVELS + [int(sids[:, -1].max()) + 1]
    listed = pl.DataFrame({"ad_id": _ads(), "sid": pl.Series(sids, dtype=pl.Array(pl.Int32, LEVELS + 1)).arr.to_list()})
    tables.write(tables.SIDS, listed.with_columns(names(sids).alias("name")), root / "catalog" / "sids.parquet")
    trie.save(trie.build(torch.from_numpy(sids)), root / "catalog" / "trie.safetensors")
    told = {"levels": num_codes, "tokens": token_names(num_codes)}
    (root / "catalog" / "tokens.json").write_text(json.dumps(told))
    answers = pl.DataFrame({"ad_id": _ads()[:PROMPTS]}).with_columns(following=pl.lit([], pl.List(pl.String)))
    pairs = pl.concat([_prompts(PROMPTS, behaviors=40), answers], how="horizontal")
    tables.write(tables.PAIRS, pairs.select(list(tables.PAIRS.columns)), root / "pairs" / "main.train.parquet")
    (root / "pairs" / "prompts.json").write_text(json.dumps({"soft_tokens": 0}))
    extend(settings().lm, root / "catalog", root / "pairs", out=root / "model")


def write_audience(folder: Path, users: int, *, behaviors: int, max_tokens: int) -> None:
    """The prompts of so many users, each with so many ads they clicked."""
    folder.mkdir()
    rows = _prompts(PROMPTS, behaviors=behaviors)
    part = 10_000
    for number, start in enumerate(range(0, users, part)):
        ids = [f"user{user:07d}" for user in range(start, min(start + part, users))]
        some = rows[[user % PROMPTS for user in range(len(ids))]].with_columns(user_id=pl.Series(ids))
        tables.write(tables.PROMPTS, some, folder / f"prompts-{number:07d}.parquet")
    (folder / "prompts.json").write_text(json.dumps({"max_tokens": max_tokens, "soft_tokens": 0}))


def run(root: Path, users: int, *overrides: str, behaviors: int, max_tokens: int) -> Run:
    """Make the lists of so many users in a new process, on one thread."""
    folder = root / f"{users}-{max_tokens}"
    write_audience(folder, users, behaviors=behaviors, max_tokens=max_tokens)
    command = [sys.executable, "-m", "benchmarks.user_base", str(folder), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["users"] == users, f"{told['users']} of {users} users were read"
    wrong = {name: told[name] for name in ("users_without_list", "invalid_ads", "duplicate_ads") if told[name]}
    assert not wrong, f"lists are wrong: {wrong}"
    return Run(told["users_per_second"], told["peak_bytes"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the lists of the audience in a folder, from the catalog and the model beside it."""
    folder, *overrides = sys.argv[1:] if arguments is None else arguments
    audience = Path(folder)
    root, out = audience.parent, audience / "out"
    out.mkdir()
    given = settings(*overrides)
    generate_audience(
        given.decoding, root / "model", root / "catalog", audience, out=out, compute=given.compute, ray_actors=None
    )
    told: dict[str, Any] = json.loads((out / "generation.json").read_text(encoding="utf-8"))
    sys.stdout.write(json.dumps(told | {"peak_bytes": peak_bytes()}) + "\n")


def peak_bytes() -> int:
    """The most memory that this process has held so far.

    What ``getrusage`` tells of a new process begins with the memory of its parent; Linux's own account does not.

    Raises:
        FileNotFoundError: If the system is not Linux.
    """
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(told["VmHWM"].split()[0])


def _ads() -> list[str]:
    return [f"ad{number:05d}" for number in range(ADS)]


def _prompts(count: int, *, behaviors: int) -> pl.DataFrame:
    """Different prompts of the form that the stage `pairs` gives them."""
    rng = np.random.default_rng(0)
    ads = _ads()

    def text(value: str) -> dict[str, str]:
        return {"kind": "text", "value": value}

    rows = [
        {
            "user_id": f"user{number}",
            "head": [text(f"Age^{rng.integers(18, 70)}; Region^{rng.integers(30)}.")],
            "lead": [text("Behaviors: ")],
            "behaviors": [
                [text(f"; {rng.integers(90)} days ago^click ad^"), {"kind": "ad", "value": ads[rng.integers(ADS)]}]
                for _ in range(behaviors)
            ],
            "tail": [text("Which ad is next?")],
        }
        for number in range(count)
    ]
    return pl.DataFrame(rows, schema=tables.PROMPTS.schema)


if __name__ == "__main__":
    main()
