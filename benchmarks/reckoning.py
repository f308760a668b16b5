"""How much work Gemma 3 has to do at the least, by formulas: what a measured speed is a share of.

Operations count a multiplication and its addition as two. `config` is that of the whole model, as transformers has it.
"""

from typing import Any

import torch


def vision_operations(config: Any) -> int:
    """Of encoding one picture: patch embedding, layers, and the projection of the pooled patches.

    With P patches, width d, inner width f and L layers: 2 P (3 p^2) d + L (8 P d^2 + 4 P^2 d + 4 P d f) + 2 T d D, for
    patches of p x p pixels, and T image tokens of the text's width D. Norms, activations and softmax are left out.
    """
    tower, text = config.vision_config, config.text_config
    patches, width = (tower.image_size // tower.patch_size) ** 2, tower.hidden_size
    projections = 8 * patches * width**2
    attention = 4 * patches**2 * width
    inner = 4 * patches * width * tower.intermediate_size
    embedding = 2 * patches * tower.num_channels * tower.patch_size**2 * width
    projector = 2 * config.mm_tokens_per_image * width * text.hidden_size
    return int(embedding + tower.num_hidden_layers * (projections + attention + inner) + projector)


def vision_products(config: Any, pictures: int) -> list[tuple[int, int, int]]:
    """The products of matrices (rows, inner, columns) that encoding so many pictures at once consists of."""
    tower = config.vision_config
    rows = pictures * (tower.image_size // tower.patch_size) ** 2
    width, inner = tower.hidden_size, tower.intermediate_size
    return [(rows, width, width), (rows, width, inner), (rows, inner, width)]


def prefill_operations(config: Any, tokens: int) -> int:
    """Of reading a prompt of so many tokens of text: all layers for each token, the head for the last one.

    Attention counts the pairs of tokens that see one another, in sliding layers within the window only.
    """
    text = config.text_config
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    matrices = text.hidden_size * (2 * queries + 2 * keys + 3 * text.intermediate_size)
    pairs = sum(_pairs(tokens, _sight(text, kind)) for kind in text.layer_types)
    head = 2 * text.hidden_size * text.vocab_size
    return int(2 * tokens * matrices * text.num_hidden_layers + 4 * queries * pairs + head)


def _pairs(tokens: int, sight: int | None) -> int:
    """How many (token, token before it or itself) there are, at most `sight` of them for one token."""
    near = tokens if sight is None else min(tokens, sight)
    return near * (near + 1) // 2 + (tokens - near) * near


def _sight(text: Any, kind: str) -> int | None:
    return int(text.sliding_window) if kind == "sliding_attention" else None


def decode_bytes(model: Any, rows: int, length: float) -> int:
    """What one step of so many conversations, each of `length` tokens, has to read: weights once, and each one's KV.

    The weights are the language model's as they are held; the embedding is the head, which a step reads as a whole.
    """
    return weight_bytes(model) + int(rows * cache_bytes(model.config, length, model.dtype.itemsize))


def weight_bytes(model: Any) -> int:
    """The bytes that the language model's weights take, quantisation's own numbers included."""
    language = getattr(model.model, "language_model", model.model)
    held: dict[int, int] = {}
    for weight in (*language.parameters(), *model.lm_head.parameters()):
        held[weight.data_ptr()] = weight.nbytes
        for beside in (getattr(weight, "SCB", None), getattr(getattr(weight, "quant_state", None), "absmax", None)):
            if isinstance(beside, torch.Tensor):
                held[beside.data_ptr()] = beside.nbytes
    return sum(held.values())


def cache_bytes(config: Any, length: float, itemsize: int) -> float:
    """The keys and values that the next token of a conversation of `length` tokens attends to."""
    text = config.get_text_config()
    seen = sum(min(length, _sight(text, kind) or length) for kind in text.layer_types)
    return float(seen * 2 * text.num_key_value_heads * text.head_dim * itemsize)
