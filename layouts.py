"""How data sets lie on a disk: A2D's lists, people's own tables, folders. All become rows.

A row is one frame: its file, its labels, its split. What is read liberally is in a listing's
`notes`, one line each; what has no plain meaning is one of its `problems`, with file, line and what
to do. Nothing is left out, merged or taken for something else without one of the two.

    path,labels,split           path;dog;cat                train/dog/1.jpg
    a.jpg,dog|cat,train         a.jpg;1;1                   train/cat/2.jpg
    b.jpg,,val                  b.jpg;0;0                   val/dog/3.jpg

No image is opened here.
"""

import ast
import codecs
import csv
import difflib
import hashlib
import io
import json
import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from schema import in_a_line, is_name, open_file

TABLES = (".csv", ".tsv")
COLUMN_SEPARATORS = ",;\t"
LABEL_SEPARATORS = "|;,"
# Names of columns in any case, the likeliest first: of those that a table has, the first counts.
PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "image_path", "image", "image_id", "id", "name",
    "file_path", "filepath", "fname", "image_name", "img",
)  # fmt: skip
LABEL_COLUMNS = ("labels", "label", "tags", "classes", "class")
SPLIT_COLUMNS = ("split", "subset", "set", "data_split", "partition", "is_valid", "is_train")
# Columns that are no classes, although they may hold 0 and 1.
NO_CLASSES = (
    *PATH_COLUMNS, *SPLIT_COLUMNS, "index", "fold", "difficult", "width", "height", "file_size",
    "region_count", "region_id", "annotation_id", "annotator",
)  # fmt: skip
A2D_PARTS = ("videoset.csv", "clips320H", "pngs320H", "Annotations")
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
}  # fmt: skip
NO_LABEL = (  # as programs write a missing value
    "", "nan", "NaN", "None", "null", "NULL", "<NA>", "NA", "N/A", "#N/A"
)  # fmt: skip
QUOTED = r"'(?:[^'\\]|\\.)*'" + r'|"(?:[^"\\]|\\.)*"'
# Pillow opens more: documents, films and fields of numbers, of which it shows a page or none, and
# for PostScript, whatever its file is called, it starts another program.
PICTURES = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "MPO", "DIB",
    "PCX", "QOI", "SGI", "TGA",
)  # fmt: skip
LONGEST_CELL = 10_000  # characters of a path, or of all labels of a frame
LONGEST_PROBLEM = 2000  # characters
MAX_LISTED = 50  # problems printed one by one; the rest are counted


class DataError(ValueError):
    """Input that cannot be used. `problems`: one line each, "where: what – what to do"."""

    exit_code = 3

    def __init__(self, *problems: str):
        self.problems = [in_a_line(problem, LONGEST_PROBLEM) for problem in problems]
        lines = self.problems[:MAX_LISTED]
        if len(problems) > MAX_LISTED:
            lines.append(f"... and {len(problems) - MAX_LISTED} more")
        super().__init__(
            lines[0] if len(lines) == 1 else f"{len(problems)} problems:\n  " + "\n  ".join(lines)
        )


class Row(NamedTuple):
    """One frame."""

    where: str  # what a problem begins with: "file:line", or the picture's own name
    name: str  # for people: as the list writes the path, below its folder, with "/"
    path: str  # of the file
    labels: list[str]
    split: str | None  # train, val, test; None: the list does not say

    def split_or_default(self) -> str:
        return self.split or default_split(self.name)


