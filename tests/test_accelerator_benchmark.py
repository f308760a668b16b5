"""What is measured on an accelerator is measured here on the processor, on a checkpoint of a few megabytes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoTokenizer, Gemma3ForConditionalGeneration

from benchmarks import accelerator, reckoning
from benchmarks.accelerator import Plan, Row
from benchmarks.ceilings import Patience, Times, timed
from benchmarks.checkpoint import SHAPES, configuration, shards, tensors, write
from medserve.settings import DEMO

TINY = SHAPES["tiny"]
QUICK = Patience(warm=1, runs=2, seconds=1.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads afterwards as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in several files."""
    folder = tmp_path_factory.mktemp("tiny")
    write(folder, TINY, shard_bytes=700_000)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    """With attention in plain products of matrices, the only ones that torch counts."""
    model: Any = Gemma3ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    return Plan(folder, "cpu", 1, prompt=48, steps=8, together=(1, 4), patience=QUICK, buffer=2**22, side=64)


# --- the checkpoint -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters"), [("4b", 4_300_079_472), ("27b", 27_432_406_640)])
def test_the_full_sizes_have_as_many_parameters_as_the_published_ones(name: str, parameters: int) -> None:
    """Counted without taking their memory; the numbers are those of the Hub's own files."""
    sizes = dict(tensors(configuration(SHAPES[name])))

    assert parameters == sum(torch.Size(size).numel() for size in sizes.values())


def test_a_checkpoint_is_whole_under_the_hubs_names(folder: Path) -> None:
    """Every tensor of the index is in its file, and transformers finds all that it needs and nothing else."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(folder / file, "pt") as held:
            assert {name for name, place in index["weight_map"].items() if place == file} == set(held.keys())
    _, told = Gemma3ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)

    assert len(set(index["weight_map"].values())) > 1
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in index["weight_map"]
    assert "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight" in index["weight_map"]
    assert [] == [name for name, missing in told.items() if missing]


def test_the_tokenizer_reads_as_the_demonstration_models_and_has_gemmas_places(folder: Path) -> None:
    """The same pieces for a text, the marks where Gemma has them, and as many pieces as were asked for."""
    words, own = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(DEMO)
    text = "What is the overall shape of the lesion?\n\nround, oval or <end_of_turn> w17"
    marks = ["<pad>", "<eos>", "<bos>", "<unused94>", "<start_of_turn>", "<end_of_turn>", "\n", "<image_soft_token>"]

    assert own.convert_ids_to_tokens(own(text).input_ids) == words.convert_ids_to_tokens(words(text).input_ids)
    assert [0, 1, 2, 100, 105, 106, 107, TINY.text.vocabulary] == words.convert_tokens_to_ids(marks)
    assert TINY.text.vocabulary + 1 == len(words)


def test_activations_stay_near_one(model: Any) -> None:
    """Noise, but neither infinite nor zero, so that no shortcut for such numbers makes it quicker than a real model."""
    states = model(torch.arange(300, 340)[None], output_hidden_states=True).hidden_states[-1]

    assert 0.1 < float(states.std()) < 10


@given(st.lists(st.integers(1, 60), min_size=1), st.integers(2, 100))
def test_files_hold_every_tensor_once_and_no_more_than_they_may(sizes: list[int], most: int) -> None:
    """A tensor larger than a file may be has one for itself."""
    named = {str(number): (size,) for number, size in enumerate(sizes)}
    files = shards(named, most)

    assert list(named.items()) == [item for file in files for item in file.items()]
    assert all(len(file) == 1 or sum(2 * size for (size,) in file.values()) <= most for file in files)


# --- the reckoning --------------------------------------------------------------------------------------------------


def test_the_operations_of_encoding_a_picture_are_those_that_torch_counts(model: Any) -> None:
    """The formula against torch's own counter, which knows each matrix product and convolution."""
    size = TINY.vision.image
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.get_image_features(torch.zeros(1, 3, size, size))

    assert counter.get_total_flops() == reckoning.vision_operations(model.config)


def test_the_operations_of_reading_a_prompt_are_those_that_torch_counts(model: Any) -> None:
    """Torch counts the pairs of tokens that do not see one another too; all else is equal."""
    tokens = 100
    text = model.config.text_config
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(300, 300 + tokens)[None], logits_to_keep=1)
    near = sum(min(place, TINY.text.window) for place in range(1, tokens + 1))
    pairs = 5 * near + tokens * (tokens + 1) // 2  # five sliding layers and a full one
    unseen = 4 * text.num_attention_heads * text.head_dim * (6 * tokens**2 - pairs)

    assert counter.get_total_flops() - unseen == reckoning.prefill_operations(model.config, tokens)


