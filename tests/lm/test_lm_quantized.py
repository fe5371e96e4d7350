"""8-bit linear layers: by hand, against a reference written apart, and the beams that they leave as they were."""

import importlib
import os
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from leadre.lm import quantized
from leadre.lm.quantized import Fp8Linear, Int8Linear, quantize

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
FP8 = torch.float8_e4m3fn


def tiny(network=LlamaForCausalLM, config=LlamaConfig, **changes):
    torch.manual_seed(0)
    return network(config(**SHAPE, **changes)).eval()


def prompts(users=16, length=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 40, (users, length), generator=generator)
    mask = (torch.arange(length) < torch.randint(3, length + 1, (users, 1), generator=generator)).long()
    return ids, mask


def linear(weight, bias=None):
    weight = torch.as_tensor(weight, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(torch.as_tensor(bias))
    return layer


def test_an_integer_layer_by_hand():
    """Row (1, 2): scale 2/127, integers 64 (63.5 rounded up) and 127; row (-3, 0.3): scale 3/127, -127 and 13 (12.7).

    The input (4, -1): scale 4/127, integers 127 and -31 (-31.75 + 0.5 rounded down is -32).
    """
    layer = Int8Linear(linear([[1.0, 2.0], [-3.0, 0.3]], [0.5, 0.0]), torch.ones(2))
    assert layer.weight.tolist() == [[64, 127], [-127, 13]]
    torch.testing.assert_close(layer.scale, torch.tensor([2.0, 3.0]) / 127)
    x, scale = quantized.quantize_rows(torch.tensor([[4.0, -1.0]]), None, torch.int8)
    assert x.tolist() == [[127, -32]]
    first = (127 * 64 - 32 * 127) * float(scale) * 2 / 127 + 0.5
    second = (-127 * 127 - 32 * 13) * float(scale) * 3 / 127
    torch.testing.assert_close(layer(torch.tensor([[4.0, -1.0]])), torch.tensor([[first, second]]))


def test_smoothing_by_hand():
    """Inputs up to 100 and 1 against weights up to 1 and 4: divided by sqrt(100 / 1) = 10 and sqrt(1 / 4) = 0.5."""
    smooth = quantized.smoothing(torch.tensor([100.0, 1.0]), torch.tensor([[1.0, -4.0], [0.5, 2.0]]))
    torch.testing.assert_close(smooth, torch.tensor([10.0, 0.5]))


def test_a_channel_that_is_never_used_is_left_alone():
    smooth = quantized.smoothing(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert smooth.tolist() == [1.0, 1.0, 1.0]


def rounded(values, steps):
    """Fake quantization by its definition, a number after the other."""
    rows = []
    for row in values.tolist():
        step = max(abs(number) for number in row) / steps
        rows.append([int((number / step + 0.5) // 1) * step for number in row])
    return torch.tensor(rows)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 5), inputs=st.integers(1, 20), outputs=st.integers(1, 9), seed=st.integers(0, 1000))
def test_an_integer_layer_is_the_product_of_rounded_numbers(rows, inputs, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator)
    smooth = torch.rand(inputs, generator=generator) + 0.5
    expected = rounded(x / smooth, 127).double() @ rounded(weight * smooth, 127).double().T
    found = Int8Linear(linear(weight), smooth)(x)
    # A number midway between two integers may be rounded to either, for its last digit: a step of one of the factors.
    step = (x / smooth).abs().amax(1, keepdim=True) * (weight * smooth).abs().amax(1) / 127
    assert bool(((found - expected).abs() <= 1e-4 + 2 * step).all())
    assert float(((found - expected).abs() <= 1e-4 + 1e-3 * step).float().mean()) >= 0.5


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 40), inputs=st.integers(1, 70), outputs=st.integers(1, 40), seed=st.integers(0, 1000))
def test_both_integer_products_are_exact(rows, inputs, outputs, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, (rows, inputs), generator=generator, dtype=torch.int8)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    expected = (x.long()[:, None] * weight.long()[None]).sum(2)
    assert torch.equal(quantized.int8_product(x, weight).long(), expected)
    assert torch.equal(quantized.exact_product(x, weight).long(), expected)


def test_a_product_larger_than_float32_holds_is_exact():
    ones = torch.full((1, 4096), 127, dtype=torch.int8)
    other = ones.clone()
    other[0, 0] = 126
    assert quantized.exact_product(ones, other).item() == 127 * 127 * 4096 - 127
    assert quantized.int8_product(ones, other).item() == 127 * 127 * 4096 - 127


def test_an_8_bit_float_layer_is_the_product_of_rounded_numbers():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 17, generator=generator), torch.randn(5, 17, generator=generator)
    steps = [values.abs().amax(1, keepdim=True) / 448 for values in (x, weight)]
    numbers = [(values / step).to(FP8).float() * step for values, step in zip((x, weight), steps, strict=True)]
    torch.testing.assert_close(Fp8Linear(linear(weight))(x), numbers[0] @ numbers[1].T)


