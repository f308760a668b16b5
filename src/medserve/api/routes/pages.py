"""What this is and every route there is, as two pages for people and a document; nothing is loaded from anywhere."""

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

from medserve.reports import NOTICE
from medserve.threads import in_thread

router = APIRouter(include_in_schema=False)

HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "X-Frame-Options": "DENY"}
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem; color: #1b1f24 }}
pre, code {{ font: .9rem ui-monospace, monospace; background: #f2f4f6; border-radius: 4px }}
pre {{ padding: .8rem; overflow-x: auto }}
.notice {{ border-left: 4px solid #b35900; padding: .2rem 1rem; background: #fff7ec }}
h3 {{ margin-bottom: 0 }}
</style>
{content}
</html>
"""


@router.get("/")
async def front(request: Request) -> HTMLResponse:
    """What this is, and where to go from here."""
    base = str(request.base_url).rstrip("/")
    return _page(
        "medserve",
        f"""<h1>medserve</h1>
<p>A medical image goes in, a checked and reproducible report comes out, on this machine.</p>
<p class="notice"><strong>Research use only.</strong> {escape(NOTICE.removeprefix("Research use only. "))}</p>
<p>Ask for a report:</p>
<pre>curl -F images=@lesion.jpg -H 'Accept: text/plain' {escape(base)}/v1/workflows/dermoscopy</pre>
<p>Or point any client of OpenAI's API at <code>{escape(base)}/v1</code>.</p>
<ul>
<li><a href="/docs">Every route</a>, and the same as <a href="/openapi.json">an OpenAPI document</a></li>
<li><a href="/v1/models">The models</a> and their state</li>
<li><a href="/v1/workflows">The workflows</a></li>
</ul>""",
    )


@router.get("/docs")
async def reference(request: Request) -> HTMLResponse:
    """Every route, from the OpenAPI document."""
    routes = "\n".join(_routes(await _document(request)))
    return _page("medserve: routes", f'<h1>Routes</h1>\n{routes}\n<p><a href="/openapi.json">OpenAPI document</a></p>')


@router.get("/openapi.json")
async def document(request: Request) -> JSONResponse:
    """The OpenAPI document, with the path under which a proxy shows the service."""
    root = request.scope.get("root_path", "").rstrip("/")
    return JSONResponse(await _document(request) | ({"servers": [{"url": root}]} if root else {}))


async def _document(request: Request) -> dict[str, Any]:
    """The document of all routes; to make it the first time takes half a second."""
    made: dict[str, Any] = await in_thread(request.app.openapi)
    return made


def _routes(document: dict[str, Any]) -> Iterator[str]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"<h3><code>{method.upper()} {escape(path)}</code></h3>"
            yield f"<p>{escape(operation.get('description', ''))}</p>"


def _page(title: str, content: str) -> HTMLResponse:
    return HTMLResponse(PAGE.format(title=title, content=content), headers=HEADERS)
