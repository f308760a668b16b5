"""Pull weights that are plain data (GGUF, safetensors), never pickles or code, and find out first what can go wrong.

Everything here blocks; only the command line uses it.
"""

import json
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from medserve.engines.llama_cpp import projector_beside
from medserve.errors import DiskFull, InvalidRequest, ModelFailed, NotSupported, WeightsCorrupt, WeightsMissing
from medserve.hub import fitting, listing
from medserve.hub.family import FAMILY, TERMS, short_name
from medserve.hub.listing import Format, Listing, Picked
from medserve.hub.store import NAME, Pulled, PulledFile, Store
from medserve.residency import size
from medserve.settings import Settings

if TYPE_CHECKING:
    from medserve.hub.remote import Hub, Onlooker

MARGIN_BYTES = 512 * 2**20
"""What stays free on the disk after a download, for everything else that writes there."""
REPOSITORY = re.compile(r"(?:hf:|https?://(?:www\.)?huggingface\.co/)?([\w.-]+/[\w.-]+)(?::([\w.-]+))?/?", re.ASCII)
MOST_HEADER = 100_000_000
"""Bytes that the header of a safetensors file may have, by its specification."""


@dataclass(frozen=True)
class Wish:
    """What is to be pulled, as it was said: a short name, a repository, or files of one's own, and which of it."""

    text: str
    format: Format | None = None
    quant: str | None = None
    revision: str | None = None
    name: str | None = None


Free = Callable[[Path], int]
Tell = Callable[[str], None]


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written where a folder is or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


@dataclass(frozen=True)
class Means:
    """What a pull works with: who is told of bytes and who of words, the hub, and what says how much a disk can take.

    Without a hub it is the one that HF_ENDPOINT, HF_TOKEN and HF_HOME name.
    """

    settings: Settings
    onlooker: "Onlooker"
    tell: Tell
    hub: "Hub | None" = None
    free: Free = free_bytes

    @property
    def store(self) -> Store:
        return Store(self.settings.home)


def pull(wish: Wish, means: Means) -> Pulled:
    """Fetch or find the files, check them, and record the model; what people should know is told on the way.

    Raises InvalidRequest for what cannot be meant, AccessDenied with the page to accept or the token to mend, DiskFull
    before the first byte, HubFailed, and ModelFailed when the files are no model.
    """
    if wish.name is not None and not re.fullmatch(NAME, wish.name):
        raise InvalidRequest(
            "a name holds letters, digits and . _ - and begins with a letter or digit; at most 100", param="name"
        )
    short = short_name(wish.text)
    own = short is None and Path(wish.text).exists()
    means.store.prepared()
    with _disk_errors():
        model = _own(wish, means) if own else _remote(wish, short, means)
        if model.format == "gguf":
            _weighed(model, means)  # no file that is no model is ever recorded
        else:
            _foretold(model, means)
        means.store.write(model)
    return model


def _weighed(model: Pulled, means: Means) -> None:
    need = fitting.need_of(model.spec)
    means.tell(f"{model.name} takes {need.words}")
    if words := fitting.obstacle(need, means.settings, model.choices):
        means.tell(f"warning: {words}")


def _foretold(model: Pulled, means: Means) -> None:
    """What safetensors take, or why the engine here would not load them: another one may."""
    try:
        _weighed(model, means)
    except ModelFailed as error:
        means.tell(f"warning: the transformers engine cannot load it: {error.message}")


@contextmanager
def _disk_errors() -> Iterator[None]:
    """A file that may not be read or written is a matter of the person who named it."""
    try:
        yield
    except OSError as error:
        raise InvalidRequest(
            f"{error.filename or 'a file'} cannot be read or written: {error.strerror}", param="name"
        ) from None


def _claimed(name: str, repo: str, path: Path, means: Means) -> str:
    """The name, once it is clear that no other model has it; raises InvalidRequest."""
    means.store.free(name, repo, path)
    pulled = {model.name for model in means.store.kept().models}
    if name not in pulled and name in {spec.name for spec in means.settings.models}:
        raise InvalidRequest(
            f"a model called {name} is declared in the settings; choose another name with --name", param="name"
        )
    return name


# --- from a hub ----------------------------------------------------------------------------------------------------


