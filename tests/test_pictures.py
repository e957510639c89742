"""pictures.py: charts, read back as SVG, and pages."""

import re
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

import evaluate
import metrics
import pictures


def svg(draw, what, path):
    """(texts, lines): lines are (colour of stroke or fill, x, y), in points from the top left."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(what, path)
    text, lines = path.read_text(encoding="utf-8"), []
    for d, style in re.findall(r'<path d="([^"]*)"[^>]*? style="([^"]*)"', text):
        points = np.array(re.findall(r"[ML] (\S+) (\S+)", d), dtype=float)
        colours = re.findall("(?:fill|stroke): (#[0-9a-f]{6})", style)
        if len(points) and colours:
            lines.append((colours[0], points[:, 0], points[:, 1]))
    return [t.replace("&gt;", ">") for t in re.findall("<!-- (.*?) -->", text)], lines


def proportional(a, b):
    """Are the steps of a those of b, times a constant?"""
    return np.corrcoef(a, b)[0, 1] > 1 - 1e-6  # the file has six decimals


LOG = [{"epoch": e, "constant_loss": 0.55, "constant_f1": 0.12,
        "loss": 0.7 / e, "val_loss": 0.1 + 0.5 / e**2, "lr": 0.1**e,
        "f1": 0.1 * e, "val_precision": 0.3 + 0.01 * e**2, "val_recall": 0.2 + 0.001 * e**3,
        "val_f1": 0.4 - 0.01 * (e - 3.2) ** 2, "threshold": 0.5} for e in range(1, 6)]


@pytest.mark.usefixtures("charts")
def test_curves_are_the_logs(tmp_path):
    texts, lines = svg(pictures.draw_curves, LOG, tmp_path / "curves.svg")
    assert "Best F1 on validation: 40.0 %, after epoch 3 of 5" in texts
    for key, colour in (("loss", pictures.BLUE), ("val_loss", pictures.RED), ("f1", pictures.BLUE),
                        ("val_f1", pictures.RED), ("val_precision", pictures.GREEN),
                        ("val_recall", pictures.ORANGE), ("lr", "#444444")):
        values = [-np.log(row[key]) if key == "lr" else -row[key] for row in LOG]  # y is downward
        found = [(x, y) for c, x, y in lines if c == colour.lower() and len(x) == 5
                 and proportional(x, range(5)) and proportional(y, values)]
        assert len(found) == 1, key
    level = [(x, y) for c, x, y in lines if c == pictures.GREY and len(x) == 5 and not np.ptp(y)]
    assert len(level) == 2  # the constant answer's loss and F1
    for label in ("constant answer", "F1 of the constant answer", "training", "validation",
                  "training F1", "validation F1", "validation precision", "validation recall",
                  "Learning rate", "epoch"):
        assert label in texts


@pytest.mark.parametrize("rows", [
    LOG[:1], [{"epoch": 7, "loss": 0.5}], [{"epoch": 1, "lr": 0.0, "val_f1": float("nan")}],
    [{**LOG[0], "val_loss": None}, {**LOG[1], "val_f1": None, "val_loss": float("nan")}],
])
@pytest.mark.usefixtures("charts")
def test_curves_of_one_epoch_and_of_values_that_are_missing(rows, tmp_path):
    texts, _ = svg(pictures.draw_curves, rows, tmp_path / "curves.svg")
    epochs = [str(row["epoch"]) for row in rows]
    ticks = texts[:texts.index("epoch")]  # of the first panel
    assert ticks[:len(epochs)] == epochs and "." not in "".join(ticks[:len(epochs)])
    assert ("validation" in texts) == any(row.get("val_loss") == row.get("val_loss") is not None
                                          for row in rows)
    assert ("training F1" in texts) == ("f1" in rows[0])
    best = [text for text in texts if text.startswith("Best F1")]
    assert len(best) == (rows[0].get("val_f1", 2) <= 1) and "nan" not in "".join(best)


def many_classes(n):
    """A report of n classes: F1 of each its own, every fifth without positives, three failing.

    Their names are no TeX.
    """
    rows = [{"name": rf"class {c} $\x$", "support": 0 if c % 5 == 4 else 3 + c, "predicted": 4 * c,
             "precision": 0.9 - c / n / 2, "recall": 0.8 - c / n / 2, "f1": 0.85 - c / n / 2,
             "ap": None} for c in range(n)]
    for c in {0, 1, 2} if n > 3 else ():
        rows[c].update(precision=0.0, recall=0.0, f1=0.0)
    for row in rows[4::5]:
        row.update(precision=0.0, recall=0.0, f1=0.0)
    return {"images": 70, "threshold": 0.25, "threshold_from": "val", "samples": {"f1": 0.456},
            "macro": {"f1": 0.321}, "classes": rows,
            "constant": {"answer": "class 3", "f1": 0.123}}


@pytest.mark.parametrize("n", [1, 2, 43, 300])
@pytest.mark.usefixtures("charts")
def test_classes_are_bars_of_f1_beside_bars_of_support(n, tmp_path):
    report = many_classes(n)
    texts, lines = svg(pictures.draw_classes, report, tmp_path / "classes.svg")
    shown = sorted(report["classes"], key=lambda row: -row["support"])[:120]
    shown.sort(key=lambda row: (not row["support"], -row["f1"]))
    names = [row["name"] for row in shown]
    assert [text for text in texts if text.startswith("class ")] == names
    most = "the 120 most frequent of " * (n > 120)
    assert f"Classes: {most}{n}; frames: 70; scores >= 0.25 (val)" in "".join(texts)
    assert "F1 45.6 %, mean over frames; 32.1 %, mean over classes" in "".join(texts)
    assert "always answering class 3: F1, mean over frames" in texts
    absent = sum(not row["support"] for row in shown)
    assert texts.count("no frame has this label") == absent
    failing = [row for row in shown if row["support"] and not row["f1"]]
    assert [text for text in texts if text.startswith("0: ")] == [
        f"0: all {row['predicted']} predictions wrong" if row["predicted"] else "0: never predicted"
        for row in failing]

    good = [row for row in shown if row["f1"]]
    bars = {colour: [(np.ptp(x), y.mean()) for c, x, y in lines if c == colour]
            for colour in ("#a6cbe3", "#bbbbbb")}
    f1, support = bars["#a6cbe3"][:len(good)], bars["#bbbbbb"]  # then the legend's
    assert len(support) == len(shown)
    for drawn, rows, key in ((f1, good, "f1"), (support, shown, "support")):
        widths = np.array([width for width, _ in drawn])
        expected = np.array([row[key] for row in rows])
        np.testing.assert_allclose(widths / widths.max(), expected / expected.max(), atol=1e-5)
    np.testing.assert_allclose([y for _, y in f1], [y for _, y in support[:len(f1)]], atol=1e-5)
    assert (np.diff([y for _, y in support]) > 1.2 * 8).all()  # points: lines of 8-point text


@pytest.mark.usefixtures("charts")
def test_pictures_are_png_by_suffix_and_leave_matplotlibs_settings(tmp_path):
    import matplotlib

    pictures.draw_curves(LOG, tmp_path / "a.png")
    pictures.draw_classes(many_classes(7), str(tmp_path / "b.png"))
    read = {**matplotlib.rc_params(), "backend": matplotlib.rcParams["backend"]}
    assert dict(matplotlib.rcParams) == read
    for name in "ab":
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.format == "PNG" and image.width > 1000


def test_without_matplotlib_the_caller_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # its import now fails
    for draw, what in ((pictures.draw_curves, LOG), (pictures.draw_classes, many_classes(3))):
        with pytest.raises(ImportError, match="matplotlib"):
            draw(what, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["$a_$", "$\\frac$", "a$", "$"])
@pytest.mark.usefixtures("charts")
def test_a_dollar_is_a_letter(tmp_path, name):
    """matplotlib takes what is between two of them for a formula."""
    rng = torch.Generator().manual_seed(0)
    labels = (torch.rand(9, 2, generator=rng) < 0.5).float()
    labels[:, 0] = 1
    scores = torch.rand(9, 2, generator=rng)
    frequency = labels.mean(0)
    report = metrics.report(scores, labels, 0.5, [name, "b"], f"{name}.json", frequency)
    pictures.draw_classes(report, tmp_path / "classes.png")


def ink(path):
    """(H, W) bool: where a page is not white; of colours nothing is left."""
    return np.asarray(Image.open(path).convert("L")) < 230


def grey(height, width):
    return np.full((height, width, 3), 128, np.uint8)


def test_signs_tell_without_colour(tmp_path):
    """The same words behind each sign: a box of 8 pixels differs, what is beside it does not."""
    kinds = ["right", "wrong", "missed", ""]
    tile = grey(10, 10), [("ball-none 7%", kind) for kind in kinds]
    pictures.write_page(tmp_path / "a.png", [("", [tile])])
    dark = 255.0 - np.asarray(Image.open(tmp_path / "a.png").convert("L"))[164 : 164 + 4 * 18]
    lines = dark.reshape(4, 18, -1)
    lines /= lines.max((1, 2), keepdims=True)  # of the colours nothing is left
    signs = lines[:3, :, 3:16] > 0.5
    assert len({sign.tobytes() for sign in signs}) == 3
    assert all(np.ptp(np.nonzero(sign)[1]) >= 7 for sign in signs)  # 8 pixels wide
    text = lines[3, :, 4:-14]  # of no sign, for which there is no room
    assert text.any() and not lines[:, :, :3].any()
    assert all(np.allclose(line[:, 18:], text, atol=0.05) for line in lines[:3])
    # A tick ends high on the right, a cross is its own mirror image, a dash lies in one height.
    tick, cross, dash = (sign[:, sign.any(0)] for sign in signs)
    rows = [np.nonzero(tick[:, column])[0].mean() for column in (0, tick.shape[1] // 2, -1)]
    assert rows[2] < rows[0] < rows[1]
    assert (cross == cross[:, ::-1]).mean() > 0.9
    assert dash.any(1).sum() == 2


def test_a_legend_heads_and_titles_take_their_own_room(tmp_path):
    """What stands in each line is there, and the pictures are where they were, below it."""
    rows = [("", [(grey(20, 40), [("a", "")]), (grey(20, 40), [])]), ("", [(grey(20, 40), [])])]
    pictures.write_page(tmp_path / "plain.png", rows, cell=(48, 24))
    plain = ink(tmp_path / "plain.png")
    assert plain.shape == (2 * 50, pictures.LEAST)
    assert plain[4:24, 4:44].all() and plain[4:24, 52:92].all() and plain[54:74, 4:44].all()

    legend = [("yes", "right"), ("no", "wrong")]
    rows = [("", rows[0][1]), ("birds", rows[1][1])]
    pictures.write_page(tmp_path / "full.png", rows, ["one", "two"], legend, (48, 24))
    full = ink(tmp_path / "full.png")
    assert full.shape == (26 + 18 + 50 + 28 + 50, pictures.LEAST)
    assert np.array_equal(full[44:94], plain[:50]) and np.array_equal(full[122:], plain[50:])
    yes = ImageFont.load_default(14).getlength("yes")
    for strip, *starts in ((full[:26], 4, 18, 48 + int(yes)), (full[26:44], 4, 52),
                           (full[94:122], 4)):  # fmt: skip
        assert all(strip[:, start : start + 8].any() for start in starts)
        assert not strip[0].any() and not strip[-1].any() and not strip[:, :4].any()


def test_a_long_caption_stays_in_its_cell(tmp_path):
    """And ends in an ellipsis, with its sign before it or without."""
    tile = grey(10, 10)
    rows = [("", [(tile, [("w" * 60, kind)]), (tile, [])]) for kind in ("right", "")]
    pictures.write_page(tmp_path / "a.png", rows)
    page = ink(tmp_path / "a.png")
    for top in (164, 164 + 190):
        line = page[top : top + 18]
        end = np.nonzero(line.any(0))[0].max()
        assert 288 - 4 - 14 - 4 < end < 288 - 4  # the next letter is some 10 pixels wide
        assert not line[:11, end - 7 : end + 1].any()  # three dots


@pytest.mark.parametrize("legend", [evaluate.LEGEND, [*evaluate.HAS_LABEL, evaluate.WARM]])
def test_a_legend_fits_on_a_page_of_one_frame(tmp_path, legend):
    for frames in (1, 9):
        rows = [("", [(grey(10, 10), [])] * frames)]
        pictures.write_page(tmp_path / f"{frames}.png", rows, legend=legend)
    one, nine = ink(tmp_path / "1.png")[:26], ink(tmp_path / "9.png")[:26]
    assert nine.shape[1] == 9 * 288 > one.shape[1] == pictures.LEAST
    assert one.any() and np.array_equal(nine[:, : pictures.LEAST - 4], one[:, :-4])
    assert not nine[:, pictures.LEAST - 4 :].any()


@pytest.mark.parametrize("letters", [evaluate.LEGEND, [*evaluate.HAS_LABEL, evaluate.WARM]])
def test_the_font_has_the_letters_of_the_legends(letters):
    font = ImageFont.load_default(14)
    box = bytes(font.getmask("\uffff"))
    for letter in set("".join(text for text, _ in letters)) - {" "}:
        assert bytes(font.getmask(letter)) != box, letter


def test_heat_is_told_by_brightness_and_the_plain_frame_stays():
    """Above the frame, to the bit; below it black is black, red and yellow, brighter and brighter.
    """
    image = np.zeros((40, 3, 3), np.uint8)
    image[:20] = 10, 60, 200
    heat = np.broadcast_to(np.float32([[0], [0.5], [1]]), (40, 3, 1))
    page = pictures.heated(image, heat)
    assert page.shape == (40 + 2 + 40, 3, 3) and page.dtype == np.uint8
    assert np.array_equal(page[:40], image) and (page[40:42] == 255).all()
    assert (page[42:62, 0] == 90).all()  # grey, where nothing is seen
    assert page[-1].tolist() == [[0, 0, 0], [102, 51, 0], [204, 204, 0]]
    assert np.abs(page[42:62, 2] - np.array([222, 222, 18])).max() <= 1
