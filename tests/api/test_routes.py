"""What the routes answer when all is well, and what the OpenAPI document says of them."""

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from medserve.api.errors import status_of
from medserve.errors import MedserveError, ModelBlind, NotSupported, ProjectorMissing, WeightsMissing

DERMOSCOPY = "/v1/workflows/dermoscopy"


@pytest.fixture
def document(client: httpx.Client) -> Any:
    """The OpenAPI document."""
    return client.get("/openapi.json").json()


def operations(document: Any) -> Iterator[tuple[str, Any]]:
    """Every operation with its name."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def references(value: Any) -> Iterator[str]:
    """Every reference anywhere inside."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from references(item)


@pytest.mark.parametrize("path", ["/livez", "/health", "/v1/health/live", "/readyz", "/v1/health/ready"])
def test_probes_answer(client: httpx.Client, path: str) -> None:
    """Every name that probes know."""
    assert 200 == client.get(path).status_code


def test_the_same_report_comes_from_a_form_and_from_json(client: httpx.Client, dermoscopy: Path) -> None:
    """A file, a data URI and bare base64 are the same picture."""
    text = b64encode(dermoscopy.read_bytes()).decode()
    answers = [
        client.post(DERMOSCOPY, files={"images": dermoscopy.read_bytes()}, data={"options": '{"signs": false}'}),
        client.post(DERMOSCOPY, json={"images": [f"data:image/jpeg;base64,{text}"], "options": {"signs": False}}),
        client.post(DERMOSCOPY, json={"images": [text], "model": "script", "temperature": 0, "seed": 3}),
    ]
    studies = {answer.json()["study"]["sha256"] for answer in answers}

    assert [200, 200, 200] == [answer.status_code for answer in answers]
    assert 1 == len(studies)


def test_a_report_comes_as_text_when_asked(client: httpx.Client, dermoscopy: Path) -> None:
    """`Accept: text/plain` is for people."""
    answer = client.post(DERMOSCOPY, files={"images": dermoscopy.read_bytes()}, headers={"Accept": "text/plain"})

    assert "text/plain; charset=utf-8" == answer.headers["content-type"]
    assert answer.text.startswith("Dermoscopy report\n=====")


def test_options_reach_the_workflow(client: httpx.Client, dermoscopy: Path) -> None:
    """`signs` adds three questions."""
    files = {"images": dermoscopy.read_bytes()}
    few = client.post(DERMOSCOPY, files=files).json()
    many = client.post(DERMOSCOPY, files=files, data={"options": '{"signs": true}', "seed": ""}).json()

    assert 3 == len(many["steps"]) - len(few["steps"])


def test_controls_are_asked_for_and_reported(client: httpx.Client, dermoscopy: Path) -> None:
    """A model that says "Round." to everything never looks at the picture, and the report says so."""
    files = {"images": dermoscopy.read_bytes()}
    made = client.post(DERMOSCOPY, files=files, data={"options": '{"controls": ["blank", "paraphrase"]}'}).json()
    plain = client.post(DERMOSCOPY, files=files).json()

    assert (["paraphrase", "blank"], False) == ([one["kind"] for one in made["controls"]], made["depends_on_picture"])
    assert ("picture_ignored" in made["flags"], "picture_ignored" in plain["flags"]) == (True, False)
    assert ([], None) == (plain["controls"], plain["depends_on_picture"])


def test_an_unknown_control_is_refused_with_its_field(client: httpx.Client, dermoscopy: Path) -> None:
    """Before the model is asked anything."""
    answer = client.post(
        DERMOSCOPY, files={"images": dermoscopy.read_bytes()}, data={"options": '{"controls": ["blink"]}'}
    )

    assert (400, "options.controls") == (answer.status_code, answer.json()["error"]["param"])


