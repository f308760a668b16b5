"""Whatever is wrong with a request, the answer is a 4xx that names the field and the remedy and repeats nothing."""
# ruff: noqa: E501 - a table is read row by row

import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import PIL.Image
import pytest

from tests.serving import Service

SECRET = "Mustermann"
"""Stands in every text, file and file name that is sent here; it may come back nowhere."""

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
DERMOSCOPY = "/v1/workflows/dermoscopy"
JSON = {"Content-Type": "application/json"}
TURN = {"role": "user", "content": SECRET}


def chat(**changes: Any) -> dict[str, Any]:
    """A chat request that would be in order without the changes."""
    return {"json": {"messages": [TURN], **changes}}


def turns(*messages: Any) -> dict[str, Any]:
    """A chat request with these messages."""
    return {"json": {"messages": list(messages)}}


def shown(url: object) -> dict[str, Any]:
    """A chat request with a picture at `url`."""
    picture = {"type": "image_url", "image_url": {"url": url}}
    return turns({"role": "user", "content": [picture, {"type": "text", "text": SECRET}]})


def response(**changes: Any) -> dict[str, Any]:
    """A request for a response that would be in order without the changes."""
    return {"json": {"input": SECRET, **changes}}


def shown_item(url: object) -> dict[str, Any]:
    """A message with a picture at `url`."""
    return {"role": "user", "content": [{"type": "input_image", "image_url": url}]}


def raw(body: bytes, kind: str = "application/json") -> dict[str, Any]:
    """A body as it stands."""
    return {"content": body, "headers": {"Content-Type": kind}}


def form(*files: bytes, name: str = "images", **fields: Any) -> dict[str, Any]:
    """A form with files and fields."""
    return {"files": [(name, (f"{SECRET}.jpg", file, "image/jpeg")) for file in files], "data": fields}


def order(*images: object, **changes: Any) -> dict[str, Any]:
    """An order of a report in JSON."""
    return {"json": {"images": list(images), **changes}}


def picture(width: int = 64, height: int = 64, kind: str = "PNG") -> bytes:
    """A real picture."""
    out = BytesIO()
    PIL.Image.new("RGB", (width, height), "tan").save(out, kind)
    return out.getvalue()


