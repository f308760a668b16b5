"""Files of one's own, what is kept of pulled models, which engine runs what, and what fits."""

import asyncio
import shutil
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medserve import doctor, engines, machine
from medserve.cli import configured
from medserve.errors import InvalidRequest, ModelFailed, NotSupported, UnknownModel, WeightsCorrupt, WeightsMissing
from medserve.hub import fitting, picking
from medserve.hub.family import FAMILY, short_name
from medserve.hub.listing import Listing, RemoteFile, pick, quant_of, safe
from medserve.hub.pulling import Means, Wish, pull, remove
from medserve.hub.store import Pulled, PulledFile, Store, declared
from medserve.settings import DEMO, DEMO_MODEL, Limits, ModelSpec, Settings
from tests.serving import serving
from tests.test_cli import medserve, refused
from tests.test_hub import Watch


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The demonstration model's two files in a folder, named as those of MedGemma are."""
    folder = tmp_path / "weights"
    folder.mkdir()
    shutil.copy(DEMO / "medserve-demo.gguf", folder / "Medgemma-4b-it-Q8_0.gguf")
    shutil.copy(DEMO / "medserve-demo-mmproj.gguf", folder / "mmproj-F16.gguf")
    return folder


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Those of a home of its own."""
    return Settings(home=tmp_path / "home")


def own(text: object, settings: Settings, **wish: str) -> Pulled:
    """Pull files that are here."""
    watch = Watch()
    return pull(Wish(str(text), **wish), Means(settings, watch, watch.told.append))  # type: ignore[arg-type]  # only texts


def entry(name: str, day: int = 1, **facts: object) -> Pulled:
    """A record of a model."""
    said = {"format": "gguf", "path": Path("/no/where.gguf"), "files": (), **facts}
    return Pulled(name=name, pulled=datetime(2026, 1, day, tzinfo=UTC), **said)


# --- files of one's own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["Medgemma-4b-it-Q8_0.gguf", ""])
def test_files_of_ones_own_are_known_where_they_are(weights: Path, settings: Settings, named: str) -> None:
    """A file or its folder: nothing is copied, everything is hashed, and removing it leaves the files."""
    model = own(weights / named, settings)
    file = weights / "Medgemma-4b-it-Q8_0.gguf"
    expected = [sha256(path.read_bytes()).hexdigest() for path in (file, weights / "mmproj-F16.gguf")]
    _, freed = remove("medgemma-4b-it-q8_0", settings)

    assert ("medgemma-4b-it-q8_0", file, weights / "mmproj-F16.gguf") == (model.name, model.path, model.projector)
    assert expected == [each.sha256 for each in model.files]
    assert (0, True) == (freed, file.is_file())


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("page.gguf", b"<!doctype html>", WeightsCorrupt, "no GGUF file"),
        ("half.gguf", (DEMO / "medserve-demo.gguf").read_bytes()[:100_000], WeightsCorrupt, "cut short"),
        ("pytorch_model.bin", b"\x80\x04", NotSupported, "pickle"),
        ("model.ckpt", b"\x80\x04", NotSupported, "pickle"),
        ("model.safetensors", b"", InvalidRequest, "name the folder"),
        ("model.onnx", b"", InvalidRequest, "no GGUF file by its name"),
    ],
)
def test_a_file_that_is_no_model_is_refused(
    tmp_path: Path, settings: Settings, name: str, content: bytes, kind: type[Exception], words: str
) -> None:
    """With what to do; nothing is recorded."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=words):
        own(tmp_path / name, settings)

    assert () == Store(settings.home).kept().models


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, settings: Settings, weights: Path) -> None:
    """Empty; pickles only; weights of nothing known; several models."""
    with pytest.raises(WeightsMissing, match="neither GGUF nor safetensors"):
        own(tmp_path, settings)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(NotSupported, match="pickles only"):
        own(tmp_path, settings)
    shutil.copy(DEMO / "model.safetensors", tmp_path)
    with pytest.raises(WeightsCorrupt, match=r"no config\.json"):
        own(tmp_path, settings)
    shutil.copy(weights / "Medgemma-4b-it-Q8_0.gguf", weights / "other-Q4_0.gguf")
    with pytest.raises(InvalidRequest, match="several models"):
        own(weights, settings)

    assert "other-q4_0" == own(weights, settings, quant="q4_0").name


