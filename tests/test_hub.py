"""Weights from a hub: the real client against a small hub on loopback, which breaks off, lies and refuses."""

import errno
import hashlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from medserve.errors import (
    DiskFull,
    HubFailed,
    InvalidRequest,
    MedserveError,
    NotSupported,
    TermsNotAccepted,
    TokenNeeded,
    TokenRefused,
    UnknownModel,
    WeightsCorrupt,
)
from medserve.hub.pulling import MARGIN_BYTES, Means, Wish, free_bytes, pull, remove
from medserve.hub.remote import Hub
from medserve.hub.store import Pulled, Store
from medserve.settings import DEMO, Limits, Settings
from tests.model_hub import COMMIT, GOOD, STRANGER, WRONG, ModelHub, Repo, model_hub
from tests.serving import until
from tests.test_cli import medserve, refused

GGUF = "unsloth/medgemma-4b-it-GGUF"
GATED = "google/medgemma-4b-it"
WEIGHTS = (DEMO / "medserve-demo.gguf").read_bytes()
PROJECTOR = (DEMO / "medserve-demo-mmproj.gguf").read_bytes()
BESIDE = b"#" * 200_000
"""Content that nobody may want: long enough to be seen if it were fetched."""
ROOM = 2**50


@dataclass
class Watch:
    """An onlooker that keeps what it is told; with `full` the disk is found to be full while a file is written."""

    begun: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    done: int = 0
    full: bool = False

    def begin(self, doing: str, total: int) -> None:
        self.begun.append(doing)

    def advance(self, number: int) -> None:
        self.done += number
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass
class Desk:
    """What a pull needs: the hub, a cache, a home, and somebody who looks on."""

    remote: ModelHub
    folder: Path
    watch: Watch = field(default_factory=Watch)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def settings(self) -> Settings:
        return Settings(home=self.folder / "home")

    @property
    def store(self) -> Store:
        return Store(self.settings.home)

    def pull(
        self, text: str, *, token: str | None = None, free: int = ROOM, settings: Settings | None = None, **wish: str
    ) -> Pulled:
        """Pull with the real client."""
        hub = Hub(self.remote.url, token, self.cache)
        means = Means(settings or self.settings, self.watch, self.watch.told.append, hub, lambda folder: free)
        return pull(Wish(text, **wish), means)  # type: ignore[arg-type]  # only texts

    @property
    def parts(self) -> list[Path]:
        """Halves of downloads."""
        return list(self.cache.rglob("*.part"))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A hub with MedGemma's repositories, whose weights are the demonstration model's."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 65_536)  # the demonstration model is smaller than one
    with model_hub() as remote:
        remote.repos[GGUF] = Repo(
            {
                "README.md": b"# MedGemma",
                "medgemma-4b-it-Q4_K_M.gguf": WEIGHTS,
                "medgemma-4b-it-Q8_0.gguf": WEIGHTS + bytes(64),
                "medgemma-4b-it-Q2_K.gguf": WEIGHTS[:150_000],
                "BF16/medgemma-4b-it-BF16-00001-of-00002.gguf": BESIDE,
                "mmproj-BF16.gguf": PROJECTOR + bytes(32),
                "mmproj-F16.gguf": PROJECTOR,
            }
        )
        remote.repos[GATED] = Repo(safetensors(), gated=True)
        yield Desk(remote, tmp_path)
    huggingface_hub.close_session()


def safetensors(config: str = "{}") -> dict[str, bytes]:
    """A repository of safetensors, with things in it that must not be fetched."""
    return {
        "config.json": config.encode(),
        "tokenizer.json": (DEMO / "tokenizer.json").read_bytes(),
        "model.safetensors": (DEMO / "model.safetensors").read_bytes(),
        "modeling_medgemma.py": BESIDE,
        "pytorch_model.bin": BESIDE,
        "original/consolidated.pth": BESIDE,
    }


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_a_short_name_is_fetched_checked_and_known(desk: Desk) -> None:
    """Weights and vision part in the hub's own cache, told by their hashes."""
    model = desk.pull("4b")

    assert ("medgemma-4b-q4_k_m", GGUF, COMMIT, "Q4_K_M", "4b") == (
        model.name,
        model.repo,
        model.revision,
        model.quant,
        model.short,
    )
    assert WEIGHTS == model.path.read_bytes()
    assert model.projector is not None
    assert (PROJECTOR, "mmproj-F16.gguf") == (model.projector.read_bytes(), model.projector.name)
    assert [hashlib.sha256(content).hexdigest() for content in (WEIGHTS, PROJECTOR)] == [f.sha256 for f in model.files]
    assert f"models--unsloth--medgemma-4b-it-GGUF/snapshots/{COMMIT}" in str(model.path)
    assert "terms" in model.licence
    assert model == desk.store.find("4b") == desk.store.find("medgemma-4b-it") == desk.store.find(model.name)


