"""data.py: decoding by stated rules, A2D trees, CSVs, order, batches; bad input by its line."""

import csv
import hashlib
import io
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import demo
import evaluate

GOLDEN = Path(__file__).parent / "golden"


pytestmark = pytest.mark.usefixtures("own_cache")


def picture(path, size=(6, 4), colour=(10, 20, 30), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def problems(call, *args, **kwargs):
    with pytest.raises(data.DataError) as caught:
        call(*args, **kwargs)
    return caught.value.problems


# ----------------------------------------------------------------------------------- the 43 classes


def test_the_43_ids_names_and_colours():
    """Against the table of the data set's colour map, transcribed from the course's loader."""
    with open(GOLDEN / "a2d_classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == data.CLASSES
    for row in rows:
        colour = np.uint8([[[int(row["red"]), int(row["green"]), int(row["blue"])]]])
        buffer = io.BytesIO()
        Image.fromarray(colour).save(buffer, "PNG")
        label_map, unknown = data.read_label_map(io.BytesIO(buffer.getvalue()))
        assert label_map.tolist() == [[int(row["index"])]] and unknown == 0
        assert data.PALETTE[int(row["id"])][0] == row["name"]


# ------------------------------------------------------------------------------------ A2D


def write_a2d(root, frames, lists=None, kinds=("col",), size=(9, 8)):
    """frames: {"<video>/<frame>": (official split, [ids])}; each id fills a column of the map."""
    ids = sorted(data.PALETTE)
    rows = {}
    for name, (split, present) in frames.items():
        video, frame = name.split("/")
        rows[video] = f"{video},{present[0] if present else 11},00:00:00,00:00:06,8,9,6,1,{split}"
        picture(root / "pngs320H" / f"{name}.png", size)
        label_ids = np.zeros((size[1], size[0]), int)
        label_ids[:, 1 : 1 + len(present)] = present
        if "col" in kinds:
            colours = np.zeros((size[1], size[0], 3), np.uint8)
            for x, i in enumerate(present, 1):
                colours[:, x] = data.PALETTE[i][1] if i in ids else (1, 2, 3)
            (root / "Annotations/col" / video).mkdir(parents=True, exist_ok=True)
            Image.fromarray(colours).save(root / "Annotations/col" / f"{name}.png")
        if "mat" in kinds:
            h5py = pytest.importorskip("h5py")
            (root / "Annotations/mat" / video).mkdir(parents=True, exist_ok=True)
            with h5py.File(
                root / "Annotations/mat" / f"{name}.mat", "w", userblock_size=512
            ) as file:
                file["reS_id"] = label_ids.T.astype(float)  # MATLAB is column-major, ids are floats
    (root / "videoset.csv").write_text("\n".join(rows.values()) + "\n")
    for split, names in (lists or {}).items():
        (root / "list").mkdir(exist_ok=True)
        (root / "list" / f"{split}.txt").write_text(
            "\n".join(names)
        )  # the last line has no newline
    return root


FRAMES = {
    "-h5fAKYurM/00015": (0, [11, 79]),
    "abc/00001": (0, [35]),
    "def/00030": (1, [19, 78, 11]),
}


def indices(*ids):
    return [sorted(data.PALETTE).index(i) for i in ids]


def check_read(dataset, frames):
    assert dataset.names == list(frames)
    for i, (_, ids) in enumerate(frames.values()):
        index, frame, labels, label_map = dataset[i]
        assert index == i and frame.shape == (3, 8, 9) and frame.dtype == torch.uint8
        assert frame[:, 0, 0].tolist() == [10, 20, 30]
        assert labels.nonzero().flatten().tolist() == sorted(indices(*ids))
        assert label_map.dtype == torch.uint8 and label_map.shape == (8, 9)
        row = [255] * 9
        row[1 : 1 + len(ids)] = indices(*ids)
        assert label_map.tolist() == [row] * 8


@pytest.mark.parametrize("kinds", [("col",), ("mat",), ("col", "mat")])
@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("folder", ["", "Release", "A2D"])
def test_a2d_trees(tmp_path, kinds, lists, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    first, last = list(FRAMES)[:2], list(FRAMES)[2:]
    listed = {"train": first[::-1], "val": last, "test": last} if lists else None
    write_a2d(tmp_path / folder, FRAMES, listed, kinds)
    if kinds == ("col", "mat"):  # col has priority: the mat file is not looked at
        for file in (tmp_path / folder).rglob("*.mat"):
            file.write_bytes(b"damaged")
    train = {name: FRAMES[name] for name in (first[::-1] if lists else first)}
    check_read(data.A2D(tmp_path, "train"), train)
    check_read(data.A2D(tmp_path, "val", keep="cpu"), {name: FRAMES[name] for name in last})
    if lists:
        check_read(data.A2D(tmp_path, "test"), {name: FRAMES[name] for name in last})
    else:
        assert (
            "no official" in problems(data.A2D, tmp_path, "test")[0]
            or "nor an official" in problems(data.A2D, tmp_path, "test")[0]
        )


def test_a2d_without_h5py_names_the_install_line(tmp_path, monkeypatch):
    write_a2d(tmp_path, FRAMES, None, ("mat",))
    monkeypatch.setitem(sys.modules, "h5py", None)
    found = problems(data.A2D, tmp_path, "train")
    assert len(found) == 2 and all("pip install h5py" in line for line in found)


def test_a2d_unknown_ids_are_ignored_and_warned_about_once(tmp_path):
    frames = {"a/1": (0, [11, 20]), "b/1": (0, [97]), "c/1": (0, [12])}
    write_a2d(tmp_path, frames)
    with pytest.warns(UserWarning, match="2 label map.*a/1.png") as caught:
        dataset = data.A2D(tmp_path, "train")
    assert len(caught) == 1
    assert dataset.labels.sum(1).tolist() == [1, 0, 1]


def test_a2d_problems_come_together_with_line_numbers(tmp_path):
    lists = {
        "train": ["abc/00001", "gone/00001", "../x/1", "abc/00001", "no-slash"],
        "val": ["def/00030", "abc/00001", "alone/00009"],
    }
    write_a2d(tmp_path, FRAMES, lists)
    found = problems(data.load, str(tmp_path))
    text = "\n".join(found)
    for line, times in {
        "train.txt:2": 2,
        "train.txt:3": 1,
        "train.txt:4": 1,
        "train.txt:5": 1,
        "val.txt:3": 2,
    }.items():
        assert text.count(line) == times  # a missing frame is a missing picture and a missing map
    assert len(found) == 7
    (tmp_path / "list/val.txt").write_text("def/00030\nabc/00001")
    (tmp_path / "list/train.txt").write_text("abc/00001")
    (found,) = problems(data.load, str(tmp_path))
    assert "val.txt:2" in found and "also in train" in found and "train.txt:1" in found


def test_a2d_wrong_label_map_size(tmp_path):
    write_a2d(tmp_path, FRAMES)
    picture(tmp_path / "pngs320H/abc/00001.png", (10, 8))
    (found,) = problems(data.A2D, tmp_path, "train")
    assert "abc/00001" in found and "(8, 9)" in found and "(8, 10)" in found


def test_a2d_lists_are_all_there_or_none(tmp_path):
    write_a2d(tmp_path, FRAMES, {"train": list(FRAMES)[:2]})
    (found,) = problems(data.load, str(tmp_path))  # the official val is another set of frames
    assert "list/val.txt: cannot be found" in found


def test_a2d_without_any_of_the_classes(tmp_path):
    write_a2d(tmp_path, {"a/1": (0, []), "b/1": (0, [97]), "c/1": (1, [])})
    for split, name in ("train", "a/1"), ("val", "c/1"):
        assert f"{name}.png: neither" in problems(data.A2D, tmp_path, split)[0]


def test_a2d_tidied_by_a_file_manager(tmp_path):
    write_a2d(tmp_path, FRAMES)
    for name in (".DS_Store", "._00001.png", "Thumbs.db"):
        (tmp_path / "Annotations/col/abc" / name).write_bytes(b"x")
    rows = (tmp_path / "videoset.csv").read_text()
    (tmp_path / "videoset.csv").write_text(rows.replace("\n", " \r\n") + "\n")
    check_read(data.A2D(tmp_path, "train"), dict(list(FRAMES.items())[:2]))


@pytest.mark.parametrize(
    "content", [None, b"abc", np.zeros(4, "i4,f8"), np.zeros((9, 8, 2))], ids=repr
)
def test_a2d_mat_that_holds_no_matrix(tmp_path, content):
    write_a2d(tmp_path, {"a/1": (0, [11])}, kinds=("mat",))
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "Annotations/mat/a/1.mat", "w") as file:
        file.create_group("reS_id") if content is None else file.create_dataset(
            "reS_id", data=content
        )
    (found,) = problems(data.A2D, tmp_path, "train")
    assert "a/1.mat: " in found and "\n" not in found


@pytest.mark.parametrize("what", [
    {"shape": (10**6, 10**6), "chunks": (1000, 1000)}, {"shape": (8, 9)},
    {"shape": (9, 8), "chunks": (30_000, 30_000), "maxshape": (None, None)},
    {"shape": (9, 8), "dtype": "S1000"}, {"shape": (9, 8), "dtype": "c16"},
], ids=str)  # fmt: skip
def test_a2d_mat_of_another_size_is_refused_before_it_is_read(tmp_path, what):
    """A file of some kilobytes that would be unpacked to gigabytes."""
    write_a2d(tmp_path, {"a/1": (0, [11])}, kinds=("mat",))
    h5py = pytest.importorskip("h5py")
    file = tmp_path / "Annotations/mat/a/1.mat"
    with h5py.File(file, "w") as out:
        packed = {"compression": "gzip"} if "chunks" in what else {}
        matrix = out.create_dataset("reS_id", **({"dtype": "f8"} | what | packed))
        if matrix.dtype.kind == "f" and "maxshape" not in what:
            matrix[0, 0] = 11
    assert file.stat().st_size < 100_000
    if "maxshape" in what:
        assert "in parts of (30000, 30000)" in problems(data.A2D, tmp_path, "train")[0]
        return
    (found,) = problems(data.A2D, tmp_path, "train")
    assert "a/1.mat: " in found and "\n" not in found
    assert ("label map (" in found) == ("dtype" not in what)


@pytest.mark.parametrize("kind", ["virtual", "external", "link", "soft", "pipe"])
def test_a2d_mat_is_read_from_its_own_file_alone(tmp_path, kind):
    """A matrix that is made of itself ends the process in HDF5, a pipe in its place never does."""
    write_a2d(tmp_path, {"a/1": (0, [11])}, kinds=("mat",))
    h5py = pytest.importorskip("h5py")
    os.mkfifo(tmp_path / "pipe")
    other = tmp_path / "other.mat"
    with h5py.File(other, "w") as out:
        out["reS_id"] = np.full((9, 8), 11.0)
    with h5py.File(tmp_path / "Annotations/mat/a/1.mat", "w") as out:
        if kind == "virtual":
            layout = h5py.VirtualLayout((9, 8), "f8")
            layout[...] = h5py.VirtualSource(".", "reS_id", (9, 8))
            out.create_virtual_dataset("reS_id", layout)
        elif kind in ("external", "pipe"):
            source = other if kind == "external" else tmp_path / "pipe"
            out.create_dataset("reS_id", (9, 8), "f8", external=[(str(source), 0, 576)])
        else:
            link = h5py.ExternalLink(str(other), "/reS_id")
            out["reS_id"] = h5py.SoftLink("/x") if kind == "soft" else link
    (found,) = problems(data.A2D, tmp_path, "train")
    assert "a/1.mat: no reS_id can be read" in found


def test_a2d_mat_ids_are_whole_numbers(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["reS_id"] = [[0, 11, 11.5, np.nan, np.inf], [-1, 255, 267, 79, 1e30]]  # 267 - 256 = 11
    label_map, unknown = data.read_label_map(tmp_path / "a.mat")
    assert label_map.T.tolist() == [[255, 0, 255, 255, 255], [255, 255, 255, 42, 255]]
    assert unknown == 7


def test_a2d_broken_csv_lines(tmp_path):
    write_a2d(tmp_path, FRAMES)
    with open(tmp_path / "videoset.csv", "a") as file:
        file.write("short,1\n../up,11,0,0,8,9,6,1,0\nempty,11,0,0,8,9,6,1,0\nx,11,0,0,8,9,6,1,2\n")
        file.write('"open,11\n' + "x" * 200_000 + "\n")
    found = problems(data.A2D, tmp_path, "train")
    assert [p.split(": ")[0].rsplit(":", 1)[1] for p in found] == list("456789")
    assert max(map(len, found)) < 400


# ------------------------------------------------------------------------------------ CSV, folders


def csv_folder(tmp_path, text, names=("a.png", "b.png", "c.png"), encoding="utf-8"):
    for name in names:
        picture(tmp_path / name)
    (tmp_path / "images.csv").write_bytes(
        text if isinstance(text, bytes) else text.encode(encoding)
    )
    return tmp_path / "images.csv"


def test_csv_by_name(tmp_path):
    path = csv_folder(
        tmp_path, "path,labels,split\na.png,dog|cat,train\nb.png,,train\nc.png,ant,val\n"
    )
    dataset = data.CSVDataset(path)
    assert dataset.class_names == ["ant", "cat", "dog"]
    assert dataset.labels.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert dataset[1][1].shape == (3, 4, 6) and dataset[1][3] is None
    train = data.CSVDataset(path, "train")
    assert train.names == ["a.png", "b.png"] and train.class_names == ["ant", "cat", "dog"]


def test_csv_by_column_with_bom_crlf_quotes_and_subfolder(tmp_path):
    picture(tmp_path / "sub, folder/ä b.png")
    text = '\ufeffpath,dog,cat\r\n"sub, folder/ä b.png",1,0\r\na.png,0,1\r\n'
    dataset = data.CSVDataset(csv_folder(tmp_path, text))
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.labels.tolist() == [[0, 1], [1, 0]]
    assert dataset.names[0] == "sub, folder/ä b.png"


def test_csv_class_order_from_file_and_from_checkpoint(tmp_path):
    path = csv_folder(tmp_path, "path,labels\na.png,dog\n")
    (tmp_path / "classes.txt").write_text("dog\nzebra\ncat\n")
    assert data.CSVDataset(path).class_names == ["dog", "zebra", "cat"]
    assert data.CSVDataset(path, classes=["cat", "dog"]).labels.tolist() == [[0, 1]]
    (found,) = problems(data.CSVDataset, path, classes=["cat"])
    assert "images.csv:2" in found and "'dog'" in found


def test_csv_classes_txt_names_each_class_once(tmp_path):
    path = csv_folder(tmp_path, "path,labels\na.png,dog\nb.png,Dog\n")
    (tmp_path / "classes.txt").write_text("dog\nDog\n")  # alike, but both are meant
    assert data.CSVDataset(path).labels.tolist() == [[1, 0], [0, 1]]
    (tmp_path / "classes.txt").write_text("dog\nDog\n\ndog\n")
    (found,) = problems(data.CSVDataset, path)
    assert "classes.txt:4" in found and "classes.txt:1" in found
    (tmp_path / "classes.txt").write_text("\n")
    assert "names no class" in problems(data.CSVDataset, path)[0]


def test_csv_column_of_zeros_is_a_class(tmp_path):
    dataset = data.CSVDataset(csv_folder(tmp_path, "path,dog,cat\na.png,1,0\nb.png,1,0\n"))
    assert dataset.class_names == ["cat", "dog"] and dataset.labels.tolist() == [[0, 1], [0, 1]]


def test_csv_split_by_hash_does_not_move_when_rows_are_added(tmp_path):
    names = [f"{i}.png" for i in range(60)]
    path = csv_folder(tmp_path, "path,labels\n" + "".join(f"{n},x\n" for n in names), names)
    before = set(data.CSVDataset(path, "val").names)
    extra = [f"extra{i}.png" for i in range(5)]
    text = "path,labels\n" + "".join(f"{n},x\n" for n in extra + names)
    path = csv_folder(tmp_path, text, extra)
    after = set(data.CSVDataset(path, "val").names)
    assert before == after - set(extra) and 0 < len(before) < 60
    assert before.isdisjoint(data.CSVDataset(path, "train").names)


def test_csv_without_a_split_keeps_a_fifth_for_validation(tmp_path):
    """By the first byte of the path's sha256, so that it never depends on the other rows."""
    names = [f"{i}.png" for i in range(400)]
    path = csv_folder(tmp_path, "path,labels\n" + "".join(f"{n},x\n" for n in names), names)
    held_out = data.CSVDataset(path, "val").names
    assert held_out == [n for n in names if hashlib.sha256(n.encode()).digest()[0] % 5 == 0]
    assert 0.15 < len(held_out) / 400 < 0.25  # four standard deviations: 0.08
    assert data.CSVDataset(path, "train").names == [n for n in names if n not in held_out]
    assert len(data.CSVDataset(path)) == 400


BAD_CSVS = [  # text, then for each problem its line and a word of it
    ("", [(1, "header")]),
    ("nom,labels\na.png,x\n", [(1, "header")]),
    ("path,labels,path\na.png,x,a.png\n", [(1, "header")]),
    (
        "path,dog,cat\na.png,1,2\nb.png,yes,0\nc.png,0.5,\n",
        [
            (3, "dog is 'yes' in line 3, '0.5' in line 4"),
            (2, "cat is '2' in line 2, '' in line 4"),
        ],
    ),
    ("path,x,y\na.png,1,0\na.png,0,1\n", [(3, "images.csv:2 ")]),
    ("path,labels\na.png,x\n\nb.png\n", [(4, "1 cells")]),
    ("path,labels\na.png,x,extra\n", [(2, "3 cells")]),
    ("path,labels,split\na.png,x,Trian\n", [(2, "'Trian'")]),
    ("path,labels\ngone.png,x\n", [(2, "No such file")]),
    (
        "path,labels\n../a.png,x\n/etc/hosts,x\n~/a.png,x\nC:/a.png,x\nb\\..\\a.png,x\n,x\n",
        [(i, "must name a file below") for i in range(2, 8)],
    ),
    (b"path,labels\na.png,x\0\n", [(2, r"'\x00'")]),
    (b"path,labels\na.png,x\nb.png,\xff\n", [(3, "UTF-8")]),
    ('path,labels\na.png,"x\n', [(2, "unexpected end")]),
    ("path,labels\na.png," + "x" * 200_000 + "\n", [(2, "field larger")]),
    ("path,dog\na.png,0\n", [(None, "no label")]),
    ('"path,labels\na.png,x\n', [(1, "unexpected end")]),
    ("path:labels\na.png:x\n", [(1, "['path:labels']")]),
    ("path,labels\na.png,\x1b[31mx\n", [(2, r"'\x1b'")]),
    ("path,labels\na.png,x\nb.png,y\u2028z\n", [(3, r"'\u2028'")]),  # a line to str.splitlines
    ('path,labels\n"a\n.png",x\n"b.png",y\ngone.png,x\n', [(2, "2 lines"), (5, "No such file")]),
    ('path,labels\na.png,x\n"b.png,y\nc.png,y\n', [(3, "unexpected end")]),
    ("path,x\na.png,1\n./a.png,1\n.//a.png,1\n", [(3, ".csv:2 "), (4, ".csv:2 ")]),
    ("path,labels\na.png,dog\nb.png,Dog\n", [(2, "'dog' looks like 'Dog'")]),
    ("path,labels\na.png,\xe9\nb.png,e\u0301\n", [(2, "looks like 'e\u0301'")]),
    ("path,labels\na.png,dog\nb.png,do\u200bg\n", [(3, r"'do\u200bg' looks like 'dog'")]),
    ("path,labels\n\xe9.png,x\n", [(2, r"No such file or directory – restore it or drop the line; "
                                          r"the name is '\xe9.png'")]),
]  # fmt: skip


@pytest.mark.parametrize("text, expected", BAD_CSVS, ids=range(len(BAD_CSVS)))
def test_csv_problems_by_line(tmp_path, text, expected):
    found = problems(data.CSVDataset, csv_folder(tmp_path, text))
    assert len(found) == len(expected), found
    for problem, (line, word) in zip(found, expected, strict=True):
        assert word in problem and (line is None or f"images.csv:{line}:" in problem), problem


def test_csv_listed_folder_and_overlap(tmp_path):
    (tmp_path / "folder.png").mkdir()
    path = csv_folder(tmp_path, "path,labels,split\nfolder.png,x,train\n")
    assert "is a folder" in problems(data.CSVDataset, path)[0]
    (tmp_path / "link.png").symlink_to(picture(tmp_path / "real.png"))
    path = csv_folder(tmp_path, "path,labels,split\nlink.png,x,train\na.png,x,val\n")
    assert set(data.load(str(path))) == {"train", "val"}


def test_devices_pipes_and_odd_names_are_refused_unread(tmp_path):
    (tmp_path / "null.png").symlink_to(os.devnull)
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.png", os.O_CREAT))
    device, name = problems(data.ImageFolder, tmp_path)
    assert "null.png: is a folder or a device" in device and "not UTF-8" in name


def test_csv_problems_of_rows_and_of_files_come_together(tmp_path):
    (tmp_path / "text.png").write_text("x")
    rows = ["a.png,x,train", "gone.png,x,train", "text.png,x,val", "../b.png,x,val", "a.png,x,val"]
    text = "\n".join(["path,labels,split", *rows])
    found = problems(data.load, str(csv_folder(tmp_path, text)))
    assert sorted(problem.split(": ")[0].rsplit(":", 1)[1] for problem in found) == list("3456")


def test_csv_empty_split(tmp_path):
    path = csv_folder(tmp_path, "path,labels,split\na.png,x,train\n")
    assert "no row is of split val" in problems(data.load, str(path))[0]


def test_image_folder(tmp_path):
    picture(tmp_path / "images/b/2.PNG")
    picture(tmp_path / "images/1.jpg")
    (tmp_path / "images/notes.txt").write_text("x")
    dataset = data.load(str(tmp_path / "images"))["all"]
    assert dataset.names == ["1.jpg", "b/2.PNG"]
    assert dataset.labels is None and dataset[0][2] is None
    assert data.load(str(tmp_path / "images/1.jpg"))["all"].names == ["1.jpg"]
    assert "No such file" in problems(data.ImageFolder, tmp_path / "images/none")[0]
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "images/notes.txt"):
        assert f"{path}: no picture" in problems(data.ImageFolder, path)[0]


def test_a_folder_that_cannot_be_listed_is_not_skipped(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    picture(tmp_path / "locked/b.png")
    monkeypatch.chdir(tmp_path)  # "." stays open to another user, whatever lies above it
    tmp_path.chmod(0o755)
    (tmp_path / "locked").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        (found,) = problems(data.ImageFolder, ".")
    finally:
        os.seteuid(user)
        (tmp_path / "locked").chmod(0o755)
    assert "locked: Permission denied" in found


def test_load_refuses_what_it_does_not_know(tmp_path):
    assert "does not exist" in problems(data.load, str(tmp_path / "gone"))[0]
    for spec in ("", "x" * 5000):
        assert "does not exist" in problems(data.load, spec)[0]
    for spec in ("demo:10", "demo:", "demo:0/5", "demo:-1/2", "demo:٣/٢", "demo:1/" + "9" * 5000):
        assert "demo:TRAIN/VAL" in problems(demo.resolve, spec)[0]
    write_a2d(tmp_path, FRAMES)
    assert "differ" in problems(data.load, str(tmp_path), classes=["x"])[0]


def test_damaged_scenes_are_named_and_drawn_anew(tmp_path):
    root = demo.cached(2, 1, progress=None)
    file = next(root.glob("pngs320H/*/*.png"))
    file.write_bytes(file.read_bytes()[:2000])
    broken, hint = problems(evaluate.open_sets, "demo:2/1")
    assert str(file) in broken and f"{root}: holds drawn scenes – remove it" in hint
    shutil.rmtree(root)
    assert len(evaluate.open_sets("demo:2/1")["train"]) == 2


@pytest.mark.parametrize("args, code, word", [
    (["gone"], 3, "data.py: --data gone: does not exist"), (["a", "b"], 2, "usage"),
    ([], 2, "usage"), (["images.csv"], 0, "train 1 frames"),
])  # fmt: skip
def test_command_line(tmp_path, monkeypatch, capsys, args, code, word):
    csv_folder(tmp_path, "path,labels,split\na.png,x,train\nb.png,x,val\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["data.py", *args])
    try:
        runpy.run_path(data.__file__, run_name="__main__")
        ended = 0
    except SystemExit as error:
        ended = error.code
    out = capsys.readouterr()
    assert ended == code and word in out.out + out.err and "Traceback" not in out.err


def test_many_problems_are_counted_not_all_printed(tmp_path):
    rows = "".join(f"../{i}.png,x\n" for i in range(80))
    with pytest.raises(data.DataError) as caught:
        data.CSVDataset(csv_folder(tmp_path, "path,labels\n" + rows))
    text = str(caught.value)
    assert text.startswith("80 problems") and "and 30 more" in text


# ------------------------------------------------------------------------------------ the index


def test_index_is_renewed_when_a_file_changes(tmp_path):
    write_a2d(tmp_path, FRAMES)
    before = data.A2D(tmp_path, "train").labels
    assert torch.equal(data.A2D(tmp_path, "train").labels, before)
    write_a2d(tmp_path, FRAMES | {"abc/00001": (0, [11, 12])})
    after = data.A2D(tmp_path, "train").labels
    assert after[1].nonzero().flatten().tolist() == indices(11, 12)


def test_index_is_renewed_when_only_a_time_changes(tmp_path):
    """A file of the same size and of another time is read again."""
    write_a2d(tmp_path, FRAMES)
    data.A2D(tmp_path, "train")
    victim = sorted(tmp_path.rglob("pngs320H/*/*.png"))[0]
    times = victim.stat()
    victim.write_bytes(b"\0" * times.st_size)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns + 1_000_000))
    with pytest.raises(data.DataError, match="cannot be read"):
        data.A2D(tmp_path, "train")


def test_index_that_cannot_be_written_costs_nothing_but_time(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    write_a2d(tmp_path / "tree", FRAMES)
    check_read(data.A2D(tmp_path / "tree", "train"), dict(list(FRAMES.items())[:2]))
    assert "set XDG_CACHE_HOME" in capsys.readouterr().out


def test_a_user_without_a_home_has_no_index(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says its specification
    monkeypatch.setattr(Path, "home", lambda: Path("~unknown-user").expanduser())
    monkeypatch.chdir(tmp_path)
    write_a2d(tmp_path / "tree", FRAMES)
    assert len(data.A2D("tree", "train")) == 2
    assert "set XDG_CACHE_HOME" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["tree"]


def test_second_start_reads_no_image(tmp_path):
    write_a2d(tmp_path, FRAMES)
    before = data.A2D(tmp_path, "train").labels
    for file in tmp_path.rglob("0*.png"):  # of the same size and time, and no image any more
        times = file.stat()
        file.write_bytes(b"\0" * times.st_size)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert torch.equal(data.A2D(tmp_path, "train").labels, before)


LONG_NAME = f"{'/'.join(['d' * 200] * 10)}/a.png"


@pytest.mark.parametrize("name", ["a\tb.png", "a\nb.png", "a\x1b[2J.png", "a: b.png", LONG_NAME])
def test_a_damaged_file_of_any_name_is_a_problem(tmp_path, name):
    """Names are escaped, and cut if they are long, where they stand in a line."""
    folder = tmp_path / "own"
    picture(folder / "fine.png")
    damaged = picture(folder / name)
    damaged.write_bytes(damaged.read_bytes()[:40])
    (problem,) = problems(data.ImageFolder, folder)
    assert "cannot be read" in problem and problem.isprintable() and len(problem) < 2100
    assert problem.count(str(folder)) == (name != LONG_NAME)


def test_damaged_index_is_made_again(tmp_path):
    write_a2d(tmp_path, FRAMES)
    data.A2D(tmp_path, "train")
    (file,) = data.cache_folder().glob("*.json")
    whole = file.read_text()
    for damaged in (whole[:10], whole.replace("[0", "[1"), "[]", "", whole.replace("\n", "\n\xe9")):
        file.write_text(damaged)
        check_read(data.A2D(tmp_path, "train"), dict(list(FRAMES.items())[:2]))
        assert damaged != whole == file.read_text()


# ------------------------------------------------------------------------------------ large frames


def test_a_large_frame_and_its_label_map_are_reduced_alike(tmp_path):
    """1280 pixels become 640: of each 2 x 2 labels one, and no label of the frame is lost."""
    write_a2d(tmp_path, {"v/1": (0, [11, 79])}, size=(1400, 1280))
    file = tmp_path / "Annotations/col/v/1.png"
    ids = np.zeros((1280, 1400, 3), np.uint8)
    ids[100:301, 200:401] = data.PALETTE[11][1]
    ids[0, 0] = data.PALETTE[79][1]  # of a single pixel, which the smaller map does not show
    Image.fromarray(ids).save(file)
    plain = data.A2D(tmp_path, "train")
    assert plain[0][1].shape == (3, 1280, 1400) and plain[0][3].shape == (1280, 1400)
    for keep in (None, "cpu"):
        dataset = data.A2D(tmp_path, "train", keep, size=224)
        _, frame, labels, label_map = dataset[0]
        assert frame.shape == (3, 640, 700) and label_map.shape == (640, 700)
        assert torch.equal(label_map, plain[0][3][1::2, 1::2])
        assert labels.nonzero().flatten().tolist() == indices(11, 79)
    assert data.A2D(tmp_path, "train", size=448)[0][1].shape == (3, 1280, 1400)
    assert data.A2D(tmp_path, "train", size=32)[0][1].shape == (3, 640, 700)  # not below 640


def test_memory_of_batches_is_told_where_it_passes_1_gb(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # stands upright: 640 x 1280
    picture(tmp_path / "a.jpg", (1600, 800), exif=exif)
    picture(tmp_path / "b.jpg", (1920, 640))
    dataset = data.ImageFolder(tmp_path, size=224)
    assert data.describe_batches(dataset, 1000, 2) == ""  # no batch is larger than all there are
    dataset.paths *= 70
    # 1920 x 1280 is what both fit into: 7.4 MB a frame, five batches with two workers
    assert data.describe_batches(dataset, 27, 2) == ""
    assert data.describe_batches(dataset, 28, 2) == (
        "decoded frames take 1.0 GB of memory: 5 batches of 28 frames up to 1920 x 1280 – fewer "
        "--workers or a smaller --batch-size take less"
    )
    assert data.describe_batches(dataset, 135, 0) == ""
    assert data.describe_batches(dataset, 136, 0).startswith("decoded frames take 1.0 GB")
    (batch,) = data.batches(data.ImageFolder(tmp_path, size=224), [0, 1], 2)
    assert batch.frames.shape == (2, 3, 1280, 1920)


# ------------------------------------------------------------------------------------ batches


def test_order_is_a_permutation_and_a_function_of_seed_and_epoch():
    orders = {(s, e): data.order(50, s, e) for s in range(4) for e in range(4)}
    assert all(sorted(o) == list(range(50)) for o in orders.values())
    assert len({tuple(o) for o in orders.values()}) == 16
    assert orders[3, 2][:10] == [24, 34, 6, 37, 9, 46, 43, 20, 45, 15]  # in any process


def test_order_is_uniform():
    """Where sample 0 lands in 4000 epochs: chi-square of 10 places, 27.9 is its 0.1 % quantile."""
    places = np.bincount([data.order(10, 1, e).index(0) for e in range(4000)], minlength=10)
    assert ((places - 400) ** 2 / 400).sum() < 27.9


def test_collate_pads_and_keeps_true_sizes(tmp_path):
    sizes = [(6, 4), (5, 9), (1, 1)]
    for i, size in enumerate(sizes):
        picture(tmp_path / f"{i}.png", size, (i + 1, 5, 6))
    dataset = data.ImageFolder(tmp_path)
    (batch,) = data.batches(dataset, [2, 0, 1], 3)
    assert batch.index.tolist() == [2, 0, 1] and batch.labels is None and batch.label_maps is None
    assert batch.sizes.tolist() == [[1, 1], [4, 6], [9, 5]]
    assert batch.frames.shape == (3, 3, 9, 6)
    for row, (i, (h, w)) in enumerate(zip([2, 0, 1], batch.sizes.tolist(), strict=True)):
        inside = torch.zeros(9, 6, dtype=torch.bool)
        inside[:h, :w] = True
        assert (batch.frames[row, 0] == (i + 1) * inside).all()


def test_collate_pads_label_maps_with_none(tmp_path):
    write_a2d(tmp_path / "a", {"v/1": (0, [11, 12])}, size=(9, 8))
    write_a2d(tmp_path / "b", {"v/2": (0, [11])}, size=(4, 10))
    frames = [data.A2D(tmp_path / name, "train")[0] for name in "ab"]
    batch = data.collate(frames)
    assert batch.label_maps.shape == (2, 10, 9)
    for padded, (_, _, _, label_map) in zip(batch.label_maps, frames, strict=True):
        h, w = label_map.shape
        assert torch.equal(padded[:h, :w], label_map)
        assert (padded[h:] == 255).all() and (padded[:, w:] == 255).all()


@pytest.mark.parametrize("size, ranks", [(1, 1), (1, 4), (2, 3), (7, 1), (50, 2)])
def test_frames_do_not_depend_on_batch_size_and_ranks(tmp_path, size, ranks):
    for i in range(7):
        picture(tmp_path / f"{i}.png", (i + 1, 9 - i), (i, 50, 90))
    dataset, order, seen = data.ImageFolder(tmp_path), data.order(7, 0, 0), {}
    for rank in range(ranks):
        for batch in data.batches(dataset, order, size, rank=rank, ranks=ranks):
            index, sizes = batch.index.tolist(), batch.sizes.tolist()
            for i, frame, (h, w) in zip(index, batch.frames, sizes, strict=True):
                assert torch.equal(frame[:, :h, :w], dataset[i][1]) and not frame[:, h:].any()
                seen[i] = seen.get(i, 0) + 1
    last = 6 % (size * ranks) + 1  # frames of the last step; a rank without one repeats the first
    assert sorted(seen) == list(range(7)) and sum(seen.values()) == 7 + max(0, ranks - last)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(tmp_path, workers):
    write_a2d(tmp_path, {f"v{i}/1": (0, [11 + i % 2]) for i in range(7)})
    dataset = data.A2D(tmp_path, "train")
    order = data.order(7, 0, 0)
    alone = list(data.batches(dataset, order, 3))
    assert [len(batch.index) for batch in alone] == [3, 3, 1]
    for a, b in zip(alone, data.batches(dataset, order, 3, workers), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert torch.cat([batch.index for batch in alone]).tolist() == order


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_copies_are_awaited_and_their_memory_is_kept():
    """Neither a late copy is read too early, nor a late reader's memory given to a later copy."""
    frames = torch.randint(256, (64, 3, 320, 570), dtype=torch.uint8).pin_memory()
    batch = data.Batch(torch.arange(64), frames, torch.full((64, 2), 320), torch.ones(64, 43), None)
    copies, wanted = torch.cuda.Stream(), frames.long().sum()
    for late in (copies, torch.cuda.current_stream()):
        with torch.cuda.stream(late):
            torch.cuda._sleep(200_000_000)  # cycles: about 0.1 s
        with torch.cuda.stream(copies):
            moved = data.to_device(batch, "cuda")
        data.take_over([moved.frames, moved.labels], copies)
        assert moved.labels.is_cuda and moved.sizes is batch.sizes and moved.label_maps is None
        total = moved.frames.sum()
        del moved
        with torch.cuda.stream(copies):
            torch.zeros(64, 3, 320, 570, dtype=torch.uint8, device="cuda")
        assert total.cpu() == wanted
