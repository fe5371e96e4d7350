"""Our RQ-VAE and, between the same perceptrons, the ResidualVQ of vector-quantize-pytorch: equal where comparable."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import NamedTuple, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.testing import assert_close
from vector_quantize_pytorch import ResidualVQ

from benchmarks.inputs import clustered
from leadre.quantizer.residual import nearest, quantize_residuals
from leadre.quantizer.rqvae import RQVAE, RQVAEResult
from leadre.quantizer.rqvae_module import RQVAEModule

DIM, HIDDEN_DIMS, CODE_DIM, LEVELS, CODEBOOK_SIZE = 384, (512, 256, 128), 8, 4, 1024
LEARNED = {
    "learnable_codebook": True,
    "ema_update": False,
    "rotation_trick": False,
    # Its losses are means over the dimensions, ours are sums; its one loss pulls codes and encoder as ours with beta 1.
    "commitment_weight": float(CODE_DIM),
}
"""Settings under which its codebooks learn by our gradients; by default they are moving averages."""
EMA_DECAY = 0.99
MOVING = {"decay": EMA_DECAY}
"""Its default, with the decay of ``conf/quantizer/paper.yaml``, which costs no more or less."""
RESTART_EVERY = 50


class Losses(NamedTuple):
    """The losses of one batch."""

    reconstruction: Tensor
    quantization: Tensor


def embeddings(count: int, seed: int) -> Tensor:
    """Embeddings ``(N, DIM)``, fresh for each seed."""
    return clustered(count, DIM, seed=seed)


def network() -> RQVAE:
    """Our RQ-VAE as training finds it: its codebooks are residuals of vectors like those to come."""
    generator = torch.Generator().manual_seed(0)
    rqvae = RQVAE(
        input_dim=DIM,
        hidden_dims=HIDDEN_DIMS,
        code_dim=CODE_DIM,
        levels=LEVELS,
        codebook_size=CODEBOOK_SIZE,
        generator=generator,
    )
    residual = rqvae.latents(embeddings(8 * CODEBOOK_SIZE, 0))
    for codebook in rqvae.codebooks.data:
        codebook.copy_(residual[torch.randperm(len(residual), generator=generator)[:CODEBOOK_SIZE]])
        residual = residual - codebook[nearest(residual, codebook)]
    return rqvae


class LibraryRQVAE(nn.Module):
    """The library's quantizer between the perceptrons of ours, with its codebooks."""

    def __init__(self, ours: RQVAE, options: Mapping[str, bool | float]) -> None:
        super().__init__()
        self.ours = deepcopy(ours)
        self.ours.codebooks.requires_grad_(False)
        self.quantizer = ResidualVQ(dim=CODE_DIM, num_quantizers=LEVELS, codebook_size=CODEBOOK_SIZE, **options)
        for layer, codebook in zip(self.quantizer.layers, ours.codebooks.detach(), strict=True):
            layer._codebook.embed.data.copy_(codebook)
            layer._codebook.embed_avg.data.copy_(codebook)

    def forward(self, x: Tensor) -> Losses:
        """The losses, as its README adds them up."""
        standard = self.ours.standardize(x)
        self.quantized, _, losses = self.quantizer(self.ours.encoder(standard))
        return Losses(_error(standard, self.ours.decoder(self.quantized)), losses.sum())

    def codebooks(self) -> Tensor:
        """``(LEVELS, CODEBOOK_SIZE, CODE_DIM)``."""
        return torch.stack([layer._codebook.embed.detach()[0] for layer in self.quantizer.layers])

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Embeddings ``(N, DIM)`` to codes ``(N, LEVELS)``."""
        codes: Tensor = self.quantizer(self.ours.latents(x))[1]
        return codes


class Step:
    """A step of training: loss, backward, fused AdamW. It tells the loss, which is the same for all on one batch.

    Args:
        module: What is trained.
        loss_of: The loss of a batch ``(B, DIM)``, and what it is worth in the units of ours.
        optimizer: Over the module's parameters.
        after: What else a step ends with.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_of: Callable[[Tensor], tuple[Tensor, Tensor]],
        optimizer: Optimizer,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.module, self.loss_of, self.optimizer, self.after = module, loss_of, optimizer, after
        self.start = deepcopy(module.state_dict())

    def __call__(self, x: Tensor) -> float:
        """Train on one batch."""
        loss, in_our_units = self.loss_of(x)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.after()
        return in_our_units.item()

    def restart(self) -> None:
        """Go back to the weights, codebooks and averages of the start."""
        self.module.load_state_dict(self.start)