def test_other_programs_find_what_was_pulled_in_the_cache(desk: Desk) -> None:
    """The hub's own client does not fetch it again."""
    desk.pull("4b")
    before = len(desk.remote.contents())
    found = huggingface_hub.hf_hub_download(
        GGUF, "medgemma-4b-it-Q4_K_M.gguf", cache_dir=desk.cache, endpoint=desk.remote.url, token=False
    )

    assert WEIGHTS == Path(found).read_bytes()
    assert before == len(desk.remote.contents())


def test_what_is_there_is_not_fetched_again(desk: Desk) -> None:
    """But it is checked again."""
    desk.pull("4b")
    before = len(desk.remote.contents())
    desk.watch.begun.clear()
    desk.pull("4b")

    assert before == len(desk.remote.contents())
    assert ["checking medgemma-4b-it-Q4_K_M.gguf", "checking mmproj-F16.gguf"] == desk.watch.begun


def test_a_damaged_file_in_the_cache_is_found_and_removed(desk: Desk) -> None:
    """The next pull fetches it anew."""
    model = desk.pull("4b")
    model.path.resolve().write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(WeightsCorrupt, match="pull again"):
        desk.pull("4b")

    assert WEIGHTS == desk.pull("4b").path.read_bytes()


@pytest.mark.parametrize(
    ("text", "wish"),
    [("4b", {"quant": "q8_0"}), (f"{GGUF}:Q8_0", {}), (f"https://huggingface.co/{GGUF}", {"quant": "Q8_0"})],
)
def test_a_quantisation_is_chosen(desk: Desk, text: str, wish: dict[str, str]) -> None:
    """By option, or after the repository's name as other programs take it."""
    model = desk.pull(text, **wish)  # type: ignore[arg-type]  # texts only

    assert ("Q8_0", len(WEIGHTS) + 64) == (model.quant, model.path.stat().st_size)


def test_an_unknown_quantisation_is_told_what_there_is(desk: Desk) -> None:
    """With sizes; one in several parts is not offered."""
    with pytest.raises(InvalidRequest, match=r"has no Q5_K_M; .*Q4_K_M \(0\.0 GB\), Q8_0") as refused:
        desk.pull("4b", quant="Q5_K_M")

    assert "BF16" not in refused.value.message


def test_a_revision_is_fetched_as_the_commit_that_it_is(desk: Desk) -> None:
    """A tag may move; what is recorded does not. An unknown one is refused."""
    assert COMMIT == desk.pull("4b", revision="v1").revision
    with pytest.raises(InvalidRequest, match="no revision 'v9'"):
        desk.pull("4b", revision="v9")


def test_of_safetensors_no_code_and_no_pickle_is_fetched(desk: Desk) -> None:
    """Not even asked for."""
    model = desk.pull(GATED, token=GOOD)

    assert {"config.json", "tokenizer.json", "model.safetensors"} == {path.name for path in model.path.iterdir()}
    assert model.path == model.files[0].path.parent
    assert not [asked for asked in desk.remote.asked if re.search(r"\.(py|bin|pth)$", asked.path)]


def test_the_token_goes_to_the_hub_only(desk: Desk) -> None:
    """The storage that it sends on to never sees it."""
    desk.pull(GATED, token=GOOD)

    assert {None} == {asked.token for asked in desk.remote.asked if asked.storage}
    assert {GOOD} == {asked.token for asked in desk.remote.asked if not asked.storage}


