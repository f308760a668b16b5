"""A certificate as text for a terminal, and as one page of HTML that loads nothing and runs nothing."""

from collections.abc import Iterator
from textwrap import fill

from medserve.certificates import Cause, Certificate, Check, Measure, Outcome, Speed, Verdict
from medserve.layout import environment
from medserve.reports import LINE, Section

NOTICE = (
    "Research use only. A certificate says that two programs answer alike, not that the answers are right: it is no "
    "permission to use them in care."
)
TITLES = {
    "sees": "Does it see",
    "pixels": "The same pixels",
    "template": "The same tokens of a prompt",
    "labels": "The same answers",
    "causes": "Known faults",
}
OUTCOMES = {Outcome.PASSED: "passed", Outcome.FAILED: "FAILED", Outcome.NOT_DONE: "not done"}
VERDICTS = {Verdict.PASSED: "passed", Verdict.FAILED: "FAILED", Verdict.INCOMPLETE: "not complete"}


def as_text(made: Certificate) -> str:
    """For a terminal."""
    title = _title(made)
    verdict = fill(f"{VERDICTS[made.verdict]}: {made.summary}", LINE)
    parts = [f"{title}\n{'=' * len(title)}", verdict]
    parts += [section.text for section in sections(made)]
    return "\n\n".join([*parts, fill(NOTICE, LINE)])


def as_html(made: Certificate) -> str:
    """One page."""
    page = environment("medserve.verification").get_template("certificate.html")
    return page.render(
        title=_title(made),
        notice=NOTICE,
        verdict=VERDICTS[made.verdict],
        summary=made.summary,
        sections=list(sections(made)),
    )


def sections(made: Certificate) -> Iterator[Section]:
    """What is said, in the order in which it matters."""
    for check in made.checks:
        yield _check(check)
        if check.name == "causes" and made.causes:
            yield _causes(made.causes)
    yield _speeds(made.speeds)
    yield Section("The build", (), ("fact", "value"), tuple(sorted(made.subject.items())))
    if made.reference:
        yield Section("The reference", (), ("fact", "value"), tuple(sorted(made.reference.items())))
    yield Section("How it was done", tuple(_how(made)), ("setting", "value"), _settings(made))


def _title(made: Certificate) -> str:
    return f"Certificate of {made.model}"


def _check(check: Check) -> Section:
    limits = tuple((one.name, _value(one), " ".join(filter(None, (_limit(one), one.reason)))) for one in check.measures)
    needed = "" if check.needed else " (the verdict does not need it)"
    return Section(
        TITLES[check.name], (f"{OUTCOMES[check.outcome]}{needed}: {check.reason}",), ("what", "value", "limit"), limits
    )


def _value(one: Measure) -> str:
    return "-" if one.value is None else f"{one.value:.6g} {one.unit}".strip()


def _limit(one: Measure) -> str:
    if one.most is not None:
        return f"at most {one.most:g}"
    return f"at least {one.least:g}" if one.least is not None else ""


def _causes(causes: tuple[Cause, ...]) -> Section:
    words = (
        "Each fault was planted into the reference. Distances are medians in nats between the log-probabilities of an "
        "answer's labels, over the answers that the fault changes.",
    )
    columns = ("fault", "", "answers", "reference to fault", "build to reference", "build to fault")
    rows = tuple(
        (
            cause.name,
            cause.finding.value.replace("_", " "),
            str(cause.n),
            *(_nats(distance) for distance in (cause.effect, cause.to_reference, cause.to_fault)),
        )
        for cause in causes
    )
    return Section("Known faults, one by one", words, columns, rows)


def _nats(distance: float | None) -> str:
    return "-" if distance is None else f"{distance:.3g}"


def _speeds(speeds: tuple[Speed, ...]) -> Section:
    names = {"subject": "the build", "reference": "the reference"}
    rows = tuple(
        (
            names[one.side],
            _number(one.encode_seconds),
            _number(one.prompt_tokens),
            _number(one.answer_tokens),
            one.reason,
        )
        for one in speeds
    )
    columns = ("", "seconds a picture", "tokens read a second", "tokens written a second", "")
    return Section("Speed, which decides nothing", (), columns, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _how(made: Certificate) -> Iterator[str]:
    yield f"{made.created:%Y-%m-%d %H:%M} UTC, medserve {made.medserve}"
    refused = f"; {made.pictures_refused} files could not be read" if made.pictures_refused else ""
    yield f"{made.pictures} pictures or texts, set {made.picture_set[:16]}{refused}"
    yield from made.notes


def _settings(made: Certificate) -> tuple[tuple[str, ...], ...]:
    return tuple((name, str(value)) for name, value in made.settings.items())
