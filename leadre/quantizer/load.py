"""A trained quantizer on disk: ``quantizer.json`` says what was built, ``quantizer.safetensors`` holds its tensors."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from leadre.quantizer.graded_kmeans import GradedKMeans
from leadre.quantizer.network import Network
from leadre.quantizer.residual_kmeans import ResidualKMeans
from leadre.quantizer.rqvae import RQVAE

SHAPE = "quantizer.json"
TENSORS = "quantizer.safetensors"


def save(folder: Path, shape: dict[str, Any], network: Network | None) -> None:
    """Write what was built; codes of a kind without a network have a ``quantizer.json`` alone."""
    (folder / SHAPE).write_text(json.dumps(shape, indent=1))
    if network is not None:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / TENSORS)


def copy(folder: Path, out: Path) -> None:
    """Copy what `save` wrote, byte by byte."""
    for path in (folder / SHAPE, folder / TENSORS):
        if path.exists():
            shutil.copyfile(path, out / path.name)


def read_shape(folder: Path) -> dict[str, Any]:
    """The content of ``quantizer.json``: ``kind``, ``input_dim``, ``codebook_sizes``, and what else the kind needs.

    Raises:
        ValueError: If there is no such file.
    """
    path = folder / SHAPE
    if not path.is_file():
        raise ValueError(f"{path} is not there: {folder} holds no codes of this version; quantize anew")
    shape: dict[str, Any] = json.loads(path.read_text())
    return shape


def has_network(folder: Path) -> bool:
    """Whether codes were made by a network; imported, random and shuffled codes were not."""
    return (folder / TENSORS).exists()


def load(folder: Path) -> Network:
    """Build the network that made the codes in a folder, with its tensors, on the CPU.

    Raises:
        ValueError: If the kind has no network or is unknown, or a tensor is missing, too many, or of another shape.
    """
    network = _built(read_shape(folder), folder / SHAPE)
    path = folder / TENSORS
    stored = load_file(path)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    faults = [f"{name} is missing" for name in expected.keys() - stored.keys()]
    faults += [f"{name} belongs to no part" for name in stored.keys() - expected.keys()]
    faults += [
        f"{name} has the shape {list(stored[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in stored and tuple(stored[name].shape) != shape
    ]
    if faults:
        raise ValueError(
            f"{path} does not fit {SHAPE} beside it: {'; '.join(sorted(faults))}. The two were not written together: "
            "quantize anew"
        )
    network.load_state_dict(stored)
    return network.eval()


def _built(shape: dict[str, Any], path: Path) -> RQVAE | ResidualKMeans | GradedKMeans:
    sizes = shape["codebook_sizes"]
    match shape["kind"]:
        case "rqvae":
            return RQVAE(
                input_dim=shape["input_dim"],
                hidden_dims=tuple(shape["hidden_dims"]),
                code_dim=shape["code_dim"],
                levels=len(sizes),
                codebook_size=sizes[0],
                generator=torch.Generator(),
            )
        case "residual_kmeans":
            return ResidualKMeans(torch.zeros(len(sizes), sizes[0], shape["input_dim"]))
        case "graded_kmeans":
            return GradedKMeans([torch.zeros(size, shape["input_dim"]) for size in sizes])
        case kind:
            raise ValueError(
                f"{path}: kind is {kind!r}, which has no network that could code or rebuild embeddings: "
                "expected rqvae, residual_kmeans or graded_kmeans; use codes of such a quantizer"
            )
