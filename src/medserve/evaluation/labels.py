"""A folder and a CSV file become labelled cases; what cannot be used is counted and told, never dropped in silence.

One column names the picture (a file of the folder, with or without its ending, or a folder in it that is one study),
another one says what is true of it. Names and cells lose the white space around them. Further columns are kept for the
table of studies. What is wrong is said with the number of its row and without the file's name. Everything here blocks.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np

from medserve.errors import InvalidRequest
from medserve.imaging.material import content
from medserve.reports import Record

CSV_BYTES = 64 * 2**20
PICTURES = ("image", "file", "filename", "file_name", "path", "picture", "study", "image_id", "isic_id")
LABELS = ("label", "dx", "diagnosis", "class", "target", "truth", "ground_truth")
IDENTITY = "id"
"""The column whose words may stand for a study in what is written; without it that is the hash of its content."""
OTHER = "other"
"""The truth of a study that is none of the labels that the workflow may conclude with."""
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Case:
    """One labelled study: the row it stands in (2 is the first below the names), its files, and what is true of it.

    `truth` is one of the labels that can be concluded, or `other`; `stated` is the cell itself.
    """

    row: int
    path: Path
    truth: str
    stated: str
    id: str = ""
    further: Mapping[str, str] = field(default_factory=dict)


class Counts(Record):
    """What became of the rows of a CSV file, and of the files of its folder."""

    rows: int = 0
    duplicates: int = 0
    """Rows that name a picture again, which an earlier one named."""
    conflicts: int = 0
    """Those among them, and pictures of equal content, that state another label; the first one counts."""
    unlabelled: int = 0
    missing: int = 0
    """Rows whose picture is not in the folder."""
    unlisted: int = 0
    """Files and folders that no row names."""
    left_out: int = 0
    """Cases beyond the limit that was asked for."""
    repeated: int = 0
    """Pictures whose content another one has; they are examined once."""


@dataclass(frozen=True)
class Labelled:
    """The cases in the order of their rows, and what became of the others."""

    cases: tuple[Case, ...]
    counts: Counts
    further: tuple[str, ...] = ()


def csv_of(folder: Path) -> Path:
    """The folder's labels.csv, or its only CSV file; raises InvalidRequest."""
    if (folder / "labels.csv").is_file():
        return folder / "labels.csv"
    found = sorted(path for path in folder.glob("*.csv") if path.is_file())
    if len(found) != 1:
        raise InvalidRequest(
            f"the folder has {len(found)} CSV files and none called labels.csv; name one with --labels", param="labels"
        )
    return found[0]


def read(
    folder: Path,
    table: Path,
    names: Mapping[str, str],
    *,
    picture: str = "",
    label: str = "",
    limit: int | None = None,
) -> Labelled:
    """The labelled cases of a folder; `names` gives each label and what it means, and either may stand in the CSV.

    Without `names` every label that is stated is one. With a `limit` that many cases are drawn, always the same ones.
    Raises InvalidRequest where the table cannot be used.
    """
    columns, rows = _table(table)
    of_picture = _column(columns, picture, PICTURES, "picture", "--image-column")
    of_label = _column(columns, label, LABELS, "label", "--label-column")
    further = tuple(name for name in columns if name not in {of_picture, of_label, IDENTITY})
    entries = _entries(folder)
    spelled = {spelling.casefold(): name for name, meaning in names.items() for spelling in (meaning, name)}
    found: dict[Path, Case] = {}
    counts = dict.fromkeys(Counts.model_fields, 0) | {"rows": len(rows)}
    for number, row in enumerate(rows, start=2):
        path, stated = entries.get(row[of_picture]), row[of_label]
        truth = spelled.get(stated.casefold(), OTHER) if names else stated
        if path is None:
            counts["missing"] += 1
        elif not stated:
            counts["unlabelled"] += 1
        elif path in found:
            counts["duplicates"] += 1
            counts["conflicts"] += found[path].truth != truth
        else:
            identity = row.get(IDENTITY, "")
            found[path] = Case(number, path, truth, stated, identity, {name: row[name] for name in further})
    counts["unlisted"] = len(set(entries.values()) - found.keys() - {table.resolve()})
    if not found:
        raise InvalidRequest("no row has both a picture in the folder and a label", param="labels")
    cases = _drawn(tuple(found.values()), limit)
    counts["left_out"] = len(found) - len(cases)
    return Labelled(cases, Counts(**counts), further)


def _drawn(cases: tuple[Case, ...], limit: int | None) -> tuple[Case, ...]:
    """So many cases, drawn with a fixed seed because tables are often sorted by label, in the order of their rows."""
    if limit is None or limit >= len(cases):
        return cases
    places = np.random.default_rng(0).permutation(len(cases))[:limit]
    return tuple(cases[place] for place in sorted(places))


def _table(path: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    """The names of the columns in small letters, and the rows that are not empty."""
    try:
        text = content(path, CSV_BYTES).decode("utf-8-sig")
        first = text.split("\n", 1)[0]
        delimiter = max(DELIMITERS, key=first.count)
        lines = list(csv.reader(StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True))
    except OSError as error:
        raise InvalidRequest(f"the table of labels cannot be read: {error.strerror}", param="labels") from None
    except (UnicodeDecodeError, csv.Error):
        raise InvalidRequest("the table of labels is no CSV file in UTF-8; save it as one", param="labels") from None
    columns = [name.strip().casefold() for name in lines[0]] if lines else []
    if len(set(columns)) < len(columns):
        raise InvalidRequest("two columns of the table of labels have the same name", param="labels")
    rows = [_row(columns, cells) for cells in lines[1:] if any(cell.strip() for cell in cells)]
    return columns, rows


def _row(columns: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    padded = [cell.strip() for cell in cells] + [""] * len(columns)
    return dict(zip(columns, padded, strict=False))


def _column(columns: Sequence[str], chosen: str, known: Sequence[str], what: str, option: str) -> str:
    wanted = (chosen.strip().casefold(),) if chosen else known
    found = [name for name in wanted if name in columns]
    if not found:
        raise InvalidRequest(
            f"the table has no column with the {what}, such as {wanted[0]!r}; name it with {option}", param="labels"
        )
    return found[0]


def _entries(folder: Path) -> dict[str, Path]:
    """What lies in the folder by name and, where only one has it, by name without ending; links are left alone.

    A name in the table is looked up here and never joined to a path, so that no row leads out of the folder.
    """
    try:
        inside = sorted(path for path in folder.iterdir() if not path.is_symlink() and not path.name.startswith("."))
    except OSError as error:
        raise InvalidRequest(f"the folder of pictures cannot be read: {error.strerror}", param="folder") from None
    paths = [path.resolve() for path in inside if path.is_dir() or path.is_file()]
    stems: dict[str, list[Path]] = {}
    for path in paths:
        stems.setdefault(path.stem, []).append(path)
    single = {stem: one[0] for stem, one in stems.items() if len(one) == 1}
    return single | {path.name: path for path in paths}