def default_split(name) -> str:
    """Of a frame for which no split is named: a fifth is val, whatever other frames there are."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return "val" if digest[0] % 5 == 0 else "train"


@dataclass
class Listing:
    """What a table or a folder says.

    named    {class: where it stands first}
    classes  those that classes.txt beside it lists, in index order, or None
    """

    source: Path
    rows: list[Row] = field(default_factory=list)
    named: dict[str, str] = field(default_factory=dict)
    classes: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def labelled(self) -> bool:
        return bool(self.named)

    def has_splits(self) -> bool:
        return any(row.split for row in self.rows)

    def note(self, text):
        self.notes.append(f"{self.source}: {text}")


def did_you_mean(word, known) -> str:
    """Ends a message; empty where no known word is like this one."""
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def some(names, count=8) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


# ------------------------------------------------------------------------------------ text files


def read_text(file) -> str:
    """A text in UTF-8 or, if its first bytes say so, UTF-16.

    raises  DataError: it cannot be read, is in another encoding, or holds control characters
    """
    try:
        with open_file(file) as opened:
            start = opened.read(2)
        if start == b"PK":
            raise DataError(f"{file}: a workbook or an archive, no text – save it as .csv")
        utf16 = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = Path(file).read_text("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not UTF-8 – save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{file}: {error.strerror} – restore it, or make it readable") from None
    if wrong := re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", text):  # all but tab and \n
        line = text[: wrong.start()].count("\n") + 1
        raise DataError(f"{file}:{line}: holds the control character {wrong[0]!r} – remove it")
    return text


def read_lines(file) -> list[tuple[str, str]]:
    """[("file:line", text)] of the lines that are not blank."""
    lines = enumerate(read_text(file).split("\n"), 1)
    return [(f"{file}:{n}", line.strip()) for n, line in lines if line.strip()]


def in_place_of_a_file(start: bytes) -> tuple[str, str] | None:
    """What people most often have in place of a file, by its first bytes, and what to do."""
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "a web page", "download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer", "run git lfs pull"
    return None


def leaves_root(path: str) -> bool:
    """True for absolute paths, `..`, `~`, drive letters, backslashes, ""; links may leave."""
    return bool(re.match(r"[A-Za-z]:|/|~|$", path)) or "\\" in path or ".." in path.split("/")


# ------------------------------------------------------------------------------------ A2D


def find_a2d(root) -> Path | None:
    """The folder of an A2D tree at or below `root`, or None."""
    for folder in _a2d_folders(root):
        if os.path.isdir(folder / "pngs320H") and os.path.isdir(folder / "Annotations"):
            return folder
    return None


def _a2d_folders(root):
    return Path(root), Path(root) / "Release", Path(root) / "A2D"


def refuse_part_of_a2d(path):
    """Raises DataError where `path` is A2D's, and not a tree that `find_a2d` finds: its label maps
    would be read as photographs, or its list of clips as a table."""
    if Path(path).name == "videoset.csv":
        raise DataError(f"{path}: is A2D's list of clips – name the folder that it is in")
    for folder in _a2d_folders(path):
        parts = {name for name in A2D_PARTS if os.path.lexists(folder / name)}
        missing = [name for name in ("pngs320H", "Annotations") if name not in parts]
        if len(parts) > 1 and missing:
            raise DataError(
                f"{folder}: an A2D tree without {' and '.join(missing)} – README.md says how it is "
                "to look, and how frames are extracted"
            )


def read_a2d(root, split) -> tuple[list[Row], list[str], list[str]]:
    """The rows of one split of the tree at root, the paths of their label maps, and the problems.

    Label maps are colours or, where there are none, matrices.
    """
    listed, problems = _a2d_list(root, split)
    if not listed and not problems:
        problems.append(f"{root}: its {split} list is empty – restore it")

    # A name stands once, below the folders of A2D.
    seen = {}
    for where, name in listed:
        if leaves_root(name) or name.count("/") != 1:
            problems.append(f"{where}: {name!r} is not <video>/<frame> – correct it")
        elif seen.setdefault(name, where) != where:
            problems.append(f"{where}: {name} stands already at {seen[name]} – drop one")

    rows, maps = [], []
    for name, where in seen.items():
        rows.append(Row(where, name, f"{root}/pngs320H/{name}.png", [], split))
        colours = f"{root}/Annotations/col/{name}.png"
        matrix = f"{root}/Annotations/mat/{name}.mat"
        has_matrix_alone = not os.path.exists(colours) and os.path.exists(matrix)
        maps.append(matrix if has_matrix_alone else colours)
    return rows, maps, problems


def _a2d_list(root, split):
    """[(where, "<video>/<frame>")] of one split, and the problems of the list itself."""
    # The course's lists, where there are any.
    file = root / "list" / f"{split}.txt"
    if os.path.lexists(file):
        return read_lines(file), []
    if os.path.lexists(root / "list"):  # the official split would be another set of frames
        raise DataError(f"{file}: cannot be found – restore it or drop list/ to split officially")

    # Else the official split: all annotated frames of the videos that the last column names.
    file = root / "videoset.csv"
    if split not in ("train", "val") or not os.path.lexists(file):
        raise DataError(f"{root}: has neither list/{split}.txt nor an official {split} split")

    listed, problems = [], []
    for where, line in read_lines(file):
        row = [cell.strip() for cell in line.split(",")]
        if len(row) != 9 or row[8] not in ("0", "1") or leaves_root(row[0]):
            problems.append(f"{where}: {line[:99]!r} – must be 9 columns, an id first, 0 or 1 last")
        elif row[8] == ("0" if split == "train" else "1"):
            maps = root / "Annotations"
            frames = {f.stem for f in (maps / "col" / row[0]).glob("[!.]*.png")}
            frames |= {f.stem for f in (maps / "mat" / row[0]).glob("[!.]*.mat")}
            listed += [(where, f"{row[0]}/{frame}") for frame in sorted(frames)]
            if not frames:
                problems.append(f"{where}: {row[0]} has no label map – restore it or drop the line")
    return listed, problems


# ------------------------------------------------------------------------------------ tables


class Table(NamedTuple):
    header_at: str  # "file:line"
    header: list[str]
    lines: list[tuple[str, list[str]]]  # "file:line" and the cells, as many as the header has

    def column(self, i) -> list[tuple[str, str]]:
        return [(where, cells[i]) for where, cells in self.lines]


class Columns(NamedTuple):
    """Where in a line what stands."""

    path: int
    labels: int | None
    split: int | None
    classes: dict[str, int]  # a column of 0 and 1 each, where there is none of labels


def read_table(path, images=None, classes=None) -> Listing:
    """A table of frames, with a column of labels or a column of 0 and 1 for each class.

    images   the folder that its paths are below; None: its own
    classes  the only ones that there are, of a checkpoint; None: classes.txt lists them, or nobody
    """
    path = Path(path)
    listing = Listing(path)
    listing.classes = _classes_txt(path.parent, listing.problems)
    known = classes or listing.classes

    table = _parse(listing)
    columns = _columns(listing, table, known)
    if columns.labels is None:
        listing.named = dict.fromkeys(columns.classes, table.header_at)
        labels = [
            [name for name, i in columns.classes.items() if truth(cells[i])]
            for _, cells in table.lines
        ]
    else:
        labels = _labels_of_column(listing, table.column(columns.labels), set(known or ()))

    finder = Finder(listing, images)
    for (where, cells), names in zip(table.lines, labels, strict=True):
        for name in names:
            listing.named.setdefault(name, where)
        split = None
        if columns.split is not None:
            split = _split(listing, where, table.header[columns.split], cells[columns.split])
        place = finder.find(where, cells[columns.path])
        if place:
            listing.rows.append(Row(where, *place, names, split))

    finder.note()
    if columns.labels is not None and table.lines and not (listing.named or listing.problems):
        name = table.header[columns.labels]
        listing.note(f"column {name} has no label in any row, so its images are without labels")
    _merge_rows(listing, one_label_each=columns.labels is not None)
    return listing


def _classes_txt(folder, problems) -> list[str] | None:
    """The names in classes.txt of a folder, or None where there is no such file."""
    file = folder / "classes.txt"
    if not os.path.lexists(file):
        return None

    places = {}
    for where, name in read_lines(file):
        if not is_name(name):
            problems.append(f"{where}: no class can be called {name!r} – rename it")
        if places.setdefault(name, where) != where:
            problems.append(f"{where}: {name} stands already at {places[name]} – drop one")
    if not places:
        problems.append(f"{file}: names no class – write one a line, or remove the file")
    return list(places) or None


def _parse(listing) -> Table:
    """The table in a text, without its blank lines and the empty cells at their ends.

    raises  DataError: there is no header, or it names a column twice
    """
    path = listing.source
    text = read_text(path)
    header = text.lstrip("\n").partition("\n")[0]
    separator = max(COLUMN_SEPARATORS, key=header.count)

    # Excel names the separator in a line of its own.
    skipped = 0
    if excel := re.match(r"sep=(.)\n", text, re.IGNORECASE):
        separator, skipped = excel[1], 1
        text = text[excel.end() :]
    if separator != ",":
        listing.note(f"its columns are separated by {separator!r}")

    lines = []
    begins = skipped + 1  # the line of the text that a line of the table begins at
    reader = csv.reader(io.StringIO(text), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if any(len(cell) > LONGEST_CELL for cell in cells):
                raise DataError(
                    f"{path}:{begins}: a cell of more than {LONGEST_CELL:,} characters – shorten it"
                )
            if any(cell.strip() for cell in cells):
                lines.append((f"{path}:{begins}", [cell.strip() for cell in cells]))
            begins = skipped + reader.line_num + 1
    except csv.Error as error:
        listing.problems.append(
            f"{path}:{begins}: {error} – look for an odd quotation mark from here on"
        )

    if not lines:
        missing = f"{path}:1: the header must name path and labels – there is none"
        raise DataError(*(listing.problems or [missing]))
    return _even(listing, *lines[0], lines[1:])


def _even(listing, header_at, header, lines) -> Table:
    """The lines that have as many cells as the header, whose empty end is cut off."""
    width = len(header)
    while width and not header[width - 1] and not any(any(c[width - 1 :]) for _, c in lines):
        width -= 1

    even = []
    for where, cells in lines:
        uneven = any(cells[width:]) or len(cells) < width
        # A quotation mark that is never closed swallows the lines after it.
        if uneven and any("\n" in cell for cell in cells):
            listing.problems.append(_goes_on(where, cells))
        elif uneven:
            listing.problems.append(f"{where}: {len(cells)} cells, {width} columns – correct it")
        else:
            even.append((where, cells[:width]))

    twice = [name for name, count in Counter(header[:width]).items() if name and count > 1]
    if twice:
        raise DataError(
            f"{header_at}: the header names {some(twice)} more than once – rename or remove one"
        )
    return Table(header_at, header[:width], even)


def _goes_on(where, cells) -> str:
    count = 1 + sum(cell.count("\n") for cell in cells)
    return f"{where}: a quoted cell goes on for {count} lines – end it in one"


def _columns(listing, table, known) -> Columns:
    """Which column is which; all that is not read is named in a note.

    raises  DataError: no column has paths
    """
    header = table.header
    lower = [name.lower() for name in header]
    path, labels = (
        next((lower.index(name) for name in names if name in lower), None)
        for names in (PATH_COLUMNS, LABEL_COLUMNS)
    )
    splits = (lower.index(name) for name in SPLIT_COLUMNS if name in lower)
    split = next((i for i in splits if _says_splits(lower[i], table.column(i))), None)
    if path is None:
        hints = (did_you_mean(name, PATH_COLUMNS) for name in lower)
        hint = next(filter(None, hints), "")
        raise DataError(
            f"{table.header_at}: the header must name a column of paths "
            f"({', '.join(PATH_COLUMNS)}) – it is {header[:8]}{hint}"
        )
    if header[path] != "path":
        listing.note(f"the paths are in column {header[path]}")
    if labels is not None and header[labels] != "labels":
        listing.note(f"the labels are in column {header[labels]}")
    if split is not None and lower[split] != "split":
        listing.note(f"the splits are in column {header[split]}")

    others = {name: i for i, name in enumerate(header) if i not in (path, labels, split)}
    ignored = _unnamed(listing, table, others)
    classes = _class_columns(listing, table, others, known) if labels is None else {}
    ignored += [name for name in others if name not in classes]
    if ignored:
        taken = f"; classes are {some(list(classes))}" if classes else ""
        listing.note(f"ignored columns: {some(ignored)}{taken}")
    return Columns(path, labels, split, classes)


def _says_splits(name, column) -> bool:
    """Whether a column is one of splits: set or is_valid may mean anything else."""
    found = {split_of(name, cell) for _, cell in column if cell not in NO_LABEL}
    return name == "split" or None not in found or {"train", "val"} <= found


def _unnamed(listing, table, others) -> list[str]:
    """Takes columns without a name out of `others`: indices as pandas writes them, or problems."""
    indices = []
    for name in list(others):
        if not re.fullmatch(r"(Unnamed: [\d.]+)?", name):
            continue
        i = others.pop(name)
        if (i == 0 or name) and all(cell.isdecimal() or not cell for _, cell in table.column(i)):
            indices.append(name or "the first, an index")
        else:
            listing.problems.append(
                f"{table.header_at}: column {i + 1} has no name – name it or remove it"
            )
    return indices


def _class_columns(listing, table, others, known) -> dict[str, int]:
    """The columns of 0 and 1, by class; `known` are the only classes that there are, or None."""
    classes = {}
    if known and not any(name in known or did_you_mean(name, known) for name in others):
        return classes  # further columns of images without labels
    for name, i in others.items():
        column = table.column(i)
        wrong = [(where, cell) for where, cell in column if truth(cell) is None]
        if known is None or name not in known:
            # A column of other things says something else, and so does one that nobody lists.
            unlisted = listing.classes is not None and name not in listing.classes
            if len(wrong) == len(column) or unlisted or name.lower() in NO_CLASSES:
                continue

        classes[name] = i
        if wrong:
            cells = [f"{cell!r} in line {where.rpartition(':')[2]}" for where, cell in wrong]
            listing.problems.append(
                f"{wrong[0][0]}: column {name} is {some(cells, 3)} – must be 0 or 1; if it is no "
                "class, list those that are in classes.txt beside the table"
            )

    # Where no column is of 0 and 1, images have no labels; else each class has a column.
    if not known or not classes:
        return classes
    missing = [name for name in known if name not in classes]
    if missing:
        listing.problems.append(
            f"{table.header_at}: has no column of {some(missing)}, of the classes {some(known)} – "
            "add what is true of each frame"
        )
    for name in classes:
        if name not in known:
            listing.problems.append(
                f"{table.header_at}: column {name} is none of the classes {some(known)} – rename "
                f"or remove it{did_you_mean(name, known)}"
            )
    return {name: i for name, i in classes.items() if name in known}


def truth(cell) -> bool | None:
    """What 0, 1.0, 1e+00 or TRUE say; None: no such thing."""
    if cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    with suppress(ValueError):
        return {0: False, 1: True}.get(float(cell))
    return None


def _labels_of_column(listing, column, known) -> list[list[str]]:
    """The names in each cell of a column: a list, or names between separators.

    known  names that are taken as they are, whatever is in them
    """
    plain = [text for _, text in column if text not in known and _list_items(text) is None]
    marks = [mark for mark in LABEL_SEPARATORS if any(mark in text for text in plain)]
    if not marks and _blanks_separate(plain, known):
        marks = [" "]
    separator = marks[0] if marks else "|"
    if separator != "|":
        listing.note(f"its labels are separated by {separator!r}")

    lists = 0
    found = []  # the names in each cell
    for where, text in column:
        if text in known:
            names = [text]
        elif (names := _list_items(text)) is not None:
            lists += 1
        else:
            names = [name.strip() for name in text.split(separator)]
            _refuse_other_marks(listing, where, text, marks, [n for n in names if n not in known])
        found.append(names)

    labels, missing = [], Counter()
    unlisted = [names for names in found if not known.issuperset(names)]
    all_are_numbers = _are_numbers(unlisted, separator)
    for (where, text), names in zip(column, found, strict=True):
        # A vector of 0 and 1 has one of them twice, and says nothing of its columns.
        wrong = any(name not in known and _is_no_name(name) for name in names)
        is_vector = len(set(names)) < len(names) and None not in map(truth, names)
        if all_are_numbers and len(names) > 1 and not known.issuperset(names):
            listing.problems.append(
                f"{where}: {text!r} may be numbers and no labels – write the names of classes, or "
                "list these in classes.txt"
            )
            names = []
        elif wrong or is_vector:
            listing.problems.append(
                f"{where}: {text!r} is no list of labels – separate them by |, or list the name in "
                "classes.txt"
            )
            names = []
        said = [name for name in names if name in known or name not in NO_LABEL]
        missing.update(name for name in names if name and name not in said)
        labels.append(said)

    if lists:
        listing.note(f"brackets are read as lists of labels in {lists} of its rows")
    for word, count in missing.items():
        listing.note(f"{word} is read as no label in {count} of its rows")
    return labels


def _are_numbers(rows, separator) -> bool:
    """Whether all rows that have names have two or more of 0 and 1, which are vectors; or between
    commas a number and a 0, as 2,0 has with a decimal comma."""
    rows = [names for names in rows if set(names) - set(NO_LABEL)]
    if not rows or any(len(names) < 2 for names in rows):
        return False
    are_vectors = all(None not in map(truth, names) for names in rows)
    have_decimals = separator == "," and all(
        len(names) == 2 and names[0].isdecimal() and set(names[1]) == {"0"} for names in rows
    )
    return are_vectors or have_decimals


def _refuse_other_marks(listing, where, text, marks, names):
    """A problem where names, split by marks[0], hold a mark that could separate labels too."""
    for mark in marks:
        if any(mark in name for name in names):
            listing.problems.append(
                f"{where}: {text!r} holds {mark!r}, where other labels are separated by "
                f"{marks[0]!r} – use one of them, or list the names in classes.txt"
            )
            return


def _blanks_separate(texts, known) -> bool:
    """Whether a blank in a label is between two: its words are all known, or labels themselves."""
    phrases = {text for text in texts if " " in text}
    names = known or set(texts)
    return bool(phrases) and all({*text.split()} <= names for text in phrases)


def _is_no_name(name) -> bool:
    """A line break or the like, a bracket that is not closed, an error of a spreadsheet, or 1 0 0.
    """
    is_open = any(
        name.count(left) != name.count(right) and (name[0] == left or name[-1] == right)
        for left, right in ("[]", "()", "{}")
        if name
    )
    if is_open or (name and not is_name(name)):
        return True
    return bool(re.match(r"[\[{]|#\w+[!?]$|\.\.\.$|[01]( [01])+$", name))


def _list_items(text) -> list[str] | None:
    """The names in a list as JSON, Python, numpy or a person writes it; None: it is none."""
    if call := re.fullmatch(r"(?:frozenset|set|array)\((.*?)(?:, dtype=\S+)?\)", text, re.DOTALL):
        text = call[1] or "[]"
    if not re.fullmatch(r"\[.*\]|\{.*\}|\(.*\)", text, re.DOTALL):
        return None
    with suppress(ValueError, RecursionError):
        items = json.loads(text)
        nested = not isinstance(items, list) or any(isinstance(i, (list, dict)) for i in items)
        return None if nested else [str(item).strip() for item in items if item is not None]

    # numpy writes no commas, and Python would join the neighbours: 'dog' 'cat' is not dogcat.
    quoted = re.findall(QUOTED, text)
    between = re.sub(QUOTED, "", text[1:-1]).strip(" ,\n")
    if re.sub(r"\b(nan|None)\b|[\s,]", "", between) == "" and (quoted or not between):
        with suppress(ValueError, SyntaxError):
            return [ast.literal_eval(name).strip() for name in quoted]
    if text[0] != "[" or quoted or "[" in between or "]" in between:
        return None
    if all(re.fullmatch(r"[-+.\de]+|True|False", word) for word in between.split()):
        return between.split()
    return [name.strip() for name in re.split("[|;,]", between)]


def split_of(column, cell) -> str | None:
    """The split that a cell of a column with this name means; None: none."""
    if not column.startswith("is_"):
        return SPLITS.get(cell.lower())
    value = truth(cell)
    if value is None:
        return None
    return "train" if value == (column == "is_train") else "val"


def _split(listing, where, column, written) -> str | None:
    """The split that a cell names, or None; a problem where it is none."""
    split = split_of(column.lower(), written)
    if split is None and written not in NO_LABEL:
        listing.problems.append(
            f"{where}: column {column} is {written!r} – must be train, val, test"
            + did_you_mean(written.lower(), SPLITS)
        )
    return split


class Finder:
    """Finds the files that a table names, below its folder or below `images`."""

    def __init__(self, listing, images):
        self.listing, self.images = listing, images
        folder = listing.source.parent
        self.root = Path(images or folder)
        self.roots = []  # as absolute paths may begin
        for root in filter(None, (images, folder)):
            self.roots += [os.path.abspath(root), os.path.realpath(root)]
        self.stems = {}  # folder: {name without extension: [names]}
        self.backslashes = self.absolute = self.completed = 0

    def find(self, where, written) -> tuple[str, str] | None:
        """(name below the folder, path), or None and a problem."""
        if "\n" in written:
            self.listing.problems.append(_goes_on(where, [written]))
            return None
        name = written.replace("\\", "/")
        self.backslashes += name != written
        root = self.root
        for folder in self.roots:
            start = folder.replace(os.sep, "/") + "/"
            if name.startswith(start):
                name, root = name.removeprefix(start), folder
                self.absolute += 1
                break

        if leaves_root(name):
            below = "below --images" if self.images else "below the CSV's folder, or --images DIR"
            self.listing.problems.append(f"{where}: path {written!r} – must name a file {below}")
            return None

        path = os.path.join(root, name)
        if os.path.splitext(name)[1].lower() in extensions() or os.path.exists(path):
            return name, path

        # Without an extension, a name means the one file that has it.
        fitting = self.files_called(os.path.dirname(path), os.path.basename(path))
        if len(fitting) > 1:
            self.listing.problems.append(
                f"{where}: {written}: {some(fitting)} have that name – write the extension"
            )
            return None
        if fitting:
            self.completed += 1
            path = os.path.join(os.path.dirname(path), fitting[0])
        return name, path

    def files_called(self, folder, stem) -> list[str]:
        if folder not in self.stems:
            self.stems[folder] = by_stem = {}
            for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                name, extension = os.path.splitext(file)
                if extension.lower() in extensions():
                    by_stem.setdefault(name, []).append(file)
        return self.stems[folder].get(stem, [])

    def note(self):
        """Says what was assumed."""
        if self.backslashes:
            self.listing.note(f"\\ is read as / in {self.backslashes} of its paths")
        if self.absolute:
            self.listing.note(
                f"absolute paths are read as relative ones in {self.absolute} of its rows"
            )
        if self.completed:
            self.listing.note(
                f"a name without extension means the one file of that name in {self.completed} of "
                "its rows"
            )


def _merge_rows(listing, one_label_each):
    """One row a file. Rows of a file that name a label each become one; others are problems."""
    rows, merged = {}, set()
    for row in listing.rows:
        file = os.path.realpath(row.path)  # ./a.png and a link to a.png are a.png too
        before = rows.setdefault(file, row)
        if before is row:
            continue
        if not one_label_each:
            listing.problems.append(
                f"{row.where}: {row.name} stands already at {before.where} – drop one"
            )
        elif row.split != before.split:
            listing.problems.append(
                f"{row.where}: {row.name} is in split {row.split}, and in {before.split} at "
                f"{before.where} – keep it in one"
            )
        before.labels.extend(label for label in row.labels if label not in before.labels)
        merged.add(file)

    listing.rows = list(rows.values())
    if merged and one_label_each:
        listing.note(f"rows of one file are taken together, for {len(merged)} of its files")


# ------------------------------------------------------------------------------------ folders


@cache
def formats() -> tuple[str, ...]:
    """Those of PICTURES that this Pillow reads."""
    Image.init()
    return tuple(kind for kind in PICTURES if kind in Image.OPEN)


@cache
def extensions() -> set[str]:
    """Those of `formats`, in small letters."""
    known = Image.registered_extensions().items()
    return {extension for extension, kind in known if kind in formats()}


def read_folder(path, classes=None) -> Listing:
    """The pictures below a folder, sorted, or one picture; hidden ones are left out.

    A folder of class folders has a label a frame, and so has one of train/ and val/ that hold them,
    or whose class folders hold train/ and val/.
    classes  the names that a checkpoint knows: where no class folder is of them, none is one
    """
    path = Path(path)
    listing = Listing(path)
    if path.is_file():
        top, files = path.parent, [path] if path.suffix.lower() in extensions() else []
    else:
        top, files = path, _pictures(listing, path)
    if not files and not listing.problems:
        listing.problems.append(
            f"{path}: no picture that can be read – name a folder of pictures, or a table that is "
            "saved as .csv"
        )

    names = [file.relative_to(top).as_posix() for file in files]
    places = _places(names, classes or ())
    found = sorted({label for _, label in places if label})
    labelled = bool(found) and _are_classes(listing, names, places, found, classes)
    for file, name, (split, label) in zip(files, names, places, strict=True):
        if not labelled:
            listing.rows.append(Row(name, name, str(file), [], None))
        elif label:
            listing.rows.append(Row(name, name, str(file), [label], split))

    if labelled:
        listing.named = {name: str(top) for name in found}
        listing.classes = _classes_txt(top, listing.problems)
        listing.note("each frame has one label, the class folder that it is in")
        _note_other_folders(listing, top, names, places)
    return listing


def split_of_folder(name) -> str | None:
    """train of train, Training, train_set, seg_train, train_images; None: no split."""
    word = re.sub(r"^(seg|images?)[_-]|[_-]?(set|images?|data)$", "", name.lower())
    return SPLITS.get(word)


def _places(names, known) -> list[tuple[str | None, str | None]]:
    """(split, class) of each picture, as far as the folders that it is in are such."""
    folders = _without_common([name.split("/")[:-1] for name in names], known)
    folders = [f[1:] if f[:1] == f[1:2] else f for f in folders]  # archives unpack to train/train

    # Splits are right below the classes or, all of them, above.
    below = {split_of_folder(f[1]) if len(f) > 1 else None for f in folders}
    if None not in below and len(below) > 1:
        return [(split_of_folder(f[1]), f[0]) for f in folders]
    splits = [split_of_folder(f[0]) if f else None for f in folders]
    if None in splits:
        return [(None, f[0] if f else None) for f in folders]
    classes = _without_common([f[1:] for f in folders], known)
    places = [(split, f[0] if f else None) for split, f in zip(splits, classes, strict=True)]

    # A test without labels may lie in one folder, of any name.
    in_test = {label for split, label in places if split == "test"}
    if len(in_test) == 1 and not in_test & {label for split, label in places if split != "test"}:
        places = [(split, None if split == "test" else label) for split, label in places]
    return places


def _without_common(folders, known):
    """Each picture's folders without a first one that holds all the others, and is no class."""
    while folders and all(len(f) > 1 and f[0] == folders[0][0] for f in folders):
        if folders[0][0] in known:
            break
        folders = [f[1:] for f in folders]
    return folders


