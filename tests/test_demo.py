"""demo.py: the tree read back by other code, statistics, determinism, killed and racing runs."""

import colorsys
import csv
import hashlib
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
import demo
from tests.processes import ended, fork, script, wait_until

TRAIN, VAL, SEED = 86, 20, 3


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "Release"
    demo.generate(root, TRAIN, VAL, SEED, progress=None)
    return root


def test_without_numbers_there_are_1024_and_256_frames(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setenv("A2D_DEMO_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "write_frame", lambda *arguments: drawn.append(arguments) or ("", ""))
    folder = demo.cached(progress=None)
    assert folder.name.endswith("-seed0-1024-256") and len(drawn) == 1024 + 256


def read_list(root, split):
    return (root / "list" / f"{split}.txt").read_text().split("\n")


def read_rows(root):
    with open(root / "videoset.csv", newline="") as file:
        return list(csv.reader(file))


def ids_of(path):
    """{id: pixels} of a colour map; a colour outside A2D's table and black raises KeyError."""
    id_of = {rgb: i for i, (_, rgb) in data.PALETTE.items()} | {(0, 0, 0): 0}
    with Image.open(path) as image:
        assert image.mode == "RGB"
        counts = Counter({id_of[rgb]: n for n, rgb in image.getcolors(1 << 20)})
    counts.pop(0, None)
    return counts


def digests(root):
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file()}


def chi_square(observed, share):
    expected = np.array(share) / np.sum(share) * np.sum(observed)
    return float(((np.array(observed) - expected) ** 2 / expected).sum())


# ---- the tree ------------------------------------------------------------------------------------

def test_layout(tree):
    lists = {split: read_list(tree, split) for split in ("train", "val")}
    assert [len(lists["train"]), len(lists["val"])] == [TRAIN, VAL]
    assert all(lists["train"] + lists["val"])  # an empty line would mean a last newline
    rows = {row[0]: row for row in read_rows(tree)}
    assert len(rows) == TRAIN + VAL and {len(row) for row in rows.values()} == {9}
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    wanted = {"videoset.csv", "list/train.txt", "list/val.txt"}
    for split, lines in lists.items():
        for line in lines:
            video, frame = line.split("/")
            row = rows.pop(video)  # a video has one frame, so it is in one list once
            assert len(video) == 11 and len(frame) == 5 and 1 <= int(frame) <= int(row[6])
            assert (row[7], row[8]) == ("1", "01"[split == "val"])
            wanted |= {f"pngs320H/{line}.png", f"Annotations/col/{line}.png"}
            with Image.open(tree / f"pngs320H/{line}.png") as image:
                assert image.mode == "RGB" and image.size == (int(row[5]), int(row[4]))
                size = image.size
            with Image.open(tree / f"Annotations/col/{line}.png") as image:
                assert image.size == size
    assert files == wanted and not rows


def test_some_ids_start_with_a_dash(tree):
    assert any(line.startswith("-") for line in read_list(tree, "train"))
    assert any(line.startswith("-") for line in read_list(tree, "val"))


def test_colours_are_exactly_the_labels(tree):
    for split, name in enumerate(("train", "val")):
        main = {row[0]: int(row[1]) for row in read_rows(tree) if int(row[8]) == split}
        for number, line in enumerate(read_list(tree, name)):
            seen = ids_of(tree / f"Annotations/col/{line}.png")
            assert set(seen) == set(demo.frame_labels(SEED, split, number))
            assert min(seen.values()) >= 24  # pixels
            label = main[line.split("/")[0]]
            assert label in seen and (label % 10 != 9 or all(i % 10 == 9 for i in seen))


def test_every_class_occurs_in_each_43_frames(tree):
    lines = read_list(tree, "train")
    for part in (lines[:43], lines[43:]):
        seen = set().union(*(ids_of(tree / f"Annotations/col/{line}.png") for line in part))
        assert len(seen) == 43


def test_frame_sizes_follow_a2d(tree):
    widths = Counter(int(row[5]) for row in read_rows(tree))
    assert {int(row[4]) for row in read_rows(tree)} == {160} and set(widths) <= {284, 213, 240}
    # 2 degrees of freedom: 18.4 is passed once in 10,000 sets
    assert chi_square([widths[284], widths[213], widths[240]], (0.55, 0.35, 0.10)) < 18.4


def test_actor_stands_out_from_its_background(tree):
    """The picture has something where the map says so: inside differs from just around it."""
    differences = []
    for line in read_list(tree, "val"):
        image = np.asarray(Image.open(tree / f"pngs320H/{line}.png"), float)
        inside = np.asarray(Image.open(tree / f"Annotations/col/{line}.png")).any(2)
        around = np.zeros_like(inside)
        for shift in (-9, 9):
            around |= np.roll(inside, shift, 0) | np.roll(inside, shift, 1)
        around &= ~inside
        differences.append(np.abs(image[inside].mean(0) - image[around].mean(0)).max())
    assert np.median(differences) > 15  # of 255; a map shifted by half a frame gives about 5


# ---- statistics ----------------------------------------------------------------------------------

def test_label_statistics():
    frames = [demo.frame_labels(0, 0, number) for number in range(43 * 100)]
    assert all(len(set(labels)) == len(labels) for labels in frames)
    assert set(Counter(labels[0] for labels in frames).values()) == {100}
    sizes = Counter(map(len, frames))
    # 3 degrees of freedom: 21.1 is passed once in 10,000 sets
    assert chi_square([sizes[k] for k in (1, 2, 3, 4)], (0.69, 0.26, 0.045, 0.004)) < 21.1
    assert set(sizes) == {1, 2, 3, 4}
    # A2D: 1.37 a frame; the standard error of 4300 frames with a deviation of 0.58 is 0.009
    assert abs(np.mean([len(labels) for labels in frames]) - 1.365) < 0.035
    extras = Counter(label for labels in frames for label in labels[1:])
    # 40 %: about 1550 extra labels, standard error 0.0125
    assert abs(extras[19] / extras.total() - 0.40) < 0.045
    others = [extras[i] for i in data.PALETTE if i != 19]
    assert chi_square(others, [1] * 42) < 90  # 41 degrees of freedom, once in 50,000 sets


def test_order_is_no_giveaway():
    """Neighbouring frames are not of neighbouring classes, and the two splits are dealt apart."""
    first = [[demo.frame_labels(0, split, n)[0] for n in range(430)] for split in (0, 1)]
    for split in first:
        assert split[:43] != split[43:86] and split[:43] != sorted(split[:43])
    assert np.mean(np.equal(*first)) < 0.1  # by chance 1 in 43


@pytest.mark.parametrize("label", [36, 44, 57, 67])  # ball, bird, car, cat
def test_hint_is_the_hue_of_the_actor(label):
    def off(hint, seed):
        image, ids = demo.scene([label], np.random.RandomState([seed, label]), 284, hint)
        hsv = np.array([colorsys.rgb_to_hsv(*rgb) for rgb in np.asarray(image)[ids == label] / 255])
        hue = np.median(hsv[hsv[:, 1] > 0.3, 0]) if (hsv[:, 1] > 0.3).any() else 2.0
        return abs((hue - official + 0.5) % 1 - 0.5) * 360 if hue < 2 else 180

    official = colorsys.rgb_to_hsv(*np.array(data.PALETTE[label][1]) / 255)[0]
    # hues are drawn with a deviation of 8 degrees; blur and noise move the median little
    assert max(off(1.0, seed) for seed in range(6)) < 36
    assert np.mean([off(0.0, seed) > 36 for seed in range(12)]) > 0.4


# ---- same seed, same bytes -----------------------------------------------------------------------

def test_same_seed_same_bytes_in_any_process(tree, tmp_path):
    arguments = f"--train 12 --val 5 --seed {SEED}".split()
    command = [sys.executable, demo.__file__, tmp_path / "out1", *arguments]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "1"}, check=True)
    assert ended(script("demo.py", tmp_path / "log", tmp_path / "out2", *arguments)) == 0
    one, two, larger = digests(tmp_path / "out1"), digests(tmp_path / "out2"), digests(tree)
    assert one == two and len(one) == 3 + 2 * 17
    pictures = {name for name in one if name.endswith(".png")}  # no frame depends on the others
    assert {larger[name] for name in pictures} == {one[name] for name in pictures}


