"""The model hub, asked by its own client: every file arrives whole and as promised, or not at all.

The client downloads into a file that it throws away when it is interrupted. Here a half download is kept beside the
hub's cache under the hash of what it will be, the client's own `http_get` goes on where it ended, and only content
that hashes to what the hub promises enters the cache, which other programs share.
"""

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import httpx2
from huggingface_hub import HfApi, constants, get_token, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import get_hf_file_metadata, http_get, repo_folder_name
from huggingface_hub.utils.tqdm import disable_progress_bars

from medserve import __version__
from medserve.errors import (
    DiskFull,
    HubFailed,
    InvalidRequest,
    TermsNotAccepted,
    TokenNeeded,
    TokenRefused,
    UnknownModel,
    WeightsCorrupt,
)
from medserve.hub.listing import Listing, RemoteFile, safe

PATIENCE_SECONDS = 20.0
CHUNK = 2**20


class Onlooker(Protocol):
    """Who is told how a pull goes."""

    def begin(self, doing: str, total: int) -> None:
        """Something of `total` bytes begins: fetching or checking a file."""
        ...

    def advance(self, number: int) -> None:
        """So many bytes more; fewer, where some have to be done again."""
        ...


class Hub:
    """A hub, and the cache of it on this disk. What is not given is what HF_ENDPOINT, HF_TOKEN and HF_HOME say."""

    def __init__(self, endpoint: str | None = None, token: str | None = None, cache: Path | None = None) -> None:
        for name in ("huggingface_hub", "httpx2", "httpcore2"):  # they log addresses; a signed one is as good as a key
            logging.getLogger(name).setLevel(logging.CRITICAL)
        disable_progress_bars()
        self.endpoint = endpoint or constants.ENDPOINT
        self.cache = cache or Path(constants.HF_HUB_CACHE)
        self._token = token or get_token()
        self._api = HfApi(self.endpoint, token=self._token or False)

    @property
    def has_token(self) -> bool:
        """Whether it asks with a token; which one is nobody else's business."""
        return self._token is not None

    def listing(self, repo: str, revision: str | None = None) -> Listing:
        """The files of a repository at a branch, a tag or a commit; raises HubFailed, UnknownModel or AccessDenied."""
        with self._asking(repo, revision):
            info = self._api.model_info(repo, revision=revision, files_metadata=True, timeout=PATIENCE_SECONDS)
        files = tuple(
            RemoteFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
            for file in info.siblings or ()
            if file.size is not None and file.blob_id is not None
        )
        if info.sha is None or not all(safe(file.name) for file in files):
            raise HubFailed(f"the hub describes {repo} in a way that cannot be right; nothing was fetched")
        return Listing(repo, info.sha, self.page(repo), files)

    def page(self, repo: str) -> str:
        """Where people read about a repository and accept its terms."""
        return f"{self.endpoint}/{repo}"

    def missing(self, listing: Listing, file: RemoteFile) -> int:
        """How many bytes of a file are still to be fetched."""
        blob = self._blob(listing.repo, file)
        if blob.is_file():
            return 0
        part = _part(blob)
        return file.size - (min(part.stat().st_size, file.size) if part.is_file() else 0)

    def admit(self, listing: Listing, file: RemoteFile) -> None:
        """Ask whether a file may be fetched at all, without fetching it; raises as `listing` does."""
        with self._asking(listing.repo, listing.revision):
            get_hf_file_metadata(self._url(listing, file), token=self._token or False, endpoint=self.endpoint)

    def fetch(self, listing: Listing, file: RemoteFile, onlooker: Onlooker) -> tuple[Path, str]:
        """A file in the cache, complete and as promised, and its SHA-256.

        Raises HubFailed when the hub or the way to it fails (what has arrived is kept, and the next call goes on from
        there), WeightsCorrupt when the content is other than promised, and DiskFull.
        """
        blob = self._blob(listing.repo, file)
        try:
            if blob.is_file():
                digest = _checked(blob, file, onlooker)
            else:
                digest = self._download(listing, file, blob, onlooker)
        except OSError as error:
            raise _local(error, self.cache) from None
        with self._asking(listing.repo, listing.revision):
            place = hf_hub_download(
                listing.repo,
                file.name,
                revision=listing.revision,
                cache_dir=self.cache,
                endpoint=self.endpoint,
                token=self._token or False,
            )
        return Path(place), digest

    def _download(self, listing: Listing, file: RemoteFile, blob: Path, onlooker: Onlooker) -> str:
        blob.parent.mkdir(parents=True, exist_ok=True)
        part = _part(blob)
        with part.open("ab") as out:
            _alone(out)
            begun = out.tell()
            if begun > file.size:
                out.truncate(begun := 0)
            onlooker.begin(f"fetching {file.name}", file.size)
            onlooker.advance(begun)
            with self._asking(listing.repo, listing.revision):
                http_get(
                    self._url(listing, file),
                    cast(BinaryIO, _Watched(out, onlooker)),
                    resume_size=begun,
                    headers=self._headers(),
                    expected_size=file.size,
                )
            out.flush()
            digest = _checked(part, file, onlooker)
            part.replace(blob)
        return digest

    def _headers(self) -> dict[str, str]:
        """The client drops the token where the hub sends it on to a server of another name."""
        own = {"user-agent": f"medserve/{__version__}", "accept-encoding": "identity"}
        return own | ({"authorization": f"Bearer {self._token}"} if self._token else {})

    def _url(self, listing: Listing, file: RemoteFile) -> str:
        return hf_hub_url(listing.repo, file.name, revision=listing.revision, endpoint=self.endpoint)

    def _blob(self, repo: str, file: RemoteFile) -> Path:
        return self.cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs" / file.etag

    @contextmanager
    def _asking(self, repo: str, revision: str | None) -> Iterator[None]:
        """Turn what the client raises into errors of our own, which hold nothing of what the hub or the client said."""
        try:
            yield
        except HFValidationError:
            raise InvalidRequest(
                f"{repo!r} is no repository of a hub; those are called OWNER/NAME", param="name"
            ) from None
        except RevisionNotFoundError:
            raise InvalidRequest(
                f"{repo} has no revision {revision!r}; see {self.page(repo)}", param="revision"
            ) from None
        except RemoteEntryNotFoundError:
            raise HubFailed(f"the hub lists a file of {repo} that it does not have; pull it again later") from None
        except HfHubHTTPError as error:
            raise self._refusal(error, repo) from None
        except OfflineModeIsEnabled:
            raise HubFailed("HF_HUB_OFFLINE is set, so the hub is not asked; unset it to pull") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, LocalEntryNotFoundError):
            raise HubFailed(
                f"the hub at {self.endpoint} does not answer or broke off; check the network, HF_ENDPOINT and proxies, "
                "and pull again: what has arrived is kept",
            ) from None
        except ValueError:
            raise HubFailed(
                f"a file of {repo} is larger than the hub gives out in one piece; choose a smaller quantisation"
            ) from None

    def _refusal(self, error: HfHubHTTPError, repo: str) -> Exception:
        status, page = error.response.status_code, self.page(repo)
        if status == 401 and self._token is None:
            return TokenNeeded(
                f"{repo} is shown only to those who have accepted its terms, or there is no such repository. Log in "
                f"and accept them at {page}, make a token that may read at {self.endpoint}/settings/tokens, set "
                "HF_TOKEN to it and pull again"
            )
        if status == 401:
            return TokenRefused(
                "the hub does not know the token in HF_TOKEN (or of `hf auth login`): it is wrong, expired or revoked. "
                f"Make a new one at {self.endpoint}/settings/tokens"
            )
        if isinstance(error, GatedRepoError):
            return TermsNotAccepted(
                f"the token is good, but its account has not accepted the terms of {repo} or was not admitted yet. "
                f"Accept them at {page}, logged in as the owner of the token, and pull again"
            )
        if status == 403:
            return TokenRefused(
                f"the token in HF_TOKEN may not read {repo}; at {self.endpoint}/settings/tokens give it the right to "
                "read public gated repositories, or make one that may read all"
            )
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            return UnknownModel(
                f"the hub has no repository {repo}, or hides it from this account; see {page}", param="name"
            )
        if status == 429:
            return HubFailed("the hub asks to come again later: too many requests; with HF_TOKEN set it takes more")
        return HubFailed(f"the hub failed with status {status}; pull again later: what has arrived is kept")