def _are_classes(listing, names, places, found, classes) -> bool:
    """Whether the class folders that were found are classes; a problem where that is not plain."""
    unlabelled = [name for name, (_, label) in zip(names, places, strict=True) if not label]
    # The pictures of a test that is judged elsewhere lie in no class folder.
    are_test = all(split == "test" for split, label in places if not label)
    outside = f"{some(unlabelled, 3)} are in no class folder"

    if classes is None:
        _refuse_folders_beside_splits(listing, names, places, found)
        # A class has several frames, where the folder of a film or of a day may have one.
        if len(found) < 2 or len(names) - len(unlabelled) < 2 * len(found):
            if not unlabelled:
                listing.note(f"no class is made of {some(found, 3)}, with {len(names)} pictures")
            return False
        if unlabelled and not are_test:
            listing.note(f"{outside}, so no folder is taken for a class")
            return False
    else:
        unknown = [name for name in found if name not in classes]
        alike = {name.lower() for name in unknown} & {name.lower() for name in classes}
        if alike or (unknown and len(unknown) < len(found)):
            listing.problems.append(
                f"{listing.source}: the folders {some(unknown)} are none of the classes "
                f"{some(classes)}{did_you_mean(unknown[0], classes)} – rename them, or name a "
                "folder of pictures alone"
            )
        if unknown:
            return False
        if unlabelled and not are_test:
            listing.problems.append(f"{listing.source}: {outside}, and the others are – move them")

    if unlabelled:
        listing.note(f"{outside}, and left out")
    return True