def test_a_name_that_is_taken_is_not_given_away(weights: Path, settings: Settings, tmp_path: Path) -> None:
    """The same files may be pulled again; others need another name."""
    own(weights, settings, name="mine")
    own(weights, settings, name="mine")
    other = shutil.copytree(weights, tmp_path / "other")
    with pytest.raises(InvalidRequest, match="medserve rm mine"):
        own(other, settings, name="mine")
    with pytest.raises(InvalidRequest, match="declared in the settings"):
        own(other, settings, name=DEMO_MODEL.name)


def test_a_home_that_cannot_be_written_is_told(weights: Path, tmp_path: Path) -> None:
    """Here because a file is where a folder should be."""
    (tmp_path / "home").write_text("")
    with pytest.raises(InvalidRequest, match="models cannot be kept in MEDSERVE_HOME: Not a directory"):
        own(weights, Settings(home=tmp_path / "home"))


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_a_damaged_record_hides_no_other(settings: Settings) -> None:
    """It is told of, with what to do."""
    store = Store(settings.home)
    store.write(entry("good"))
    (settings.home / "models" / "bad.json").write_text("{")
    kept = store.kept()

    assert ["good"] == [model.name for model in kept.models]
    assert 1 == len(kept.faults)
    assert "bad.json" in kept.faults[0]


