"""Measures the transformers engine on a device beside what the device can do at the most, and says if it comes near.

    python -m benchmarks.checkpoint models/4b                           random weights of MedGemma 4B's shapes
    python -m benchmarks.accelerator --weights models/4b --device cuda

It prints the Markdown that docs/performance.md takes: the ceilings of the device, then encoding a picture, reading a
prompt, writing answers one, eight and thirty-two at a time, in bfloat16, 8 and 4 bits, and the dermoscopy workflow with
every question cold against the picture's work shared. Measured are the worker's own loader, vision and decoder, and for
the workflow the engine in its process. Every time is from an idle device to an idle device, or between tokens that have
arrived; runs to warm up do not count. With `--device cpu --threads 1`, all but the workflow is told in seconds of the
processor, in which a busy machine counts for less. `--check` ends with 1 where a goal is missed.
"""

import argparse
import asyncio
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import AutoConfig

from benchmarks import reckoning
from benchmarks.ceilings import (
    Ceiling,
    Patience,
    Times,
    bandwidth,
    clock,
    described,
    highest,
    multiplication,
    repeated,
    timed,
)
from benchmarks.load import table
from medserve import machine
from medserve.engines import transformers as engine
from medserve.errors import MedserveError
from medserve.examination import examine
from medserve.images import Image, Study
from medserve.imaging import raster
from medserve.reports import Report
from medserve.settings import Limits, ModelSpec, Settings
from medserve.workers.transformers import loading
from medserve.workers.transformers.decoding import Decoder
from medserve.workers.transformers.folder import Spec
from medserve.workers.transformers.loading import Loaded
from medserve.workers.transformers.prompts import Picture, Prompt
from medserve.workers.transformers.vision import Vision
from medserve.workers.transformers.wishes import End, Failure, Scores, Token, Wish
from medserve.workflows import find

DERMOSCOPY = find("dermoscopy")
PHOTOGRAPH = Path(engine.__file__).parents[1] / "examples" / "dermoscopy.jpg"
QUANTISED = ("8bit", "4bit")
PRECISIONS = ("bfloat16", "float32", *QUANTISED)
DECODING_GOAL, VISION_GOAL = 0.6, 0.5
"""Of the bandwidth at one conversation, and of the multiplications a second at one picture."""
SETTLING = 4
"""Steps of decoding at either end that do not count: conversations join and leave there."""


@dataclass(frozen=True)
class Plan:
    """What is measured, where, and for how long."""

    weights: Path
    device: str
    threads: int
    prompt: int = 512
    steps: int = 64
    together: tuple[int, ...] = (1, 8, 32)
    patience: Patience = field(default_factory=Patience)
    buffer: int | None = None
    side: int | None = None

    def spec(self, precision: str) -> Spec:
        """How the worker is asked for the model."""
        plain = precision not in QUANTISED
        return Spec(
            directory=self.weights,
            folder=self.weights,
            context=self.context,
            slots=max(self.together),
            threads=self.threads,
            precision=precision if plain else "auto",
            quantise=None if plain else precision,
            device=self.device,
        )

    @property
    def context(self) -> int:
        """Tokens of a slot: a prompt and its answer, or the questions of the workflow."""
        return max(256, self.prompt + self.steps + 2 * SETTLING)


@dataclass(frozen=True)
class Row:
    """One line of the result; `share` is that of the ceiling named `of`, which has to reach `goal`."""

    work: str
    times: Times
    rate: str
    share: float
    of: str
    goal: float | None = None

    @property
    def met(self) -> bool:
        return self.goal is None or self.share >= self.goal

    @property
    def words(self) -> str:
        """The goal and whether it is met."""
        return "" if self.goal is None else f"{self.goal:.0%}: {'met' if self.met else 'missed'}"


@dataclass(frozen=True)
class Measured:
    """All of one precision, measured in a process of its own."""

    precision: str
    device: str
    rows: tuple[Row, ...]
    moved: tuple[Ceiling, ...]
    multiplied: tuple[Ceiling, ...]
    load_seconds: float
    weight_bytes: int
    peak_bytes: int


# --- the model ------------------------------------------------------------------------------------------------------