def test_hf_token_is_used(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every program that speaks to the hub uses it."""
    monkeypatch.setenv("HF_TOKEN", GOOD)

    assert GATED == desk.pull("4b", format="safetensors").repo


# --- downloads that break --------------------------------------------------------------------------------------------


def test_a_broken_connection_is_mended_on_the_way(desk: Desk) -> None:
    """What had arrived is not asked for again, and nothing is counted twice."""
    desk.remote.breaks.append(1_000_000)
    model = desk.pull("4b")

    ranges = [asked.range for asked in desk.remote.sent("medgemma-4b-it-Q4_K_M.gguf")]
    assert WEIGHTS == model.path.read_bytes()
    assert 2 == len(ranges)
    assert ranges[0] is None
    assert re.fullmatch(r"bytes=[1-9]\d+-", str(ranges[1]))
    assert 2 * (len(WEIGHTS) + len(PROJECTOR)) == desk.watch.done, "fetched once and checked once"


def test_half_a_download_goes_on_at_the_next_pull(desk: Desk) -> None:
    """The hub breaks off and then fails; what has arrived is kept for the next time."""
    desk.remote.breaks.append(1_000_000)
    desk.remote.fails.append(503)
    with pytest.raises(HubFailed, match="what has arrived is kept"):
        desk.pull("4b")
    assert [] == list(desk.store.kept().models)
    (part,) = desk.parts
    kept = part.stat().st_size
    model = desk.pull("4b")

    assert kept > 900_000
    assert f"bytes={kept}-" == desk.remote.sent("medgemma-4b-it-Q4_K_M.gguf")[-1].range
    assert WEIGHTS == model.path.read_bytes()
    assert [] == desk.parts


def test_a_hub_that_cannot_go_on_begins_again(desk: Desk) -> None:
    """Some answer a request for the rest with the whole."""
    desk.remote.breaks.append(1_000_000)
    desk.remote.fails.append(503)
    with pytest.raises(HubFailed):
        desk.pull("4b")
    desk.remote.ignores_ranges = True

    assert WEIGHTS == desk.pull("4b").path.read_bytes()


def test_two_pulls_do_not_write_one_file(desk: Desk) -> None:
    """The second says so; the first is not disturbed."""
    desk.remote.stalls = threading.Event()
    desk.remote.breaks.append(1_000_000)
    found: list[Pulled] = []
    first = threading.Thread(target=lambda: found.append(desk.pull("4b")))
    first.start()
    assert until(lambda: desk.parts and desk.parts[0].stat().st_size)
    with pytest.raises(HubFailed, match="another pull"):
        desk.pull("4b")
    desk.remote.stalls.set()
    first.join()

    assert WEIGHTS == found[0].path.read_bytes()


def test_what_arrived_before_a_kill_is_kept(desk: Desk) -> None:
    """The whole command, killed while it fetches."""
    content = WEIGHTS + bytes(40_000_000)
    desk.remote.repos[GGUF].files["medgemma-4b-it-Q4_K_M.gguf"] = content
    desk.remote.stalls = threading.Event()
    desk.remote.breaks.append(30_000_000)
    process = subprocess.Popen(
        [sys.executable, "-m", "medserve", "pull", "4b", "--quiet"], env=environment(desk), stderr=subprocess.DEVNULL
    )
    assert until(lambda: desk.parts and desk.parts[0].stat().st_size > 10_000_000, 30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = desk.parts[0].stat().st_size
    desk.remote.stalls.set()

    assert content == desk.pull("4b").path.read_bytes()
    assert f"bytes={kept}-" == desk.remote.sent("medgemma-4b-it-Q4_K_M.gguf")[-1].range


def test_a_hash_that_lies_is_found(desk: Desk) -> None:
    """The file is removed and nothing is known by that name."""
    desk.remote.repos[GGUF].promised["medgemma-4b-it-Q4_K_M.gguf"] = "0" * 64
    with pytest.raises(WeightsCorrupt, match=f"should be {'0' * 64}"):
        desk.pull("4b")

    assert ([], ()) == (desk.parts, desk.store.kept().models)


def test_a_hub_that_is_not_there_is_told(desk: Desk) -> None:
    """Nobody listens at the port."""
    desk.remote.url = "http://127.0.0.1:1"
    with pytest.raises(HubFailed, match="does not answer"):
        desk.pull("4b")


def test_offline_is_respected(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE means it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubFailed, match="HF_HUB_OFFLINE"):
        desk.pull("4b")

    assert [] == desk.remote.asked


# --- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo", "token", "kind", "words"),
    [
        (GATED, None, TokenNeeded, "HF_TOKEN"),
        (GATED, STRANGER, TermsNotAccepted, "has not accepted"),
        (GATED, WRONG, TokenRefused, "wrong, expired or revoked"),
        ("google/hidden", None, TokenNeeded, "HF_TOKEN"),
        ("google/hidden", STRANGER, UnknownModel, "hides it"),
        ("google/hidden", WRONG, TokenRefused, "wrong, expired or revoked"),
        ("google/nothing", GOOD, UnknownModel, "no repository"),
    ],
)
def test_who_may_not_is_told_what_to_do_before_the_first_byte(
    desk: Desk, repo: str, token: str | None, kind: type[MedserveError], words: str
) -> None:
    """A missing token, a wrong one and terms that are not accepted are three things; each names its page.

    Healer checked that a token was there before it built an image, and no more.
    """
    desk.remote.repos["google/hidden"] = Repo(safetensors(), gated=True, hidden=True)
    with pytest.raises(kind, match=words) as refused:
        desk.pull(repo, token=token)

    assert kind is type(refused.value)
    page = "settings/tokens" if kind is TokenRefused else repo
    assert f"{desk.remote.url}/{page}" in refused.value.message
    assert [] == desk.remote.contents()
    assert token is None or token not in refused.value.message


def test_no_token_is_logged_or_shown(
    desk: Desk, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither when all goes well, nor when the connection breaks, nor when it is refused; signed addresses neither."""
    caplog.set_level(logging.INFO)
    desk.remote.breaks.append(1000)
    desk.pull(GATED, token=GOOD)
    for token in (STRANGER, WRONG):
        with pytest.raises(MedserveError) as refused:
            desk.pull(GATED, token=token)
        assert token not in repr(refused.value)
        assert refused.value.__suppress_context__, "a traceback would not show the client's own error"
    out, err = capfd.readouterr()
    said = "\n".join([out, err, *desk.watch.told, *(record.getMessage() for record in caplog.records)])
    kept = "\n".join(path.read_text() for path in (desk.folder / "home").rglob("*") if path.is_file())

    assert not [token for token in (GOOD, STRANGER, WRONG) if token in said + kept]
    assert desk.remote.storage not in said


# --- room ------------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_told_with_numbers_before_the_first_byte(desk: Desk) -> None:
    """Room for the files alone is not enough: something has to stay free."""
    size = len(WEIGHTS) + len(PROJECTOR)
    with pytest.raises(DiskFull, match=r"5 MiB are still .* 512 MiB have to stay free, .* has 51[67] MiB; .*HF_HOME"):
        desk.pull("4b", free=size + MARGIN_BYTES - 1)
    assert [] == desk.remote.contents()

    assert WEIGHTS == desk.pull("4b", free=size + MARGIN_BYTES).path.read_bytes()


def test_what_is_there_already_needs_no_room(desk: Desk) -> None:
    """A half counts by half, a whole not at all."""
    desk.remote.breaks.append(1_000_000)
    desk.remote.fails.append(503)
    with pytest.raises(HubFailed):
        desk.pull("4b")
    kept = desk.parts[0].stat().st_size
    model = desk.pull("4b", free=len(WEIGHTS) + len(PROJECTOR) - kept + MARGIN_BYTES)

    assert model.path == desk.pull("4b", free=0).path


def test_a_disk_that_fills_up_on_the_way_is_told(desk: Desk) -> None:
    """What has arrived stays for the next time."""
    desk.watch.full = True
    with pytest.raises(DiskFull, match="is full"):
        desk.pull("4b")
    desk.watch.full = False

    assert WEIGHTS == desk.pull("4b").path.read_bytes()


def test_the_room_on_a_disk_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    """The cache need not exist yet."""
    assert abs(shutil.disk_usage(tmp_path).free - free_bytes(tmp_path / "not" / "yet")) < 2**30


def test_a_model_that_cannot_fit_is_told_with_numbers_and_the_next_smaller_choice(desk: Desk) -> None:
    """Defect 003-10: by what its header says: weights, vision, KV; it is kept, for another machine or limit."""
    small = Settings(home=desk.settings.home, limits=Limits(memory_bytes=90 * 2**20))
    model = desk.pull("4b", settings=small)

    assert re.search(r"takes \d+ MiB of memory: weights 3 MiB, vision 2 MiB, KV \d+ MiB", "\n".join(desk.watch.told))
    warning = next(words for words in desk.watch.told if words.startswith("warning"))
    assert re.search(r"needs \d+ MiB and models may take 90 MiB", warning)
    assert model.name in [entry.name for entry in desk.store.kept().models]


def test_a_model_whose_files_alone_cannot_fit_is_told_before_the_first_byte(desk: Desk) -> None:
    """With the largest quantisation of the repository that could."""
    desk.remote.breaks.append(1_000)
    desk.remote.fails.append(503)
    with pytest.raises(HubFailed):
        desk.pull("4b", settings=Settings(home=desk.settings.home, limits=Limits(memory_bytes=3 * 2**20)))

    assert re.search(r"warning: .* needs 5 MiB and models may take 3 MiB; .*--quant Q2_K", desk.watch.told[0])


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_repository_with_pickles_only_is_refused(desk: Desk) -> None:
    """Nothing of it is fetched."""
    desk.remote.repos["some/body"] = Repo({"config.json": b"{}", "pytorch_model.bin": BESIDE})
    with pytest.raises(NotSupported, match=r"pickles only.*safetensors or GGUF"):
        desk.pull("some/body")

    assert [] == desk.remote.contents()


def test_a_model_that_brings_code_is_refused(desk: Desk) -> None:
    """Before its weights are fetched."""
    desk.remote.repos["some/body"] = Repo(safetensors(json.dumps({"auto_map": {"AutoModel": "modeling.Model"}})))
    with pytest.raises(NotSupported, match="code of its own"):
        desk.pull("some/body")

    assert [] == desk.remote.sent("model.safetensors")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.gguf", b"<!doctype html>" + BESIDE, "no GGUF file"),
        ("model.gguf", WEIGHTS[:150_000], "cut short"),
        ("model.gguf", PROJECTOR, "architecture"),
        ("model.safetensors", b"<!doctype html>" + BESIDE, "no whole safetensors file"),
        ("model.safetensors", (DEMO / "model.safetensors").read_bytes()[:200_000], "no whole safetensors file"),
    ],
)
def test_a_file_that_is_no_model_is_not_recorded(desk: Desk, name: str, content: bytes, words: str) -> None:
    """Although it is what the hub promised."""
    desk.remote.repos["some/body"] = Repo({"config.json": b"{}", name: content})
    with pytest.raises(WeightsCorrupt, match=words):
        desk.pull("some/body")

    assert () == desk.store.kept().models


