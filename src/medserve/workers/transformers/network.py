"""One pass through Gemma 3's language model, with attention masks made from positions alone.

The masks are those of transformers' `modeling_gemma3` (5.23): a token sees itself and what comes before it, the tokens
of one picture also see one another both ways, and in sliding layers all of it only within the window.
"""

from collections.abc import Sequence
from typing import Any

import torch

from medserve.errors import ModelFailed
from medserve.workers.transformers.cache import View

TEXT = -1
"""The block of a token that belongs to no picture."""


def masks(
    queries: torch.Tensor,
    keys: torch.Tensor,
    window: int,
    *,
    low: int = 0,
    blocks: tuple[torch.Tensor, torch.Tensor] | None = None,
    branches: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Who sees whom, by kind of layer: bool [rows, 1, queries, keys].

    `queries` [rows, queries] and `keys` [rows or 1, keys] are positions; sliding layers are shown the keys from the
    `low`-th on, which must be all that their window can reach. `blocks`, of the queries and of the keys, say
    to which picture a token belongs (TEXT: to none). `branches` say the same of continuations that stand side by side
    and must not see one another; every one of them sees the keys of branch 0.
    """
    query, key = queries[:, :, None], keys[:, None, :]
    seen = key <= query
    if blocks is not None:
        block, others = blocks[0][:, :, None], blocks[1][:, None, :]
        seen = seen | ((block == others) & (block != TEXT))
    if branches is not None:
        branch, others = branches[0][:, :, None], branches[1][:, None, :]
        seen = seen & ((others == 0) | (others == branch))
    near = seen[..., low:] & (key[..., low:] > query - window)
    return {"full_attention": seen[:, None], "sliding_attention": near[:, None]}


class Network:
    """The language model of a Gemma 3, with or without eyes, and the head that turns its states into logits."""

    def __init__(self, model: Any) -> None:
        self.config = model.config.get_text_config()
        if self.config._attn_implementation != "sdpa":
            raise ModelFailed("load the model with attn_implementation='sdpa': other kinds take other masks")
        self._layers = getattr(model.model, "language_model", model.model)
        self._embed = self._layers.embed_tokens
        self._head = model.lm_head
        # As in transformers: only the model without eyes caps its logits, and Gemma 3's own config has no cap.
        eyes = self._layers is not model.model
        self._cap: float | None = None if eyes else self.config.final_logit_softcapping
        self.window: int = self.config.sliding_window
        self.vocabulary: int = self.config.vocab_size
        self.device: torch.device = self._embed.weight.device
        self.dtype: torch.dtype = self._embed.weight.dtype
        self.devices: list[torch.device] = [layer.self_attn.k_proj.weight.device for layer in self._layers.layers]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings [rows, tokens, hidden] of ids; a picture's soft token may lie beyond the vocabulary."""
        return self._embed(ids.masked_fill(ids >= self.vocabulary, 0))

    def states(
        self, embeddings: torch.Tensor, positions: torch.Tensor, seen: dict[str, torch.Tensor], view: View
    ) -> torch.Tensor:
        """The last hidden states [rows, tokens, hidden] of a pass that reads and writes keys and values in `view`."""
        passed = self._layers(
            inputs_embeds=embeddings, position_ids=positions, attention_mask=seen, past_key_values=view, use_cache=True
        )
        return passed.last_hidden_state

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """What the head says of hidden states [n, hidden]: float32 [n, vocabulary]."""
        logits = self._head(states).float()
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap


def padded(rows: Sequence[Sequence[int]], device: torch.device, fill: int = 0) -> torch.Tensor:
    """Rows of different lengths as one tensor of integers, filled at the right."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], device=device)