def measure(plan: Plan, precision: str) -> Measured:
    """Everything but the workflow, at one precision: `8bit` and `4bit` hold the text's matrices in so many bits."""
    torch.set_num_threads(plan.threads)
    device = torch.device(plan.device)
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    moved = tuple(bandwidth(device, plan.patience, plan.buffer))
    products = reckoning.vision_products(AutoConfig.from_pretrained(plan.weights, local_files_only=True), pictures=1)
    multiplied = tuple(multiplication(device, dtype, products, plan.patience, plan.side))
    forget_peak(device)
    begun = time.perf_counter()
    loaded = loading.load(plan.spec(precision), lambda _bytes: None, lambda _stage, _done: None)
    seconds = time.perf_counter() - begun
    rows = list(_rows(plan, precision, loaded, moved, multiplied))
    weights = reckoning.weight_bytes(loaded.model)
    return Measured(precision, described(device), tuple(rows), moved, multiplied, seconds, weights, peak(device))


def _rows(
    plan: Plan, precision: str, loaded: Loaded, moved: Sequence[Ceiling], multiplied: Sequence[Ceiling]
) -> Iterator[Row]:
    """Each row as soon as it is measured, told to whoever waits. The goals are for weights that have all their bits."""
    if loaded.image_size and precision not in QUANTISED:  # what sees has all its bits in any case
        yield _told(_seen(loaded, plan, highest(multiplied)))
    for row in _answered(plan, loaded, moved, multiplied):
        yield _told(replace(row, goal=None) if precision in QUANTISED else row)


def _told(row: Row) -> Row:
    print(f"{row.work}: {row.times.words} ms, {row.share:.1%} of {row.of}", file=sys.stderr, flush=True)
    return row


def forget_peak(device: torch.device) -> None:
    """What was held until now, the buffers of the ceilings among it, does not count for `peak`."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc_pid_clear_refs(5)


def peak(device: torch.device) -> int:
    """The most memory in bytes that was held at once: the device's where it has its own, else the process's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(told["VmHWM"].split()[0]) * 1024


def _seen(loaded: Loaded, plan: Plan, most: float) -> Row:
    """Encoding a picture, from its pixels in the machine's memory to its features on the device."""
    eyes = Vision(loaded.model, kept_bytes=0)
    picture = Picture("", 0, torch.rand(3, loaded.image_size, loaded.image_size) * 2 - 1)
    times = timed(lambda: eyes.features([picture]), torch.device(plan.device), plan.patience)
    share = reckoning.vision_operations(loaded.model.config) / times.median / most
    return Row("encode a picture", times, f"{1 / times.median:.3g} pictures/s", share, "matmul", VISION_GOAL)


def _answered(plan: Plan, loaded: Loaded, moved: Sequence[Ceiling], multiplied: Sequence[Ceiling]) -> Iterator[Row]:
    """Reading a prompt, and the steps of writing answers together."""
    questions = Questions(loaded, plan.prompt)
    decoder = Decoder(loaded, None, slots=1, context=plan.context, kept_bytes=0)
    with running(decoder):
        times = repeated(lambda: _reading(decoder, questions), plan.patience)
    share = reckoning.prefill_operations(loaded.model.config, plan.prompt) / times.median / highest(multiplied)
    yield Row(f"read {plan.prompt} tokens", times, f"{plan.prompt / times.median:.4g} tokens/s", share, "matmul")
    for rows in plan.together:
        yield _written(loaded, questions, plan, rows, highest(moved))


def _reading(decoder: Decoder, questions: "Questions") -> float:
    """Seconds from handing in a prompt to the first token of its answer."""
    question = questions.draw(1)
    begun = questions.tick()
    (answer,) = handed_in(decoder, [question], questions.tick)
    answer.wait()
    return answer.arrivals[0] - begun


def _written(loaded: Loaded, questions: "Questions", plan: Plan, rows: int, most: float) -> Row:
    """The times between tokens while all conversations write; all are handed in before the first is begun."""
    tokens = plan.steps + 2 * SETTLING
    decoder = Decoder(loaded, None, slots=rows, context=plan.context, kept_bytes=0)
    answers = handed_in(decoder, [questions.draw(tokens) for _ in range(rows)], questions.tick)
    with running(decoder):
        for answer in answers:
            answer.wait()
    steady = answers[0].arrivals[SETTLING:-SETTLING]
    times = Times(tuple(later - earlier for earlier, later in pairwise(steady)))
    read = reckoning.decode_bytes(loaded.model, rows, plan.prompt + tokens / 2)
    share = read / times.median / most
    rate = f"{rows / times.median:.4g} tokens/s, {read / 1e9:.3g} GB a step"
    return Row(f"write, {rows} together", times, rate, share, "bandwidth", DECODING_GOAL if rows == 1 else None)


