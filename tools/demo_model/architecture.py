"""The demo model is a stock `Gemma3ForConditionalGeneration`, only small: nothing in it is special to this project."""

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GenerationConfig,
    SiglipVisionConfig,
)
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

from tools.demo_model.gallery import SIDE
from tools.demo_model.lessons import SOFT, TOKENS_A_PICTURE

PATCH, WIDTH, LAYERS, EYE_LAYERS, HEADS, HEAD_WIDTH = 8, 128, 6, 5, 4, 32
WINDOW, POSITIONS = 512, 8192


def build(tokenizer: GemmaTokenizer, seed: int) -> Gemma3ForConditionalGeneration:
    """A fresh model with the start values that make so small a one learn."""
    ids = tokenizer.convert_tokens_to_ids
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=HEAD_WIDTH,
        query_pre_attn_scalar=HEAD_WIDTH,
        sliding_window=WINDOW,
        max_position_embeddings=POSITIONS,
        initializer_range=0.03,
        # five sliding layers to one full layer: the pattern that llama.cpp takes for granted
        layer_types=["full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(LAYERS)],
    )
    vision = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=EYE_LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=TOKENS_A_PICTURE,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids(SOFT),
        eos_token_id=[1, ids("<end_of_turn>")],
        initializer_range=0.03,
    )
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        # transformers starts the projection at zero, from which the picture would never be heard
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.05)
        model.model.vision_tower.embeddings.position_embedding.weight.copy_(grid_positions(SIDE // PATCH, WIDTH) * 0.5)
    model.generation_config = GenerationConfig(
        bos_token_id=2, pad_token_id=0, eos_token_id=[1, ids("<end_of_turn>")], do_sample=True, top_k=64, top_p=0.95
    )
    return model


def grid_positions(side: int, width: int) -> torch.Tensor:
    """Sines and cosines of row and column, from which the learnt positions start."""
    rows, columns = torch.meshgrid(torch.arange(side).float(), torch.arange(side).float(), indexing="ij")
    frequency = 100 ** -(torch.arange(width // 4).float() / (width // 4))
    waves = [f(axis.reshape(-1, 1) * frequency) for axis in (rows, columns) for f in (torch.sin, torch.cos)]
    return torch.cat(waves, 1)