def encoded(data: bytes) -> str:
    """A file as a data URI."""
    return "data:image/png;base64," + b64encode(data).decode()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG of one bit a pixel, all there: a few kilobytes that unpack to far more."""
    packer = zlib.compressobj(9)
    line = bytes(1 + -(-width // 8))
    data = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


TEXT_BOMB = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9))
HEADER_ONLY = (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", b"")
)


@dataclass(frozen=True)
class Bad:
    """A request that must be refused: where it goes, the status, the field that is named, and a word of the remedy."""

    name: str
    path: str
    sent: dict[str, Any] = field(repr=False)
    status: int = 400
    param: str | None = None
    word: str = ""


PICTURES = {
    "an empty file": (b"", 400, "empty"),
    "text named .jpg": (SECRET.encode() * 50, 400, "JPEG, PNG"),
    "a truncated JPEG": (picture(600, 400, "JPEG")[:900], 400, "save it again"),
    "one pixel": (picture(1, 1), 400, "at least 8"),
    "30000 x 30000": (HEADER_ONLY, 413, "scaled down"),
    "a PNG bomb": (png(20000, 20000), 413, "scaled down"),
    "a PNG with a text bomb": (png(64, 64, TEXT_BOMB), 400, "save it again"),
}
URL = "messages.0.content.0.image_url.url"
ITEM = "input.0.content.0.image_url"
TOOL = {"type": "function", "name": SECRET}
RESPONSE_ROWS: list[tuple[str, dict[str, Any], str, str]] = [
    ("an empty input", {"input": []}, "input", "at least 1"),
    ("an input of spaces", {"input": " "}, "input", "empty"),
    ("an input that is a number", {"input": 5}, "input", "refused"),
    ("a NUL character", {"input": f"{SECRET}\0"}, "input", "NUL"),
    ("too much text", {"input": SECRET * 50_000}, "input", "400000"),
    ("an item of another type", {"input": [{"type": "item_reference", "id": SECRET}]}, "input.0", "'message'"),
    ("a call of a function", {"input": [{"type": "function_call", "name": SECRET}]}, "input.0", "'message'"),
    ("an item that is a text", {"input": [SECRET]}, "input.0", "type"),
    ("an unknown role", {"input": [{"role": SECRET, "content": "a"}]}, "input.0.role", "'user'"),
    ("assistant last", {"input": [TURN, {"role": "assistant", "content": SECRET}]}, "input", "ending with user"),
    ("thinking alone", {"input": [{"type": "reasoning", "summary": []}]}, "input", "ending with user"),
    (
        "a chat's part",
        {"input": [{"role": "user", "content": [{"type": "text", "text": SECRET}]}]},
        "input.0.content.0",
        "'input_text'",
    ),
    ("an address", {"input": [shown_item(f"https://example.org/{SECRET}.png")]}, ITEM, "not fetched"),
    (
        "an uploaded file",
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,", "file_id": SECRET}]}]},
        "input.0.content.0.file_id",
        "leave it out",
    ),
    ("tools", {"tools": [TOOL]}, "tools", "leave it out"),
    ("a choice of tools", {"tool_choice": "required"}, "tool_choice", ""),
    ("an earlier response", {"previous_response_id": SECRET}, "previous_response_id", "send the earlier turns"),
    ("a conversation", {"conversation": SECRET}, "conversation", "leave it out"),
    ("a stored prompt", {"prompt": {"id": SECRET}}, "prompt", "leave it out"),
    ("store", {"store": True}, "store", "background"),
    ("background that is not kept", {"background": True, "store": False}, "store", "leave store out"),
    ("background and stream", {"background": True, "stream": True}, "stream", "leave"),
    ("stream_options alone", {"stream_options": {}}, "stream_options", "stream: true"),
    (
        "padding",
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "",
    ),
    ("an unknown effort of thought", {"reasoning": {"effort": SECRET}}, "reasoning.effort", "'high'"),
    ("an effort in chat's place", {"reasoning_effort": "high"}, "reasoning_effort", "leave it out"),
    ("a summary of thought", {"reasoning": {"summary": "auto"}}, "reasoning.summary", "leave it out"),
    ("truncation", {"truncation": "auto"}, "truncation", "disabled"),
    ("encrypted thought", {"include": ["reasoning.encrypted_content"]}, "include.0", "logprobs"),
    ("an unknown format", {"text": {"format": {"type": SECRET}}}, "text.format", "json_schema"),
    ("verbosity", {"text": {"verbosity": "high"}}, "text.verbosity", "medium"),
    ("no tokens", {"max_output_tokens": 0}, "max_output_tokens", ""),
    ("many tokens", {"max_output_tokens": 8193}, "max_output_tokens", "8192"),
    ("too many alternatives", {"top_logprobs": 21}, "top_logprobs", ""),
    ("a chat's limit", {"max_tokens": 5}, "max_tokens", "leave it out"),
    ("several answers", {"n": 2}, "n", "leave it out"),
    ("a misspelt parameter", {"temprature": 0}, "temprature", "leave it out"),
    ("much metadata", {"metadata": {str(n): "" for n in range(17)}}, "metadata", "at most 16"),
]
"""What is wrong, what is sent, the field that is named, a word of the remedy."""

CASES = [
    *(Bad(f"form: {n}", DERMOSCOPY, form(d), s, "images.0", w) for n, (d, s, w) in PICTURES.items()),
    *(Bad(f"order: {n}", DERMOSCOPY, order(encoded(d)), s, "images.0", w) for n, (d, s, w) in PICTURES.items()),
    *(Bad(f"chat: {n}", CHAT, shown(encoded(d)), s, URL, w) for n, (d, s, w) in PICTURES.items()),
    # what stands for a picture
    Bad("broken base64", CHAT, shown(f"data:image/png;base64,{SECRET}!"), 400, URL, "base64 is broken"),
    Bad("broken base64 in an order", DERMOSCOPY, order("====" + SECRET), 400, "images.0", "base64 is broken"),
    Bad("a data URI without base64", CHAT, shown(f"data:,{SECRET}"), 400, URL, "data:image/png;base64"),
    Bad("an http address", CHAT, shown(f"http://127.0.0.1:9/{SECRET}.png"), 400, URL, "not fetched"),
    Bad("an https address", CHAT, shown(f"HTTPS://example.org/{SECRET}.png"), 400, URL, "not fetched"),
    Bad("a file address", CHAT, shown("file:///etc/passwd"), 400, URL, "not fetched"),
    Bad("an address in an order", DERMOSCOPY, order("ftp://example.org/a.png"), 400, "images.0", "not fetched"),
    Bad("a picture that is a number", CHAT, shown(5), 400, URL, "string"),
    Bad("no url", CHAT, turns({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}), 400, URL, "required"),
    # names
    Bad("an unknown workflow", "/v1/workflows/astrology", form(picture()), 404, "workflow", "dermoscopy"),
    Bad("an unknown model", CHAT, chat(model="gpt-9"), 404, "model", "script"),
    Bad("an unknown model in a form", DERMOSCOPY, form(picture(), model="gpt-9"), 404, "model", "script"),
    Bad("an empty model", CHAT, chat(model=""), 400, "model", "empty"),
    Bad("an endless model", CHAT, chat(model="x" * 10_000), 400, "model", "at most"),
    # numbers
    *(Bad(f"max_tokens {n}", CHAT, chat(max_tokens=n), 400, "max_tokens") for n in (-1, 0, 8193, 10**30, 1.5, "5", True)),
    *(Bad(f"temperature {t}", CHAT, chat(temperature=t), 400, "temperature") for t in (-0.1, 2.1, "0", [0], True)),
    *(
        Bad(f"temperature {t!r}", CHAT, raw(b'{"messages":[{"role":"user","content":"a"}],"temperature":%s}' % t), 400, p)
        for t, p in ((b"NaN", "temperature"), (b"Infinity", "temperature"), (b"-Infinity", "temperature"))
    ),
    *(Bad(f"form temperature {t}", DERMOSCOPY, form(picture(), temperature=t), 400, "temperature") for t in ("nan", "inf", "hot")),
    Bad("a negative seed", CHAT, chat(seed=-1), 400, "seed"),
    Bad("a huge seed", DERMOSCOPY, form(picture(), seed="99999999999"), 400, "seed"),
    Bad("top_p above one", CHAT, chat(top_p=1.5), 400, "top_p"),
    *(Bad(f"{n} answers", CHAT, chat(n=n), 400, "n") for n in (-1, 0, 9, 10**30, "2", 1.5)),
    Bad("two limits", CHAT, chat(max_tokens=5, max_completion_tokens=6), 400, "max_completion_tokens", "give one"),
    Bad("top_logprobs alone", CHAT, chat(top_logprobs=3), 400, "top_logprobs", "logprobs: true"),
    Bad("too many logprobs", CHAT, chat(logprobs=True, top_logprobs=21), 400, "top_logprobs"),
    Bad("stream_options alone", CHAT, chat(stream_options={"include_usage": True}), 400, "stream_options", "stream: true"),
    Bad("NaN in a schema", CHAT, raw(
        b'{"messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema","json_schema":'
        b'{"name":"a","schema":{"maximum":NaN}}}}'
    ), 400, "response_format.json_schema.schema", "NaN"),
    # parameters
    Bad("tools", CHAT, chat(tools=[{"type": "function", "function": {"name": SECRET}}]), 400, "tools", "leave it out"),
    Bad("functions", CHAT, chat(functions=[]), 400, "functions", "leave it out"),
    Bad("a choice of tools", CHAT, chat(tool_choice="required"), 400, "tool_choice"),
    Bad("a tool that is chosen", CHAT, chat(tool_choice={"type": "function", "function": {"name": SECRET}}), 400, "tool_choice"),
    Bad("padding", CHAT, chat(stream=True, stream_options={"include_obfuscation": True}), 400, "stream_options.include_obfuscation"),
    Bad("endless metadata", CHAT, chat(metadata={"a": "x" * 513}), 400, "metadata", "at most 512"),
    Bad("a bias", CHAT, chat(logit_bias={}), 400, "logit_bias", "leave it out"),
    Bad("an unknown effort of thought", CHAT, chat(reasoning_effort=SECRET), 400, "reasoning_effort", "'high'"),
    Bad("two efforts of thought", CHAT, chat(reasoning_effort="low", thinking={"type": "disabled"}), 400, "thinking", "give one"),
    Bad("a thought as long as the answer", CHAT, chat(max_tokens=9, thinking={"type": "enabled", "budget_tokens": 9}), 400, "thinking.budget_tokens", "less than the 9"),
    Bad("a budget of no thought", CHAT, chat(thinking={"type": "disabled", "budget_tokens": 9}), 400, "thinking.budget_tokens", "leave it out"),
    Bad("a template's other options", CHAT, chat(chat_template_kwargs={"enable_thinking": True, SECRET: 1}), 400, "chat_template_kwargs"),
    Bad("a misspelt parameter", CHAT, chat(temprature=0), 400, "temprature", "leave it out"),
    Bad("an unknown field of a form", DERMOSCOPY, form(picture(), sead="1"), 400, "sead", "leave it out"),
    Bad("store", CHAT, chat(store=True), 400, "store"),
    Bad("a response format", CHAT, chat(response_format={"type": SECRET}), 400, "response_format", "json_schema"),
    Bad("an empty stop", CHAT, chat(stop=["a", ""]), 400, "stop.1", "empty"),
    Bad("an empty stop text", CHAT, chat(stop=""), 400, "stop", "empty"),
    Bad("many stops", CHAT, chat(stop=["a"] * 5000), 400, "stop", "16"),
    Bad("a long stop", CHAT, chat(stop="a" * 5000), 400, "stop", "256"),
    # turns
    Bad("no messages", CHAT, turns(), 400, "messages", "at least 1"),
    Bad("system only", CHAT, turns({"role": "system", "content": SECRET}), 400, "messages", "ending with user"),
    Bad("assistant last", CHAT, turns(TURN, {"role": "assistant", "content": SECRET}), 400, "messages", "ending with user"),
    Bad("two users", CHAT, turns(TURN, TURN), 400, "messages", "in turn"),
    Bad("a name", CHAT, turns({**TURN, "name": SECRET}), 400, "messages.0.name", "leave it out"),
    Bad("a call of a tool", CHAT, turns(TURN, {"role": "assistant", "content": "a", "tool_calls": [{"id": SECRET}]}, TURN), 400, "messages.1.tool_calls"),
    Bad("a result of a tool", CHAT, turns(TURN, {"role": "tool", "content": SECRET}), 400, "messages.1.role"),
    Bad("an unknown role", CHAT, turns({"role": SECRET, "content": "a"}), 400, "messages.0.role", "'user'"),
    Bad("no content", CHAT, turns({"role": "user"}), 400, "messages.0.content", "required"),
    Bad("null content", CHAT, turns({"role": "user", "content": None}), 400, "messages.0.content"),
    Bad("empty content", CHAT, turns({"role": "user", "content": " "}), 400, "messages", "empty"),
    Bad("no parts", CHAT, turns({"role": "user", "content": []}), 400, "messages.0.content", "at least 1"),
    Bad("an unknown part", CHAT, turns({"role": "user", "content": [{"type": SECRET}]}), 400, "messages.0.content.0", "'text'"),
    Bad("a part without type", CHAT, turns({"role": "user", "content": [{"text": SECRET}]}), 400, "messages.0.content.0", "type"),
    Bad("a picture of the model's", CHAT, turns(
        TURN, {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": encoded(picture())}}]}, TURN
    ), 400, "messages", "user messages"),
    Bad("a NUL character", CHAT, turns({"role": "user", "content": f"{SECRET}\0"}), 400, "messages.0.content", "NUL"),
    Bad("too much text", CHAT, turns({"role": "user", "content": SECRET * 50_000}), 400, "messages", "400000"),
    Bad("too many pictures", CHAT, turns(
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}] * 129}
    ), 400, "messages", "128"),
    # responses
    *(Bad(f"response: {name}", RESPONSES, response(**sent), 400, param, word) for name, sent, param, word in RESPONSE_ROWS),
    *(Bad(f"response: {n}", RESPONSES, response(input=[shown_item(encoded(d))]), s, ITEM, w) for n, (d, s, w) in PICTURES.items()),
    Bad("response: no input", RESPONSES, {"json": {}}, 400, "input", "required"),
    Bad("response: an unknown model", RESPONSES, response(model="gpt-9"), 404, "model", "script"),
    Bad("response: the wrong content type", RESPONSES, raw(b"{}", "text/plain"), 415, None, "application/json"),
    # studies
    Bad("two pictures for one study", DERMOSCOPY, form(picture(), picture()), 400, "images", "at most 1"),
    Bad("two pictures in an order", DERMOSCOPY, order(encoded(picture()), encoded(picture())), 400, "images", "at most 1"),
    Bad("no picture", DERMOSCOPY, {"files": {"model": (None, "script")}}, 400, "images", "at least one"),
    Bad("no picture in an order", DERMOSCOPY, order(), 400, "images", "at least 1"),
    Bad("nothing in an order", DERMOSCOPY, {"json": {}}, 400, "images", "required"),
    Bad("the wrong name for pictures", DERMOSCOPY, form(picture(), name="file"), 400, "images", "name images"),
    Bad("a text for a picture", DERMOSCOPY, {"files": {"images": (None, SECRET)}}, 400, "images", "as files"),
    Bad("a field twice", DERMOSCOPY, form(picture(), model=["script", "script"]), 400, "model", "once"),
    Bad("many fields", DERMOSCOPY, form(picture(), **{f"a{n}": "1" for n in range(100)}), 400, None, "fields"),
    Bad("options that are no JSON", DERMOSCOPY, form(picture(), options=SECRET), 400, "options", "JSON object"),
    Bad("options that are no object", DERMOSCOPY, form(picture(), options="[1]"), 400, "options", "JSON object"),
    Bad("deep options", DERMOSCOPY, form(picture(), options="[" * 100_000), 400, "options", "JSON object"),
    Bad("an unknown option", DERMOSCOPY, form(picture(), options='{"zodiac": true}'), 400, "options", "signs"),
    Bad("an option of the wrong type", DERMOSCOPY, order(encoded(picture()), options={"signs": "?"}), 400, "options.signs"),
    Bad("options that are a text", DERMOSCOPY, order(encoded(picture()), options=SECRET), 400, "options"),
    # bodies
    Bad("no JSON", CHAT, raw(SECRET.encode()), 400, None, "valid JSON"),
    Bad("an empty body", CHAT, raw(b""), 400, None, "valid JSON"),
    Bad("a JSON list", CHAT, raw(b"[]"), 400, None, "object"),
    Bad("deep JSON", CHAT, raw(b"[" * 10_000), 400, None, "recursion"),
    Bad("deep JSON inside", CHAT, raw(b'{"messages":' + b"[" * 10_000 + b"]" * 10_000 + b"}"), 400, None, "recursion"),
    Bad("very deep JSON", CHAT, raw(b"[" * 100_000), 400, None, "20000 values"),
    Bad("invalid UTF-8", CHAT, raw(b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}'), 400, None, "valid JSON"),
    Bad("half a surrogate", CHAT, raw(b'{"messages": [{"role": "user", "content": "\\ud800"}]}'), 400, None, "valid JSON"),
    Bad("the wrong content type", CHAT, raw(b"{}", "text/plain"), 415, None, "application/json"),
    Bad("no content type", CHAT, {"content": b"{}"}, 415, None, "application/json"),
    Bad("a form for a chat", CHAT, form(picture()), 415, None, "application/json"),
    Bad("the wrong content type for a study", DERMOSCOPY, raw(picture(), "image/png"), 415, None, "multipart/form-data"),
    Bad("a form without a boundary", DERMOSCOPY, raw(b"--x", "multipart/form-data"), 400, None),
    Bad("a form that is none", DERMOSCOPY, raw(SECRET.encode(), "multipart/form-data; boundary=x"), 400, None),
    Bad("a body declared too large", CHAT, raw(b" " * 40_000_001), 413, None, "body_bytes"),
    Bad("a form declared too large", DERMOSCOPY, form(bytes(40_000_001)), 413, None, "body_bytes"),
    Bad("a foreign host", CHAT, chat() | {"headers": {"Host": "rebound.example.org"}}, 421, None, "127.0.0.1"),
    Bad("a foreign page", CHAT, chat() | {"headers": {"Origin": "https://example.org"}}, 403, None, "origin"),
    Bad("a page of nowhere", DERMOSCOPY, form(picture()) | {"headers": {"Origin": "null"}}, 403, None, "origin"),
    Bad("no such route", "/v1/nothing", chat(), 404, None),
    Bad("the wrong method", "/livez", chat(), 405, None),
]  # fmt: skip


def check(answer: httpx.Response, expected: Bad) -> None:
    """The answer has the one shape, says what was expected, and repeats nothing."""
    assert expected.status == answer.status_code, answer.text
    assert ["error"] == list(answer.json())
    error = answer.json()["error"]
    assert {"message", "type", "param", "code"} == set(error)
    assert expected.param == error["param"], error
    assert expected.word in error["message"]
    assert SECRET not in answer.text
    assert len(answer.text) < 1000
    assert ("permission_error" if expected.status == 403 else "invalid_request_error") == error["type"]
    assert error["code"]


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_a_bad_request_is_refused_with_the_field_and_the_remedy(client: httpx.Client, bad: Bad) -> None:
    """Each row of the table is one way to be wrong."""
    check(client.post(bad.path, **bad.sent), bad)


def test_a_chunked_body_is_counted_as_it_comes(client: httpx.Client) -> None:
    """A body that does not say how large it is ends at the limit all the same."""

    def endless() -> Iterator[bytes]:
        for _ in range(45):
            yield b" " * 1_000_000

    answer = client.post(CHAT, content=endless(), headers=JSON)

    check(answer, Bad("", CHAT, {}, 413, None, "body_bytes"))


def test_the_log_repeats_nothing_of_what_was_refused(client: httpx.Client, service: Service) -> None:
    """After bad requests of every kind, neither their words nor a file's name nor a stack trace is in the log."""
    for bad in CASES[::5]:
        client.post(bad.path, **bad.sent)

    assert SECRET.encode() not in service.log
    assert b"Traceback" not in service.log


def test_memory_comes_back_after_bombs(client: httpx.Client, service: Service) -> None:
    """However often they come, bombs leave the gateway as large as they found it, to within 32 MB."""
    sent = [form(png(20000, 20000)), form(png(64, 64, TEXT_BOMB)), form(HEADER_ONLY)]
    before = [client.post(DERMOSCOPY, **one).status_code for one in sent]
    held = service.resident

    after = [client.post(DERMOSCOPY, **one).status_code for one in sent * 4]

    assert [413, 400, 413] == before
    assert before * 4 == after
    assert service.resident - held < 32_000_000


def test_the_service_still_answers(client: httpx.Client, dermoscopy: Path) -> None:
    """After all that, a good request is served."""
    answer = client.post(DERMOSCOPY, files={"images": dermoscopy.read_bytes()})

    assert 200 == answer.status_code
    assert json.loads(answer.text)["steps"]
