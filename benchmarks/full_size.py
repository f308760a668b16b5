"""Writes a GGUF pair of MedGemma 4B's exact shapes with random weights, since speed does not depend on their values.

    python -m benchmarks.full_size FOLDER        about 3.3 GB: text as Q4_0 (embedding Q6_K), vision as F16

The weights of MedGemma are licensed and cannot be shipped; this stands in for them where only time and memory count.
Its answers are noise. Shapes: the published configuration of google/medgemma-4b-it.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType
from numpy.typing import NDArray

Shape = tuple[int, ...]

SPECIAL = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
WORDS = (
    "what which is are the of a in and or this that these they it does do have has be by with one two word words "
    "shape overall lesion lesions round oval irregular answer pigment network visible yes no structures dots globules "
    "streaks name those you see none colours colour names only separated commas vessels arborizing dotted linear "
    "regression blue white veil comedo like openings milia cysts compare each observation observations picture say "
    "short sentence whether consistent inconsistent then further clearly features list leaves out describe plain not "
    "diagnosis second look class fits best melanoma melanocytic nevus basal cell carcinoma benign keratosis code "
    "MEL NV BCC BKL image skin dermoscopy made on user model system"
)


@dataclass(frozen=True)
class Text:
    """The decoder of Gemma 3 4B."""

    vocabulary: int = 262_144
    width: int = 2560
    layers: int = 34
    inner: int = 10_240
    heads: int = 8
    kv_heads: int = 4
    head: int = 256
    window: int = 1024
    context: int = 131_072


@dataclass(frozen=True)
class Vision:
    """The SigLIP tower of Gemma 3, and the pooling of its patches to 256 image tokens."""

    image: int = 896
    patch: int = 14
    width: int = 1152
    layers: int = 27
    inner: int = 4304
    heads: int = 16


def text_tensors(text: Text) -> Iterator[tuple[str, Shape]]:
    """Names and shapes (rows, columns) of the decoder's tensors in GGUF's naming."""
    query, value = text.heads * text.head, text.kv_heads * text.head
    yield "token_embd.weight", (text.vocabulary, text.width)
    yield "output_norm.weight", (text.width,)
    for layer in range(text.layers):
        block = f"blk.{layer}."
        for norm in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            yield f"{block}{norm}.weight", (text.width,)
        for norm in ("attn_q_norm", "attn_k_norm"):
            yield f"{block}{norm}.weight", (text.head,)
        yield f"{block}attn_q.weight", (query, text.width)
        yield f"{block}attn_k.weight", (value, text.width)
        yield f"{block}attn_v.weight", (value, text.width)
        yield f"{block}attn_output.weight", (text.width, query)
        yield f"{block}ffn_gate.weight", (text.inner, text.width)
        yield f"{block}ffn_up.weight", (text.inner, text.width)
        yield f"{block}ffn_down.weight", (text.width, text.inner)


def vision_tensors(vision: Vision, width: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the tower's and the projector's tensors; `width` is the decoder's."""
    yield "v.patch_embd.weight", (vision.width, 3, vision.patch, vision.patch)
    yield "v.patch_embd.bias", (vision.width,)
    yield "v.position_embd.weight", ((vision.image // vision.patch) ** 2, vision.width)
    for layer in range(vision.layers):
        block = f"v.blk.{layer}."
        shapes = {
            **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (vision.width, vision.width)),
            "ffn_up": (vision.inner, vision.width),
            "ffn_down": (vision.width, vision.inner),
        }
        for norm in ("ln1", "ln2"):
            yield f"{block}{norm}.weight", (vision.width,)
            yield f"{block}{norm}.bias", (vision.width,)
        for name, shape in shapes.items():
            yield f"{block}{name}.weight", shape
            yield f"{block}{name}.bias", shape[:1]
    yield "v.post_ln.weight", (vision.width,)
    yield "v.post_ln.bias", (vision.width,)
    yield "mm.input_projection.weight", (vision.width, width)
    yield "mm.soft_emb_norm.weight", (vision.width,)


def write_text(path: Path, text: Text, random: np.random.Generator) -> None:
    """Write the decoder: Q4_0 matrices, a Q6_K embedding, F32 vectors."""
    writer = GGUFWriter(path, "gemma3")
    writer.add_name("random weights of MedGemma 4B's shapes")
    writer.add_context_length(text.context)
    writer.add_embedding_length(text.width)
    writer.add_block_count(text.layers)
    writer.add_feed_forward_length(text.inner)
    writer.add_head_count(text.heads)
    writer.add_head_count_kv(text.kv_heads)
    writer.add_key_length(text.head)
    writer.add_value_length(text.head)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)
    writer.add_sliding_window(text.window)
    _write_vocabulary(writer, text.vocabulary)
    for name, shape in text_tensors(text):
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        elif name.startswith("token_embd"):
            writer.add_tensor(name, q6_k(shape, random), raw_dtype=GGMLQuantizationType.Q6_K)
        else:
            writer.add_tensor(name, q4_0(shape, random), raw_dtype=GGMLQuantizationType.Q4_0)
    _finish(writer)


