"""Real builds of the demonstration model are verified: right ones pass, and of wrong ones the fault is named.

The reference and its causal sister are started once, for all of them.
"""

import json
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from medserve import certificates
from medserve.certificates import Certificate, Check, Finding, Outcome, Verdict
from medserve.engines import Engine, llama_cpp, transformers
from medserve.engines.llama_cpp import LlamaCpp, Prompt
from medserve.errors import InvalidRequest, ModelFailed
from medserve.generation import GenerationRequest
from medserve.settings import DEMO, DEMO_MODEL, ModelSpec, Settings
from medserve.verification import Order, verify
from tests.engines.checkpoints import text_alone
from tests.verification.builds import (
    REFERENCE,
    WINDOWS,
    Lent,
    Verifying,
    Wordy,
    planted,
    processor_asked_once,
    reference,
    reversed_colours,
)

pytestmark = pytest.mark.timeout(300)  # hundreds of questions on a machine that may be under load


@pytest.fixture(scope="module")
async def right(anyio_backend: str) -> AsyncIterator[Engine]:
    """The reference."""
    async with reference() as engine:
        yield engine


@pytest.fixture(scope="module")
async def causal(anyio_backend: str) -> AsyncIterator[Engine]:
    """The reference, with pictures masked as text is."""
    async with reference(causal_images=True) as engine:
        yield engine


@pytest.fixture(autouse=True, scope="module")
def read_once() -> Iterator[None]:
    """For all of them."""
    with processor_asked_once():
        yield


@pytest.fixture
def verifying(right: Engine, causal: Engine, tmp_path: Path) -> Verifying:
    return Verifying(right, causal, tmp_path)


def check(made: Certificate, name: str) -> Check:
    return next(one for one in made.checks if one.name == name)


def found(made: Certificate) -> list[str]:
    return [cause.name for cause in made.causes if cause.finding is Finding.FOUND]


def value(made: Certificate, of: str, name: str) -> float:
    number = next(one.value for one in check(made, of).measures if one.name == name)
    assert number is not None
    return number


# --- right builds ----------------------------------------------------------------------------------------------------


async def test_llama_cpp_passes(verifying: Verifying, engine: LlamaCpp) -> None:
    """On the same weights in sixteen bits; and what was found is kept for this build."""
    made = await verifying(Lent(engine))

    assert Verdict.PASSED is made.verdict, made.summary
    assert [Outcome.PASSED] * 5 == [one.outcome for one in made.checks]
    assert [Finding.EXCLUDED] * 5 == [cause.finding for cause in made.causes]
    assert all(0 == one.value for one in check(made, "pixels").measures)
    assert made == certificates.find(verifying.settings.home, dict(engine.capabilities.facts))
    for speed in made.speeds:
        assert speed.encode_seconds is not None
        assert speed.prompt_tokens
        assert speed.answer_tokens


async def test_the_reference_agrees_with_itself(verifying: Verifying) -> None:
    """Another process with the same weights says the same, but for what the order of its work rounds otherwise."""
    engine = await transformers.start(REFERENCE, Settings())
    try:
        made = await verifying(Lent(engine), model=REFERENCE)
    finally:
        await engine.close()

    assert Verdict.PASSED is made.verdict, made.summary
    assert 1 == value(made, "labels", "share that agrees")
    assert value(made, "labels", "worst divergence from the reference") < 1e-10
    assert value(made, "labels", "median difference of a label's log-probability") < 1e-5


async def test_a_server_that_only_talks_passes_by_its_answers(verifying: Verifying, engine: LlamaCpp) -> None:
    """Pixels and ids cannot be seen there; it is said so, and tokens are counted."""
    made = await verifying(Wordy(engine))

    assert Verdict.PASSED is made.verdict, made.summary
    assert (Outcome.NOT_DONE, False) == (check(made, "pixels").outcome, check(made, "pixels").needed)
    assert "as many tokens" in check(made, "template").reason
    assert "answers in words" == made.settings["asked_by"]


async def test_a_model_without_a_vision_part_passes_by_its_words(tmp_path: Path) -> None:
    """It need not see, and conversations with pictures are not for it."""
    folder = text_alone(tmp_path / "text")
    model = REFERENCE.model_copy(update={"name": "text", "path": folder})

    made = await verify(Order(model), Settings(home=tmp_path / "home"))

    assert Verdict.PASSED is made.verdict, made.summary
    assert Outcome.PASSED is check(made, "template").outcome
    assert (Outcome.NOT_DONE, False) == (check(made, "sees").outcome, check(made, "sees").needed)


# --- wrong builds ----------------------------------------------------------------------------------------------------


async def test_pictures_that_are_masked_causally_are_recognised(verifying: Verifying, causal: Engine) -> None:
    """Nearly every answer stays the same: only its probability tells."""
    made = await verifying(Lent(causal), model=REFERENCE)

    assert Verdict.FAILED is made.verdict
    assert ["causal_images"] == found(made)
    assert made.summary.startswith("the build does not answer as the reference does; causes: causal_images")
    assert "causal_images" in certificates.parity(verifying.settings.home, dict(causal.capabilities.facts)).refusal


@pytest.mark.parametrize("name", ["colours_reversed", "aspect_squashed"])
async def test_a_fault_inside_a_build_is_named(verifying: Verifying, engine: LlamaCpp, name: str) -> None:
    """What it is handed is right: only its answers tell."""
    made = await verifying(Lent(engine, await planted(name)))

    assert Verdict.FAILED is made.verdict
    assert Outcome.PASSED is check(made, "pixels").outcome
    assert name == found(made)[0]
    assert name in made.summary


