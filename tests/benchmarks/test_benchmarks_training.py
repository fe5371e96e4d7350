import pytest
import torch

from benchmarks import beam_peers, gpu, training, training_gpu, training_peers
from benchmarks.measure import Setting
from benchmarks.training_peers import Step

TINY = {
    "vocab_size": beam_peers.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


@pytest.fixture
def setting(tmp_path, monkeypatch):
    model = beam_peers.language_model(hidden=128, layers=1).train()
    monkeypatch.setattr(training, "_model", lambda quick: model)
    return Setting(quick=True, data=tmp_path)


@pytest.mark.parametrize(
    "measure",
    [
        pytest.param(training.sft_step, marks=pytest.mark.slow),
        pytest.param(training.dpo_step, marks=pytest.mark.slow),
        training.shared_history,
    ],
)
def test_our_steps_have_the_losses_and_gradients_of_the_plain_ones(setting, measure):
    figures = list(measure(setting))
    assert all(figure.value > 0 for figure in figures)
    assert figures[0].goal is not None


def test_steps_that_differ_end_a_measurement():
    with pytest.raises(AssertionError, match=r"plain: Step\(loss=1\.0, gradient_norm=2\.0\), ours: Step\(loss=1\.0001"):
        training._same_steps(None, {"ours": Step(1.0001, 2.0), "plain": Step(1.0, 2.0)})


def test_random_batches_are_half_padding():
    rng = training_peers.np.random.default_rng(0)
    lengths = training_peers.prompt_lengths(800, middle=48, cap=400, rng=rng)
    plan = training_peers.np.array_split(training_peers.np.arange(800), 100)
    assert 0.4 < training_peers.pad_efficiency(lengths, plan) < 0.6


def test_without_a_gpu_its_figures_are_told_as_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for measure in (training_gpu.sft_use, training_gpu.dpo_step):
        (figure,) = measure(Setting(quick=True, data=tmp_path))
        assert (figure.value, figure.holds, figure.note) == (None, None, "there is no CUDA GPU here")


def test_what_runs_on_a_gpu_runs_on_a_cpu_too(monkeypatch):
    monkeypatch.setattr(training_gpu, "CAP", 48)
    device = torch.device("cpu")
    pace, use = training_gpu.use_of_the_device(TINY, 4, 1, device)
    assert pace.value > 0
    assert 0 < use.value < 1
    (times,) = training_gpu.against_trl(TINY, 16, 1, device)
    assert times.value > 0


def test_operations_are_six_times_the_weights_a_token_of_a_short_row():
    model = gpu.model_of("llama", TINY, torch.device("cpu"), torch.float32)
    head = beam_peers.VOCABULARY * 64
    body = model.num_parameters() - head
    assert training_gpu.operations_of(model, 1) == pytest.approx(6 * (body + 5 * head + 64))
