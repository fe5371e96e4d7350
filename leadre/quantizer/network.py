"""What every trained quantizer can do, whatever it is made of."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from leadre.quantizer.residual import Quantized


class Network(Protocol):
    """Embeddings to M codes and back."""

    @property
    def codebook_sizes(self) -> list[int]:
        """Number of codes of each level, K_1..K_M."""

    @property
    def codebooks(self) -> Tensor | Sequence[Tensor]:
        """One ``(K_l, d)`` codebook a level."""

    def quantize(self, x: Tensor) -> Quantized:
        """Embeddings ``(N, D)`` to codes, and what each level had to code."""

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``(N, M)`` to the embeddings they stand for ``(N, D)``."""

    def state_dict(self) -> Mapping[str, Any]:
        """All tensors by name."""
