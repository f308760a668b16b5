"""Every way medserve can say no, as one tree: each error names what was wrong, the field it was in and the next step.

    MedserveError
    ├── InvalidRequest            the caller can mend it
    │   ├── UnknownModel
    │   ├── UnknownWorkflow
    │   ├── UnknownJob
    │   ├── UnknownFile
    │   ├── UnknownSchema         no JSON Schema is kept under that name
    │   ├── UnknownPicture        the catalogue has no picture of that name
    │   ├── JobUnfinished         the job has no result, or none yet
    │   ├── NotSupported          this model or engine cannot honour the request
    │   ├── ContextOverflow       the prompt does not fit into the model's context
    │   ├── ReferenceRefused      an address leads where the settings do not allow
    │   └── ImageError
    │       ├── ImageUnreadable
    │       ├── ImageTooLarge
    │       ├── NoTissue          a slide shows glass only
    │       └── MagnificationUnknown
    ├── AccessDenied              the caller may not do this
    │   ├── KeyRequired
    │   │   └── KeyUnknown        nobody was ever given such a key
    │   ├── ScopeMissing
    │   ├── RateLimited
    │   ├── TokenNeeded           the model hub wants to know who asks
    │   ├── TokenRefused          the hub does not know the token, or it may not read
    │   └── TermsNotAccepted      the hub gives the weights only to who has accepted their terms
    ├── ModelError                the model's state forbids the request
    │   ├── ModelLoading
    │   ├── MemoryShort           the memory budget is taken by models that are at work or pinned
    │   ├── ModelFailed
    │   │   ├── WeightsMissing
    │   │   ├── WeightsCorrupt
    │   │   ├── ProjectorMissing
    │   │   └── ModelBlind
    │   └── ModelBusy
    ├── EngineError               the worker or server behind the model failed this request
    │   ├── WorkerCrashed
    │   ├── ServerLost            the server elsewhere that runs the model is not there, or hung up
    │   ├── DeviceFull            the device that computes has no memory left for this request
    │   └── EngineTimeout
    ├── SourceFailed              a server that holds pictures did not hand them over
    ├── HubFailed                 the model hub did not hand over weights
    ├── DiskFull                  what is to be kept has no room
    ├── JobsFull                  as many jobs wait as may
    ├── DatabaseFailed            what keeps jobs and keys does not answer
    └── ServiceStopping           the service ends, and this did not end in time

Messages never hold patient data: they quote field names, numbers and hashes, not prompts, file names or tags.
"""

from typing import ClassVar, Self, TypeVar

E = TypeVar("E", bound="MedserveError")


class MedserveError(Exception):
    """The root: `message` says what happened and what to do next; `param` names the request field at fault.

    `retry_after` is the number of seconds after which asking again can help, where that is known.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def copied(self, more: str = "", *, retry_after: float | None = None) -> Self:
        """The same error, and `more` after its words, to be kept or raised where another one is.

        A raised error holds its traceback, and with it what a request brought, such as a patient's pictures. What is
        kept is therefore a copy that was never raised, and what is raised later a copy of that.
        """
        return type(self)(self.message + more, param=self.param, retry_after=retry_after)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.param, self.retry_after)


def _rebuild(kind: type[MedserveError], message: str, param: str | None, retry_after: float | None) -> MedserveError:
    return kind(message, param=param, retry_after=retry_after)


class InvalidRequest(MedserveError):
    """The request cannot be served as it stands; the caller can mend it."""

    code = "invalid_request"


class UnknownModel(InvalidRequest):
    """No model of that name is declared."""

    code = "model_not_found"


class UnknownWorkflow(InvalidRequest):
    """No workflow of that name exists."""

    code = "workflow_not_found"


class UnknownJob(InvalidRequest):
    """No job of that identifier exists, or it is another caller's, or it has expired."""

    code = "job_not_found"


class UnknownFile(InvalidRequest):
    """No uploaded file of that identifier exists, or it is another caller's, or it has expired."""

    code = "file_not_found"


class JobUnfinished(InvalidRequest):
    """The job has not ended yet, or ended without a result."""

    code = "job_unfinished"


class UnknownSchema(InvalidRequest):
    """No JSON Schema is kept under that name."""

    code = "schema_not_found"


class UnknownPicture(InvalidRequest):
    """The catalogue has no picture of that name, or there is no catalogue."""

    code = "picture_not_found"


class NotSupported(InvalidRequest):
    """The model or its engine cannot honour a parameter; refused rather than ignored."""

    code = "unsupported_parameter"


class ContextOverflow(InvalidRequest):
    """Prompt and answer together exceed the model's context."""

    code = "context_length_exceeded"


