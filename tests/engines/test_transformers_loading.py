"""Safetensors that cannot be loaded say why, by the right name, with the next step, before any memory is taken."""

import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from medserve import machine, process
from medserve.engines import transformers
from medserve.errors import ModelFailed, NotSupported, WeightsCorrupt, WeightsMissing
from medserve.generation import Message, collect
from medserve.process import Progress
from medserve.reports import DEMO_WEIGHTS
from medserve.settings import DEMO, Limits, Settings
from medserve.threads import in_thread
from medserve.workers.transformers import folder
from medserve.workers.transformers.folder import Examined, Spec, examine, plain, precision, smaller
from tests.engines.checkpoints import change, copied, in_two, parts, text_alone, write
from tests.engines.subjects import SAFETENSORS, ask, computing, picture

pytestmark = pytest.mark.anyio

QUESTION = "Which colours does the lesion have? Answer with colour names only, separated by commas."


def spec(path: Path = DEMO, **changes: Any) -> Spec:
    return replace(Spec(Path(), path, context=2048, slots=2, threads=1), **changes)


def refused(path: Path) -> ModelFailed:
    """The error with which a folder is refused."""
    with pytest.raises(ModelFailed) as caught:
        examine(spec(path))
    assert "/" not in caught.value.message
    return caught.value


# --- what a folder says ----------------------------------------------------------------------------------------------


def test_a_whole_model_is_told_by_its_sizes() -> None:
    """What the demo model's card says of it, without loading it."""
    found = examine(spec())

    assert ("Gemma3ForConditionalGeneration", 6, 1536) == (found.architecture, found.text.layers, found.text.vocabulary)
    assert found.vision is not None
    assert (64, 16) == (found.vision.size, found.vision.tokens)
    assert 2048 == found.context
    assert 8192 == examine(spec(context=131_072)).context