def test_a_damaged_record_is_told_by_ls_and_doctor(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both go on; exit code 2, and 3."""
    monkeypatch.setenv("MEDSERVE_HOME", str(settings.home))
    Store(settings.home).write(entry("gone", repo="some/body"))
    (settings.home / "models" / "bad.json").write_text("{")
    listed = medserve(capsys, "ls")
    looked = medserve(capsys, "doctor")

    assert (2, True, True) == (listed.code, "where.gguf (missing)" in listed.out, "bad.json" in listed.err)
    assert (3, True) == (looked.code, "bad.json is no record" in looked.out)
    assert "medserve pull some/body" in looked.out


def test_a_short_name_is_the_model_that_was_pulled_last(settings: Settings) -> None:
    """And a full name is before a short one."""
    store = Store(settings.home)
    for model in (entry("a", 1, short="4b"), entry("b", 3, short="4b"), entry("c", 2, short="4b")):
        store.write(model)

    assert ["b", "b", "a"] == [found.name for name in ("4b", "medgemma-4b", "a") if (found := store.find(name))]
    with pytest.raises(UnknownModel, match="pulled are: b, c, a"):
        store.require("27b")


def test_what_the_settings_declare_stands_before_what_was_pulled(settings: Settings) -> None:
    """By the same name; others are added."""
    store = Store(settings.home)
    store.write(entry(DEMO_MODEL.name))
    store.write(entry("other"))

    assert [DEMO_MODEL, entry("other").spec] == list(declared(settings).models)


def test_records_are_for_their_owner_only(settings: Settings) -> None:
    """As everything in the home is."""
    Store(settings.home).write(entry("mine"))

    assert 0o600 == (settings.home / "models" / "mine.json").stat().st_mode & 0o777
    assert 0o700 == (settings.home / "models").stat().st_mode & 0o777


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", FAMILY)
def test_every_member_of_the_family_has_its_names(short: str) -> None:
    """Short, long, as Google's repository calls it, and in capitals."""
    member = FAMILY[short]

    assert {short} == {short_name(text) for text in (short, member.name, member.name.upper(), f"{member.name}-it")}
    assert member.safetensors == f"google/{member.name}-it"
    assert member.gguf == f"unsloth/{member.name}-it-GGUF"


@pytest.mark.parametrize(
    ("name", "quant"),
    [
        ("medgemma-4b-it-Q4_K_M.gguf", "Q4_K_M"),
        ("medgemma-4b-it-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("medgemma-4b-it-IQ3_XXS.gguf", "IQ3_XXS"),
        ("medgemma-4b-it.bf16.gguf", "BF16"),
        ("model.gguf", "model"),
        ("BF16/medgemma-27b-it-BF16-00001-of-00002.gguf", None),
    ],
)
def test_a_quantisation_is_read_from_the_files_name(name: str, quant: str | None) -> None:
    """A part of several is none."""
    assert quant == quant_of(name)


@given(st.text(max_size=40))
def test_a_safe_name_stays_in_its_folder(name: str) -> None:
    """Whatever it is."""
    if safe(name):
        folder = Path("/folder")
        assert (folder / name).resolve().is_relative_to(folder)
        assert Path(name).parts


def test_the_text_model_has_no_vision_part_to_fetch() -> None:
    """Where there is none, only the weights are taken."""
    listing = Listing("some/body", "c" * 40, "page", (RemoteFile("m-Q4_K_M.gguf", 7, "0" * 64, "0" * 40),))
    picked = pick(listing, None, None)

    assert (None, 7) == (picked.projector, picked.size)


# --- which engine ----------------------------------------------------------------------------------------------------


def test_the_engine_is_chosen_by_what_a_model_is(weights: Path, settings: Settings) -> None:
    """An address, a folder with one GGUF file, a pulled name."""
    own(weights, settings, name="mine")
    served = picking.spec_of("http://127.0.0.1:9000/v1", settings)
    folder = picking.spec_of(str(weights), settings)
    pulled = picking.spec_of("mine", settings)

    assert served is not None
    assert ("openai", "http://127.0.0.1:9000", "127.0.0.1-9000") == (served.engine, served.url, served.name)
    assert ["llama-cpp", "llama-cpp"] == [spec.engine for spec in (folder, pulled) if spec]
    assert picking.spec_of("nothing", settings) is None


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_folder_with_nothing_that_can_be_loaded(tmp_path: Path, settings: Settings, name: str) -> None:
    """Pickles, and safetensors that nobody can read without their config.json: it is said what would be taken."""
    (tmp_path / name).write_bytes(bytes(64))
    with pytest.raises(InvalidRequest, match=r"safetensors with their config\.json.*medserve pull"):
        picking.spec_of(str(tmp_path), settings)


def test_safetensors_without_their_engine_say_what_to_pull(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started; with the engine they are taken."""
    for name in ("model.safetensors", "config.json"):
        shutil.copy(DEMO / name, tmp_path)
    monkeypatch.setattr(engines, "built_in", lambda: ("llama-cpp",))
    with pytest.raises(ModelFailed, match="medserve pull"):
        picking.spec_of(str(tmp_path), settings)
    said = medserve(capsys, "run", "dermoscopy", "lesion.jpg", "--model", tmp_path)
    monkeypatch.setattr(engines, "built_in", lambda: ("llama-cpp", "transformers"))
    monkeypatch.setattr(picking, "NEEDED", ("torch", "no_such_package"))
    with pytest.raises(ModelFailed, match=r'lacks no_such_package; run: pip install "medserve\[transformers\]"'):
        picking.spec_of(str(tmp_path), settings)
    monkeypatch.setattr(picking, "NEEDED", ("json",))
    found = picking.spec_of(str(tmp_path), settings)

    assert (3, True) == (said.code, "medserve pull 1.5-4b" in said.err)
    assert found is not None
    assert "transformers" == found.engine


def test_the_models_own_python_is_asked_what_it_lacks(tmp_path: Path) -> None:
    """Without importing anything there; a Python that is none is told as such."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # no site-packages: it has the standard library
    python.chmod(0o755)
    model = ModelSpec(name="m", engine="transformers", path=DEMO, python=python, quantise="8bit")

    assert (*picking.NEEDED, "bitsandbytes") == picking.missing(model)
    with pytest.raises(ModelFailed, match="the Python of m lacks torch"):
        picking.runnable(model)
    with pytest.raises(ModelFailed, match="`python` cannot be run"):
        picking.missing(model.model_copy(update={"python": tmp_path / "none"}))


@pytest.mark.parametrize(("gpus", "engine"), [(0, "llama-cpp"), (1, "transformers")])
def test_of_a_folder_with_both_forms_a_gpu_decides(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, gpus: int, engine: str
) -> None:
    """Safetensors where the driver shows a GPU, GGUF elsewhere; who names a file has chosen. Each reason tells both."""
    card = machine.Gpu(0, "a card", 24 * 2**30, 0, 0.0)
    monkeypatch.setattr(machine, "gpus", lambda: machine.Gpus((card,) * gpus))
    folder = picking.spec_of(str(DEMO), settings)
    file = picking.spec_of(str(DEMO / "model.safetensors"), settings)
    assert folder is not None
    assert file is not None

    assert (engine, "transformers") == (folder.engine, file.engine)
    assert "the GGUF files beside them would run on llama.cpp" in picking.choose(file).reason
    assert "the safetensors beside it would run on transformers" in picking.choose(DEMO_MODEL).reason


def test_a_name_that_nobody_knows_says_how_to_fetch_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2."""
    assert "medserve pull" in refused(medserve(capsys, "run", "dermoscopy", "lesion.jpg", "--model", "4b"))


def test_a_service_serves_a_pulled_model(weights: Path, settings: Settings) -> None:
    """By its name as the default, beside what is declared."""
    own(weights, settings, name="mine")
    with serving("--model", "mine", "--context", "2048", environment={"MEDSERVE_HOME": str(settings.home)}) as service:
        listed = httpx.get(f"{service.url}/v1/models", trust_env=False).json()["data"]

    assert ["mine", DEMO_MODEL.name] == [model["id"] for model in listed]
    assert "ready" in str(listed[0])


def test_options_for_a_file_hold_for_a_pulled_model_too(weights: Path, settings: Settings) -> None:
    """Its context and threads; its vision part is known."""
    own(weights, settings, name="mine")
    chosen = configured.with_model(declared(settings), "mine", None, 4096, 3)

    assert ("mine", 4096, 3) == (chosen.default, chosen.models[0].context, chosen.models[0].threads)
    with pytest.raises(InvalidRequest, match="--mmproj"):
        configured.with_model(declared(settings), "mine", weights / "mmproj-F16.gguf", None, None)


# --- what fits -------------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 10**6),
    st.integers(0, 10**6),
    st.integers(1, 10**6),
    st.dictionaries(st.text("QK48", min_size=1), st.integers(1, 10**6)),
)
def test_the_choice_that_is_named_is_the_largest_smaller_one_that_fits(
    weights: int, rest: int, most: int, choices: dict[str, int]
) -> None:
    """And one is named whenever there is one."""
    words = fitting.misfit(weights + rest, most, weights, sorted(choices.items()))
    fitting_ = {quant: size for quant, size in choices.items() if size < weights and rest + size <= most}

    assert (words is None) == (weights + rest <= most)
    if words is not None and fitting_:
        named = words.partition("--quant ")[2].split(" ")[0]
        assert max(fitting_.values()) == fitting_[named]
    elif words is not None:
        assert "--quant" not in words


def test_what_a_model_needs_is_what_its_worker_asks_for() -> None:
    """The parts are the files' own sizes and what grows with context and slots."""
    need = fitting.need_of(DEMO_MODEL)
    double = fitting.need_of(DEMO_MODEL.model_copy(update={"slots": 2 * DEMO_MODEL.slots}))
    assert DEMO_MODEL.path is not None
    assert DEMO_MODEL.projector is not None

    sizes = (DEMO_MODEL.path.stat().st_size, DEMO_MODEL.projector.stat().st_size)
    assert (*sizes, 2 * need.cache) == (need.weights, need.vision, double.cache)


def test_what_safetensors_need_is_told_with_settings_that_take_less(settings: Settings) -> None:
    """By precision and bits; when it does not fit, the nearest smaller setting that does."""
    model = ModelSpec(name="m", engine="transformers", path=DEMO, context=2048, precision="float32", device="cpu")
    need = fitting.need_of(model)
    less = dict(need.smaller)
    tight = settings.model_copy(update={"limits": Limits(memory_bytes=less['quantise = "4bit"'])})
    none = settings.model_copy(update={"limits": Limits(memory_bytes=1)})

    assert fitting.obstacle(need, settings) is None
    assert 'the next smaller choice that fits is to set quantise = "4bit"' in str(fitting.obstacle(need, tight))
    assert "no smaller setting fits either" in str(fitting.obstacle(need, none))
    with pytest.raises(ModelFailed, match="65504"):
        fitting.need_of(model.model_copy(update={"precision": "float16"}))


def test_the_doctor_says_that_a_model_cannot_fit_and_what_would(weights: Path, settings: Settings) -> None:
    """With the quantisations that its repository had when it was pulled."""
    path = weights / "Medgemma-4b-it-Q8_0.gguf"
    model = entry("big", repo="some/body", path=path, choices=(("Q2_K", 100_000), ("Q8_0", 10**9)))
    Store(settings.home).write(model)
    need = fitting.need_of(model.spec)
    tight = declared(settings).model_copy(update={"limits": Limits(memory_bytes=need.total - 1000)})
    check = next(check for check in asyncio.run(doctor.examine_machine(tight)) if check.what == "model big")

    assert not check.good
    assert "weights 3 MiB, vision 2 MiB, KV " in check.words
    assert "--quant Q2_K" in check.words


def test_a_record_of_another_shape_is_refused() -> None:
    """A hash that is none."""
    with pytest.raises(ValueError, match="sha256"):
        PulledFile(path=Path("/x"), bytes=1, sha256="abc")


def test_a_declared_model_is_chosen_as_declared() -> None:
    """Where neither files nor an address tell."""
    assert "scripted" == picking.choose(ModelSpec(name="script", engine="scripted")).engine
