"""The plain control: residual k-means on the embeddings themselves, nothing learned by gradient."""

from torch import Tensor, nn

from leadre.quantizer.residual import Quantized, quantize_residuals, sum_of_codes


class ResidualKMeans(nn.Module):
    """Embeddings to M codes and back through codebooks alone.

    Args:
        codebooks: ``(M, K, D)``, as `leadre.quantizer.kmeans.residual_kmeans` finds them.
    """

    codebooks: Tensor

    def __init__(self, codebooks: Tensor) -> None:
        super().__init__()
        self.register_buffer("codebooks", codebooks)

    @property
    def codebook_sizes(self) -> list[int]:
        """Number of codes of each level."""
        levels, size, _ = self.codebooks.shape
        return [size] * levels

    def quantize(self, x: Tensor) -> Quantized:
        """Embeddings ``(N, D)`` to codes, residuals and codewords."""
        return quantize_residuals(x, self.codebooks)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``(N, M)`` to the embeddings they stand for ``(N, D)``."""
        return sum_of_codes(codes, self.codebooks)