class Questions:
    """Prompts of `tokens` words drawn by chance, so that no two begin alike; their answers end by length alone."""

    def __init__(self, loaded: Loaded, tokens: int) -> None:
        self.model = loaded.model
        self.tick = clock(loaded.model.device)
        self._tokens = tokens
        self._dice = Random(0)
        words = loaded.tokenizer
        self._first = words.bos_token_id
        self._words = sorted(set(words.get_vocab().values()) - set(words.all_special_ids))
        ends = loaded.model.generation_config.eos_token_id
        self._ends = tuple(ends) if isinstance(ends, list) else (ends,)

    def draw(self, answer: int) -> Wish:
        ids = (self._first, *self._dice.choices(self._words, k=self._tokens - 1))
        return Wish(Prompt(ids), max_tokens=answer, banned=self._ends)


@dataclass
class Answer:
    """When the tokens of one answer arrived, by the clock that tells it, and how it ended."""

    tick: Callable[[], float]
    arrivals: list[float] = field(default_factory=list)
    failed: MedserveError | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def take(self, event: Token | End | Scores | Failure) -> None:
        if isinstance(event, Token):
            self.arrivals.append(self.tick())
            return
        self.failed = event.error if isinstance(event, Failure) else None
        self.ended.set()

    def wait(self) -> None:
        """Until it has ended; raises what it failed by."""
        self.ended.wait()
        if self.failed is not None:
            raise self.failed