@pytest.mark.parametrize("layer", [lambda each: Int8Linear(each, torch.ones(6)), Fp8Linear])
def test_shape_data_type_bias_zeros_and_nan_go_through(layer):
    made = layer(linear(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), [1.0, 2.0, 3.0, 4.0]))
    assert made(torch.zeros(2, 3, 6)).tolist() == [[[1.0, 2.0, 3.0, 4.0]] * 3] * 2
    half = made(torch.zeros(2, 3, 6, dtype=torch.bfloat16))  # the bias is float32
    assert (half.shape, half.dtype) == ((2, 3, 4), torch.bfloat16)
    x = torch.zeros(2, 6)
    x[1, 2] = torch.nan
    assert made(x).isnan().all(1).tolist() == [False, True]


@pytest.mark.parametrize("weights", ["w8a8", "fp8"])
@pytest.mark.parametrize("network", [(LlamaForCausalLM, LlamaConfig), (Qwen3ForCausalLM, Qwen3Config)])
def test_the_body_is_quantized_and_the_head_is_not(weights, network):
    model = tiny(*network)
    head, embeddings = model.lm_head.weight.clone(), model.get_input_embeddings().weight.clone()
    quantize(model, weights, [prompts()])
    kinds = {type(layer) for layer in model.get_decoder().modules()}
    assert (Int8Linear if weights == "w8a8" else Fp8Linear) in kinds
    assert nn.Linear not in kinds
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(model.lm_head.weight, head)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)


def overlap(weights, model, **outlier):
    """The share of the best 10 of 40 tokens that stay, and that of the very best."""
    if outlier:  # as in large models, a few channels of the activations are far larger than the others
        for layer in model.model.layers:
            layer.input_layernorm.weight.data[3] *= outlier["scale"]
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight.data[:, 3] /= outlier["scale"]
    ids, mask = prompts(64)
    with torch.no_grad():
        before = model(ids, attention_mask=mask).logits[mask.bool()].topk(10).indices
        quantize(model, weights, [(ids[:32], mask[:32]), (ids[32:], mask[32:])])
        after = model(ids, attention_mask=mask).logits[mask.bool()].topk(10).indices
    return float((before[:, :, None] == after[:, None]).any(2).float().mean())


def test_most_of_the_best_tokens_stay():
    assert overlap("w8a8", tiny()) > 0.97
    assert overlap("fp8", tiny()) > 0.85


def test_smoothing_saves_the_beams_of_a_model_with_outliers(monkeypatch):
    smoothed = overlap("w8a8", tiny(), scale=300.0)
    monkeypatch.setattr(quantized, "smoothing", lambda ranges, weight: torch.ones_like(ranges))
    assert smoothed > 0.95
    assert overlap("w8a8", tiny(), scale=300.0) < smoothed - 0.02