def _remote(wish: Wish, short: str | None, means: Means) -> Pulled:
    from medserve.hub.remote import Hub  # it takes a while to import, and one's own files need none of it

    repo, quant = _repository(wish, short)
    hub = means.hub or Hub()
    found = hub.listing(repo, wish.revision)
    picked = listing.pick(found, wish.format, quant)
    name = _claimed(wish.name or _name(picked, repo, short), repo, Path(), means)
    _admissible(found, picked, hub, means)
    licence = TERMS if short else found.page
    means.tell(f"fetching {name} from {repo} at {found.revision[:12]}, {size(picked.size)}; its terms: {licence}")
    files = _fetched(found, picked, hub, means.onlooker)
    places = [file.path for file in files]
    return Pulled(
        name=name,
        format=picked.format,
        path=places[0] if picked.format == "gguf" else places[0].parent,
        projector=places[1] if picked.projector else None,
        files=tuple(files),
        repo=repo,
        revision=found.revision,
        short=short or "",
        quant=picked.quant,
        licence=licence,
        choices=picked.choices,
        pulled=datetime.now(UTC),
    )


def _repository(wish: Wish, short: str | None) -> tuple[str, str | None]:
    """Which repository is meant, and the quantisation if one is."""
    if short is not None:
        member = FAMILY[short]
        return (member.safetensors if wish.format == "safetensors" else member.gguf), wish.quant
    if wish.text.lower().endswith((".gguf", ".safetensors")):
        raise InvalidRequest(f"there is no file {wish.text}", param="name")
    said = REPOSITORY.fullmatch(wish.text)
    if said is None or any(not part.strip(".") for part in said[1].split("/")) or ".." in said[1]:
        raise InvalidRequest(
            f"{wish.text!r} is no file, no folder, no repository of a hub (OWNER/NAME) and none of the short names "
            f"{', '.join(FAMILY)}",
            param="name",
        )
    if said[2] and wish.quant and said[2].upper() != wish.quant.upper():
        raise InvalidRequest("the quantisation is given twice, and differently", param="quant")
    return said[1], wish.quant or said[2]


def _name(picked: Picked, repo: str, short: str | None) -> str:
    """A name that says what it is: medgemma-4b-q4_k_m, or the file's or the repository's own."""
    if short is not None:
        return f"{FAMILY[short].name}-{picked.quant.lower() or picked.format}"
    stem = Path(picked.files[0].name).stem if picked.format == "gguf" else repo.rpartition("/")[2]
    return _called(stem)