def test_the_bytes_of_a_step_are_the_texts_weights_and_what_each_conversation_sees(folder: Path, model: Any) -> None:
    """Weights as the files hold them, twice as wide here; keys and values as transformers' own cache holds them."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = [torch.Size(size).numel() for name, size in tensors(configuration(TINY)) if name.startswith("language")]
    tokens = 40
    cache = model(torch.arange(300, 300 + tokens)[None]).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    assert sum(held) * 2 < index["metadata"]["total_size"]
    assert 4 * sum(held) + 3 * kept == reckoning.decode_bytes(model, rows=3, length=tokens)


def test_beyond_the_window_a_sliding_layer_reads_no_more(model: Any) -> None:
    """One layer of six sees all of a long conversation."""
    window = TINY.text.window
    one = reckoning.cache_bytes(model.config, 1, 4) / 6

    assert (5 * window + 1000) * one == reckoning.cache_bytes(model.config, 1000, 4)


# --- the measuring --------------------------------------------------------------------------------------------------


def test_runs_that_warm_up_do_not_count_and_patience_ends() -> None:
    """Two and three of them here; and one at least, however impatient."""
    done: list[int] = []
    device = torch.device("cpu")

    assert 3 == len(timed(lambda: done.append(1), device, Patience(warm=2, runs=3)).seconds)
    assert 5 == len(done)
    assert 1 == len(timed(lambda: done.append(1), device, Patience(warm=0, runs=3, seconds=0)).seconds)


def test_times_tell_the_median_and_the_spread() -> None:
    """In milliseconds, with the number of runs."""
    assert "20 (10 – 1500; 3)" == Times((0.02, 1.5, 0.01)).words


def test_every_work_is_measured_as_a_share_of_its_ceiling(plan: Plan) -> None:
    """The worker's own loader, vision and decoder on the checkpoint, one conversation and four together."""
    found = accelerator.measure(plan, "float32")

    assert ["encode a picture", "read 48 tokens", "write, 1 together", "write, 4 together"] == [
        row.work for row in found.rows
    ]
    assert ["matmul", "matmul", "bandwidth", "bandwidth"] == [row.of for row in found.rows]
    assert all(0 < row.share < 1 for row in found.rows)
    assert all(ceiling.rate > 0 for ceiling in (*found.moved, *found.multiplied))
    assert [True, False, True, False] == [row.goal is not None for row in found.rows]
    assert plan.steps - 1 == len(found.rows[2].times.seconds) == len(found.rows[3].times.seconds)
    page = "\n".join(accelerator.page([found]))
    assert "| write, 4 together |" in page
    assert "torch" in page


def test_fewer_bits_are_measured_without_goals(plan: Plan) -> None:
    """What sees keeps its bits and is not measured again; the text's weights take less."""
    plain, packed = accelerator.measure(plan, "float32"), accelerator.measure(plan, "4bit")

    assert ["read 48 tokens", "write, 1 together", "write, 4 together"] == [row.work for row in packed.rows]
    assert not any(row.goal for row in packed.rows)
    assert packed.weight_bytes < plain.weight_bytes


async def test_the_workflow_is_examined_cold_and_shared(plan: Plan) -> None:
    """By the real engine; with the picture shared it is encoded once, and the replies are the same."""
    lines = await accelerator.workflow(plan, "float32", count=1)
    cold, shared = (line.split("|") for line in lines if line.startswith(("| every", "| picture")))

    assert 1 == int(shared[2])
    assert int(cold[2]) > 1
    assert "equal replies" in lines[-1]


@pytest.mark.parametrize(("share", "words"), [(0.6, "60%: met"), (0.59, "60%: missed")])
def test_a_goal_is_met_or_missed(share: float, words: str) -> None:
    """At least so much of the ceiling."""
    row = Row("write", Times((1.0,)), "", share, "bandwidth", goal=0.6)

    assert (share >= 0.6, words) == (row.met, row.words)


def test_the_config_is_read_as_transformers_reads_the_hubs(folder: Path) -> None:
    """Five sliding layers to a full one, and the two bases of rotary positions."""
    text = AutoConfig.from_pretrained(folder).text_config

    assert ["sliding_attention"] * 5 + ["full_attention"] == text.layer_types
    assert {"sliding_attention": 10_000, "full_attention": 1_000_000} == {
        kind: rope["rope_theta"] for kind, rope in text.rope_parameters.items()
    }
