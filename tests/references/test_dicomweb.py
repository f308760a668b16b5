"""The promises of DICOMweb: a series from a server is the study that its files are."""

from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from medserve import references
from medserve.errors import ImageTooLarge, InvalidRequest, ReferenceRefused, SourceFailed
from medserve.images import Modality, Study
from medserve.imaging import intake
from medserve.settings import DicomWeb, Limits, Settings
from tests.imaging import phantoms
from tests.references import orthanc
from tests.references.orthanc import Orthanc
from tests.references.servers import Answering, answering

pytestmark = pytest.mark.anyio

SERIES = "dicomweb:pacs/studies/1.2.3.4.5/series/1.2.3.4.5.6"
VARIABLE = "PACS_CREDENTIALS"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that holds the drawn abdomen as a CT series."""
    with orthanc.running(tmp_path_factory.mktemp("orthanc")) as server:
        server.store(series())
        yield server


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{orthanc.USER}:{orthanc.PASSWORD}")


def series() -> list[bytes]:
    """A CT series, the same UIDs whenever it is made."""
    files = []
    for number, data in enumerate(phantoms.series(phantoms.abdomen()), 1):
        dataset = dcmread(BytesIO(data))
        dataset.SOPInstanceUID = f"1.2.3.4.5.6.{number}"
        files.append(phantoms.saved(dataset))
    return files


def settings(url: str, **changes: object) -> Settings:
    limits = changes.pop("limits", Limits())
    server = DicomWeb(name="pacs", url=url, **{"credentials_variable": VARIABLE, **changes})
    return Settings(dicomweb=(server,), limits=limits)


async def study(reference: str, chosen: Settings) -> Study:
    """What is read of a reference."""
    async with references.gathered([reference], chosen) as materials:
        return await intake.read(materials, chosen.limits)


async def test_a_series_is_the_same_study_as_its_files(pacs: Orthanc) -> None:
    """Pictures, labels, spacing, facts and voxels: fetched from Orthanc and read from disk."""
    fetched = await study(SERIES, settings(pacs.dicomweb))
    local = await intake.read(series(), Limits())

    assert Modality.CT is fetched.modality
    assert local == fetched
    assert fetched.volume is not None
    assert local.volume is not None
    assert (local.volume.values == fetched.volume.values).all()


async def test_one_instance_is_fetched_alone(pacs: Orthanc) -> None:
    """With /instances/UID."""
    fetched = await study(f"{SERIES}/instances/1.2.3.4.5.6.3", settings(pacs.dicomweb))

    assert 1 == len(fetched.images)


async def test_a_compressed_instance_comes_as_it_was_stored(pacs: Orthanc) -> None:
    """transfer-syntax=*: the server recodes nothing, so hashes and facts are those of the file."""
    file = get_testdata_file("JPEG2000.dcm")
    assert isinstance(file, str)
    data = Path(file).read_bytes()
    pacs.store([data])
    found = dcmread(file, stop_before_pixels=True)
    reference = (
        f"dicomweb:pacs/studies/{found.StudyInstanceUID}/series/{found.SeriesInstanceUID}"
        f"/instances/{found.SOPInstanceUID}"
    )

    assert await intake.read([data], Limits()) == await study(reference, settings(pacs.dicomweb))


async def test_wrong_credentials_and_missing_series_are_told_apart(
    pacs: Orthanc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is the operator's to mend, the second the caller's."""
    with pytest.raises(InvalidRequest, match=r"nothing there|no pictures"):
        await study("dicomweb:pacs/studies/1.2.3/series/1.2.3.4", settings(pacs.dicomweb))
    monkeypatch.setenv(VARIABLE, "medserve:wrong")
    with pytest.raises(SourceFailed, match="refuses the credentials"):
        await study(SERIES, settings(pacs.dicomweb))


async def test_credentials_come_from_a_file_too(pacs: Orthanc, tmp_path: Path) -> None:
    """As secrets of containers do."""
    (tmp_path / "secret").write_text(f"{orthanc.USER}:{orthanc.PASSWORD}\n")
    chosen = settings(pacs.dicomweb, credentials_variable=None, credentials_file=tmp_path / "secret")

    assert 12 == len((await study(SERIES, chosen)).images)


async def test_a_series_that_is_too_large_is_broken_off(pacs: Orthanc) -> None:
    """Bytes are counted as they come."""
    with pytest.raises(ImageTooLarge, match=r"limits\.body_bytes"):
        await study(SERIES, settings(pacs.dicomweb, limits=Limits(body_bytes=20_000)))


