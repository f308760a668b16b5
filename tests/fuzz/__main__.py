"""Runs the cases and prints what became of them: python -m tests.fuzz --cases 20000 --seed 1 [--page FILE]."""

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from medserve.settings import DEMO_MODEL
from tests.fuzz.runner import Tally, run
from tests.serving import Service, serving

BEGIN, END = "<!-- result: begin -->", "<!-- result: end -->"
SCRIPT = "script"
PICTURES = Path(__file__).parent.parent / "data" / "dermoscopy"
CONFIG = """
catalogue = "{catalogue}"

[[models]]
name = "script"
engine = "scripted"
replies = [{replies}]
preload = true

[[models]]
name = "{name}"
path = "{path}"
projector = "{projector}"
context = {context}
threads = 1
preload = true

[limits]
answer_seconds = 60.0
"""
REPLIES = ("Round.", "Yes.", '{"a": [1, null]}', "<unused94>thought\\nhm<unused95>No.")
MODELS = (*(SCRIPT,) * 9, DEMO_MODEL.name)
"""Whom to ask: mostly the script, which is quick; now and then the real engine."""


@contextmanager
def service(replies: int) -> Iterator[Service]:
    """The service as it is started, with a script for a model and the demonstration model."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "medserve.toml"
        said = ", ".join(f"'{REPLIES[place % len(REPLIES)]}'" for place in range(replies))
        spec = DEMO_MODEL
        config.write_text(
            CONFIG.format(
                catalogue=PICTURES,
                replies=said,
                name=spec.name,
                path=spec.path,
                projector=spec.projector,
                context=spec.context,
            )
        )
        with serving(environment={"MEDSERVE_CONFIG": str(config), "MEDSERVE_HOME": f"{folder}/home"}) as running:
            yield running


def main() -> int:
    """Run, print, write the page's result where asked; 1 when anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, help="a Markdown page whose result is replaced")
    given = parser.parse_args()
    with service(given.cases) as running:
        tally = run(running.url, given.cases, given.seed, MODELS)
    command = f"python -m tests.fuzz --cases {given.cases} --seed {given.seed}"
    text = "\n".join(report(tally, command))
    sys.stdout.write(text + "\n\n" + "\n".join(found(tally)) + "\n")
    if given.page:
        _put(given.page, text)
    return 1 if tally.findings else 0


def report(tally: Tally, command: str) -> Iterator[str]:
    """The result as Markdown."""
    every = sum(tally.statuses.values(), Counter[int]())
    yield f"{datetime.now(UTC):%Y-%m-%d}, `{command}`:"
    yield ""
    yield "| promise | result |"
    yield "|---|---|"
    yield f"| cases sent | {tally.cases} |"
    yield f"| operations | {len(tally.statuses)} |"
    yield f"| server errors (5xx but 503 with Retry-After, or no answer) | {len(tally.errors)} |"
    yield f"| answers that the document does not describe | {len(tally.mismatches)} |"
    yield f"| slowest answer | {tally.slowest:.1f} s |"
    yield f"| time in all | {tally.seconds:.0f} s |"
    yield ""
    yield "| status | cases |"
    yield "|---|---:|"
    for status, count in sorted(every.items()):
        yield f"| {status or 'none'} | {count} |"
    yield ""
    yield "| operation | cases | answered 2xx | refused 4xx | 503 |"
    yield "|---|---:|---:|---:|---:|"
    for label, counter in sorted(tally.statuses.items(), key=lambda entry: entry[0].split()[::-1]):
        by = Counter({kind: sum(n for s, n in counter.items() if s // 100 == kind) for kind in (2, 4)})
        yield f"| `{label}` | {counter.total()} | {by[2]} | {by[4]} | {counter[503]} |"


def found(tally: Tally) -> Iterator[str]:
    """What was found, each kind once with how often and one way to see it again."""
    kinds = Counter((finding.operation, finding.what[:160]) for finding in tally.findings)
    for (operation, what), count in kinds.most_common():
        first = next(f for f in tally.findings if (f.operation, f.what[:160]) == (operation, what))
        yield f"{count} x {operation}\n  {first.what}\n  {first.how}\n"


def _put(page: Path, text: str) -> None:
    before, _begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _old, _end, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