def _refuse_folders_beside_splits(listing, names, places, found):
    """One folder called train may be a class; with folders in it, or with val, it is a split."""
    others = [name for name in found if not split_of_folder(name)]
    splits = {name for name in found if split_of_folder(name)}
    hold_folders = any(
        label in splits and Path(name).parent.name != label
        for name, (_, label) in zip(names, places, strict=True)
    )
    if others and (len(splits) > 1 or hold_folders):
        listing.problems.append(
            f"{listing.source}: the folders {some(others)} are no splits, and the others are – "
            "move them out, or rename them"
        )


def _note_other_folders(listing, top, names, places):
    """Notes the folders that are below class folders, and those beside them without a picture."""
    deeper, used, without = set(), set(), []
    for name, (split, label) in zip(names, places, strict=True):
        parents = [top / name, *(top / name).parents]
        used.update(parents)
        above = parents[1].name
        if label and above != label and not (split and split_of_folder(above)):
            deeper.add(parents[1].relative_to(top).as_posix())
        if label and not split_of_folder(above):
            without.append(name)

    # Where some classes have train and val below them, all are meant to.
    if len({split_of_folder(Path(folder).name) for folder in deeper} - {None}) > 1:
        listing.problems.append(
            f"{listing.source}: {some(without, 3)} are in no split, and others are – move them"
        )

    labels = {label for _, label in places if label}
    above = {folder.parent for folder in used if folder.name in labels}
    empty = sorted(
        folder.name
        for parent in above
        for folder in parent.iterdir()
        if folder.is_dir() and folder not in used and not folder.name.startswith((".", "__"))
    )
    if deeper:
        listing.note(f"folders below the classes are none: {some(sorted(deeper), 3)}")
    if empty:
        listing.note(f"folders without a picture are no classes: {some(empty)}")