def test_padding_does_not_count_in_the_calibration():
    ids, mask = prompts()
    padded, unmasked = torch.cat([ids, torch.full((16, 5), 7)], 1), torch.cat([mask, torch.zeros(16, 5).long()], 1)
    one, other = tiny(), tiny()
    quantize(one, "w8a8", [(ids, mask)])
    quantize(other, "w8a8", [(padded, unmasked)])
    for mine, its in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(
            mine.float(), its.float(), atol=1.01 if mine.dtype == torch.int8 else 1e-4, rtol=1e-4
        )


def test_nothing_watches_the_layers_afterwards():
    model = tiny()
    with pytest.raises(ValueError, match="calibration"):
        quantize(model, "w8a8", [])
    assert all(not layer._forward_pre_hooks for layer in model.modules())


def test_what_cannot_be_quantized_is_refused():
    with pytest.raises(ValueError, match="weights is 'int4': choose w8a8 or fp8"):
        quantize(tiny(), "int4", [prompts()])
    with pytest.raises(ValueError, match="calibration leaves 14 of 14 layers without an input"):
        quantize(tiny(), "w8a8", [])
    model = tiny()
    quantize(model, "fp8", [])
    with pytest.raises(ValueError, match="without linear layers in its body: it may be quantized already"):
        quantize(model, "w8a8", [prompts()])


def test_an_adapter_is_merged_before():
    adapted = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with pytest.raises(ValueError, match=r"adapters that are not merged at 4 layers, such as .*merge_and_unload"):
        quantize(adapted, "fp8", [])
    quantize(adapted.merge_and_unload(), "fp8", [])


@pytest.fixture(scope="module")
def fused():
    """The Triton kernels, on a GPU or interpreted, and the device."""
    if find_spec("triton") is None:
        pytest.skip("triton is not installed: its kernels are not compared with their twins")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is no GPU, and TRITON_INTERPRET=1 was not set before Python began")
    module = importlib.import_module("leadre.lm.triton_rows")
    block, module._BLOCK = module._BLOCK, 16  # so that a row has several blocks
    yield module, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module._BLOCK = block


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter calculates in numpy, which tells of NaN
@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_writes_rows_as_its_twin(fused, smoothed, dtype):
    triton, device = fused
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(37, generator=generator) + 0.5 if smoothed else None
    x = torch.randn(37, 5, generator=generator).T.to(dtype)
    x[1] = 0
    for number, largest in ((torch.int8, 127.0), (FP8, 448.0)):
        expected, scales = quantized.quantize_rows(x, smooth, number)
        on_device = None if smooth is None else smooth.to(device)
        found, made = triton.quantize_rows(x.to(device), on_device, number, largest)
        torch.testing.assert_close(made.cpu(), scales)
        # The interpreter rounds 8-bit floats down where torch rounds up to the next power of two: up to half of it.
        away = (found.cpu().float() - expected.float()).abs()
        assert bool((away <= (1.0 if number == torch.int8 else expected.float().abs() * 0.5)).all())
        assert float((away > 0).float().mean()) < 0.2
    assert made.isfinite().all()
    x[0, 0] = torch.nan
    assert not triton.quantize_rows(x.to(device), on_device, torch.int8, 127.0)[1][0].isfinite()


def test_triton_rescales_as_its_twin(fused):
    triton, device = fused
    generator = torch.Generator().manual_seed(0)
    product = torch.randint(-9999, 9999, (5, 37), generator=generator, dtype=torch.int32)
    rows, columns = torch.rand(5, generator=generator), torch.rand(37, generator=generator)
    for dtype in (torch.float32, torch.bfloat16):
        expected = quantized.rescale(product, rows, columns, dtype)
        found = triton.rescale(product.to(device), rows.to(device), columns.to(device), dtype)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-6 if dtype == torch.float32 else 1 / 64, atol=1e-30)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 16, 17, 100])
def test_products_on_a_gpu_are_those_of_the_cpu(rows):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, 64, generator=generator), torch.randn(48, 64, generator=generator)
    for layer in (Int8Linear(linear(weight), torch.ones(64)), Fp8Linear(linear(weight))):
        expected = layer(x)
        torch.testing.assert_close(layer.cuda()(x.cuda()).cpu(), expected, atol=0.3, rtol=0.02)