class _Watched:
    """A file that counts what is written to it; the client needs no more of a file than this."""

    def __init__(self, file: BinaryIO, onlooker: Onlooker) -> None:
        self._file = file
        self._onlooker = onlooker

    def write(self, data: bytes) -> int:
        self._onlooker.advance(len(data))
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int) -> int:
        return self._file.seek(place)

    def truncate(self) -> int:
        """Called where the hub begins again from the start."""
        end = os.fstat(self._file.fileno()).st_size
        place = self._file.truncate()
        self._onlooker.advance(place - end)
        return place


def _part(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.part")


def _alone(file: BinaryIO) -> None:
    """Two that append to one file would spoil it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HubFailed("another pull is fetching this very file; wait for it") from None


def _checked(path: Path, file: RemoteFile, onlooker: Onlooker) -> str:
    """The SHA-256 of the content; raises WeightsCorrupt, after removing it, when it is not what the hub promises."""
    git = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    digest = sha256(path, f"checking {file.name}", onlooker, git.update)
    if file.etag not in {digest, git.hexdigest()}:
        path.unlink()
        raise WeightsCorrupt(
            f"{file.name} is not what the hub promises: its SHA-256 should be {file.etag} and is {digest}. It was "
            "removed; pull again, and if this repeats, do not trust the source",
            param="name",
        )
    return digest


def sha256(path: Path, doing: str, onlooker: Onlooker, also: Callable[[bytes], None] | None = None) -> str:
    """The SHA-256 of a file; `also` is given every piece that is read."""
    digest = hashlib.sha256()
    onlooker.begin(doing, path.stat().st_size)
    with path.open("rb") as content:
        while piece := content.read(CHUNK):
            digest.update(piece)
            if also is not None:
                also(piece)
            onlooker.advance(len(piece))
    return digest.hexdigest()


def _local(error: OSError, cache: Path) -> Exception:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFull(f"the disk of {cache} is full; make room, or set HF_HOME to another, and pull again")
    if error.errno is None:  # the client's word for a length that is not what was promised
        return HubFailed("the hub sent more or less than it promised; pull again")
    return HubFailed(f"nothing can be written to {cache}: {error.strerror}; HF_HOME says where else")