def our_step(ours: RQVAE, *, ema_decay: float | None = None) -> Step:
    """A step as the stage `codes` trains, all but Lightning's loop: code counts, schedule, metrics, restarts.

    The settings are those of ``conf/quantizer/paper.yaml``, with beta 1 as the library has it.
    """
    module = RQVAEModule(
        deepcopy(ours),
        beta_quant=1.0,
        rotation=False,
        ema_decay=ema_decay,
        quantize=quantize_residuals,
        learning_rate=3e-3,
        weight_decay=0.0,
        warmup_steps=200,
        steps=20_000,
        restart_every_steps=RESTART_EVERY,
        seed=0,
    )
    trainer = SimpleNamespace(global_step=0, log_every_n_steps=10, strategy=_OneDevice())
    module.trainer = cast(Trainer, trainer)
    module.log = _forget  # type: ignore[method-assign]
    configured = module.configure_optimizers()
    schedule = cast(LambdaLR, cast(dict[str, object], configured["lr_scheduler"])["scheduler"])

    def loss_of(x: Tensor) -> tuple[Tensor, Tensor]:
        loss = module.training_step(x)
        return loss, loss

    def after() -> None:
        schedule.step()
        trainer.global_step += 1

    return Step(module, loss_of, configured["optimizer"], after)


def perceptrons_step(ours: RQVAE) -> Step:
    """What of it is the perceptrons': nothing is quantized."""
    ours = deepcopy(ours)

    def loss_of(x: Tensor) -> tuple[Tensor, Tensor]:
        standard = ours.standardize(x)
        loss = _error(standard, ours.decoder(ours.encoder(standard)))
        return loss, loss

    return Step(ours, loss_of, _adamw([*ours.encoder.parameters(), *ours.decoder.parameters()]))


def library_step(ours: RQVAE, options: Mapping[str, bool | float]) -> Step:
    """A step with the library's quantizer, without a schedule, counts or metrics."""
    library = LibraryRQVAE(ours, options)
    in_our_units = _in_our_units(options)

    def loss_of(x: Tensor) -> tuple[Tensor, Tensor]:
        losses = library(x)
        return losses.reconstruction + losses.quantization, losses.reconstruction + in_our_units * losses.quantization

    return Step(library, loss_of, _adamw(library.parameters()))


def assert_equal_first_steps(ours: Step, other: Step, losses: tuple[float, float], *, same_codebooks: bool) -> None:
    """From the same start, one step had the same loss; with moving averages it left the same codebooks.

    A vector that lies as near to two codes may go to either, here and on each level after: it moves two codes a level.
    """
    assert_close(losses[1], losses[0], rtol=1e-5, atol=0, msg=f"the losses of one batch are {losses[0]}, {losses[1]}")
    if same_codebooks:
        network, library = cast(RQVAEModule, ours.module).network, cast(LibraryRQVAE, other.module)
        mine, theirs = network.codebooks.detach(), library.codebooks()
        others = int(((mine - theirs).abs() > 1e-5 + 1e-4 * mine.abs()).any(-1).sum())
        assert others <= 2 * LEVELS, f"{others} codes differ after one step, more than one tie explains"


def assert_ties(network: RQVAE, x: Tensor, ours: Tensor, theirs: Tensor) -> int:
    """Codes ``(N, LEVELS)`` are the same but for ties: two codes as near, to a share of 1e-5 of the squared distance.

    Beyond the level of a tie the residuals are others, so that nothing is left to compare.

    Returns:
        How many ads have another code.
    """
    rows = torch.nonzero((ours != theirs).any(1)).flatten()
    residual = network.latents(x[rows])
    same = torch.ones(len(rows), dtype=torch.bool)
    for level, codebook in enumerate(network.codebooks.detach()):
        our, their = (codebook[codes[rows, level]] for codes in (ours, theirs))
        near, far = ((residual - code).double().square().sum(-1) for code in (our, their))
        parted = same & ((far - near).abs() > 1e-5 * torch.maximum(near, far))
        assert not parted.any(), f"{int(parted.sum())} ads have other codes at level {level + 1}, and these are no ties"
        same &= ours[rows, level] == theirs[rows, level]
        residual = residual - our
    return len(rows)