def test_a_picture_that_is_not_taken_is_a_report_without_a_diagnosis(client: httpx.Client) -> None:
    """A cat is no error: the report says that it is not assessable, and why."""
    cat = Path(__file__).parents[1] / "data" / "guard" / "cat.jpg"
    made = client.post(DERMOSCOPY, files={"images": cat.read_bytes()}).raise_for_status().json()

    assert (["not_assessable"], [], None) == (made["flags"], made["steps"], made["conclusion"]["label"])
    assert not made["domain"]["assessable"]


def test_a_workflow_says_what_it_takes(client: httpx.Client) -> None:
    """In words and as the guard will hold a study against it; its options are a JSON Schema that validates."""
    told = client.get(DERMOSCOPY).json()

    assert "a dermoscopic photograph of one skin lesion" == told["takes"]
    assert {"modalities": ["DMS", "XC"], "looks": ["skin"], "kind": "dermoscopy"} == told["guard"]

    Draft202012Validator.check_schema(told["options"])
    assert ("DMS", 1) == (told["modality"], told["max_images"])
    assert told in client.get("/v1/workflows").json()["data"]


def test_the_front_page_is_for_people_and_loads_nothing(client: httpx.Client) -> None:
    """It carries the notice and a first command, and no script or foreign address."""
    page = client.get("/", headers={"Accept": "text/html"})

    assert page.headers["content-type"].startswith("text/html")
    assert "Research use only" in page.text
    assert f"curl -F images=@lesion.jpg -H 'Accept: text/plain' {client.base_url}".rstrip("/") in page.text
    for text in (page.text, client.get("/docs").text):
        assert "<script" not in text
        assert "//" not in text.replace(str(client.base_url).rstrip("/"), "")


def test_the_page_of_routes_names_every_route(client: httpx.Client, document: Any) -> None:
    """It is made from the OpenAPI document."""
    page = client.get("/docs").text

    assert [] == [name for name, _ in operations(document) if f"<code>{name}</code>" not in page]


def test_every_reference_of_the_openapi_document_resolves(document: Any) -> None:
    """Also those inside bodies that are described by hand."""
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}

    assert set() == set(references(document)) - known
    assert "$defs" not in json.dumps(document)


def test_every_schema_of_the_openapi_document_is_one(document: Any) -> None:
    """OpenAPI 3.1 schemas are JSON Schema 2020-12."""
    assert document["openapi"].startswith("3.1")
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_route_documents_its_errors(document: Any) -> None:
    """In the one shape, and FastAPI's 422 is not among them."""
    for name, operation in operations(document):
        answers = operation["responses"]
        assert {"404", "500"} <= set(answers), name
        assert "422" not in answers
        assert {"$ref": "#/components/schemas/ErrorBody"} == answers["500"]["content"]["application/json"]["schema"]


def test_both_kinds_of_body_of_a_workflow_are_documented(document: Any) -> None:
    """Forms and JSON have the same fields."""
    content = document["paths"]["/v1/workflows/{name}"]["post"]["requestBody"]["content"]
    fields = [set(content[kind]["schema"]["properties"]) for kind in ("application/json", "multipart/form-data")]

    assert [{"images", "model", "options", "temperature", "seed"}] * 2 == fields


def test_names_of_loopback_are_answered(client: httpx.Client) -> None:
    """With and without a port, IPv6 too, and pages of this machine."""
    for host in ("127.0.0.1", "localhost:9", "[::1]:8080", "LOCALHOST"):
        assert 200 == client.get("/livez", headers={"Host": host}).status_code
    assert 200 == client.get("/livez", headers={"Origin": "http://localhost:5173"}).status_code


@pytest.mark.parametrize(
    ("kind", "status"), [(ProjectorMissing, 503), (WeightsMissing, 503), (ModelBlind, 503), (NotSupported, 400)]
)
def test_only_what_the_caller_can_mend_is_a_400(kind: type[MedserveError], status: int) -> None:
    """A file that is missing and a model that cannot see are for whoever runs the service to mend."""
    assert status == status_of(kind("words"))
