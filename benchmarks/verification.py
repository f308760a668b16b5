"""Verifies builds that are right and builds with each known fault, and prints the tables that docs/verify.md shows.

    python -m benchmarks.verification                                 24 pictures, three draws of noise

Each build is a real engine on the demonstration model's weights, verified as `medserve verify` does it, against the
reference in float32. Faults of pictures are planted in front of llama.cpp, the causal mask into transformers in
bfloat16: no build computes as the reference does. For the noise, every matrix of the language part is changed by normal
numbers with a share of its own standard deviation, anew for each draw; such weights are computed in float32, masked
causally and rightly.
"""

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from math import floor, log10
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.load import table
from medserve import machine
from medserve.certificates import Cause, Certificate, Finding, Outcome, Verdict
from medserve.engines import Engine, llama_cpp, transformers
from medserve.intervals import wilson
from medserve.settings import DEMO, DEMO_MODEL, ModelSpec, Settings
from medserve.verification.causes import CAUSAL, FAULTS
from tests.engines.checkpoints import copied
from tests.verification.builds import REFERENCE, Lent, Verifying, planted, processor_asked_once, reference

FLOAT16 = DEMO_MODEL.model_copy(update={"threads": 1, "slots": 1})
BFLOAT16 = REFERENCE.model_copy(update={"name": "bfloat16", "precision": "bfloat16"})
FAULTY = {
    "causal_images": "bfloat16, pictures masked causally",
    "colours_reversed": "float16, colours reversed",
    "aspect_squashed": "float16, aspect squashed",
    "ct_window_of_serving_code": "float16, green window of the serving code",
    "ct_window_single": "float16, one grey CT window",
}
"""Every fault by its name, and what the build that has it is called."""
SMALLEST = 1e-9
"""Nats below which a number is not written out."""


@dataclass(frozen=True)
class Found:
    """Certificates of two right builds, of one with each fault, and of noisy weights masked causally and rightly."""

    float16: Certificate
    bfloat16: Certificate
    faulty: Mapping[str, Certificate]
    noisy: tuple[tuple[Certificate, Certificate], ...]


async def measured(folder: Path, *, count: int, noise: float, draws: int) -> Found:
    """All of it, one build after another, against one reference; noisy weights lie in `folder` for as long."""
    async with reference() as right, reference(causal_images=True) as causal:
        verifying = Verifying(right, causal, folder / "home")

        async def verified(spec: ModelSpec, fault: str = "") -> Certificate:
            print(f"{spec.name} {fault}", file=sys.stderr)
            sees = await planted(fault) if fault and fault != CAUSAL.name else None
            engine = await _started(spec, causal=fault == CAUSAL.name)
            try:
                return await verifying(Lent(engine, sees), model=spec, reference=DEMO, count=count)
            finally:
                await engine.close()

        faulty = {fault.name: await verified(BFLOAT16 if fault is CAUSAL else FLOAT16, fault.name) for fault in FAULTS}
        noisy = []
        for draw in range(draws):
            weights = noisy_weights(folder / f"noisy-{draw}", noise, np.random.default_rng([draw, 8]))
            spec = REFERENCE.model_copy(update={"name": weights.name, "path": weights})
            noisy.append((await verified(spec, CAUSAL.name), await verified(spec)))
        return Found(await verified(FLOAT16), await verified(BFLOAT16), faulty, tuple(noisy))


async def _started(spec: ModelSpec, *, causal: bool) -> Engine:
    if spec.engine == "transformers":
        return await transformers.launch(spec, Settings(), causal_images=causal)
    return await llama_cpp.start(spec, Settings())


def noisy_weights(folder: Path, share: float, rng: np.random.Generator) -> Path:
    """A copy of the demonstration model in float32, whose language part's matrices are changed by that share."""
    file = copied(folder) / "model.safetensors"
    weights = {name: weight.float() for name, weight in load_file(file).items()}
    for name, weight in weights.items():
        if name.startswith("language_model.") and weight.ndim == 2:
            drawn = torch.from_numpy(rng.standard_normal(tuple(weight.shape))).float()
            weights[name] = weight + share * weight.std() * drawn
    save_file(weights, file, metadata={"format": "pt"})
    return folder


# --- as the page shows it --------------------------------------------------------------------------------------------