Spoil = Callable[[Path], object]
LIES: dict[str, tuple[Spoil, type[ModelFailed], str]] = {
    "another architecture": (
        lambda at: change(at / "config.json", architectures=["LlamaForCausalLM"]),
        WeightsCorrupt,
        "names the architecture 'LlamaForCausalLM'",
    ),
    "no architecture": (lambda at: change(at / "config.json", architectures=None), WeightsCorrupt, "architecture None"),
    "too few layers": (
        lambda at: change(at / "config.json", text_config={"num_hidden_layers": 5}),
        WeightsCorrupt,
        "of which config.json says nothing",
    ),
    "too many layers": (
        lambda at: change(at / "config.json", text_config={"num_hidden_layers": 7}),
        WeightsCorrupt,
        "the weights lack layers.6",
    ),
    "absurdly many layers": (
        lambda at: change(at / "config.json", text_config={"num_hidden_layers": 10**9}),
        WeightsCorrupt,
        "layers, which cannot be",
    ),
    "wider than it is": (
        lambda at: change(at / "config.json", text_config={"hidden_size": 256}),
        WeightsCorrupt,
        r"of the shape \[1536, 256\] and the weights hold \[1536, 128\]",
    ),
    "a size that is a text": (
        lambda at: change(at / "config.json", text_config={"hidden_size": "wide"}),
        WeightsCorrupt,
        "hidden_size that cannot be",
    ),
    "no vision part": (lambda at: change(at / "config.json", vision_config=None), WeightsCorrupt, "no vision part"),
    "tokens that are no square": (
        lambda at: change(at / "config.json", mm_tokens_per_image=17),
        WeightsCorrupt,
        "do not go together",
    ),
    "pictures of another size": (
        lambda at: change(at / "processor_config.json", image_processor={"size": {"height": 32, "width": 32}}),
        WeightsCorrupt,
        "another size than the 64 pixels",
    ),
    "code of its own": (
        lambda at: change(at / "config.json", auto_map={"AutoModel": "model.Model"}),
        ModelFailed,
        "auto_map.*never done",
    ),
    "code for its words": (
        lambda at: change(at / "tokenizer_config.json", auto_map={"AutoTokenizer": "words.Words"}),
        ModelFailed,
        "tokenizer_config.json wants to run code",
    ),
    "quantised before": (
        lambda at: change(at / "config.json", quantization_config={"quant_method": "awq"}),
        ModelFailed,
        "quant_method 'awq'",
    ),
    "no config": (lambda at: (at / "config.json").unlink(), WeightsMissing, "config.json is missing"),
    "a config cut short": (
        lambda at: (at / "config.json").write_text('{"architectures": ['),
        WeightsCorrupt,
        "config.json is no JSON",
    ),
    "no words": (lambda at: (at / "tokenizer.json").unlink(), WeightsMissing, "tokenizer.json is missing"),
    "words cut short": (
        lambda at: (at / "tokenizer.json").write_text((at / "tokenizer.json").read_text()[:1000]),
        WeightsCorrupt,
        "tokenizer.json is no JSON",
    ),
    "no words in the words' file": (
        lambda at: (at / "tokenizer.json").write_text('{"model": {"type": "BPE"}}'),
        WeightsCorrupt,
        "tokenizer.json holds no vocabulary",
    ),
    "no weights": (lambda at: (at / "model.safetensors").unlink(), WeightsMissing, "holds no safetensors"),
    "pickles alone": (
        lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"),
        WeightsMissing,
        "pickles.*never loaded",
    ),
    "a missing part": (
        lambda at: (in_two(at) / "model-00002-of-00002.safetensors").unlink(),
        WeightsMissing,
        "model-00002-of-00002.safetensors, a part of the weights, is missing",
    ),
    "an index that leads elsewhere": (
        lambda at: (
            (at / "model.safetensors").rename(at / "other.safetensors"),
            (at / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../other.safetensors"}}'),
        ),
        WeightsCorrupt,
        "no safetensors of this folder",
    ),
    "a web page": (
        lambda at: (at / "model.safetensors").write_text("<!doctype html><title>401</title>"),
        WeightsCorrupt,
        "model.safetensors is no safetensors file",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_lies_is_found_out(tmp_path: Path, lie: str) -> None:
    """Each in the words that say what to mend."""
    spoil, kind, words = LIES[lie]
    at = copied(tmp_path / "model")
    spoil(at)
    error = refused(at)

    assert type(error) is kind
    with pytest.raises(ModelFailed, match=words):
        raise error


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.9999])
def test_weights_that_are_cut_short(tmp_path: Path, share: float) -> None:
    """However much is missing."""
    at = copied(tmp_path / "model")
    content = (at / "model.safetensors").read_bytes()
    (at / "model.safetensors").write_bytes(content[: int(len(content) * share)])

    assert type(refused(at)) is WeightsCorrupt


def test_a_tensor_that_is_not_as_long_as_its_shape(tmp_path: Path) -> None:
    """Whoever wrote the header may have meant to read beyond the end."""
    at = copied(tmp_path / "model")
    header, content = parts(at / "model.safetensors")
    first = next(name for name in header if name != "__metadata__")
    header[first]["shape"] = [2**40]
    write(at / "model.safetensors", header, content)

    assert "no safetensors file" in refused(at).message


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """Its name is told and no path."""
    assert "the folder none does not exist" in refused(tmp_path / "none").message


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    """It is there: what is told is the engine that reads such files."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "model.gguf is a file; name the folder" in refused(tmp_path / "model.gguf").message


def test_the_fingerprint_is_that_of_the_weights(tmp_path: Path) -> None:
    """Other names of files and other splits are the same weights; one number changed is another model."""
    at = copied(tmp_path / "model")
    whole = examine(spec(at)).fingerprint
    header, content = parts(at / "model.safetensors")
    entry = header["language_model.model.layers.5.mlp.down_proj.weight"]
    other = bytearray(content)
    other[entry["data_offsets"][0]] ^= 1
    split = examine(spec(in_two(copied(tmp_path / "split")))).fingerprint
    write(at / "model.safetensors", header, bytes(other))

    assert 64 == len(whole)
    assert whole == split
    assert whole != examine(spec(at)).fingerprint


def test_the_demonstration_model_is_known_whatever_its_folder_is_called(tmp_path: Path) -> None:
    """Its reports have to say so; other weights go by the name of their folder, or the one they were saved under."""
    at = copied(tmp_path / "weights")
    assert DEMO_WEIGHTS == examine(spec(at)).title == examine(spec(in_two(copied(tmp_path / "split")))).title

    header, content = parts(at / "model.safetensors")
    write(at / "model.safetensors", header, bytes(len(content)))
    assert "weights" == examine(spec(at)).title
    change(at / "config.json", _name_or_path="google/medgemma-4b-it")
    assert "google/medgemma-4b-it" == examine(spec(at)).title


@pytest.mark.parametrize(
    "written",
    [
        "language_model.model.layers.0.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
    ],
)
def test_names_of_every_version_are_one(written: str) -> None:
    """As the hub's files, transformers' newer ones and models of text alone have them."""
    assert "layers.0.mlp.up_proj.weight" == plain(written)


# --- precision and memory --------------------------------------------------------------------------------------------


def test_defect_003_7_float16_is_refused_with_the_reason() -> None:
    """Gemma 3's activations do not fit into it."""
    with pytest.raises(ModelFailed, match="65504"):
        precision(spec(precision="float16"), gpu=True)


@pytest.mark.parametrize(("able", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_precision_follows_the_processor(monkeypatch: pytest.MonkeyPatch, able: bool, chosen: str) -> None:
    """bfloat16 where it is computed with, float32 where it would be slower; a GPU is taken to have it."""
    monkeypatch.setattr(machine, "computes_bfloat16", lambda: able)

    assert chosen == precision(spec(), gpu=False)
    assert "bfloat16" == precision(spec(), gpu=True)
    assert "float32" == precision(spec(precision="float32"), gpu=True)


def medgemma() -> Examined:
    """A model of the sizes of MedGemma 4B, by its config alone."""
    text = folder.Text(262_208, 2560, 10_240, 34, 8, 4, 256, 131_072)
    vision = folder.Vision(1152, 4304, 27, 3, 896, 14, 256)
    named = (*text.tensors(), *vision.tensors(text.hidden))
    tensors = {name: folder.Tensor("x", "BF16", shape, 0) for name, shape in named}
    return Examined(folder.SEEING, text, vision, tensors, 8192, "", "")


def test_the_need_of_medgemma() -> None:
    """The numbers of its card: 4.3 thousand million weights; KV of 139 KB a token, as measured."""
    found = medgemma()
    need = found.need(spec(context=8192), "bfloat16")

    assert 4.3 == pytest.approx(found.parameters / 1e9, abs=0.01)
    assert 8.6e9 == pytest.approx(need.weights + need.vision, rel=0.02)
    assert 139_264 == found.cache_bytes(2)
    assert need.cache == 2 * 8192 * 139_264 + need.kept


def test_smaller_choices_take_less_and_are_the_nearest_first() -> None:
    """8 bits, then 4, then fewer tokens; what is quantised already is not offered again."""
    found, asked = medgemma(), spec(context=8192)
    totals = [found.need(asked, "bfloat16").total, *(need.total for _, need in smaller(found, asked, "bfloat16"))]
    named = [said for said, _ in smaller(found, replace(asked, quantise="4bit"), "bfloat16")]

    assert totals == sorted(totals, reverse=True)
    assert ['context = 2048, slots = 1, quantise = "4bit"'] == named


async def test_no_more_memory_is_asked_for_than_the_plan_says(observed: "Observed") -> None:
    """The worker asks before it takes, and what it then holds is within that."""
    need = examine(spec()).need(spec(), "float32").total

    assert [need] == observed.recorder.asked
    assert psutil.Process(observed.engine.pid).memory_info().rss < 1.25 * need


class Recorder:
    """Takes note of what a load says."""

    def __init__(self, asked: list[int] | None = None, stage: Callable[[Progress], None] | None = None) -> None:
        self.asked = asked if asked is not None else []
        self.stages: list[Progress] = []
        self._stage = stage

    def progress(self, progress: Progress) -> None:
        self.stages.append(progress)
        if self._stage is not None:
            self._stage(progress)

    async def make_room(self, memory_bytes: int) -> None:
        self.asked.append(memory_bytes)


# --- through the worker ----------------------------------------------------------------------------------------------


@dataclass
class Observed:
    """A load that was watched: what it told, and the engine that came of it."""

    recorder: Recorder
    engine: transformers.Transformers


@pytest.fixture(scope="module")
async def observed(anyio_backend: str) -> AsyncIterator[Observed]:
    """The demo model, loaded while somebody looks on and a token stands in the gateway's environment."""
    recorder = Recorder()
    told = process.ONLOOKER.set(recorder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_secret")
        async with computing() as engine:
            process.ONLOOKER.reset(told)
            yield Observed(recorder, engine)


@pytest.fixture(scope="module")
async def text_model(
    anyio_backend: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[transformers.Transformers]:
    """The demo model without its eyes."""
    folder = await in_thread(text_alone, tmp_path_factory.mktemp("weights") / "text")
    async with computing(path=folder) as engine:
        yield engine


async def failed(**changes: object) -> ModelFailed:
    """The error that loading the demo model's safetensors raises when this is changed."""
    with pytest.raises(ModelFailed) as caught:
        await transformers.start(SAFETENSORS.model_copy(update=changes), Settings())
    return caught.value


async def test_the_workers_reason_comes_out(tmp_path: Path) -> None:
    """By its own kind."""
    at = copied(tmp_path / "model")
    change(at / "config.json", text_config={"hidden_size": 256})

    assert type(await failed(path=at)) is WeightsCorrupt
    assert type(await failed(path=None)) is WeightsMissing
    assert "65504" in (await failed(precision="float16")).message


async def test_a_gpu_that_is_not_there() -> None:
    """The error says what to install or to set; nothing is computed elsewhere in silence."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "sees no GPU" in (await failed(device="cuda:3")).message


async def test_a_python_without_torch(tmp_path: Path) -> None:
    """The model's own Python is what is run, and what it lacks is named."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}:$PYTHONPATH" exec {os.sys.executable} "$@"\n')  # type: ignore[attr-defined]
    python.chmod(0o755)
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here', name='torch')")
    error = await failed(python=python)

    assert 'pip install "medserve[transformers]"' in error.message
    assert "torch is missing" in error.message


async def test_a_worker_killed_while_it_loads() -> None:
    """The load fails with the reason, and nothing is left."""
    seen: list[psutil.Process] = []

    def kill(progress: Progress) -> None:
        if "reading the weights" in progress.stage and not seen:
            seen.extend(
                child for child in psutil.Process().children() if "workers.transformers" in str(child.cmdline())
            )
            os.kill(seen[-1].pid, signal.SIGKILL)

    process.ONLOOKER.set(Recorder(stage=kill))
    error = await failed()

    assert "ended by signal 9 while it loaded" in error.message


async def test_a_load_tells_how_far_it_is(observed: Observed) -> None:
    """Stages in words, and the share of the weights that was read."""
    stages = observed.recorder.stages
    shares = [told.done or 0.0 for told in stages if told.stage == "reading the weights"]

    assert stages[0].stage.startswith("importing torch")
    assert shares == sorted(shares)
    assert shares[0] < shares[-1] <= 1.0


async def test_a_load_that_takes_too_long() -> None:
    """Loading has a limit, and the message names the setting."""
    with pytest.raises(ModelFailed, match="load_seconds"):
        await transformers.start(SAFETENSORS, Settings(limits=Limits(load_seconds=0.05)))


async def test_weights_in_several_files_answer_alike(tmp_path: Path, tensors: transformers.Transformers) -> None:
    """As the large models come."""
    async with computing(path=await in_thread(in_two, copied(tmp_path / "model"))) as engine:
        split = await collect(engine.stream(ask(picture(1), QUESTION)))

    assert split.text == (await collect(tensors.stream(ask(picture(1), QUESTION)))).text


async def test_a_model_of_text_alone(text_model: transformers.Transformers, tensors: transformers.Transformers) -> None:
    """It answers words as the model with eyes does, and refuses pictures."""
    words = ask("Who are you?", max_tokens=40, top_logprobs=0)
    alone, seeing = [await collect(engine.stream(words)) for engine in (text_model, tensors)]
    with pytest.raises(NotSupported, match="without a vision part"):
        await collect(text_model.stream(ask(picture(1), QUESTION)))

    assert (None, 0) == (text_model.capabilities.vision, text_model.capabilities.image_tokens)
    assert alone.text == seeing.text
    assert [entry.logprob for entry in alone.logprobs] == pytest.approx([entry.logprob for entry in seeing.logprobs])


@pytest.mark.parametrize(
    "changes", [{"precision": "bfloat16"}, {"quantise": "8bit"}, {"quantise": "4bit", "precision": "auto"}]
)
async def test_fewer_bits_answer(changes: dict[str, object]) -> None:
    """On a processor too, where they are for trying only; the facts say what was computed in."""
    async with computing(**changes) as engine:
        result = await collect(engine.stream(ask(picture(1), QUESTION)))
        facts = dict(engine.capabilities.facts)

    assert result.text
    assert result.usage.image == 16
    assert changes.get("quantise", "none") == facts["quantisation"]
    assert facts["precision"] in {"float32", "bfloat16"}


@pytest.mark.parametrize(("quantise", "kind"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_bits_are_taken_from_the_text_layers_only(quantise: str, kind: str) -> None:
    """Vision tower, projector and head stay as they are, and the parts are what the plan reckoned with."""
    from medserve.workers.transformers import loading

    asked = spec(quantise=quantise, precision="bfloat16", device="cpu")
    loaded = loading.load(asked, lambda _bytes: None, lambda _stage, _done: None)
    packed = {name for name, module in loaded.model.named_modules() if type(module).__name__ == kind}
    held = sum(p.nbytes for name, p in loaded.model.named_parameters() if "vision" not in name and "mm_" not in name)

    assert 6 * 7 == len(packed)
    assert all(".language_model.layers." in name for name in packed)
    assert held == pytest.approx(examine(asked).need(asked, "bfloat16").weights, rel=0.05)


def test_a_vocabulary_of_another_model(tmp_path: Path) -> None:
    """A tokenizer without Gemma's marks is found out before the weights are read."""
    from medserve.workers.transformers import loading

    at = copied(tmp_path / "model")
    words = (at / "tokenizer.json").read_text()
    (at / "tokenizer.json").write_text(words.replace("<start_of_turn>", "<begin_of_turn>"))

    with pytest.raises(WeightsCorrupt, match="lacks <start_of_turn>"):
        loading.load(spec(at, device="cpu"), lambda _bytes: None, lambda _stage, _done: None)


def test_a_vocabulary_that_was_trained_with(tmp_path: Path) -> None:
    """Trainers leave in it where their texts were cut off and filled up: a prompt is whole all the same."""
    from medserve.workers.transformers import loading
    from medserve.workers.transformers.prompts import Beginning

    at = copied(tmp_path / "model")
    words = json.loads((at / "tokenizer.json").read_text())
    words["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    fill = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None}
    words["padding"] = {**fill, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    (at / "tokenizer.json").write_text(json.dumps(words))
    told = [{"role": "user", "content": "What is the overall shape of the lesion?"}]

    lengths = [
        len(
            loading.load(spec(folder, device="cpu"), lambda _: None, lambda *_: None)
            .prompts.prompt(told, Beginning())
            .ids
        )
        for folder in (DEMO, at)
    ]

    assert lengths[0] == lengths[1] > 8


async def test_facts_tell_which_weights_answered(tensors: transformers.Transformers) -> None:
    """A report can name the weights, what they were computed in and on, and with which versions."""
    facts = dict(tensors.capabilities.facts)

    assert ("transformers", "gemma3", "float32", "none") == tuple(
        facts[name] for name in ("engine", "architecture", "precision", "quantisation")
    )
    assert examine(spec()).fingerprint == facts["fingerprint"]
    assert ("64", "16", "8192", "1") == tuple(
        facts[name] for name in ("image_size", "image_tokens", "trained_context", "threads")
    )
    assert "torch" in facts["build"]
    assert facts["devices"]
    assert facts["processor"] == "Gemma3ImageProcessorPil"


async def test_no_secret_reaches_the_worker_and_it_asks_no_hub(observed: Observed) -> None:
    """Its environment holds what it needs and no keys, and forbids the network."""
    environment = await in_thread(Path(f"/proc/{observed.engine.pid}/environ").read_bytes)

    assert b"hf_secret" not in environment
    assert b"HF_HUB_OFFLINE=1" in environment
    assert b"OMP_NUM_THREADS=1" in environment


async def test_the_text_model_is_told_the_systems_words(text_model: transformers.Transformers) -> None:
    """They stand before the user's, with an empty line between."""
    plain = ask("Who are you?", max_tokens=1)
    told = replace(plain, messages=(Message("system", ("Be brief.",)), *plain.messages))
    first, second = [(await collect(text_model.stream(wish))).usage.prompt for wish in (plain, told)]

    assert (
        await text_model.count("Be brief.\n\nWho are you?") - await text_model.count("Who are you?") == second - first
    )
