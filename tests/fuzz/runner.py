"""Cases that schemathesis draws from the service's own document, sent to the service, and what became of each.

schemathesis draws names at random, which find nothing: no model, no job, no picture. So every second round has
names that exist, and what it draws for pictures, models and lengths is replaced in part by real ones (`Real`). The
identifiers that answers name (of jobs, responses, files, batches) are asked for later.
"""

import random
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from time import perf_counter
from typing import Any

import PIL.Image
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.openapi import from_url
from schemathesis.specs.openapi import checks

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
CHUNK = 20
"""Cases of one operation in a row, fewer where there are few in all."""
REMEMBERED = 50
TIMEOUT_SECONDS = 120.0
PROBES = frozenset({"GET /readyz", "GET /v1/health/ready", "GET /{model}/v1/health"})
"""What says by a 503 that a model is not loaded: that is its answer."""
SHORT = 8
"""Tokens where a model would really have to say all that was drawn."""
LENGTHS = frozenset({"max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens"})
PICTURES = frozenset({"url", "image_url", "image", "images", "image_base64", "image_data", "data"})
FILES = frozenset({"images", "image_file"})
WORDS = {
    "workflow": "dermoscopy",
    "filename": "ISIC_0000166.jpg",
    "content": "Is it round?",
    "text": "Is it round?",
    "prompt": "Is it round?",
    "question": "Is it round?",
    "options": "{}",
    "metadata": "{}",
    "custom_ids": "[]",
    "modality": "",
}
"""Words that mean something where they stand."""
NAMES = {"workflows": "dermoscopy", "images": "ISIC_0000166.jpg"}
"""What `{name}` in a path is to name, where it is no model."""
IDENTIFIERS = frozenset({"id", "job_id", "response_id"})


@dataclass(frozen=True)
class Finding:
    """What one case showed that should not be: the operation, what was wrong, and how to see it again."""

    operation: str
    what: str
    how: str


@dataclass
class Tally:
    """What became of all cases."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def cases(self) -> int:
        return sum(counter.total() for counter in self.statuses.values())

    @property
    def errors(self) -> list[Finding]:
        """Server errors: every status from 500 on but a 503 that says when to come again, or is a probe's answer."""
        return [finding for finding in self.findings if finding.what.startswith("server error")]

    @property
    def mismatches(self) -> list[Finding]:
        """Answers that are not what the document says."""
        return [finding for finding in self.findings if not finding.what.startswith("server error")]


class Real:
    """Names and pictures that exist, put in the place of some of those that were drawn."""

    def __init__(self, models: Sequence[str], chance: random.Random) -> None:
        self._models = models
        self._chance = chance
        self._seen: dict[str, deque[str]] = {}
        file = BytesIO()
        PIL.Image.radial_gradient("L").convert("RGB").resize((32, 32)).save(file, "PNG")
        self._file = file.getvalue()
        self._picture = b64encode(self._file).decode()

    def path(self, operation: str) -> dict[str, Any]:
        """Path parameters that name something."""
        known: dict[str, Any] = {"model": self._chance.choice(self._models), "endpoint": "1", "deployed": "1"}
        known["name"] = NAMES.get(_family(operation), known["model"])
        family = _family(operation)
        for name in IDENTIFIERS:
            if self._seen.get(family):
                known[name] = self._chance.choice(list(self._seen[family]))
        return {name: value for name, value in known.items() if "{" + name + "}" in operation}

    def learn(self, operation: str, document: object) -> None:
        """Keep the identifiers that an answer names."""
        if not isinstance(document, dict):
            return
        listed = document.get("data")
        for part in [document, *(listed if isinstance(listed, list) else ())]:
            for name in ("id", "job_id"):
                if isinstance(part, dict) and isinstance(value := part.get(name), str):
                    self._seen.setdefault(_family(operation), deque(maxlen=REMEMBERED)).append(value)

    def body(self, value: Any, key: str = "") -> Any:
        """The same body with some of its parts made real."""
        if isinstance(value, dict) and key == "options" and self._chance.random() < 0.7:
            return {}
        if isinstance(value, dict):
            return {name: self.body(part, str(name)) for name, part in value.items()}
        if isinstance(value, list):
            parts = [self.body(part, key) for part in value]
            return _in_turn(parts) if key in {"messages", "input"} and self._chance.random() < 0.7 else parts
        if isinstance(value, int) and not isinstance(value, bool) and key in LENGTHS and value > SHORT:
            return SHORT
        if isinstance(value, float) and value.is_integer() and self._chance.random() < 0.7:
            return int(value)  # one number in JSON Schema, and as JSON writes it two
        return self._word(value, key) if isinstance(value, str | bytes) else value

    def _word(self, value: str | bytes, key: str) -> str | bytes:
        real: str | bytes | None = None
        if isinstance(value, bytes):
            real = self._file if key in FILES else None
        elif key == "model":
            real = self._chance.choice(self._models)
        elif key in PICTURES:
            real = f"data:image/png;base64,{self._picture}" if "url" in key else self._picture
        elif key == "input_file_id" and self._seen.get("files"):
            real = self._chance.choice(list(self._seen["files"]))
        else:
            real = WORDS.get(key)
        return real if real is not None and self._chance.random() < 0.7 else value


