"""Measures what the dermoscopy workflow costs with the picture's work reused, and with every question starting cold.

    python -m benchmarks.dermoscopy                                   the demonstration model
    python -m benchmarks.dermoscopy --model text.gguf --mmproj vision.gguf --threads 2

Both runs ask the same questions about the same photograph and are compared word for word. Times are llama.cpp's own.
Reading a prompt is divided into vision and prefill by asking for a text of as many tokens: what a prompt with a picture
takes longer than that is vision.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medserve.engines import Engine, llama_cpp
from medserve.examination import examine
from medserve.generation import GenerationRequest, Message, Result, collect
from medserve.images import Image, Study
from medserve.imaging import raster
from medserve.reports import Report, Step
from medserve.settings import DEMO_MODEL, Limits, ModelSpec, Settings
from medserve.workflows import find

PHOTOGRAPH = Path(llama_cpp.__file__).parents[1] / "examples" / "dermoscopy.jpg"
CALIBRATION_WORDS = 300


@dataclass(frozen=True)
class Cost:
    """Seconds of one run of the workflow, and how often the picture was encoded."""

    vision: float
    prefill: float
    decode: float
    encodes: int

    @property
    def total(self) -> float:
        return self.vision + self.prefill + self.decode


async def measure(spec: ModelSpec, image: Image, repeats: int) -> tuple[Cost, Report]:
    """The median-total run of `repeats`, each on an engine that starts with nothing kept."""
    runs = [await _once(spec, image) for _ in range(repeats)]
    return sorted(runs, key=lambda run: run[0].total)[len(runs) // 2]


async def _once(spec: ModelSpec, image: Image) -> tuple[Cost, Report]:
    engine = await llama_cpp.start(spec, Settings(models=(spec,)))
    try:
        rate = await _prefill_rate(engine)
        report = await examine(find("dermoscopy"), Study((image,)), engine)
    finally:
        await engine.close()
    return _cost(report.steps, rate), report


async def _prefill_rate(engine: Engine) -> float:
    """Tokens that the decoder reads in a second, measured on a text that is read twice: the first warms up."""
    await _read(engine, "lesion ")
    result = await _read(engine, "picture ")
    return result.usage.prompt / result.timings.prompt


async def _read(engine: Engine, word: str) -> Result:
    text = Message("user", (word * CALIBRATION_WORDS,))
    return await collect(engine.stream(GenerationRequest((text,), max_tokens=1)))


def _cost(steps: Sequence[Step], rate: float) -> Cost:
    """The steps' times, those of scoring the labels included."""
    prompt = sum(step.prompt_seconds for step in steps)
    read = sum(step.tokens.prompt - step.tokens.cached for step in steps)
    encodes = sum(step.tokens.encodes for step in steps)
    prefill = min(prompt, read / rate)
    decode = sum(step.completion_seconds for step in steps)
    return Cost(prompt - prefill, prefill, decode, encodes)


def _row(name: str, cost: Cost) -> str:
    return (
        f"| {name} | {cost.encodes} | {cost.vision:.2f} | {cost.prefill:.2f} | {cost.decode:.2f} | {cost.total:.2f} |"
    )


async def main(arguments: argparse.Namespace) -> None:
    spec = DEMO_MODEL
    if arguments.model:
        spec = ModelSpec(name=arguments.model.stem, path=arguments.model, projector=arguments.mmproj, context=2048)
    spec = spec.model_copy(update={"threads": arguments.threads, "slots": 1})
    image = await raster.read(PHOTOGRAPH.read_bytes(), Limits())
    warm, warm_report = await measure(spec, image, arguments.repeats)
    cold, cold_report = await measure(spec.model_copy(update={"reuse": False}), image, arguments.repeats)
    print("| | vision encodes | vision s | prefill s | decode s | total s |")
    print("|---|---|---|---|---|---|")
    print(_row("every question cold", cold))
    print(_row("picture reused", warm))
    equal = sum(one.reply == other.reply for one, other in zip(warm_report.steps, cold_report.steps, strict=True))
    print(f"\ncold / reused: {cold.total / warm.total:.2f}; equal replies: {equal} of {len(warm_report.steps)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--mmproj", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    asyncio.run(main(parser.parse_args()))