@pytest.mark.parametrize("name", WINDOWS)
async def test_another_ct_window_is_named(verifying: Verifying, engine: LlamaCpp, name: str) -> None:
    """Though most pictures are none of CT, and answered rightly."""
    made = await verifying(Lent(engine, await planted(name)))

    assert Verdict.FAILED is made.verdict
    assert name == found(made)[0]


async def test_wrong_pixels_are_seen_before_anything_is_asked(verifying: Verifying, engine: LlamaCpp) -> None:
    """Where the gateway itself exchanges the colours, grey pictures stay what they are."""
    made = await verifying(Lent(engine, reversed_colours, hands=True))

    assert Outcome.FAILED is check(made, "pixels").outcome
    assert "photograph" in check(made, "pixels").reason
    assert "grey:" not in check(made, "pixels").reason


async def test_another_resize_is_seen_in_the_pixels(verifying: Verifying) -> None:
    """Gemma's processor resizes bilinearly; a model may be set otherwise by mistake."""
    model = DEMO_MODEL.model_copy(update={"resample": "bicubic"})
    engine = await llama_cpp.start(model, Settings())
    try:
        made = await verifying(Lent(engine), model=model)
    finally:
        await engine.close()

    assert Verdict.FAILED is made.verdict
    assert Outcome.FAILED is check(made, "pixels").outcome


async def test_a_missing_vision_part_is_found(verifying: Verifying, tmp_path: Path) -> None:
    """The weights alone answer fluently, and see nothing."""
    shutil.copy(DEMO / "medserve-demo.gguf", tmp_path / "model.gguf")
    model = DEMO_MODEL.model_copy(update={"path": tmp_path / "model.gguf", "projector": None})

    made = await verify(
        Order(model, reference=DEMO, count=6), verifying.settings, start=llama_cpp.start, launch=verifying.launch
    )

    assert Verdict.FAILED is made.verdict
    assert Outcome.FAILED is check(made, "sees").outcome
    assert "without its vision part" in made.summary
    assert Outcome.NOT_DONE is check(made, "labels").outcome


async def test_a_wrong_template_is_found(
    verifying: Verifying, engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The empty lines around pictures are lost, as in llama.cpp's own chat route."""
    whole = llama_cpp.render

    def trimmed(request: GenerationRequest) -> Prompt:
        prompt = whole(request)
        return replace(prompt, texts=tuple(text.replace("\n\n", "") for text in prompt.texts))

    monkeypatch.setattr(llama_cpp, "render", trimmed)
    made = await verifying(Lent(engine))

    assert Verdict.FAILED is made.verdict
    assert Outcome.FAILED is check(made, "template").outcome
    assert "picture: at place 3" in check(made, "template").reason
    assert "words:" not in check(made, "template").reason


# --- too little, and nothing of a patient's ---------------------------------------------------------------------------


async def test_one_picture_is_not_enough(verifying: Verifying, engine: LlamaCpp) -> None:
    """The verdict is open, and it is said how many are needed."""
    made = await verifying(Lent(engine), count=1)

    assert Verdict.INCOMPLETE is made.verdict
    assert "give at least 6 pictures, not 1" in made.summary


async def test_a_certificate_holds_no_name_of_a_file(verifying: Verifying, engine: LlamaCpp, tmp_path: Path) -> None:
    """Names of pictures are patients' often enough; what could not be read is counted."""
    folder = tmp_path / "Erika Mustermann"
    folder.mkdir()
    for number, drawing in enumerate(sorted((DEMO / "drawings").glob("*.png"))[:2]):
        shutil.copy(drawing, folder / f"Mustermann-{number}.png")
    (folder / "Mustermann.pdf").write_bytes(b"%PDF-broken")

    made = await verifying(Lent(engine), pictures=folder)

    assert (2, 1) == (made.pictures, made.pictures_refused)
    text = made.model_dump_json()
    assert "Mustermann" not in text
    assert ".gguf" not in text
    assert str(DEMO) not in text
    assert json.loads(text)["verdict"] == "incomplete"


async def test_without_a_reference_nothing_is_started(tmp_path: Path) -> None:
    """The refusal says what to do."""
    model = ModelSpec(name="elsewhere", engine="openai", url="http://127.0.0.1:9")

    with pytest.raises(InvalidRequest, match="--reference"):
        await verify(Order(model), Settings(home=tmp_path))


async def test_a_home_that_cannot_be_written_is_found_before_anything_is_started(tmp_path: Path) -> None:
    """And not after the work of minutes."""
    (tmp_path / "home").write_text("a file")
    stages: list[str] = []

    with pytest.raises(InvalidRequest, match="set MEDSERVE_HOME to a folder that is"):
        await verify(Order(DEMO_MODEL, count=1), Settings(home=tmp_path / "home"), stages.append)

    assert [] == stages


async def test_a_reference_without_eyes_shows_nothing_of_a_build_that_has_them(
    verifying: Verifying, engine: LlamaCpp, tmp_path: Path
) -> None:
    """The text model of the same family lies near by; nothing would be known of pictures."""
    with pytest.raises(InvalidRequest, match=r"the reference has no vision part and .* has one"):
        await verifying(Lent(engine), reference=text_alone(tmp_path / "text"))


async def test_a_side_that_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    """Before it is loaded, with the numbers."""
    settings = Settings(home=tmp_path, limits={"memory_bytes": 1_000_000})

    with pytest.raises(ModelFailed, match=r"needs about \d+ MiB and 1 MiB are free"):
        await verify(Order(DEMO_MODEL, count=1), settings)