def captured_step(ours: RQVAE, x: Tensor) -> Callable[[], Tensor]:
    """A step of training on one batch ``(B, DIM)`` on a GPU, captured in a CUDA graph; each call is one replay.

    Forward, backward and fused AdamW, as the training module has them. See "Whole-network capture" in PyTorch's notes
    on CUDA.
    """
    ours = deepcopy(ours)
    optimizer = AdamW(ours.parameters(), lr=1e-3, weight_decay=0, fused=True, capturable=True)

    def step() -> Tensor:
        optimizer.zero_grad()
        result: RQVAEResult = ours(x, beta_quant=0.25)
        loss = result.reconstruction_loss + result.quantization_loss
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    warmup = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    warmup.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warmup):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(warmup)
    optimizer.zero_grad()  # so that the gradients lie in the graph's own memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def gpu_seconds(work: Callable[[], object], *, times: int) -> float:
    """Mean seconds of work on a GPU, after ten times to warm up."""
    for _ in range(10):
        work()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / times


def assert_same_batch(ours: RQVAE, x: Tensor) -> None:
    """Of one batch, codes, quantized vectors and losses are the library's; with learned codebooks, gradients too.

    The library passes the decoder's gradient straight through at each level, so that the encoder gets it M times.
    """
    ours = deepcopy(ours)
    result = ours(x, beta_quant=1.0)
    codes, quantized = result.quantized.codes, result.quantized.codewords.sum(0)
    for options in (MOVING, LEARNED):
        library = LibraryRQVAE(ours, options)
        assert_close(library.eval().encode(x), codes)
        losses = library.train()(x)
        assert_close(library.quantized, quantized, atol=1e-5, rtol=1e-5)
        assert_close(losses.reconstruction, result.reconstruction_loss)
        assert_close(_in_our_units(options) * losses.quantization, result.quantization_loss)
    (losses.reconstruction + losses.quantization).backward()
    (result.reconstruction_loss + result.quantization_loss).backward(retain_graph=True)
    theirs = torch.stack([layer._codebook.embed.grad[0] for layer in library.quantizer.layers])
    _assert_near([theirs], [ours.codebooks.grad])
    _assert_near(_gradients(library.ours.decoder), _gradients(ours.decoder))
    ours.zero_grad()
    (LEVELS * result.reconstruction_loss + result.quantization_loss).backward()
    _assert_near(_gradients(library.ours.encoder), _gradients(ours.encoder))


def _gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def _assert_near(theirs: Sequence[Tensor | None], ours: Sequence[Tensor | None]) -> None:
    for their, our in zip(theirs, ours, strict=True):
        assert their is not None
        assert our is not None
        assert_close(their, our, rtol=1e-3, atol=1e-4 * float(our.abs().max()))


class _OneDevice:
    """Of Lightning's strategy what the training module asks of it, on one device."""

    def reduce(self, tensor: Tensor, reduce_op: str) -> Tensor:
        return tensor

    def broadcast(self, tensor: Tensor) -> Tensor:
        return tensor


def _forget(*_: object, **__: object) -> None:
    """In the place of Lightning's log."""


def _adamw(parameters: Iterable[nn.Parameter]) -> AdamW:
    return AdamW(parameters, lr=1e-3, weight_decay=0, fused=True)


def _in_our_units(options: Mapping[str, bool | float]) -> float:
    """The library's quantization loss is a mean over dimensions, ours a sum, and with beta 1 twice the squares."""
    return 2 * CODE_DIM / options.get("commitment_weight", 1.0)


def _error(standard: Tensor, rebuilt: Tensor) -> Tensor:
    return (standard - rebuilt).square().sum(-1).mean()