def page(found: Found, noise: float) -> Iterator[str]:
    """The tables, each with the words that belong to it."""
    made, weights = found.float16, found.bfloat16.subject["fingerprint"]
    programs = ", ".join(f"{name} {version(name)}" for name in ("medserve", "xllamacpp", "torch", "transformers"))
    yield (
        f"{datetime.now(UTC):%Y-%m-%d}, {made.pictures} pictures, {answers(made)} answers; weights {weights[:16]}; "
        f"{programs}; {machine.processors()} processors ({platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}), one thread for each engine."
    )
    yield ""
    yield from table(
        ("build", "answers that agree", "at least (95 %)", "median KL, nats", "worst KL", "distance", "verdict"),
        [
            row("float16 GGUF on llama.cpp", found.float16),
            row("bfloat16 on transformers", found.bfloat16),
            *(row(called, found.faulty[name]) for name, called in FAULTY.items()),
        ],
    )
    yield ""
    yield from table(
        ("fault", "answers it changes", "reference to fault", "build with it to fault", "float16 to reference",
         "bfloat16 to reference"),
        [effect(name, found) for name in FAULTY],
    )  # fmt: skip
    if found.noisy:
        yield ""
        yield from table(
            (f"noise {noise * 100:g} %, draw", "mask", "nearer to the causal mask", "% (95 %)", "finding", "verdict"),
            [noisy for number, pair in enumerate(found.noisy, 1) for noisy in leaning(number, *pair)],
        )  # fmt: skip


def row(called: str, made: Certificate) -> tuple[str, ...]:
    """How a build answered beside the reference, and what is said of it."""
    agreed, least, middle, worst, apart = (
        value(made, name)
        for name in (
            "answers that agree",
            "share that agrees, at least (95 %)",
            "median divergence from the reference",
            "worst divergence from the reference",
            "median difference of a label's log-probability",
        )
    )
    return called, f"{agreed:.0f}", f"{least * 100:.1f} %", plain(middle), plain(worst), plain(apart), verdict(made)


def effect(name: str, found: Found) -> tuple[str, ...]:
    """How far a fault moves the reference, how near to it the build that has it is, and how near right ones are.

    Beside each distance stands how many of the answers are nearer to the fault than to the reference.
    """
    has, *honest = (cause(made, name) for made in (found.faulty[name], found.float16, found.bfloat16))
    near = (f"{plain(one.to_reference)}, {one.nearer} nearer" for one in honest)
    return f"`{name}`", str(has.n), plain(has.effect), f"{plain(has.to_fault)}, {has.nearer} nearer", *near


def leaning(number: int, causal: Certificate, right: Certificate) -> Iterator[tuple[str, ...]]:
    """To which side noisy weights lean."""
    for mask, made in (("causal", causal), ("right", right)):
        one = cause(made, CAUSAL.name)
        low, high = wilson(one.nearer, one.n)
        share = f"{one.nearer / one.n * 100:.0f} ({low * 100:.0f} to {high * 100:.0f})"
        yield str(number), mask, f"{one.nearer} of {one.n}", share, one.finding, verdict(made)


def verdict(made: Certificate) -> str:
    """The verdict, and the faults and checks that it rests on where the build did not pass."""
    found = [f"`{one.name}`" for one in made.causes if one.finding is Finding.FOUND]
    decisive = Outcome.FAILED if made.verdict is Verdict.FAILED else Outcome.NOT_DONE
    missed = [one.name for one in made.checks if one.needed and one.outcome is decisive]
    rests = [*found, *(name for name in missed if not (found and name == "causes"))]
    return f"{made.verdict}: {', '.join(rests)}" if rests else str(made.verdict)


def answers(made: Certificate) -> int:
    """How many answers were compared."""
    return round(value(made, "answers compared"))


def value(made: Certificate, name: str) -> float:
    """A number of the certificate's; nothing is compared here that has none."""
    found = next(one.value for check in made.checks for one in check.measures if one.name == name)
    if found is None:
        raise ValueError(f"{name} was not measured")
    return found


def cause(made: Certificate, name: str) -> Cause:
    """What a certificate says of a fault."""
    return next(one for one in made.causes if one.name == name)


def plain(number: float | None) -> str:
    """Two significant digits, written out, decimals in groups of three."""
    if number is None:
        return "-"
    if number < SMALLEST:
        return "below 0.000 000 001" if number else "0"
    digits = f"{number:.{max(0, 1 - floor(log10(number)))}f}"
    whole, _, decimals = digits.partition(".")
    groups = [decimals[place : place + 3] for place in range(0, len(decimals), 3)]
    return f"{whole}.{' '.join(groups)}" if groups else whole


def main(arguments: argparse.Namespace) -> None:
    began = perf_counter()
    with TemporaryDirectory() as folder, processor_asked_once():
        given = {"count": arguments.count, "noise": arguments.noise, "draws": arguments.draws}
        found = asyncio.run(measured(Path(folder), **given))
    print("\n".join(page(found, arguments.noise)))
    print(f"\n{perf_counter() - began:.0f} s in all, load of the machine {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="pictures, at most 24 and those of the package")
    parser.add_argument("--noise", type=float, default=0.08, help="of each matrix's standard deviation")
    parser.add_argument("--draws", type=int, default=3, help="draws of noise; 0: none")
    main(parser.parse_args())