@pytest.mark.parametrize("text", ["../../etc/passwd", "..", "a/../b", "./x", "no/such/thing", "4c", "", "a/..", "\0/x"])
def test_what_is_no_name_is_refused_without_asking_anybody(desk: Desk, text: str) -> None:
    """A name never becomes a path."""
    with pytest.raises((InvalidRequest, WeightsCorrupt, NotSupported)):
        desk.pull(text if text not in {"..", ""} else f"{text}/no", token=GOOD)

    assert [] == desk.remote.asked


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "x" * 101, "a b"])
def test_a_name_of_ones_own_never_leaves_the_folder(desk: Desk, name: str) -> None:
    """Names are files' names."""
    with pytest.raises(InvalidRequest, match="a name holds letters"):
        desk.pull("4b", name=name)


@pytest.mark.parametrize("name", ["../../../outside.gguf", "/outside.gguf", "..\\outside.gguf", "a/../../out.gguf"])
def test_a_hub_cannot_write_outside_of_the_cache(desk: Desk, name: str) -> None:
    """Whatever it calls its files."""
    desk.remote.repos[GGUF].files[name] = WEIGHTS
    with pytest.raises(HubFailed, match="cannot be right"):
        desk.pull("4b")

    assert [] == desk.remote.contents()


# --- taken back ------------------------------------------------------------------------------------------------------


