"""Everything that can be set, read once from the environment (MEDSERVE_...) or a TOML file, and valid or refused."""

import os
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from medserve import addresses

DEMO = Path(__file__).parent / "demo"
"""Where the demonstration model lies that is shipped with the package."""


def _model_name(name: str) -> str:
    if not name or not all(character.isalnum() or character in "._:-/" for character in name):
        raise ValueError(f"a model name holds letters, digits and . _ : - / only, not {name!r}")
    return name


class ModelSpec(BaseModel):
    """One model: its name, what runs it, and where its weights are.

    `projector` is the vision part (mmproj) of a GGUF model; beside the weights it is found by its name. `replies` is
    what the scripted engine answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(_model_name)]
    engine: str = "llama-cpp"
    path: Path | None = None
    url: str | None = None
    projector: Path | None = None
    context: Annotated[int, Field(ge=256, le=131_072, description="tokens of context for each slot")] = 8192
    slots: Annotated[int, Field(ge=1, le=64, description="conversations answered at once")] = 2
    waiting: Annotated[int, Field(ge=0, le=10_000, description="requests that may wait for a slot")] = 64
    threads: Annotated[int, Field(ge=1, le=512)] | None = None
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    reuse: Annotated[bool, Field(description="reuse the work on pictures seen before; False is for measuring")] = True
    replies: tuple[str, ...] = ()


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
    hold_seconds: Annotated[float, Field(gt=0, description="longest that a request waits for a loading model")] = 60.0
    fetch_seconds: Annotated[float, Field(gt=0, description="longest time to fetch one reference")] = 60.0


class DicomWeb(BaseModel):
    """A DICOMweb server from which series may be fetched as `dicomweb:NAME/studies/UID/series/UID`.

    Its credentials never stand in the settings: the environment variable or the file named here holds `user:password`
    or `Bearer TOKEN`. `ca` is a file with the certificates that the server's is checked against.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    url: Annotated[str, AfterValidator(addresses.checked_prefix)]
    credentials_variable: str | None = None
    credentials_file: Path | None = None
    ca: Path | None = None


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

    host: str = "127.0.0.1"
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
        return self

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
