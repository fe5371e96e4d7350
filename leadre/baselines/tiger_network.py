"""TIGER's network: a T5 that reads the S-IDs of a user's ads and writes the S-ID of the next (Rajput et al. 2023)."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import T5Config, T5Model
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5Attention

from leadre.baselines.tiger_readings import Batch
from leadre.catalog.trie import Trie, children


class Tiger(nn.Module):
    """A T5 from scratch over S-ID tokens, a few tokens for users, and no text (Rajput et al. 2023, 3.2).

    A reading is the user's token and then the codes of some ads, oldest first, as one token a code and level. Its
    targets are ads that followed: each sees the reading up to some ad.

    Our choice, so that all prefixes of a history are learned in one reading: an ad sees itself and the ads before it,
    where T5's encoder sees both sides. A target needs then be told which of the ads is its latest: its attention to
    the reading has a bias for how many ads ago each one was, learned a head, as T5's other attentions have for tokens.

    Our choice: a code's probability is taken among the codes that lead to an ad of the catalog, in training as in
    decoding. The probabilities of all ads add up to 1, and nothing has to be learned of which S-IDs there are: with a
    softmax over all codes, most of a short training goes into that.

    Args:
        trie: Of the catalog's N S-IDs, of L levels.
        codes: Number of codes of each level.
        user_tokens: Number of tokens that users share.
        max_ads: Ads that a reading may have.
        width: Of the hidden states, D.
        heads: Of each attention, H.
        head_width: Of a head's keys and values.
        inner: Of the feed-forward layers.
        encoder_layers: Blocks of the encoder.
        decoder_layers: Blocks of the decoder.
        dropout: Share of activations that training leaves out; of the attentions' weights it leaves out none.
    """

    def __init__(
        self,
        *,
        trie: Trie,
        codes: Sequence[int],
        user_tokens: int,
        max_ads: int,
        width: int,
        heads: int,
        head_width: int,
        inner: int,
        encoder_layers: int,
        decoder_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.codes = tuple(codes)
        self.levels = len(self.codes)
        self.nodes: Tensor  # (N, L) the node of each ad at each level
        self.register_buffer("nodes", nodes_of_ads(trie), persistent=False)
        for level in range(self.levels):
            self.register_buffer(f"trie_codes_{level}", trie.codes[level], persistent=False)
            self.register_buffer(f"trie_first_child_{level}", trie.first_child[level], persistent=False)
        self.max_ads = max_ads
        self.user_offset = sum(codes)
        self.start_token = self.user_offset + user_tokens
        config = T5Config(
            vocab_size=self.start_token + 1,
            d_model=width,
            d_kv=head_width,
            num_heads=heads,
            d_ff=inner,
            num_layers=encoder_layers,
            num_decoder_layers=decoder_layers,
            dropout_rate=dropout,
        )
        config._attn_implementation = "eager"  # every attention has a bias of its own
        self.t5 = T5Model(config)
        for module in self.t5.modules():
            if isinstance(module, T5Attention):
                module.dropout = 0.0  # our choice: to draw for every pair of tokens takes a fifth of a step on a CPU
        self.nearness = nn.Embedding(1 + max_ads, heads)  # 0: the user's token; 1 + n: n ads lie between
        nn.init.zeros_(self.nearness.weight)

    @property
    def trie(self) -> Trie:
        """The catalog's trie, where the network is."""
        kept = [[self.get_buffer(f"trie_{name}_{n}") for n in range(self.levels)] for name in ("codes", "first_child")]
        return Trie(tuple(kept[0]), tuple(kept[1]))

    def tokens_of(self, level: int, nodes: Tensor) -> Tensor:
        """Token ids of the codes of a level's nodes, of any shape; -1 gives that of node 0."""
        codes = self.get_buffer(f"trie_codes_{level}")[nodes.clamp(min=0)]
        return codes.long() + sum(self.codes[:level])

    def sids_of(self, ads: Tensor) -> Tensor:
        """Token ids ``(..., L)`` of the S-IDs of catalog rows ``(...)``."""
        nodes = self.nodes[ads]
        return torch.stack([self.tokens_of(level, nodes[..., level]) for level in range(self.levels)], -1)

    def read(self, users: Tensor, ads: Tensor) -> Tensor:
        """The encoder's states ``(B, 1 + A L, D)`` of readings.

        Args:
            users: ``(B,)`` which of the users' tokens begins each reading.
            ads: ``(B, A)`` catalog rows of the ads, oldest first. What pads a short reading on the right, be it -1, is
                seen by no ad before it.
        """
        tokens = torch.cat([self.user_offset + users[:, None], self.sids_of(ads).flatten(1)], 1)
        ad = self._ad_of_token(ads.shape[1], tokens.device)
        mask = additive(ad[None, :] <= ad[:, None])[None, None].expand(len(tokens), -1, -1, -1)
        encoded = self.t5.encoder(input_ids=tokens, attention_mask=mask)
        return cast(BaseModelOutput, encoded).last_hidden_state  # type: ignore[return-value]  # it is never None

    def view(self, seen: Tensor, num_ads: int) -> Tensor:
        """What targets see of a reading, as a bias ``(B, H, P, 1 + A L)`` of attention.

        Args:
            seen: ``(B, P)`` how many of the reading's ads come before each target.
            num_ads: A.
        """
        ad = self._ad_of_token(num_ads, seen.device)
        between = seen[..., None] - ad  # (B, P, S): ads between the ad of a token and the target
        place = torch.where(ad == 0, 0, 1 + between.clamp(0, self.max_ads - 1))
        bias = self.nearness(place).permute(0, 3, 1, 2)
        return cast(Tensor, bias + additive((between >= 0) | (ad == 0))[:, None])

    def write(self, states: Tensor, view: Tensor, tokens: Tensor, cache: EncoderDecoderCache | None = None) -> Tensor:
        """The decoder's states ``(B, P, l, D)`` after each token of P targets that share a reading.

        The targets know nothing of each other.

        Args:
            states: ``(B, S, D)`` of the readings.
            view: ``(B, H, P, S)`` what each target sees of them.
            tokens: ``(B, P, l)``: the start and codes.
            cache: What was written before: ``B P`` rows of the targets' tokens, ``B`` rows of the readings. Changed.
        """
        users, targets, length = tokens.shape
        decoder: Any = self.t5.decoder
        hidden = decoder.dropout(decoder.embed_tokens(tokens.flatten(0, 1)))  # (B P, l, D)
        places = torch.arange(length, device=tokens.device)
        mask = additive(places[None, :] <= places[:, None])[None, None] if length > 1 else None
        seen = view.repeat_interleave(length, 2)  # (B, H, P l, S)
        bias = None
        for block in decoder.block:
            own, across, forward = block.layer
            hidden, bias, _ = own(hidden, attention_mask=mask, position_bias=bias, past_key_values=cache)
            # The targets of a reading are so many queries to it: its keys are neither copied nor reordered.
            together = hidden.view(users, targets * length, -1)
            together = across(together, key_value_states=states, position_bias=seen, past_key_values=cache)[0]
            hidden = forward(together).view_as(hidden)
        hidden = decoder.dropout(decoder.final_layer_norm(hidden))
        return cast(Tensor, hidden.view(users, targets, length, -1))

    def logprobs(self, states: Tensor, level: int, nodes: Tensor) -> Tensor:
        """Log-probabilities ``(R, K)`` of a level's codes, minus infinity for a code that leads to no ad.

        The head is the embedding and its input is scaled, as in T5.

        Args:
            states: ``(R, D)`` of the decoder.
            level: The level, from 0.
            nodes: ``(R,)`` of the level above, that are to be continued; of -1, which has no children, nothing is told.
        """
        first = sum(self.codes[:level])
        rows = self.t5.shared.weight[first : first + self.codes[level]]
        logits = nn.functional.linear(states * states.shape[-1] ** -0.5, rows).float()
        found = children(self.trie, level, nodes)
        leads = torch.zeros_like(logits, dtype=torch.bool)
        leads[found.parent, self.get_buffer(f"trie_codes_{level}")[found.node].long()] = True
        return logits.masked_fill(~leads, -torch.inf).log_softmax(-1)

    def forward(self, users: Tensor, ads: Tensor, seen: Tensor, targets: Tensor) -> Tensor:
        """Log-probability ``(B, P)`` of the target ads ``(B, P)`` after the first ``seen`` ``(B, P)`` ads."""
        start = torch.full_like(targets[..., None], self.start_token)
        tokens = torch.cat([start, self.sids_of(targets)[..., :-1]], 2)
        states = self.write(self.read(users, ads), self.view(seen, ads.shape[1]), tokens).flatten(0, 1)
        nodes = self.nodes[targets.flatten()]  # (B P, L)
        told = torch.zeros_like(nodes[:, 0], dtype=torch.float32)
        above = torch.zeros_like(nodes[:, 0])
        for level, below in enumerate(nodes.unbind(1)):
            code = self.get_buffer(f"trie_codes_{level}")[below].long()
            told = told + self.logprobs(states[:, level], level, above).gather(1, code[:, None])[:, 0]
            above = below
        return told.view_as(targets)

    def loss(self, batch: Batch) -> Tensor:
        """Negative log-likelihood of the targets' S-IDs, summed over the part's targets, by the step's."""
        told: Tensor = self(batch.users, batch.ads, batch.seen, batch.targets)
        return -(batch.weights * told).sum() / batch.total

    def new_cache(self) -> EncoderDecoderCache:
        """An empty cache for `write`."""
        return EncoderDecoderCache(DynamicCache(), DynamicCache())

    def _ad_of_token(self, num_ads: int, device: torch.device) -> Tensor:
        """Which ad each token of a reading belongs to, from 1; 0 is the user's token."""
        place = torch.arange(1 + num_ads * self.levels, device=device)
        return (place + self.levels - 1) // self.levels


def nodes_of_ads(trie: Trie) -> Tensor:
    """The node of each catalog row at each level, ``(N, L)``."""
    rows = torch.arange(len(trie.codes[-1]), device=trie.codes[-1].device)
    return torch.stack([torch.searchsorted(ends, rows, right=True) - 1 for ends in leaves(trie)], 1)


def leaves(trie: Trie) -> list[Tensor]:
    """Level ``l``: ``(n_l + 1,)``; the ads below node ``i`` are the catalog rows ``[i]`` to ``[i + 1] - 1``."""
    ends = [torch.arange(len(trie.codes[-1]) + 1, device=trie.codes[-1].device)]
    for first in reversed(trie.first_child[1:]):
        ends.insert(0, ends[0][first.long()])
    return ends


def additive(seen: Tensor) -> Tensor:
    """A mask to add to attention: 0 where something is seen, else minus infinity."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)