def test_a_removed_model_leaves_nothing(desk: Desk) -> None:
    """The content goes with the name."""
    model = desk.pull("4b")
    removed, freed = remove("4b", desk.settings)

    assert (model, len(WEIGHTS) + len(PROJECTOR)) == (removed, freed)
    assert [] == list(desk.cache.rglob("*.gguf"))
    assert [] == list((desk.cache / "models--unsloth--medgemma-4b-it-GGUF" / "blobs").iterdir())
    with pytest.raises(UnknownModel, match="pulled are: none"):
        remove("4b", desk.settings)


def test_what_another_model_needs_stays(desk: Desk) -> None:
    """Two quantisations share a vision part."""
    desk.pull("4b")
    other = desk.pull("4b", quant="Q8_0")
    _, freed = remove("medgemma-4b-q4_k_m", desk.settings)

    assert len(WEIGHTS) == freed
    assert other.projector is not None
    assert PROJECTOR == other.projector.read_bytes()


# --- as a user does it -----------------------------------------------------------------------------------------------


def environment(desk: Desk) -> dict[str, str]:
    """Of a process of its own, in which the hub's variables count."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": desk.remote.url,
        "HF_HOME": str(desk.folder / "hf"),
        "HF_HUB_CACHE": str(desk.cache),
        "MEDSERVE_HOME": str(desk.folder / "home"),
    }


def command(desk: Desk, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own, to which the hub's variables are new."""
    return subprocess.run(
        [sys.executable, "-m", "medserve", *arguments],
        env=environment(desk),
        capture_output=True,
        text=True,
        check=False,
    )