class ReferenceRefused(InvalidRequest):
    """A reference is badly formed, or leads where the settings do not allow."""

    code = "reference_refused"


class ImageError(InvalidRequest):
    """A picture cannot be used."""

    code = "invalid_image"


class ImageUnreadable(ImageError):
    """The bytes are not a whole picture in a format that is read here."""

    code = "image_unreadable"


class ImageTooLarge(ImageError):
    """The picture exceeds the limit on bytes, pixels or frames."""

    code = "image_too_large"


class NoTissue(ImageError):
    """The slide shows glass, or too little tissue for a single patch."""

    code = "no_tissue"


class MagnificationUnknown(ImageError):
    """The slide says neither how large its pixels are nor with which objective it was scanned."""

    code = "magnification_unknown"


class AccessDenied(MedserveError):
    """The caller may not do this."""

    code = "permission_denied"


class KeyRequired(AccessDenied):
    """The request carries no key, or one that is unknown, revoked or expired."""

    code = "invalid_api_key"


class KeyUnknown(KeyRequired):
    """The request shows a key that is not known here: a mistake, or a guess."""


class ScopeMissing(AccessDenied):
    """The key does not cover what the route does."""

    code = "insufficient_scope"


class RateLimited(AccessDenied):
    """The key has made as many requests, or has as many at work, as it may."""

    code = "rate_limit_exceeded"


class TokenNeeded(AccessDenied):
    """The model hub shows a repository only to who brings a token."""

    code = "hub_token_needed"


class TokenRefused(AccessDenied):
    """The model hub does not know the token, or the token may not read what is wanted."""

    code = "hub_token_refused"


class TermsNotAccepted(AccessDenied):
    """The owner of the token has not accepted the terms of the weights."""

    code = "terms_not_accepted"


class ModelError(MedserveError):
    """The model is not in a state to answer."""

    code = "model_unavailable"


class ModelLoading(ModelError):
    """The model is on its way; asking again later will help."""

    code = "model_loading"


class MemoryShort(ModelError):
    """Loading the model would exceed the memory budget, and what is loaded is at work or pinned."""

    code = "memory_short"


class ModelFailed(ModelError):
    """The model could not be loaded; asking again will not help until the reason is mended."""

    code = "model_failed"


class WeightsMissing(ModelFailed):
    """A weights file does not exist."""

    code = "weights_missing"


class WeightsCorrupt(ModelFailed):
    """A weights file is not what its name says, is cut short or belongs to another model."""

    code = "weights_corrupt"


class ProjectorMissing(ModelFailed):
    """The vision projector (mmproj) file that the settings name does not exist."""

    code = "projector_missing"


class ModelBlind(ModelFailed):
    """The model answers alike whatever picture it is shown, or counts no image tokens."""

    code = "model_blind"


class ModelBusy(ModelError):
    """Every place in the model's waiting room is taken."""

    code = "model_busy"


class EngineError(MedserveError):
    """The engine failed this one request."""

    code = "engine_error"


class WorkerCrashed(EngineError):
    """The model's worker process ended while it had work to do."""

    code = "worker_crashed"


class ServerLost(EngineError):
    """The server elsewhere that runs the model cannot be reached, hung up, or has nobody behind it."""

    code = "server_lost"


class DeviceFull(EngineError):
    """The device that computes has no memory left for this request; others go on."""

    code = "device_full"


class EngineTimeout(EngineError):
    """The engine did not answer within the limit."""

    code = "engine_timeout"


class SourceFailed(MedserveError):
    """A server that holds pictures could not be reached, was late, or did not hand over what was asked for."""

    code = "source_failed"


class HubFailed(MedserveError):
    """The model hub could not be reached, broke off, or did not give what it promised."""

    code = "hub_failed"


class DiskFull(MedserveError):
    """What is to be downloaded, or kept while it is worked on, does not fit on the disk."""

    code = "disk_full"


class JobsFull(MedserveError):
    """As many jobs wait as may."""

    code = "jobs_full"


class DatabaseFailed(MedserveError):
    """What keeps jobs and keys cannot be reached, has no room, or belongs to another version."""

    code = "database_unavailable"


class ServiceStopping(MedserveError):
    """The service is being stopped, and its time for letting answers end is over."""

    code = "service_stopping"


def by_code(code: str, root: type[E]) -> type[E] | None:
    """The class of the tree at `root` and below that carries a code; the nearest to the root where several do."""
    if root.code == code:
        return root
    found = (by_code(code, child) for child in root.__subclasses__())
    return next((kind for kind in found if kind is not None), None)
