"""The two forms of the model hold the same numbers: safetensors in the Hub's layout, and a pair of GGUF files."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tools.demo_model import architecture, tokenizer
from tools.demo_model.gallery import SIDE
from tools.demo_model.lessons import TOKENS_A_PICTURE

NAME = "medserve-demo"
State = dict[str, torch.Tensor]


def representable(weight: torch.Tensor) -> torch.Tensor:
    """The nearest number that both bfloat16 and float16 can hold."""
    rounded = weight.to(torch.bfloat16).float()
    # below float16's normal range the two formats share only multiples of 2**-22
    tiny = torch.round(rounded * 2**22) / 2**22
    return torch.where(rounded.abs() < 2**-14, tiny, rounded)


def hub_name(key: str) -> str:
    """A weight's name as the files of Gemma 3 on the Hub have it, which every engine reads."""
    if key.startswith("model.vision_tower."):
        return "vision_tower.vision_model." + key.removeprefix("model.vision_tower.").removeprefix("vision_model.")
    if key.startswith("model.language_model."):
        return "language_model.model." + key.removeprefix("model.language_model.")
    return key.removeprefix("model.")


def processor(words: GemmaTokenizer) -> Gemma3Processor:
    """Text and pictures to numbers."""
    pictures = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_seq_length=TOKENS_A_PICTURE)
    return Gemma3Processor(pictures, words, chat_template=tokenizer.TEMPLATE, image_seq_length=TOKENS_A_PICTURE)


PREPROCESSOR = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": TOKENS_A_PICTURE,
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": SIDE, "width": SIDE},
}


def export(work: Path, target: Path) -> None:
    """Write every file of the model into the target folder."""
    target.mkdir(parents=True, exist_ok=True)
    words = tokenizer.from_pieces(work / "tokenizer.model")
    model = architecture.build(words, seed=0)
    model.load_state_dict(torch.load(work / "model.pt", map_location="cpu"))
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(representable(weight))
    hugging_face(model, words, work, target)
    state = {key: value.float() for key, value in model.state_dict().items()}
    text_gguf(state, words, work / "tokenizer.model", target / f"{NAME}.gguf")
    picture_gguf(state, target / f"{NAME}-mmproj.gguf")
    for path in target.iterdir():
        if path.is_file():
            path.chmod(0o644)


def hugging_face(model: Gemma3ForConditionalGeneration, words: GemmaTokenizer, work: Path, target: Path) -> None:
    """The folder that transformers and vLLM read."""
    with TemporaryDirectory() as scratch:
        model.to(torch.bfloat16).save_pretrained(scratch)
        for name in ("config.json", "generation_config.json"):
            shutil.copy(Path(scratch) / name, target / name)
    state = {hub_name(k): v.contiguous() for k, v in model.state_dict().items() if not k.startswith("lm_head")}
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    processor(words).save_pretrained(target)
    (target / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2) + "\n")
    shutil.copy(work / "tokenizer.model", target / "tokenizer.model")


def add_vocabulary(writer: gguf.GGUFWriter, words: GemmaTokenizer, path: Path) -> None:
    """The vocabulary with the type of each piece; the visible marks are user-defined, so that they are printed."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokens, scores, types = [], [], []
    for number in range(len(words)):
        piece = words.convert_ids_to_tokens(number)
        known = number < pieces.vocab_size()
        tokens.append(piece)
        scores.append(float(pieces.get_score(number)) if known else 0.0)
        if not known or pieces.is_control(number) or piece in tokenizer.CONTROL:
            types.append(gguf.TokenType.CONTROL)
        elif pieces.is_unknown(number):
            types.append(gguf.TokenType.UNKNOWN)
        elif pieces.is_byte(number):
            types.append(gguf.TokenType.BYTE)
        else:
            types.append(gguf.TokenType.USER_DEFINED if piece in tokenizer.VISIBLE else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types([int(kind) for kind in types])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_eot_token_id(words.convert_tokens_to_ids("<end_of_turn>"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.TEMPLATE)


TEXT_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}
PICTURE_NAMES = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def text_gguf(state: State, words: GemmaTokenizer, pieces: Path, path: Path) -> None:
    """The decoder; llama.cpp wants every norm with the one already added that Gemma adds while it runs."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_context_length(architecture.POSITIONS)
    writer.add_embedding_length(architecture.WIDTH)
    writer.add_block_count(architecture.LAYERS)
    writer.add_feed_forward_length(4 * architecture.WIDTH)
    writer.add_head_count(architecture.HEADS)
    writer.add_head_count_kv(architecture.HEADS // 2)
    writer.add_key_length(architecture.HEAD_WIDTH)
    writer.add_value_length(architecture.HEAD_WIDTH)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_freq_base_swa(1e4)
    writer.add_sliding_window(architecture.WINDOW)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_vocabulary(writer, words, pieces)
    language = "model.language_model."
    add(writer, "token_embd.weight", state[f"{language}embed_tokens.weight"])
    add(writer, "output_norm.weight", state[f"{language}norm.weight"] + 1)
    for layer in range(architecture.LAYERS):
        for theirs, ours in TEXT_NAMES.items():
            weight = state[f"{language}layers.{layer}.{theirs}.weight"]
            add(writer, f"blk.{layer}.{ours}.weight", weight + 1 if weight.ndim == 1 else weight)
    finish(writer)


def picture_gguf(state: State, path: Path) -> None:
    """The tower and the projector."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name(NAME)
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("gemma3")
    writer.add_vision_projection_dim(architecture.WIDTH)
    writer.add_vision_image_size(SIDE)
    writer.add_vision_patch_size(architecture.PATCH)
    writer.add_vision_embedding_length(architecture.WIDTH)
    writer.add_vision_feed_forward_length(3 * architecture.WIDTH)
    writer.add_vision_block_count(architecture.EYE_LAYERS)
    writer.add_vision_head_count(architecture.HEADS)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    writer.add_vision_projector_scale_factor(round(SIDE / architecture.PATCH / TOKENS_A_PICTURE**0.5))
    tower, projector = "model.vision_tower.", "model.multi_modal_projector."
    add(writer, "v.patch_embd.weight", state[f"{tower}embeddings.patch_embedding.weight"])
    add(writer, "v.patch_embd.bias", state[f"{tower}embeddings.patch_embedding.bias"])
    add(writer, "v.position_embd.weight", state[f"{tower}embeddings.position_embedding.weight"], np.float32)
    for layer in range(architecture.EYE_LAYERS):
        for theirs, ours in PICTURE_NAMES.items():
            for part in ("weight", "bias"):
                add(writer, f"v.blk.{layer}.{ours}.{part}", state[f"{tower}encoder.layers.{layer}.{theirs}.{part}"])
    for part in ("weight", "bias"):
        add(writer, f"v.post_ln.{part}", state[f"{tower}post_layernorm.{part}"])
    add(writer, "mm.input_projection.weight", state[f"{projector}mm_input_projection_weight"])
    add(writer, "mm.soft_emb_norm.weight", state[f"{projector}mm_soft_emb_norm.weight"] + 1)
    finish(writer)


def add(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, kind: type[np.floating] | None = None) -> None:
    """One tensor: matrices in float16, everything else in float32."""
    writer.add_tensor(name, weight.numpy().astype(kind or (np.float16 if weight.ndim > 1 else np.float32)))


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
