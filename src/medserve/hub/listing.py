"""What a repository offers, and the files of it that are wanted: weights that are plain data, never code or pickles."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from medserve.errors import InvalidRequest, NotSupported, WeightsCorrupt
from medserve.hub.family import DEFAULT_QUANT

Format = Literal["gguf", "safetensors"]
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
"""Endings of weights that run code when they are loaded, or that no engine here reads."""
BESIDE_SAFETENSORS = frozenset(
    {
        "model.safetensors.index.json",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "preprocessor_config.json",
        "processor_config.json",
        "chat_template.json",
        "chat_template.jinja",
    }
)
"""What an engine reads beside the weights. Nothing else is fetched, and nothing that is Python."""
QUANT = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32|FP16))$", re.IGNORECASE)
PART = re.compile(r"-\d{5}-of-\d{5}$")
PROJECTORS = ("F16", "BF16", "F32", "Q8_0")
"""Which vision part is taken where there are several. They are small; F16 is what llama.cpp's own tool writes."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size in bytes, and the hash that the hub promises.

    `sha256` is of the content, for files in large-file storage; `blob` is git's own hash (SHA-1 over a header and the
    content), for all others.
    """

    name: str
    size: int
    sha256: str | None
    blob: str

    @property
    def etag(self) -> str:
        """What the hub and the cache on the disk call the content."""
        return self.sha256 or self.blob


@dataclass(frozen=True)
class Listing:
    """A repository at one revision, which is a commit's hash; `page` is where its terms stand and are accepted."""

    repo: str
    revision: str
    page: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Picked:
    """The files to fetch, the first of which an engine is pointed to, and the other quantisations there are."""

    format: Format
    files: tuple[RemoteFile, ...]
    projector: RemoteFile | None = None
    quant: str = ""
    choices: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def safe(name: str) -> bool:
    """Whether a file of that name stays inside the folder that it is put into."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in name
        and ":" not in name
        and name.isprintable()
    )


def pick(listing: Listing, format_: Format | None, quant: str | None) -> Picked:
    """What is wanted of a repository; raises NotSupported or InvalidRequest, which says what there is instead.

    Without a format, GGUF is taken where there is any.
    """
    has_gguf = any(_is_gguf(file) for file in listing.files)
    if format_ == "gguf" or (format_ is None and has_gguf):
        return _gguf(listing, quant)
    if quant is not None:
        raise InvalidRequest(f"{listing.repo} has no GGUF files, and only those come in quantisations", param="quant")
    return _safetensors(listing)


def _is_gguf(file: RemoteFile) -> bool:
    return file.name.lower().endswith(".gguf")


def _gguf(listing: Listing, quant: str | None) -> Picked:
    files = [file for file in listing.files if _is_gguf(file)]
    projectors = [file for file in files if "mmproj" in file.name.lower()]
    weights = {q: file for file in files if file not in projectors and (q := quant_of(file.name)) is not None}
    choices = tuple(sorted(((q, file.size) for q, file in weights.items()), key=lambda pair: pair[1]))
    chosen = _chosen(listing, weights, quant)
    projector = _projector(projectors)
    wanted = (weights[chosen], projector) if projector else (weights[chosen],)
    return Picked("gguf", wanted, projector, chosen, choices)


def quant_of(name: str) -> str | None:
    """The quantisation that a file's name tells; None for a part of several, which is not taken here."""
    stem = PurePosixPath(name).stem
    if PART.search(stem):
        return None
    found = QUANT.search(stem)
    return found[1].upper() if found else stem


def _chosen(listing: Listing, weights: dict[str, RemoteFile], quant: str | None) -> str:
    if not weights:
        _no_pickles(listing)
        raise NotSupported(f"{listing.repo} has no GGUF file in one piece; name another repository", param="name")
    if quant is None and len(weights) == 1:
        return next(iter(weights))
    wanted = (quant or DEFAULT_QUANT).upper()
    if wanted not in weights:
        there = ", ".join(f"{q} ({file.size / 1e9:.1f} GB)" for q, file in weights.items())
        raise InvalidRequest(
            f"{listing.repo} has no {wanted}; choose with --quant one of: {there}",
            param="quant",
        )
    return wanted


def _projector(projectors: Sequence[RemoteFile]) -> RemoteFile | None:
    by_kind = {quant_of(file.name): file for file in projectors}
    named = (by_kind[kind] for kind in PROJECTORS if kind in by_kind)
    return next(named, projectors[0] if projectors else None)


def _safetensors(listing: Listing) -> Picked:
    weights = [file for file in listing.files if file.name.endswith(".safetensors") and "/" not in file.name]
    if not weights:
        _no_pickles(listing)
        raise NotSupported(
            f"{listing.repo} has neither safetensors nor GGUF files; name another repository", param="name"
        )
    beside = [file for file in listing.files if file.name in BESIDE_SAFETENSORS]
    if "config.json" not in {file.name for file in beside}:
        raise WeightsCorrupt(f"{listing.repo} has weights but no config.json, which says what they are", param="name")
    return Picked("safetensors", (*beside, *weights))


def _no_pickles(listing: Listing) -> None:
    if any(file.name.lower().endswith(PICKLES) for file in listing.files):
        raise NotSupported(
            f"{listing.repo} has weights as pickles only, which can run code when they are loaded; they are never "
            "fetched. Name a repository with safetensors or GGUF files",
            param="name",
        )