def test_two_commands_lead_to_a_report(
    desk: Desk, dermoscopy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pull, run; `ls` and `doctor` tell of the model, and `rm` takes it back."""
    monkeypatch.setenv("MEDSERVE_HOME", str(desk.folder / "home"))
    pulled = command(desk, "pull", "4b")
    report = medserve(capsys, "run", "dermoscopy", dermoscopy, "--model", "4b", "--context", 2048, "--json", "--quiet")
    listed = medserve(capsys, "ls")
    looked = medserve(capsys, "doctor")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    unasked = medserve(capsys, "rm", "4b")
    removed = medserve(capsys, "rm", "4b", "--yes")

    assert (0, "medgemma-4b-q4_k_m\n") == (pulled.returncode, pulled.stdout), pulled.stderr
    assert "fetching medgemma-4b-it-Q4_K_M.gguf (3 MiB)" in pulled.stderr
    assert 0 == report.code, report.err
    assert "medgemma-4b-q4_k_m" == json.loads(report.out)["provenance"]["model"]
    row = next(line for line in listed.out.splitlines() if line.startswith("medgemma-4b-q4_k_m"))
    assert re.search(r"llama-cpp +medgemma-4b-it-Q4_K_M.gguf \(4\.\d MiB\) .*/snapshots/", row)
    assert re.search(r"ok +model medgemma-4b-q4_k_m: runs on the llama-cpp engine: GGUF .* takes \d+ MiB", looked.out)
    assert "--yes" in refused(unasked)
    assert (0, True) == (removed.code, "5 MiB are free again" in removed.err)


def test_the_token_is_that_of_the_environment(desk: Desk) -> None:
    """The file that `hf auth login` writes in HF_HOME is read; without a token, exit code 3 and what to do."""
    without = command(desk, "pull", GATED)
    (desk.folder / "hf").mkdir()
    (desk.folder / "hf" / "token").write_text(GOOD)
    saved = command(desk, "pull", GATED)

    assert (3, "") == (without.returncode, without.stdout)
    assert f"accept them at {desk.remote.url}/{GATED}" in without.stderr
    assert 1 == len(without.stderr.splitlines())
    assert (0, "medgemma-4b-it\n") == (saved.returncode, saved.stdout), saved.stderr