@pytest.fixture
async def server() -> AsyncIterator[Answering]:
    """A server whose answer the test chooses."""
    async with answering() as running:
        yield running


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": 302, "headers": {"Location": "/elsewhere"}}, "redirects"),
        ({"status": 500}, "status 500"),
        ({"headers": {"Content-Type": "application/json"}, "body": b"{}"}, "multipart/related"),
        ({"headers": {"Content-Type": "multipart/related"}, "body": b"x"}, "boundary"),
        ({"headers": {"Content-Type": "multipart/related; boundary=b"}, "body": b"--b\r\n\r\nDICM"}, "cut short"),
        ({"headers": {"Content-Type": "multipart/related; boundary=b"}, "body": b"nonsense"}, "not the multipart"),
        (
            {
                "headers": {"Content-Type": "multipart/related; boundary=b", "Content-Encoding": "gzip"},
                "body": b"--b--",
            },
            "packed",
        ),
        ({"pause": 5.0}, "in time"),
        ({"body": b"ten bytes", "headers": {"Content-Length": "100"}}, "broke off|multipart/related"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_server_that_misbehaves_is_told(server: Answering, answer: dict[str, object], error: str) -> None:
    """In words, within the time, and as the server's failure."""
    server.answers(**answer)  # type: ignore[arg-type]
    with pytest.raises(SourceFailed, match=error):
        await study(SERIES, settings(server.url, limits=Limits(fetch_seconds=1.0)))


async def test_what_is_asked_for_is_the_stored_bytes_and_no_address_is_in_the_words(server: Answering) -> None:
    """The path is built from checked UIDs, and the Accept header asks for every transfer syntax."""
    server.answers(status=404)
    with pytest.raises(InvalidRequest) as caught:
        await study(SERIES, settings(server.url + "/dicom-web/"))

    assert "/dicom-web/studies/1.2.3.4.5/series/1.2.3.4.5.6" == server.requests[0].path
    assert "transfer-syntax=*" in server.requests[0].headers["accept"]
    assert server.requests[0].headers["authorization"].startswith("Basic ")
    assert "1.2.3" not in caught.value.message
    assert "127.0.0.1" not in caught.value.message


@pytest.mark.parametrize("text", ["Bearer abc.def", "bearer abc.def"])
async def test_a_token_is_sent_as_it_is(server: Answering, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """For servers that want one."""
    monkeypatch.setenv(VARIABLE, text)
    server.answers(status=404)
    with pytest.raises(InvalidRequest):
        await study(SERIES, settings(server.url))

    assert "Bearer abc.def" == server.requests[0].headers["authorization"]


@pytest.mark.parametrize("text", ["", "token", "a:b\nX-Evil: 1", "a:\x00"])
async def test_credentials_that_no_header_can_carry_send_nothing(
    server: Answering, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    """And are not quoted."""
    (tmp_path / "secret").write_text(text)
    with pytest.raises(SourceFailed) as caught:
        await study(SERIES, settings(server.url, credentials_variable=None, credentials_file=tmp_path / "secret"))

    assert [] == server.requests
    assert "Evil" not in caught.value.message


@pytest.mark.parametrize(
    "reference",
    [
        "dicomweb:other/studies/1.2/series/1.3",
        "dicomweb:pacs/studies/1.2",
        "dicomweb:pacs/studies/../series/1.2",
        "dicomweb:pacs/studies/1.2/series/1.3/../../../../instances",
        "dicomweb:pacs/studies/1.2/series/1.3/instances/1.4/frames/1",
        "dicomweb:pacs/studies/1.2/series/1.3?includefield=all",
        "dicomweb:pacs/studies/1.2/series/1.3#a",
        "dicomweb:pacs/studies/1.2/series/1.3\n",
        "dicomweb:pacs/studies/1.2%2f/series/1.3",
        "dicomweb:pacs//studies/1.2/series/1.3",
        "dicomweb:pacs@evil/studies/1.2/series/1.3",
        "dicomweb://127.0.0.1/studies/1.2/series/1.3",
        f"dicomweb:pacs/studies/{'1.' * 40}1/series/1.3",
        "dicomweb:pacs/studies/１.２/series/1.3",
        "dicomweb:pacs/studies/1./series/1.3",
        "dicomweb:",
    ],
)
async def test_badly_formed_references_reach_no_server(server: Answering, reference: str) -> None:
    """The message says the form or the names that exist, and quotes nothing."""
    with pytest.raises(ReferenceRefused) as caught:
        await study(reference, settings(server.url))

    assert [] == server.requests
    assert "pacs" in caught.value.message or "dicomweb:NAME/studies/UID" in caught.value.message


async def test_without_servers_there_are_none() -> None:
    """The default."""
    with pytest.raises(ReferenceRefused, match="there are: none"):
        await study(SERIES, Settings())