def _called(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-").lower()[:100] or "model"


def _admissible(found: Listing, picked: Picked, hub: "Hub", means: Means) -> None:
    """All that can go wrong is found out before the first byte: the disk, the terms, the memory."""
    missing = sum(hub.missing(found, file) for file in picked.files)
    there = means.free(hub.cache)
    if missing and missing + MARGIN_BYTES > there:
        raise DiskFull(
            f"{size(missing)} are still to be fetched and {size(MARGIN_BYTES)} have to stay free, but the disk of "
            f"{hub.cache} has {size(there)}; make room, set HF_HOME to a folder on another disk, or choose a smaller "
            "quantisation with --quant"
        )
    hub.admit(found, picked.files[-1])
    most = fitting.room(means.settings)
    weights = picked.files[0].size if picked.format == "gguf" else 0
    if words := fitting.misfit(picked.size, most, weights, picked.choices):
        means.tell(f"warning: without any context {words}")
    if picked.format == "gguf" and picked.projector is None:
        means.tell("note: there is no vision part, so it reads no pictures")


def _fetched(found: Listing, picked: Picked, hub: "Hub", onlooker: "Onlooker") -> list[PulledFile]:
    files = []
    for file in picked.files:
        place, digest = hub.fetch(found, file, onlooker)
        _plain(place)
        files.append(PulledFile(path=place, bytes=file.size, sha256=digest))
    return files


# --- files of one's own ----------------------------------------------------------------------------------------------


def _own(wish: Wish, means: Means) -> Pulled:
    """A model of files that are here already: they stay where they are, and are told by their hashes."""
    from medserve.hub.remote import sha256

    if wish.revision is not None:
        raise InvalidRequest("files of one's own have no revision", param="revision")
    given = Path(wish.text).absolute()
    if given.is_file():
        _wanted_kind(given)
    paths, projector = _gguf_pair(given, wish.quant) if wish.format != "safetensors" else ([], None)
    format_: Format = "gguf" if paths else "safetensors"
    if not paths:
        paths = _safetensors_in(given)
    name = wish.name or _called(paths[0].stem if format_ == "gguf" else given.name)
    _claimed(name, "", given if format_ == "safetensors" else paths[0], means)
    for path in paths:
        _plain(path)
    files = [
        PulledFile(path=path, bytes=path.stat().st_size, sha256=sha256(path, f"checking {path.name}", means.onlooker))
        for path in paths
    ]
    return Pulled(
        name=name,
        format=format_,
        path=paths[0] if format_ == "gguf" else given,
        projector=projector,
        files=tuple(files),
        quant=(listing.quant_of(paths[0].name) or "") if format_ == "gguf" else "",
        pulled=datetime.now(UTC),
    )


def _gguf_pair(given: Path, quant: str | None) -> tuple[list[Path], Path | None]:
    """The weights and the vision part, nothing where there is no GGUF file; raises InvalidRequest if it is unclear."""
    if given.is_file():
        found = [given]
    else:
        found = [path for path in sorted(given.glob("*.gguf")) if "mmproj" not in path.name.lower()]
        if quant is not None:
            found = [path for path in found if listing.quant_of(path.name) == quant.upper()]
        if len(found) > 1:
            there = ", ".join(path.name for path in found)
            raise InvalidRequest(f"the folder has several models; name one file: {there}", param="name")
    projector = projector_beside(found[0]) if found else None
    return [*found, *([projector] if projector else [])], projector


def _wanted_kind(file: Path) -> None:
    suffix = file.suffix.lower()
    if suffix in listing.PICKLES:
        raise NotSupported(
            f"{file.name} is or may be a pickle, which can run code when it is loaded; only GGUF and safetensors are "
            "taken",
            param="name",
        )
    if suffix == ".safetensors":
        raise InvalidRequest("of safetensors name the folder, which also has the config.json", param="name")
    if suffix != ".gguf":
        raise InvalidRequest(f"{file.name} is no GGUF file by its name; GGUF files end with .gguf", param="name")


def _safetensors_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidRequest("the file is GGUF and --format asks for safetensors", param="format")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and any(path.suffix.lower() in listing.PICKLES for path in folder.iterdir()):
        raise NotSupported(
            "the folder has weights as pickles only, which can run code when they are loaded; only GGUF and "
            "safetensors are taken",
            param="name",
        )
    if not weights:
        raise WeightsMissing("the folder has neither GGUF nor safetensors files", param="name")
    if not (folder / "config.json").is_file():
        raise WeightsCorrupt("the folder has weights but no config.json, which says what they are", param="name")
    return [*(folder / name for name in sorted(listing.BESIDE_SAFETENSORS) if (folder / name).is_file()), *weights]


# --- what is taken ---------------------------------------------------------------------------------------------------


def _plain(file: Path) -> None:
    """Raises WeightsCorrupt when a file is not what its name says, and NotSupported when it asks for code."""
    if file.suffix.lower() == ".gguf":
        with file.open("rb") as content:
            begins = content.read(4)
        if begins != b"GGUF":
            raise WeightsCorrupt(f"{file.name} is no GGUF file: it does not begin with the letters GGUF", param="name")
    elif file.suffix == ".safetensors":
        _whole_safetensors(file)
    elif file.name == "config.json":
        _no_code(file)


def _whole_safetensors(file: Path) -> None:
    """The header, which is JSON, has to lie within the file, and what it says of tensors to end where the file does."""
    length = file.stat().st_size
    try:
        with file.open("rb") as content:
            (header,) = struct.unpack("<Q", content.read(8))
            if header > min(length - 8, MOST_HEADER):
                raise ValueError
            tensors = json.loads(content.read(header))
        ends = [entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"]
        whole = 8 + header + max(ends, default=0) == length
    except (struct.error, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise WeightsCorrupt(f"{file.name} is no whole safetensors file; fetch it again", param="name")


def _no_code(config: Path) -> None:
    try:
        said = json.loads(config.read_bytes())
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise WeightsCorrupt("config.json is no JSON object; fetch it again", param="name")
    if "auto_map" in said:
        raise NotSupported(
            "the model brings code of its own (auto_map in config.json), which is never fetched or run; choose one "
            "that needs none",
            param="name",
        )


# --- and back --------------------------------------------------------------------------------------------------------


def remove(name: str, settings: Settings) -> tuple[Pulled, int]:
    """Forget a pulled model and delete what was downloaded for it; the model, and the bytes that became free.

    Raises UnknownModel for one that was not pulled.
    """
    store = Store(settings.home)
    model = store.require(name)
    with _disk_errors():
        return model, store.remove(model)