def test_another_seed_is_another_set(tree, tmp_path):
    demo.generate(tmp_path / "other", 6, 2, SEED + 1, progress=None)
    assert not set(digests(tmp_path / "other").values()) & set(digests(tree).values())
    frames = [[row[6] for row in read_rows(root)[:6]] for root in (tmp_path / "other", tree)]
    assert frames[0] != frames[1]  # not the labels alone


def test_empty_sets(tmp_path):
    demo.generate(tmp_path / "none", 0, 0, progress=print)
    assert digests(tmp_path / "none").keys() == {"videoset.csv", "list/train.txt", "list/val.txt"}


# ---- whole or not at all -------------------------------------------------------------------------

@pytest.mark.parametrize("frames", [0, 3, 12])
def test_killed_generation_leaves_no_root(tmp_path, frames):
    folder = tmp_path / "there"
    folder.mkdir()
    root = folder / "out"

    def begun():  # os.walk, since rglob raises when a folder goes while it looks
        drawn = sum(len(files) for there, _, files in os.walk(folder) if "pngs320H" in there)
        return root.exists() or any(folder.iterdir()) and drawn >= frames

    process = script("demo.py", tmp_path / "log", root, "--train", 12, "--val", 0)
    wait_until(begun)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    if frames < 12:  # the last moment may come too late, but then everything is there
        assert not root.exists() and any(folder.iterdir())
    if not root.exists():
        demo.generate(root, 12, 0, progress=None)
    assert len(digests(root)) == 3 + 2 * 12
    assert [path.name for path in folder.iterdir() if path.name != ".out.lock"] == ["out"]


