"""Runs the corpus and prints what became of it: python -m tests.hostile --count 3000 --seed 1 [--page FILE]."""

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from medserve.imaging.isolation import Decoders
from tests.hostile import corpus, samples
from tests.hostile.runner import HANG, Tally, run

MEMORY = 64 * 2**20
BEGIN, END = "<!-- result: begin -->", "<!-- result: end -->"


def main() -> int:
    """Run, print, write the page's table where asked; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, help="a Markdown page whose result is replaced")
    given = parser.parse_args()
    pool = Decoders(1)
    try:
        tally = run(corpus.corpus(given.count, given.seed), pool, samples.picture("PNG"))
    finally:
        pool.close()
    command = f"python -m tests.hostile --count {given.count} --seed {given.seed}"
    text = "\n".join(report(tally, command))
    sys.stdout.write(text + "\n")
    if given.page:
        _put(given.page, text)
    return 1 if tally.hangs or tally.untyped or tally.grown > MEMORY else 0


def report(tally: Tally, command: str) -> Iterator[str]:
    """The result as Markdown."""
    slowest = max(tally.outcomes, key=lambda outcome: outcome.seconds)
    yield f"{datetime.now(UTC):%Y-%m-%d}, `{command}`:"
    yield ""
    yield "| promise | result |"
    yield "|---|---|"
    yield f"| files | {len(tally.outcomes)} |"
    yield "| crashes of the calling process | 0 |"
    yield f"| callers kept longer than {HANG:g} s | {len(tally.hangs)} |"
    yield f"| errors that are none of medserve's own | {len(tally.untyped)} |"
    yield f"| growth of the calling process | {tally.grown / 2**20:.1f} MiB |"
    yield f"| decoder's memory at the end | {tally.decoders / 2**20:.0f} MiB |"
    yield f"| decoders replaced (crash, hang, growth) | {len(tally.replaced)} |"
    yield f"| errors that a format's module did not foresee | {len(tally.surprises)} |"
    yield f"| slowest | {slowest.seconds:.1f} s ({slowest.hostile.format}: {slowest.hostile.what}) |"
    yield ""
    yield from _table(tally)
    yield from _lists(tally)


def _table(tally: Tally) -> Iterator[str]:
    counts = tally.by_format()
    results = sorted({result for counter in counts.values() for result in counter})
    yield "| format | " + " | ".join(results) + " |"
    yield "|---|" + "---:|" * len(results)
    for format_, counter in counts.items():
        yield f"| {format_} | " + " | ".join(str(counter[result]) for result in results) + " |"


def _lists(tally: Tally) -> Iterator[str]:
    for title, outcomes in (
        ("Decoders were replaced for", tally.replaced),
        ("Not foreseen", tally.surprises),
        ("Too slow", tally.hangs),
        ("Untyped", tally.untyped),
    ):
        if outcomes:
            yield ""
            yield f"{title}:"
            yield ""
        for outcome in outcomes:
            told = outcome.surprise or outcome.message.partition(";")[0]
            number, format_, what, _content = outcome.hostile
            yield f"- {number} {format_}, {what}: {told} ({outcome.seconds:.1f} s)"


def _put(page: Path, text: str) -> None:
    before, _begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _old, _end, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
