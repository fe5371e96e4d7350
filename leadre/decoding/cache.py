"""A key-value cache with room behind the prompt: what is read later is written there, and nothing is copied."""

from typing import cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RoomyLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # Transformers leaves it untyped
    """The keys and values of one layer of the model.

    Transformers' own growing cache copies the whole prompt whenever a token is added; this one copies it once.

    Args:
        room: Tokens that are expected behind the first ones. More are taken too, for a copy of everything.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self.length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers ``(B, H, T + room, D)``."""
        self.keys = _with_room(key_states, self.room)
        self.values = _with_room(value_states, self.room)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write ``(B, H, S, D)`` behind what is there; give all that has been written so far, as views."""
        start, self.length = self.length, self.length + key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return key_states, value_states
        keys, values = cast(Tensor, self.keys), cast(Tensor, self.values)
        if self.length > keys.shape[2]:
            missing = self.length - keys.shape[2] + self.room
            self.keys = keys = _with_room(keys, missing)
            self.values = values = _with_room(values, missing)
        keys[:, :, start : self.length] = key_states
        values[:, :, start : self.length] = value_states
        return keys[:, :, : self.length], values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must have."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens written so far."""
        return self.length

    def get_max_length(self) -> int:
        """-1: no maximum."""
        return -1


def roomy_cache(num_layers: int, *, room: int) -> Cache:
    """A cache of `RoomyLayer` for a model of so many layers."""
    return Cache(layers=[RoomyLayer(room) for _ in range(num_layers)])


def _with_room(states: Tensor, room: int) -> Tensor:
    batch, heads, length, size = states.shape
    roomy = torch.empty(batch, heads, length + room, size, dtype=states.dtype, device=states.device)
    roomy[:, :, :length] = states
    return roomy