def _pictures(listing, folder) -> list[Path]:
    """Paths of all pictures below a folder; what else is there is noted. Links are followed, but
    for those to what is below the folder anyway."""
    files, left_out, errors = [], Counter(), []
    followed = {os.path.realpath(folder)}
    for where, folders, names in os.walk(folder, onerror=errors.append, followlinks=True):
        for name in list(folders):
            if name.startswith(".") or name == "__MACOSX":
                left_out["hidden"] += 1
                folders.remove(name)
            elif os.path.islink(os.path.join(where, name)):
                target = os.path.realpath(os.path.join(where, name))
                if any(Path(target).is_relative_to(root) for root in followed):
                    left_out["linked again"] += 1
                    folders.remove(name)
                followed.add(target)

        for name in names:
            extension = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                left_out["hidden"] += 1
            elif extension in extensions():
                files.append(Path(where, name))
            else:
                left_out[extension or "without extension"] += 1

    listing.problems += [
        f"{error.filename}: {error.strerror} – name a folder that can be read" for error in errors
    ]
    if left_out:
        count = len(files) + left_out.total()
        left = (f"{n} {what}" for what, n in sorted(left_out.items()))
        listing.note(f"{len(files)} of {count} files are read; left out: {some(left)}")
    return sorted(files)


def read(path, images=None, classes=None) -> Listing:
    """What a table, a folder with one table in it, or a folder of pictures says.

    raises  DataError: the folder holds several tables, or a table has no header to go by
    """
    path = Path(path)
    if path.suffix.lower() in TABLES and not path.is_dir():
        return read_table(path, images, classes)

    tables = [file for file in path.glob("[!.]*.*") if file.suffix.lower() in TABLES]
    if len(tables) > 1:
        names = ", ".join(sorted(file.name for file in tables))
        raise DataError(f"{path}: holds the tables {names} – name one of them")
    if tables:
        listing = read_table(tables[0], images, classes)
        listing.note("is read, as the one table of its folder")
        return listing
    if images:
        raise DataError(f"--images {images}: {path} is no table, whose paths could be below it")
    return read_folder(path, classes)
