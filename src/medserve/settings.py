"""Everything that can be set, read once from the environment (MEDSERVE_...) or a TOML file, and valid or refused."""

import os
import re
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from medserve import addresses

DEMO = Path(__file__).parent / "demo"
"""Where the demonstration model lies that is shipped with the package."""


def _model_name(name: str) -> str:
    if not name or not all(character.isalnum() or character in "._:-/" for character in name):
        raise ValueError("a model name holds letters, digits and . _ : - / only")
    if {"", ".", ".."} & set(name.split("/")):  # clients and proxies take such segments out of an address
        raise ValueError("a model name has a word before, between and after its slashes, and none is . or ..")
    return name


def _origin(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", text):
        raise ValueError(
            "an origin is named in full and small letters, without a path, such as https://pages.example.org; "
            "there is no way to allow every page"
        )
    return text


def _network(text: str) -> str:
    return str(ip_network(text, strict=False))


def _host(name: str) -> str:
    try:
        name.encode("idna")
    except UnicodeError:
        raise ValueError("is no name of a host: each part between dots has 1 to 63 characters") from None
    if "\0" in name:
        raise ValueError("holds a NUL character; remove it")
    return name


def _written(place: object) -> object:
    """A path as people write it in a file: `~` is the home directory, and nothing is no path, not this folder."""
    if place == "":
        raise ValueError("is empty; name a file or a folder, or leave it out")
    if isinstance(place, str) and "\0" in place:
        raise ValueError("holds a NUL character; remove it")
    return os.path.expanduser(place) if isinstance(place, str) else place  # noqa: PTH111 - Path's own may raise


def _own_folder() -> Path:
    try:
        return Path.home() / ".local" / "share" / "medserve"
    except RuntimeError:
        raise FileNotFoundError("this user has no home directory; name a folder with MEDSERVE_HOME") from None


Place = Annotated[Path, BeforeValidator(_written)]


class ModelSpec(BaseModel):
    """One model: its name, what runs it, and where its weights are.

    `projector` is the vision part (mmproj) of a GGUF model; beside the weights it is found by its name. `replies` is
    what the scripted engine answers. `python` and what stands below it are for weights in safetensors, `served` and
    what stands below it for servers behind a `url`. A server's key never stands in the settings: `key_variable` names
    the environment variable that holds it, `key_file` the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_model_name)]
    engine: str = "llama-cpp"
    path: Place | None = None
    url: str | None = None
    projector: Place | None = None
    context: Annotated[int, Field(ge=256, le=131_072, description="tokens of context for each slot")] = 8192
    slots: Annotated[int, Field(ge=1, le=64, description="conversations answered at once")] = 2
    waiting: Annotated[int, Field(ge=0, le=10_000, description="requests that may wait for a slot")] = 64
    threads: Annotated[int, Field(ge=1, le=512)] | None = None
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    pinned: Annotated[bool, Field(description="never unloaded, neither when idle nor to make room")] = False
    preload: Annotated[bool, Field(description="load at the start, not when it is first asked")] = False
    idle_seconds: Annotated[float, Field(ge=0, description="unused for so long, it is unloaded; 0: never")] | None = (
        None
    )
    memory_bytes: Annotated[int, Field(ge=1, description="what it takes, where the estimate is wrong")] | None = None
    reuse: Annotated[bool, Field(description="reuse the work on pictures seen before; False is for measuring")] = True
    replies: tuple[str, ...] = ()
    thinking: Annotated[
        int | None, Field(ge=0, le=8191, description="tokens to think for where a request does not say; 0: never")
    ] = None
    python: Annotated[
        Place | None, Field(description="the Python whose environment runs the model; without it, medserve's own")
    ] = None
    precision: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    quantise: Annotated[
        Literal["8bit", "4bit"] | None, Field(description="hold the text weights in fewer bits (bitsandbytes)")
    ] = None
    device: Annotated[
        str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="where to compute; auto uses every GPU there is")
    ] = "auto"
    parallel: Annotated[int, Field(ge=1, le=64, description="GPUs that share each layer (vLLM)")] = 1
    arguments: Annotated[tuple[str, ...], Field(description="further arguments of the server's command (vLLM)")] = ()
    served: Annotated[str, Field(description="the model's name at the server; without it, the only one there")] = ""
    key_variable: str | None = None
    key_file: Place | None = None
    ca: Annotated[Place | None, Field(description="certificates that the server's is checked against")] = None


DEMO_MODEL = ModelSpec(
    name="medserve-demo",
    path=DEMO / "medserve-demo.gguf",
    projector=DEMO / "medserve-demo-mmproj.gguf",
    context=2048,
    threads=1,
)


class Limits(BaseModel):
    """What is refused before any work is done for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image_bytes: Annotated[int, Field(ge=1, description="bytes of one raster picture, and of one file inside JSON")] = (
        64 * 2**20
    )
    file_bytes: Annotated[
        int, Field(ge=1, description="bytes of one DICOM, NIfTI or other file given by path or in a form")
    ] = 2**30
    image_pixels: Annotated[int, Field(ge=1, description="width times height of one picture")] = 100_000_000
    image_min_side: Annotated[int, Field(ge=1, description="pixels each side must have at least")] = 8
    image_frames: Annotated[int, Field(ge=1, description="frames in one file")] = 1000
    images: Annotated[int, Field(ge=1, description="pictures in one request")] = 128
    body_bytes: Annotated[int, Field(ge=1, description="bytes of one HTTP request")] = 256 * 2**20
    text_characters: Annotated[int, Field(ge=1, description="characters of text in one request")] = 400_000
    answer_seconds: Annotated[float, Field(gt=0, description="longest wait for one answer")] = 1800.0
    load_seconds: Annotated[float, Field(gt=0, description="longest time that a model may take to load")] = 600.0
    retry_seconds: Annotated[float, Field(gt=0, description="from a failed load until a request tries again")] = 60.0
    idle_seconds: Annotated[
        float, Field(ge=0, description="a model unused for so long is unloaded; 0: never; a model may say otherwise")
    ] = 0.0
    memory_bytes: (
        Annotated[
            int, Field(ge=1, description="what all loaded models may take together; without it, what the machine has")
        ]
        | None
    ) = None
    hold_seconds: Annotated[float, Field(gt=0, description="longest that a request waits for a loading model")] = 60.0
    fetch_seconds: Annotated[float, Field(gt=0, description="longest time to fetch one reference")] = 60.0
    request_seconds: Annotated[float, Field(gt=0, description="longest time to receive one request's body")] = 120.0
    drain_seconds: Annotated[float, Field(ge=0, description="how long a stopping service lets answers end")] = 30.0
    jobs: Annotated[int, Field(ge=1, description="jobs that may wait; beyond it the caller is told to come again")] = (
        1000
    )
    job_workers: Annotated[int, Field(ge=1, le=64, description="jobs at work at once")] = 2
    job_seconds: Annotated[float, Field(gt=0, description="longest time that one job may work")] = 24 * 3600.0
    job_days: Annotated[float, Field(gt=0, description="how long an ended job and its result are kept")] = 7.0
    batch_items: Annotated[int, Field(ge=1, description="items of one batch")] = 10_000


class DicomWeb(BaseModel):
    """A DICOMweb server from which series may be fetched as `dicomweb:NAME/studies/UID/series/UID`.

    Its credentials never stand in the settings: the environment variable or the file named here holds `user:password`
    or `Bearer TOKEN`. `ca` is a file with the certificates that the server's is checked against.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    url: Annotated[str, AfterValidator(addresses.checked_prefix)]
    credentials_variable: str | None = None
    credentials_file: Place | None = None
    ca: Place | None = None


class Settings(BaseSettings):
    """The settings of one process. `MEDSERVE_LIMITS__IMAGE_BYTES=1000000` sets `limits.image_bytes`.

    A TOML file named by MEDSERVE_CONFIG holds the same names; the environment wins over the file.
    """

    model_config = SettingsConfigDict(
        env_prefix="MEDSERVE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    open_to_network: Annotated[bool, Field(description="allow a host that other machines can reach")] = False
    models: tuple[ModelSpec, ...] = (DEMO_MODEL,)
    default_model: str = ""
    preload: Annotated[bool, Field(description="load the default model at the start, not when it is first asked")] = (
        True
    )
    limits: Limits = Limits()
    sources: Annotated[
        tuple[Annotated[str, AfterValidator(addresses.checked_prefix)], ...],
        Field(description="where addresses of pictures may lead: https://host/folder/; nowhere unless told"),
    ] = ()
    dicomweb: Annotated[tuple[DicomWeb, ...], Field(description="DICOMweb servers that may be fetched from")] = ()
    home: Annotated[
        Place,
        Field(
            default_factory=_own_folder,
            description="where jobs, keys and calibrations are kept; only this user may read it",
        ),
    ]
    workflows: Annotated[
        Place | None,
        Field(description="folder of workflow files (*.yaml); without it `workflows` in `home`"),
    ] = None
    database: Annotated[
        str, Field(description="sqlite:///FILE or postgresql://USER@HOST/NAME; without it a SQLite file in `home`")
    ] = ""
    origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...],
        Field(description="web pages of other origins that may call, such as https://pages.example.org"),
    ] = ()
    key: Annotated[SecretStr, Field(description="what commands such as ps show to a service that asks for keys")] = (
        SecretStr("")
    )
    admin_key_file: Annotated[
        Place | None, Field(description="a file that holds one more key, for admin; such as a container's secret")
    ] = None
    proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_network)], ...],
        Field(description="reverse proxies (IP addresses or networks) that are believed for whom they ask"),
    ] = ()
    tls_in_front: Annotated[
        bool, Field(description="a proxy in front speaks TLS; browsers are told to use nothing else")
    ] = False
    catalogue: Annotated[
        Place | None, Field(description="folder of pictures, with a CSV of what is known of them, for /api/list-images")
    ] = None
    otlp_endpoint: Annotated[
        str,
        Field(
            default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
            description="where OpenTelemetry traces go, such as http://127.0.0.1:4318; "
            "OTEL_EXPORTER_OTLP_ENDPOINT, which other programs read too, where it is not set",
        ),
    ]
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Settings":
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            raise ValueError(f"two models share a name: {names}")
        if not names:
            raise ValueError("at least one model must be declared")
        if self.default_model and self.default_model not in names:
            raise ValueError(f"default_model {self.default_model!r} is none of {names}")
        servers = [server.name for server in self.dicomweb]
        if len(set(servers)) != len(servers):
            raise ValueError(f"two DICOMweb servers share a name: {servers}")
        if self.workflows is not None and not self.workflows.is_dir():
            raise ValueError("workflows names no folder")
        return self

    @property
    def workflow_folder(self) -> Path:
        """Where workflow files lie; the folder in `home` need not exist."""
        return self.workflows or self.home / "workflows"

    @property
    def default(self) -> str:
        """The model that answers when none is named: `default_model`, else the first declared."""
        return self.default_model or self.models[0].name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("MEDSERVE_CONFIG")
        if file and not Path(file).is_file():  # the reader of TOML files would go on without it
            raise FileNotFoundError(f"MEDSERVE_CONFIG names no file: {file}")
        sources = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls, Path(file))) if file else sources


@cache
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