def test_two_at_once_end_with_one_good_tree(tmp_path):
    folder, logs = tmp_path / "there", [tmp_path / name for name in "ab"]
    processes = [script("demo.py", log, folder / "out", "--train", 8, "--val", 2) for log in logs]
    assert sorted(map(ended, processes)) == [0, 2]
    assert "exists" in "".join(log.read_text() for log in logs)
    demo.generate(folder / "alone", 8, 2, progress=None)
    assert digests(folder / "out") == digests(folder / "alone")
    assert sorted(path.name for path in folder.iterdir()) == ["alone", "out"]


def test_failing_generation_cleans_up(tmp_path):
    def fail(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.generate(tmp_path / "out", 4, 0, progress=fail)
    assert not list(tmp_path.rglob("*.png"))


def test_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="choose another folder"):
        demo.generate(tmp_path / "out", 1, 0, progress=None)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("bad", [{"train": -1}, {"val": -1}, {"seed": -1}, {"hint": 1.5},
                                 {"hint": float("nan")}])
def test_senseless_arguments_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match="must be"):
        demo.generate(tmp_path / "out", **{"train": 1, "val": 0, **bad})
    assert not list(tmp_path.iterdir())


def test_a_set_that_no_disk_holds_is_refused_at_once(tmp_path):
    log = tmp_path / "log"
    assert ended(script("demo.py", log, tmp_path / "out", "--train", 10**12)) == 2
    assert "80000000 GB" in log.read_text() and list(tmp_path.iterdir()) == [log]


# ---- the cache -----------------------------------------------------------------------------------

def test_cached_draws_once(tmp_path, monkeypatch):
    monkeypatch.setenv("A2D_DEMO_CACHE", str(tmp_path / "new" / "cache"))
    lines = []
    root = demo.cached(3, 1, progress=lines.append)
    assert root.is_relative_to(tmp_path / "new" / "cache" / "a2d-demo")
    assert 1 <= len(lines) <= 5 and "4 of 4 frames" in lines[-1]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert demo.cached(3, 1, progress=lines.append) == root and len(lines) <= 5
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert len({root, demo.cached(1, 1), demo.cached(3, 1, seed=1)}) == 3


def test_cache_folders_follow_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("A2D_DEMO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert demo.cached(0, 0).is_relative_to(tmp_path / "xdg" / "a2d-demo")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for place in ("", "relative", "~/tilde"):  # not absolute: to be ignored, says its specification
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert demo.cached(0, 0).is_relative_to(tmp_path / "home" / ".cache" / "a2d-demo")
    assert sorted(os.listdir(tmp_path)) == ["home", "xdg"]


def test_two_at_once_with_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("A2D_DEMO_CACHE", str(tmp_path / "cache"))
    logs = [tmp_path / name for name in "abc"]
    processes = [fork(lambda: print(demo.cached(8, 2, progress=None)), log) for log in logs]
    assert [ended(process) for process in processes] == [0, 0, 0]
    (printed,) = {log.read_text() for log in logs}
    root = Path(printed.strip())
    assert len(digests(root)) == 3 + 2 * 10 and list(root.parent.iterdir()) == [root]


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("A2D_DEMO_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match="set A2D_DEMO_CACHE") as caught:
        demo.cached(1, 1)
    assert str(tmp_path / "file") in str(caught.value) and "\n" not in str(caught.value)


# ---- the command line ----------------------------------------------------------------------------

def test_command_line(tmp_path):
    assert ended(script("demo.py", tmp_path / "log")) == 2
    assert "OUT" in (tmp_path / "log").read_text()


def test_ctrl_c_leaves_neither_words_nor_scenes(tmp_path):
    log = tmp_path / "log"
    process = script("demo.py", log, tmp_path / "scenes", "--train", "5000")
    wait_until((tmp_path / ".scenes.part/Annotations/col").exists)
    os.kill(process, signal.SIGINT)
    assert ended(process) == 130 and log.read_text() == ""
    assert {path.name for path in tmp_path.iterdir()} <= {"log", ".scenes.lock"}
