"""What makes a step of training fast on a CPU changes nothing of what is learnt.

The usual ways are made for large models; in one of 128 channels most of their time is spent around the products.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

Row = tuple[list[int], list[float], list[int]]
"""A conversation as ids, the weight of each as a target, and its pictures."""


def plain_attention(
    _module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **_rest: object,
) -> tuple[torch.Tensor, None]:
    """Attention in two products; going backwards it is much faster on short texts than torch's fused CPU kernel."""
    batch, heads, length, width = query.shape
    groups = batch * key.shape[1]
    flat = (query * scaling).reshape(groups, -1, width)
    scores = torch.bmm(flat, key.reshape(groups, length, width).transpose(1, 2)).view(batch, heads, length, length)
    with torch.autocast(scores.device.type, enabled=False):  # which would widen the scores; softmax adds up in float32
        shares = (scores + attention_mask.to(scores.dtype)).softmax(-1)
    mixed = torch.bmm(shares.view(groups, -1, length), value.reshape(groups, length, width))
    return mixed.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def masks(pictured: torch.Tensor, window: int, kind: torch.dtype) -> dict[str, torch.Tensor]:
    """What each token may look at, as Gemma 3 has it: what stands before it, and all tokens of its own picture.

    `pictured` says which tokens are of a picture, shape (batch, length). Fillings stand behind, where nothing looks.
    The same masks as those of transformers, whose making takes a twentieth of a step on a CPU.
    """
    length = pictured.shape[1]
    place = torch.arange(length, device=pictured.device)
    begins = pictured & ~F.pad(pictured, (1, 0))[:, :-1]
    picture = torch.where(pictured, begins.cumsum(1), -place - 1)
    seen = (place <= place[:, None]) | (picture[:, None, :] == picture[:, :, None])
    near = seen if length <= window else seen & (place > place[:, None] - window)
    lowest = torch.finfo(kind).min
    full, sliding = (torch.zeros_like(m, dtype=kind).masked_fill_(~m, lowest).unsqueeze(1) for m in (seen, near))
    return {"full_attention": full, "sliding_attention": sliding}


class Norm(torch.autograd.Function):
    """Gemma's RMSNorm with a backward pass of its own: half the time of the one that torch derives on a CPU."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, weight: torch.Tensor, eps: float, kind: torch.dtype) -> torch.Tensor:
        """Values over their root mean square, times one plus the weight, in `kind`."""
        wide = values.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        normed = wide * scale
        ctx.save_for_backward(normed, scale, weight)
        ctx.kind = values.dtype
        return torch.addcmul(normed, normed, weight).to(kind)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """What the values and the weight are to change by."""
        normed, scale, weight = ctx.saved_tensors
        grad = grads[0].float()
        change = torch.mul(grad, normed).flatten(0, -2).sum(0)
        grad = torch.addcmul(grad, grad, weight)
        along = torch.mul(grad, normed).mean(-1, keepdim=True)
        return torch.addcmul(grad, normed, along, value=-1).mul_(scale).to(ctx.kind), change, None, None


def norm(module: nn.Module, narrow: bool, values: torch.Tensor) -> torch.Tensor:
    """The forward pass of a norm; narrow where products in bf16 follow, each of which would cast what it is given."""
    told: torch.Tensor = Norm.apply(values, module.weight, module.eps, torch.bfloat16 if narrow else values.dtype)
    return told


def hasten(model: nn.Module) -> None:
    """Put the norms of a language model's layers into their faster form."""
    for name, module in model.named_modules():
        if isinstance(module, Gemma3RMSNorm):
            narrow = name.endswith(("input_layernorm", "pre_feedforward_layernorm"))
            module.forward = partial(norm, module, narrow)


AttentionInterface.register("plain", plain_attention)
AttentionMaskInterface.register("plain", eager_mask)


def turns(rows: list[Row], rank: int, processes: int) -> list[Row]:
    """One process's part of the conversations, nearly as long as every other's: they wait for one another each step."""
    order = [*range(processes), *reversed(range(processes))]
    longest_first = sorted(rows, key=lambda row: len(row[0]), reverse=True)
    return [row for place, row in enumerate(longest_first) if order[place % len(order)] == rank]
