"""The OpenAPI document describes every body truly: no two parts of it share a name and differ."""

from typing import Any

from fastapi.openapi.utils import get_openapi

from medserve.api import create_app
from medserve.settings import Settings


def parts(operation: dict[str, Any]) -> dict[str, Any]:
    """The definitions that an operation's bodies bring along."""
    bodies = operation.get("requestBody", {}).get("content", {}).values()
    branches = [branch for body in bodies for branch in (body["schema"], *body["schema"].get("anyOf", ()))]
    return {name: part for branch in branches for name, part in branch.get("$defs", {}).items()}


def test_no_two_parts_of_bodies_share_a_name_and_differ() -> None:
    """They lie together in the document, where the later one would silently take the earlier one's place."""
    app = create_app(Settings())
    document = get_openapi(title="", version="", routes=app.routes)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    known: dict[str, Any] = dict(document["components"]["schemas"])
    found = [(name, part) for operation in operations for name, part in parts(operation).items()]

    assert {"ChatMessage", "MessageItem"} <= {name for name, _ in found}
    for name, part in found:
        assert part == known.setdefault(name, part), name


def test_two_applications_of_one_process_have_the_same_document() -> None:
    """The first one takes nothing away from the second."""
    first, second = (create_app(Settings()).openapi() for _ in range(2))

    assert first == second