@contextmanager
def running(decoder: Decoder) -> Iterator[None]:
    """The worker's decoder in a thread of its own."""
    thread = threading.Thread(target=decoder.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        decoder.close()
        thread.join()


def handed_in(decoder: Decoder, wishes: Sequence[Wish], tick: Callable[[], float]) -> list[Answer]:
    """The answers to come, whose tokens arrive by that clock."""
    answers = [Answer(tick) for _ in wishes]
    for one, answer in zip(wishes, answers, strict=True):
        decoder.submit(one, answer.take)
    return answers


# --- the workflow ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examinations:
    """Reports on the same pictures by one engine, and the seconds that each took."""

    times: Times
    reports: tuple[Report, ...]

    @property
    def encodes(self) -> int:
        return self.reports[-1].tokens.encodes


async def examinations(spec: ModelSpec, pictures: Sequence[Image], *, warm: int) -> Examinations:
    """The dermoscopy workflow on each picture, by a worker that is started for it; the first `warm` do not count.

    Every question is asked, even if the model, whose weights may be random, takes the picture for something else.
    """
    with TemporaryDirectory() as home:
        worker = await engine.start(spec, Settings(home=Path(home), models=(spec,)))
        try:
            reports = [await examine(DERMOSCOPY, Study((one,)), worker, options={"guard": False}) for one in pictures]
        finally:
            await worker.close()
    counted = tuple(reports[warm:])
    return Examinations(Times(tuple(report.seconds for report in counted)), counted)


async def turned(count: int) -> list[Image]:
    """The example photograph, turned and mirrored: pictures alike in everything, and yet each its own."""
    photograph = await raster.read(PHOTOGRAPH.read_bytes(), Limits())
    ways = [
        np.rot90(flipped, turns) for flipped in (photograph.pixels, photograph.pixels[:, ::-1]) for turns in range(4)
    ]
    return [Image(np.ascontiguousarray(way), photograph.source) for way in ways[:count]]


async def workflow(plan: Plan, precision: str, count: int) -> list[str]:
    """The lines on the workflow, on `count` pictures and one that warms up where anything does."""
    spec = ModelSpec(
        name="full-size",
        engine="transformers",
        path=plan.weights,
        context=4096,
        slots=8,
        threads=plan.threads,
        precision=precision,
        device=plan.device,
    )
    warm = min(plan.patience.warm, 1)
    pictures = await turned(count + warm)
    cold = await examinations(spec.model_copy(update={"reuse": False}), pictures, warm=warm)
    shared = await examinations(spec, pictures, warm=warm)
    rows = [
        ("every question cold", cold.encodes, cold.times.words),
        ("picture shared", shared.encodes, shared.times.words),
    ]
    pairs = [
        (one.reply, other.reply)
        for first, second in zip(cold.reports, shared.reports, strict=True)
        for one, other in zip(first.steps, second.steps, strict=True)
    ]
    equal = sum(one == other for one, other in pairs)
    ratio = cold.times.median / shared.times.median
    return [
        *table(("dermoscopy workflow", "vision encodes", "ms a report (least – most; runs)"), rows),
        "",
        f"Cold / shared: {ratio:.2f}; equal replies: {equal} of {len(pairs)}.",
    ]


# --- the page -------------------------------------------------------------------------------------------------------


def page(found: Sequence[Measured]) -> Iterator[str]:
    """What was measured, as Markdown; every precision has its own ceilings, measured before it."""
    yield f"{found[0].device}; {', '.join(versions())}."
    for one in found:
        yield ""
        ceilings = [("bandwidth", ceiling, f"{ceiling.rate / 1e9:.4g} GB/s") for ceiling in one.moved]
        ceilings += [("matmul", ceiling, f"{ceiling.rate / 1e12:.4g} TFLOP/s") for ceiling in one.multiplied]
        yield from table(
            (one.precision, "ms: median (least – most; runs)", "rate", "of the ceiling", "goal"),
            [
                *((f"ceiling, {of}: {limit.work}", limit.times.words, rate, "", "") for of, limit, rate in ceilings),
                *((row.work, row.times.words, row.rate, f"{row.share:.1%} of {row.of}", row.words) for row in one.rows),
            ],
        )
        yield ""
        yield (
            f"Loaded in {one.load_seconds:.1f} s; the text's weights take {one.weight_bytes / 1e9:.3g} GB; "
            f"at most {one.peak_bytes / 2**30:.2f} GiB were held."
        )


def versions() -> Iterator[str]:
    """What computes, by name and version; only what is installed."""
    for name in ("medserve", "torch", "transformers", "bitsandbytes"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        yield f"CUDA {torch.version.cuda}"


def goals(found: Sequence[Measured]) -> Iterator[str]:
    """A line for each goal."""
    for one in found:
        for row in one.rows:
            if row.goal is not None:
                yield f"{one.precision}, {row.work}: {row.share:.1%} of {row.of}, goal {row.words}"


def main(arguments: argparse.Namespace) -> int:
    """Measure and print; the exit status."""
    plan = Plan(
        weights=arguments.weights,
        device=arguments.device,
        threads=arguments.threads,
        prompt=arguments.prompt,
        steps=arguments.steps,
        together=tuple(arguments.together),
        patience=Patience(arguments.warm, arguments.runs, arguments.seconds),
    )
    print(f"{date.today()}, `python -m benchmarks.accelerator {shlex.join(sys.argv[1:])}`\n")
    found = [apart(measure, plan, precision) for precision in arguments.precision]
    print("\n".join(page(found)))
    if arguments.workflow:
        plain = next(one for one in arguments.precision if one not in QUANTISED)
        print("", *asyncio.run(workflow(plan, plain, arguments.workflow)), sep="\n")
    print("", *goals(found), sep="\n")
    return int(arguments.check and not all(row.met for one in found for row in one.rows))


def apart(work: Callable[..., Measured], *given: object) -> Measured:
    """The result of work in a process of its own, with which all its memory goes."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *given).result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="a folder of safetensors")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["bfloat16", "8bit", "4bit"])
    parser.add_argument("--threads", type=int, default=machine.processors())
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--steps", type=int, default=64, help="steps of decoding that count")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 8, 32], help="conversations that write at once")
    parser.add_argument("--warm", type=int, default=2, help="runs of everything that do not count")
    parser.add_argument("--runs", type=int, default=15, help="the most runs that count")
    parser.add_argument("--seconds", type=float, default=20.0, help="no further run after so many seconds of one work")
    parser.add_argument("--workflow", type=int, default=3, help="examinations that count, cold and shared; 0: none")
    parser.add_argument("--check", action="store_true", help="end with 1 where a goal is missed")
    sys.exit(main(parser.parse_args()))
