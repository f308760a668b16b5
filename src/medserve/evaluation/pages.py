"""An evaluation leaves as text, as a page of its own that loads nothing, as JSON, and as a table of its studies."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from io import StringIO
from pathlib import Path
from textwrap import fill

from medserve.errors import InvalidRequest
from medserve.evaluation.fitting import Fitted
from medserve.evaluation.labels import IDENTITY, Labelled
from medserve.evaluation.measures import BINS, Bin, Estimate, Proper, Share
from medserve.evaluation.result import Evaluation
from medserve.layout import environment
from medserve.reports import LINE, Section

MOST_ANSWERS = 8
"""Different answers to one question that a page tells; JSON has all."""
CAREFUL = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that a spreadsheet would take for a formula."""


def as_text(found: Evaluation) -> str:
    """For a terminal."""
    title = _title(found)
    parts = [f"{title}\n{'=' * len(title)}"]
    parts += [section.text for section in sections(found)]
    return "\n\n".join([*parts, fill(found.notice, LINE)])


def as_html(found: Evaluation) -> str:
    """One page with its drawings, which loads nothing and runs nothing."""
    shown = found.fitted.after if found.fitted else found.probabilities
    return (
        environment("medserve.evaluation")
        .get_template("evaluation.html")
        .render(
            title=_title(found),
            sections=list(sections(found)),
            notice=found.notice,
            reliability=_points(shown.bins) if shown else [],
            coverage=[(row.coverage.share or 0.0, row.accuracy.share) for row in found.coverage],
        )
    )


def as_csv(found: Evaluation, labelled: Labelled) -> str:
    """A row for each study, with the further columns of the table that it came from, and no name of a file."""
    kept = {case.row: case.further for case in labelled.cases}
    labels = found.labels if any(one.probabilities for one in found.studies) else ()
    names = tuple(dict.fromkeys(name for one in found.studies for name in one.findings))
    head = [IDENTITY, "row", "sha256", "truth", "stated", "status", "answer", "right"]
    head += [f"p_{label}" for label in labels] + [f"found_{name}" for name in names]
    head += ["flags", "depends_on_picture", "seconds", "code", *(f"table_{name}" for name in labelled.further)]
    out = StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(map(_cell, head))
    for one in found.studies:
        row: list[object] = [one.id, one.row, one.sha256, one.truth, one.stated, one.status, one.answer, one.right]
        row += [(one.probabilities or {}).get(label) for label in labels]
        row += [one.findings.get(name) for name in names]
        row += [" ".join(one.flags), one.depends_on_picture, one.seconds, one.code]
        row += [kept[one.row].get(name) for name in labelled.further]
        writer.writerow(map(_cell, row))
    return out.getvalue()


def write(found: Evaluation, labelled: Labelled, folder: Path) -> list[Path]:
    """All four, under a name made of the workflow, the data set and the circumstances; raises InvalidRequest."""
    made = [found.workflow_version, found.target, found.options, found.model, found.facts, found.medserve]
    circumstances = sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:8]
    name = f"evaluation-{found.workflow}-{found.dataset[:16]}-{circumstances}"
    contents = {
        "json": found.model_dump_json(indent=1) + "\n",
        "txt": as_text(found) + "\n",
        "html": as_html(found),
        "csv": as_csv(found, labelled),
    }
    written = []
    try:
        for suffix, content in contents.items():
            written.append(folder / f"{name}.{suffix}")
            written[-1].write_bytes(content.encode())
    except OSError as error:
        raise InvalidRequest(f"the evaluation cannot be written to {folder}: {error.strerror}", param="out") from None
    return written


def sections(found: Evaluation) -> Iterator[Section]:
    """What is said, in the order in which it matters."""
    yield Section("What was measured", tuple(_subject(found)))
    if found.notes or found.stuck:
        yield Section("Beware", (*found.notes, *_stuck(found)))
    yield Section("Accuracy", tuple(_accuracy(found)))
    yield _classes(found)
    yield Section(
        "Truth in rows, answers in columns",
        (),
        ("", *(_label(column) for column in found.confusion.columns)),
        tuple((truth, *map(str, row)) for truth, row in found.confusion.rows.items()),
    )
    if found.probabilities:
        yield Section("Probabilities", tuple(_probabilities(found)))
    if found.fitted or found.unfitted:
        yield Section("Calibration", tuple(_calibration(found)))
    if found.coverage:
        yield Section(
            "What a threshold leaves",
            ("Studies that are still answered when less probable answers are indeterminate, and how many are right.",),
            ("threshold", "answered", "", "right of these", ""),
            tuple((f"{row.threshold:g}", *_split(row.coverage), *_split(row.accuracy)) for row in found.coverage),
        )
    yield Section("Flags", (f"Reports without a flag: {_share(found.clean)}.",), *_listed("flag", found.flags))
    yield _answers(found)
    if found.controls:
        yield _controls(found)


def _title(found: Evaluation) -> str:
    return f"Evaluation of {found.workflow}" + ("" if found.target == "label" else f": {found.target}")


