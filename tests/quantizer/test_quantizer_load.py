"""A stored quantizer is built again exactly, or refused with what was expected, what was found, and the remedy."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from leadre.quantizer.graded_kmeans import GradedKMeans
from leadre.quantizer.load import load, save
from leadre.quantizer.residual_kmeans import ResidualKMeans
from leadre.quantizer.rqvae import RQVAE

SHAPES = {
    "rqvae": {"input_dim": 6, "codebook_sizes": [5, 5, 5], "hidden_dims": [7], "code_dim": 2},
    "residual_kmeans": {"input_dim": 6, "codebook_sizes": [5, 5, 5]},
    "graded_kmeans": {"input_dim": 6, "codebook_sizes": [2, 3, 5]},
}


def _network(kind):
    generator = torch.Generator().manual_seed(0)
    if kind == "rqvae":
        return RQVAE(input_dim=6, hidden_dims=(7,), code_dim=2, levels=3, codebook_size=5, generator=generator)
    if kind == "graded_kmeans":
        return GradedKMeans([torch.randn(size, 6, generator=generator) for size in (2, 3, 5)])
    return ResidualKMeans(torch.randn(3, 5, 6, generator=generator))


@pytest.mark.parametrize("kind", SHAPES)
def test_a_stored_network_codes_and_rebuilds_as_before(tmp_path, kind):
    network, x = _network(kind), torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    save(tmp_path, {"kind": kind, **SHAPES[kind]}, network)
    again = load(tmp_path)
    assert again.codebook_sizes == SHAPES[kind]["codebook_sizes"]
    codes = network.quantize(x).codes
    assert torch.equal(again.quantize(x).codes, codes)
    assert torch.equal(again.decode(codes), network.decode(codes))


@pytest.mark.parametrize("kind", ["rqvae", "residual_kmeans"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"codebooks": torch.zeros(3, 5, 9)}, r"codebooks has the shape \[3, 5, 9\], expected \[3, 5, [26]\]"),
        ({"codebooks": torch.zeros(3, 4, 6)}, r"codebooks has the shape \[3, 4, 6\]"),
        ({"codebooks": None}, "codebooks is missing"),
        ({"other": torch.zeros(1)}, "other belongs to no part"),
    ],
)
def test_tensors_of_another_shape_or_name_are_refused(tmp_path, kind, change, told):
    save(tmp_path, {"kind": kind, **SHAPES[kind]}, _network(kind))
    path = tmp_path / "quantizer.safetensors"
    tensors = {name: value for name, value in {**load_file(path), **change}.items() if value is not None}
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=rf"quantizer.safetensors does not fit quantizer.json .*{told}.* quantize anew"
    ):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["random", "imported", "grown"])
def test_a_kind_without_a_network_is_refused(tmp_path, kind):
    save(tmp_path, {"kind": kind, "input_dim": 6, "codebook_sizes": [5]}, None)
    assert not (tmp_path / "quantizer.safetensors").exists()
    assert json.loads((tmp_path / "quantizer.json").read_text())["kind"] == kind
    with pytest.raises(ValueError, match=rf"kind is '{kind}', which has no network .* expected rqvae"):
        load(tmp_path)


def test_a_folder_without_codes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"quantizer.json is not there: .* quantize anew"):
        load(tmp_path)
