"""The RQ-VAE: encoder, residual quantization and decoder (LEADRE A.1)."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from leadre.quantizer.residual import Quantized, quantize_residuals, sum_of_codes
from leadre.quantizer.rotation import rotated


class RQVAEResult(NamedTuple):
    """What a forward pass gives for B embeddings of width D, with M levels of codes of width d.

    Attributes:
        reconstruction: ``(B, D)``, in the units of `RQVAE.standardize`.
        quantized: Codes, residuals and codewords of the B embeddings.
        reconstruction_loss: scalar, the paper's L_recons, as a mean over the batch.
        quantization_loss: scalar, the paper's L_quant, as a mean over the batch.
    """

    reconstruction: Tensor
    quantized: Quantized
    reconstruction_loss: Tensor
    quantization_loss: Tensor


class RQVAE(nn.Module):
    """Embeddings to M codes and back.

    Our choice: embeddings are centered and brought to unit mean variance first (one scale for all
    dimensions, so that distances keep their ratios); multi-layer perceptrons with ReLU on both sides.

    Args:
        input_dim: Width D of the embeddings.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them reversed.
        code_dim: Width d of the codes.
        levels: Number of levels M.
        codebook_size: Number of codes K a level.
        generator: Draws the first weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        input_dim: int,
        hidden_dims: tuple[int, ...],
        code_dim: int,
        levels: int,
        codebook_size: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.encoder = _perceptron((input_dim, *hidden_dims, code_dim), generator)
        self.decoder = _perceptron((code_dim, *reversed(hidden_dims), input_dim), generator)
        self.codebooks = nn.Parameter(torch.randn(levels, codebook_size, code_dim, generator=generator))
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(()))

    @property
    def codebook_sizes(self) -> list[int]:
        """Number of codes of each level."""
        levels, size, _ = self.codebooks.shape
        return [size] * levels

    def forward(
        self,
        x: Tensor,
        *,
        beta_quant: float,
        rotation: bool = False,
        quantize: Callable[[Tensor, Tensor], Quantized] = quantize_residuals,
    ) -> RQVAEResult:
        """Code and rebuild embeddings ``(B, D)``.

        The losses are the paper's sums over dimensions and levels; our choice: the mean over the ads of the
        batch, so that the learning rate does not hang on the batch size.

        Args:
            x: ``(B, D)`` embeddings.
            beta_quant: Weight of the encoder's half of the quantization loss.
            rotation: False: the decoder's gradient goes to the encoder's output unchanged (straight through). True: it
                is turned as the output is onto the quantized vector. Our choice: once, on the sum over the levels,
                which is all that the decoder sees; a later level's residual points anywhere, and to turn each level's
                gradient by its own angle would scatter it.
            quantize: Encoder's outputs ``(B, d)`` and codebooks to codes; a balanced one may stand here.
        """
        standard = self.standardize(x)
        z = self.encoder(standard)
        quantized = quantize(z, self.codebooks)
        total = quantized.codewords.sum(0)
        rebuilt = self.decoder(rotated(z, total.detach()) if rotation else z + (total - z).detach())
        return RQVAEResult(
            reconstruction=rebuilt,
            quantized=quantized,
            reconstruction_loss=(standard - rebuilt).square().sum(-1).mean(),
            quantization_loss=quantization_loss(quantized.residuals, quantized.codewords, beta=beta_quant),
        )

    def standardize(self, x: Tensor) -> Tensor:
        """Center and scale embeddings ``(B, D)``."""
        return (x - self.mean) / self.scale

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """Embeddings ``(N, D)`` to the vectors that are quantized ``(N, d)``."""
        encoded: Tensor = self.encoder(self.standardize(x))
        return encoded

    @torch.no_grad()
    def quantize(self, x: Tensor) -> Quantized:
        """Embeddings ``(N, D)`` to codes, residuals and codewords."""
        return quantize_residuals(self.latents(x), self.codebooks)

    def encode(self, x: Tensor) -> Tensor:
        """Embeddings ``(N, D)`` to codes ``(N, M)``, int64."""
        return self.quantize(x).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``(N, M)`` to the embeddings they stand for ``(N, D)``."""
        rebuilt: Tensor = self.decoder(sum_of_codes(codes, self.codebooks))
        return rebuilt * self.scale + self.mean


def quantization_loss(residuals: Tensor, codewords: Tensor, *, beta: float) -> Tensor:
    """Pull each code to the residuals it stands for, and, ``beta`` times, the residuals to their code.

    Args:
        residuals: ``(M, B, d)``.
        codewords: ``(M, B, d)``; without a gradient (codebooks by moving averages) only the second half pulls.
        beta: The paper's beta_quant.

    Returns:
        Scalar: the sum over levels and dimensions, averaged over the batch (LEADRE A.1, L_quant).
    """
    to_codes = (residuals.detach() - codewords).square()
    to_encoder = (residuals - codewords.detach()).square()
    return (to_codes + beta * to_encoder).sum((0, 2)).mean()


def _perceptron(widths: tuple[int, ...], generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        linear = nn.Linear(width_in, width_out, device="meta").to_empty(device="cpu")  # no draw but the seeded one
        nn.init.xavier_normal_(linear.weight, generator=generator)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