def write_vision(path: Path, vision: Vision, width: int, random: np.random.Generator) -> None:
    """Write the tower and the projector as F16, vectors and positions as F32."""
    writer = GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name("random weights of MedGemma's vision tower")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("gemma3")
    writer.add_vision_projection_dim(width)
    writer.add_vision_image_size(vision.image)
    writer.add_vision_patch_size(vision.patch)
    writer.add_vision_embedding_length(vision.width)
    writer.add_vision_feed_forward_length(vision.inner)
    writer.add_vision_block_count(vision.layers)
    writer.add_vision_head_count(vision.heads)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_mean([0.5] * 3)
    writer.add_vision_image_std([0.5] * 3)
    for name, shape in vision_tensors(vision, width):
        writer.add_tensor(name, _vision_values(name, shape, random))
    _finish(writer)


def q4_0(shape: Shape, random: np.random.Generator) -> NDArray[np.uint8]:
    """Random Q4_0 blocks (32 weights in 18 bytes: an F16 scale and 4-bit values) of variance 1/columns."""
    rows, columns = shape
    blocks = np.empty((rows * columns // 32, 18), np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(columns**-0.5 / 4.61).tobytes(), np.uint8)
    blocks[:, 2:] = random.integers(0, 256, (len(blocks), 16), np.uint8)
    return blocks.reshape(rows, -1)


def q6_k(shape: Shape, random: np.random.Generator) -> NDArray[np.uint8]:
    """Random Q6_K blocks (256 weights in 210 bytes: 6-bit values, 16 signed scales, an F16 scale) of small variance."""
    rows, columns = shape
    blocks = np.empty((rows * columns // 256, 210), np.uint8)
    blocks[:, :192] = random.integers(0, 256, (len(blocks), 192), np.uint8)
    blocks[:, 192:208] = 64
    blocks[:, 208:] = np.frombuffer(np.float16(0.35 * columns**-0.5 / 18.5 / 64).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def _vision_values(name: str, shape: Shape, random: np.random.Generator) -> NDArray[np.float16] | NDArray[np.float32]:
    if "norm" in name or ((".ln" in name or "post_ln" in name) and name.endswith("weight")):
        return np.ones(shape, np.float32)
    if len(shape) == 1 or "position" in name:
        return random.standard_normal(shape, np.float32) * np.float32(0.02)
    fan_in = int(np.prod(shape[1:])) if "projection" not in name else shape[0]
    return (random.standard_normal(shape, np.float32) * np.float32(fan_in**-0.5)).astype(np.float16)


def _write_vocabulary(writer: GGUFWriter, size: int) -> None:
    """A SentencePiece vocabulary in Gemma's layout: controls, newlines, bytes, characters, words and filler.

    Every beginning of a word is a token of its own, so that pairwise merging reaches the word.
    """
    kinds = dict.fromkeys(("<pad>", "<eos>", "<bos>", *SPECIAL), TokenType.CONTROL)
    kinds["<unk>"] = TokenType.UNKNOWN
    kinds.update({"\n" * count: TokenType.USER_DEFINED for count in (1, 2, 3, 4)})
    kinds.update({f"<0x{byte:02X}>": TokenType.BYTE for byte in range(256)})
    kinds.update({chr(code): TokenType.NORMAL for code in (*range(33, 127), 0x2581)})
    for word in (*(f"\u2581{word}" for word in WORDS.split()), *WORDS.split()):
        kinds.update({word[:end]: TokenType.NORMAL for end in range(2, len(word) + 1) if word[:end] not in kinds})
    for number in range(size - len(kinds)):
        kinds[f"\u2581w{number}"] = TokenType.NORMAL
    tokens = list(kinds)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-1e-3 * place for place in range(len(tokens))])
    writer.add_token_types([int(kind) for kind in kinds.values()])
    for name, token in {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "eot": "<end_of_turn>"}.items():
        getattr(writer, f"add_{name}_token_id")(tokens.index(token))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(folder: Path) -> tuple[Path, Path]:
    """Write the pair into `folder` and return the paths of decoder and projector."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    decoder, projector = folder / "full-size-q4_0.gguf", folder / "full-size-mmproj-f16.gguf"
    write_text(decoder, Text(), random)
    write_vision(projector, Vision(), Text().width, random)
    return decoder, projector


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for written in write(parser.parse_args().folder):
        print(f"{written}  {written.stat().st_size / 2**30:.2f} GiB")
