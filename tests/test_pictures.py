"""pictures.py: charts, read back as SVG."""

import re
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

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


def test_curves_are_the_logs(tmp_path):
    pytest.importorskip("matplotlib")
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
def test_curves_of_one_epoch_and_of_values_that_are_missing(rows, tmp_path):
    pytest.importorskip("matplotlib")
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
def test_classes_are_bars_of_f1_beside_bars_of_support(n, tmp_path):
    pytest.importorskip("matplotlib")
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


def test_pictures_are_png_by_suffix_and_leave_matplotlibs_settings(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
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
def test_a_dollar_is_a_letter(tmp_path, name):
    """matplotlib takes what is between two of them for a formula."""
    pytest.importorskip("matplotlib")
    rng = torch.Generator().manual_seed(0)
    labels = (torch.rand(9, 2, generator=rng) < 0.5).float()
    labels[:, 0] = 1
    scores = torch.rand(9, 2, generator=rng)
    frequency = labels.mean(0)
    report = metrics.report(scores, labels, 0.5, [name, "b"], f"{name}.json", frequency)
    pictures.draw_classes(report, tmp_path / "classes.png")