def _subject(found: Evaluation) -> Iterator[str]:
    counts = found.counts
    facts = found.facts
    quantisation = f", {facts['quantisation']}" if "quantisation" in facts else ""
    yield f"{found.workflow} version {found.workflow_version}, medserve {found.medserve}"
    yield f"model {found.model} on {facts.get('engine', 'unknown')}{quantisation}, weights {found.weights[:16]}"
    yield f"data set {found.dataset[:16]}: {found.n} studies of {counts.rows} rows"
    told = {
        "named again": counts.duplicates,
        "of equal content": counts.repeated,
        "with a contradicting label": counts.conflicts,
        "without a label": counts.unlabelled,
        "without a file": counts.missing,
        "left out by the limit": counts.left_out,
    }
    rest = [f"{many} {what}" for what, many in told.items() if many]
    if rest:
        yield f"rows that were not examined, or not as they stand: {', '.join(rest)}"
    if counts.unlisted:
        yield f"files in the folder that no row names: {counts.unlisted}"
    if found.seconds:
        yield f"{found.seconds.median:.2f} s a study (median; {found.seconds.longest:.2f} s the longest)"


def _stuck(found: Evaluation) -> Iterator[str]:
    for name in found.stuck:
        answer = next(iter(found.answers[name]))
        yield f"Stuck: {name} was {_label(answer)} for every study; --controls says whether it depends on the picture."


def _accuracy(found: Evaluation) -> Iterator[str]:
    yield f"right of all studies: {_share(found.accuracy)}"
    yield f"right of those that were answered: {_share(found.accuracy_of_answered)}"
    if found.others.n:
        yield f"right of those whose truth is one of the labels: {_share(found.accuracy_of_labels)}"
        yield f"of those with another truth, not answered: {_share(found.others)}"
    majority = found.majority
    if majority.share is not None:
        side = "above" if found.better_than_majority else "NOT above"
        yield f"right by always answering {majority.label}: {majority.share:.3f}; by guessing: {majority.guessing:.3f}"
        yield f"the interval over all studies lies {side} that"
    yield f"balanced accuracy (mean sensitivity of the labels): {_estimate(found.balanced_accuracy)}"
    told = [f"{_label(status)} {many}" for status, many in found.statuses.items() if many]
    yield f"studies: {', '.join(told)}"


def _classes(found: Evaluation) -> Section:
    columns = ("label", "n", "sensitivity", "specificity", "PPV", "NPV", "AUROC")
    rows = tuple(
        (
            one.label,
            str(one.n),
            *(_short(share) for share in (one.sensitivity, one.specificity, one.ppv, one.npv)),
            _estimate(one.auroc),
        )
        for one in found.classes
    )
    return Section("Labels", (), columns, rows)


def _probabilities(found: Evaluation) -> Iterator[str]:
    if found.probabilities and found.before_calibration and found.calibrated_on:
        yield f"calibrated on the data set {found.calibrated_on[:12]}: {_scores(found.probabilities)}"
        yield f"the model's own: {_scores(found.before_calibration)}"
    elif found.probabilities:
        yield f"the model's own: {_scores(found.probabilities)}"
    yield f"Less is better. ECE by {BINS} equal bins of the likeliest label's probability."


def _calibration(found: Evaluation) -> Iterator[str]:
    if found.unfitted:
        yield f"Nothing was fitted: {found.unfitted}."
    if found.fitted:
        yield from _fitted(found.fitted)


def _fitted(fit: Fitted) -> Iterator[str]:
    made = fit.calibration
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in made.parameters.items())
    yield f"{made.method} for {made.step!r}: {numbers}, fitted on {made.n} studies"
    yield f"the model's own: {_scores(fit.before)}"
    yield f"calibrated, each study by a fit to others ({made.folds} parts): {_scores(fit.after)}"
    if fit.helps:
        yield "kept: reports of this workflow by these weights will apply it (calibrate=false leaves it away)"
    else:
        yield "not kept: on studies that it had not seen it is no better"


def _answers(found: Evaluation) -> Section:
    rows = []
    for name, values in found.answers.items():
        shown = [f"{_label(value)} {many}" for value, many in list(values.items())[:MOST_ANSWERS]]
        more = len(values) - len(shown)
        rows.append((name, ", ".join(shown) + (f" and {more} others" if more else "")))
    return Section("Answers", (), ("what", "how often"), tuple(rows))


def _controls(found: Evaluation) -> Section:
    rows = tuple(
        (
            one.kind,
            *_split(one.same),
            *_split(one.accuracy),
            "-" if one.distance is None else f"{one.distance:.3f}",
        )
        for one in found.controls
    )
    depends = found.depends_on_picture
    words = (f"Reports whose answers changed with every exchanged picture: {_share(depends)}.",) if depends else ()
    return Section("Controls", words, ("control", "same label", "", "still right", "", "probabilities moved by"), rows)


def _listed(name: str, shares: Mapping[str, Share]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    if not shares:
        return (), ()
    return (name, "reports", ""), tuple((what, *_split(share)) for what, share in shares.items())


def _label(value: str) -> str:
    return value.replace("_", " ")


def _share(one: Share) -> str:
    if one.share is None:
        return "none to judge by"
    return f"{one.count} of {one.n}, {one.share:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _split(one: Share) -> tuple[str, str]:
    return f"{one.count}/{one.n}", _short(one)


def _short(one: Share) -> str:
    return "-" if one.share is None else f"{one.share:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _estimate(one: Estimate) -> str:
    return "-" if one.value is None else f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _scores(one: Proper) -> str:
    return f"NLL {one.nll:.4f}, Brier {one.brier:.4f}, ECE {one.ece:.4f} (n {one.n})"


def _points(bins: Sequence[Bin]) -> list[tuple[float, float, int]]:
    return [(one.confidence, one.right, one.n) for one in bins if one.confidence is not None and one.right is not None]


def _cell(value: object) -> object:
    """A text as a spreadsheet may open it: what looks like a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(CAREFUL) else value