def _in_turn(messages: list[Any]) -> list[Any]:
    """Turns of user and assistant, the last a user's."""
    if not all(isinstance(message, dict) and "role" in message for message in messages):
        return messages
    odd = messages[: len(messages) - 1 + len(messages) % 2]
    return [{**message, "role": ("user", "assistant")[place % 2]} for place, message in enumerate(odd)]


def _is_json(answer: schemathesis.Response) -> bool:
    return any(kind.split(";")[0] == "application/json" for kind in answer.headers.get("content-type", ()))


def _family(operation: str) -> str:
    """The kind of thing that an operation's identifiers name, such as `jobs`."""
    parts = [
        part
        for part in operation.partition(" ")[2].split("/")
        if part and "{" not in part and part not in {"v1", "api"}
    ]
    return {"status": "analyze"}.get(parts[-1], parts[0]) if parts else ""


def run(url: str, cases: int, number: int, models: Sequence[str]) -> Tally:
    """Send `cases` cases to the service at `url`, the same for the same number; see `Tally`."""
    began = perf_counter()
    document = from_url(f"{url}/openapi.json")
    operations: list[Any] = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]
    tally, chance = Tally(), random.Random(number)
    real = Real(models, chance)
    with requests.Session() as session:
        session.trust_env = False
        for place, (operation, mode, named) in enumerate(_rounds(operations)):
            if tally.cases >= cases:
                break
            caller = Caller(session, tally, real, cases, named)
            _chunk(operation, mode, place + number * 1_000_003, caller, min(CHUNK, max(1, cases // len(operations))))
    tally.seconds = perf_counter() - began
    return tally


def _rounds(operations: Sequence[Any]) -> Iterator[tuple[Any, GenerationMode, bool]]:
    """The operations again and again: what is allowed and what is forbidden, under real names and under any."""
    while True:
        for named in (True, False):
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                for operation in operations:
                    yield operation, mode, named


def _chunk(operation: Any, mode: GenerationMode, number: int, caller: "Caller", most: int) -> None:
    try:
        drawn = operation.as_strategy(generation_mode=mode)
    except schemathesis.errors.SchemathesisError:
        return  # nothing can be forbidden there

    @seed(number)
    @settings(
        max_examples=most,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(case=drawn)
    def each(case: Case[Any]) -> None:
        caller.send(operation.label, case)

    try:
        each()
    except Exception as error:
        if "Unable to satisfy" not in f"{type(error).__name__} {error}" and type(error).__name__ not in UNDRAWABLE:
            raise


UNDRAWABLE = frozenset({"Unsatisfiable", "InvalidArgument", "SkipTest", "NoExamples"})
"""What is raised where the document leaves nothing to draw, such as a forbidden value for a call without arguments."""


@dataclass
class Caller:
    """Sends cases and looks at the answers."""

    session: requests.Session
    tally: Tally
    real: Real
    most: int
    named: bool

    def send(self, label: str, case: Case[Any]) -> None:
        """Send one case; whatever is wrong with its answer is noted and hinders nothing."""
        if self.tally.cases >= self.most:
            return
        case.body = self.real.body(case.body)
        # A path of dots alone is another path by the time that it is sent (RFC 3986, 5.2.4).
        parts = {
            name: "dots" if set(str(part)) <= {"."} else part for name, part in (case.path_parameters or {}).items()
        }
        case.path_parameters = parts
        if self.named:
            case.path_parameters = {**parts, **self.real.path(label)}
        began = perf_counter()
        try:
            answer = case.call(session=self.session, timeout=TIMEOUT_SECONDS)
        except (requests.RequestException, OSError) as error:
            self._note(label, f"server error: no answer ({type(error).__name__})", case)
            self.tally.statuses.setdefault(label, Counter())[0] += 1
            return
        self.tally.slowest = max(self.tally.slowest, perf_counter() - began)
        self.tally.statuses.setdefault(label, Counter())[answer.status_code] += 1
        told = "retry-after" in {name.lower() for name in answer.headers} or label in PROBES
        if answer.status_code >= 500 and not (answer.status_code == 503 and told):
            self._note(label, f"server error: {answer.status_code} {answer.text[:300]}", case)
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._note(label, f"{failure.title}: {str(failure.message)[:600]} (status {answer.status_code})", case)
        if answer.status_code in {200, 201, 202} and _is_json(answer):
            self.real.learn(label, answer.json())

    def _note(self, label: str, what: str, case: Case[Any]) -> None:
        self.tally.findings.append(Finding(label, what, case.as_curl_command()[:1500]))
