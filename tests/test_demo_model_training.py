"""What makes the demo model's training fast changes nothing of what is learnt."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma3TextConfig
from transformers.models.gemma3.modeling_gemma3 import (
    Gemma3RMSNorm,
    create_masks_for_vision_model,
    eager_attention_forward,
    get_block_sequence_ids_for_mask,
)

from tools.demo_model.speed import Row, hasten, masks, plain_attention, turns


def rows_of(lengths: list[int]) -> list[Row]:
    return [([place] * length, [0.0] * length, []) for place, length in enumerate(lengths)]


def tokens(rows: list[Row]) -> int:
    return sum(len(ids) for ids, _, _ in rows)


def normed_and_gradients(module: torch.nn.Module, values: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    values = values.clone().requires_grad_()
    told = module(values)
    return [told.detach(), *torch.autograd.grad(told, [values, *module.parameters()], grad)]


def test_the_faster_norm_and_its_gradients_are_those_of_transformers() -> None:
    torch.manual_seed(1)
    plain, fast = Gemma3RMSNorm(16), Gemma3RMSNorm(16)
    torch.nn.init.normal_(plain.weight)
    fast.load_state_dict(plain.state_dict())
    hasten(fast)
    values, grad = torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    for expected, told in zip(
        normed_and_gradients(plain, values, grad), normed_and_gradients(fast, values, grad), strict=True
    ):
        torch.testing.assert_close(told, expected)


def test_a_norm_before_matrix_products_answers_in_their_format() -> None:
    layer = torch.nn.ModuleDict({"input_layernorm": Gemma3RMSNorm(16), "post_attention_layernorm": Gemma3RMSNorm(16)})
    hasten(layer)
    values = torch.randn(2, 16)
    assert torch.bfloat16 == layer["input_layernorm"](values).dtype
    assert torch.float32 == layer["post_attention_layernorm"](values).dtype


def test_the_plain_attention_is_that_of_transformers() -> None:
    torch.manual_seed(1)
    query, key, value = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    mask = masks(torch.tensor([[False] * 3 + [True] * 4 + [False] * 2] * 2), 512, torch.float32)["full_attention"]
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    expected, _ = eager_attention_forward(module, query, key, value, mask, scaling=8**-0.5)
    told, _ = plain_attention(module, query, key, value, mask, scaling=8**-0.5)
    torch.testing.assert_close(told, expected)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 50))
def test_the_masks_are_those_of_transformers(pictured: list[bool], window: int) -> None:
    types = torch.tensor([pictured])
    config = Gemma3TextConfig(hidden_size=8, sliding_window=window, attn_implementation="eager")
    expected = create_masks_for_vision_model(
        config=config,
        inputs_embeds=torch.zeros(1, len(pictured), 8),
        attention_mask=torch.ones_like(types, dtype=torch.long),
        past_key_values=None,
        position_ids=None,
        block_sequence_ids=get_block_sequence_ids_for_mask(types.long()),
    )
    for kind, mask in masks(types, window, torch.float32).items():
        assert torch.equal(expected[kind], mask)


@given(st.lists(st.integers(1, 400), max_size=40), st.integers(1, 4))
def test_every_conversation_is_learnt_by_exactly_one_process(lengths: list[int], processes: int) -> None:
    rows = rows_of(lengths)
    shares = [turns(rows, rank, processes) for rank in range(processes)]
    assert sorted(map(id, rows)) == sorted(id(row) for share in shares for row in share)


@given(st.lists(st.integers(1, 400), max_size=40))
def test_two_processes_differ_by_one_conversation_at_most(lengths: list[int]) -> None:
    rows = rows_of(lengths)
    assert abs(tokens(turns(rows, 0, 2)) - tokens(turns(rows, 1, 2))) <= max(lengths, default=0)
