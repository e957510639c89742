"""All that is drawn: training curves, bars of classes, pages of frames, heat over a frame.

Charts need matplotlib (pip install matplotlib), which is imported where it is used.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

BLUE = "#0072B2"  # this and the next three: Okabe & Ito 2008, told apart by most eyes
RED = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
GREY = "#666666"
BLACK = "#444444"
MOST_CLASSES = 120  # in a chart
CELL = (288, 164)  # pixels of a page's cell, width and height, in which a picture has a margin of 4
LINE = 18  # pixels of a line of text
LETTER, TITLE = 14, 18  # sizes of letters, pixels
LEAST = 864  # pixels of a page's width at least, into which a legend fits
SIGNS = {  # colour of a line of text by its kind, and the strokes of its sign through (x, y)
    "right": (GREEN, [[(0, 4), (3, 8), (8, 0)]]),
    "wrong": (RED, [[(0, 0), (8, 8)], [(0, 8), (8, 0)]]),
    "missed": (GREY, [[(0, 5), (8, 5)]]),
    "": (BLACK, []),
}
CURVES = [  # panel, key in log.jsonl, legend, colour, style, factor
    (0, "loss", "training", BLUE, "--", 1),
    (0, "val_loss", "validation", RED, "-", 1),
    (0, "constant_loss", "constant answer", GREY, ":", 1),
    (1, "val_precision", "validation precision", GREEN, "-", 100),
    (1, "val_recall", "validation recall", ORANGE, "-", 100),
    (1, "val_f1", "validation F1", RED, "-", 100),
    (1, "f1", "training F1", BLUE, "--", 100),
    (1, "constant_f1", "F1 of the constant answer", GREY, ":", 100),
    (2, "lr", None, BLACK, "-", 1),
]


def write_page(path, rows, heads=(), legend=(), cell=CELL):
    """An image file of rows of pictures, each of which stands above its lines of text.

    rows    (title or "", pictures) of each row, a picture being an (H, W, 3) uint8 image and its
            lines of (text, kind of SIGNS)
    heads   titles of the columns
    legend  lines of (text, kind), which stand side by side at the top
    cell    (width, height) of a picture in pixels, with a margin of 4
    """
    width, height = cell
    columns = max(len(tiles) for _, tiles in rows)
    lines = max(len(caption) for _, tiles in rows for _, caption in tiles)
    depth = height + LINE * lines + 8

    # There is room for all titles, and what they leave empty is cut off at the end.
    size = max(LEAST, width * columns), 3 * LINE + (depth + 2 * LINE) * len(rows)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.font = ImageFont.load_default(LETTER)
    large = ImageFont.load_default(TITLE)
    top = 0

    left = 4
    for text, kind in legend:
        _write(pen, left, 4, text, kind)
        left += 44 + pen.textlength(text)
    if legend:
        top += LINE + 8

    for column, head in enumerate(heads):
        _write(pen, column * width + 4, top, head, "", width - 8)
    if heads:
        top += LINE

    for title, tiles in rows:
        if title:
            pen.text((4, top + 4), title, "black", font=large)
            top += LINE + 10
        for column, (image, caption) in enumerate(tiles):
            left = column * width + 4
            tile = ImageOps.contain(Image.fromarray(image), (width - 8, height - 4))
            sheet.paste(tile, (left, top + 4))
            for n, (text, kind) in enumerate(caption):
                _write(pen, left, top + height + n * LINE, text, kind, width - 8)
        top += depth
    # Of drawn scenes, level 6 takes four times as long and saves 0.2 %.
    sheet.crop((0, 0, sheet.width, top)).save(path, compress_level=1)


def _write(pen, left, top, text, kind, room=math.inf):
    """A line of text, behind the sign of its kind and in its colour. What is too wide for the room,
    in pixels, ends in an ellipsis."""
    colour, strokes = SIGNS[kind]
    for stroke in strokes:
        corners = [(left + x, top + 6 + y) for x, y in stroke]
        pen.line(corners, colour, width=2)
    if strokes:
        left, room = left + 14, room - 14
    while pen.textlength(text) > room and len(text) > 1:
        text = text[:-2] + "…"
    pen.text((left, top), text, colour)


def heated(image, heat):
    """An image above itself in grey under heat: red where that is low, then yellow.

    image    (H, W, 3) uint8
    heat     (H, W, 1) in [0, 1]
    returns  (2 H + gap, W, 3) uint8; a white gap lies between the two
    """
    red = np.ones_like(heat)
    blue = np.zeros_like(heat)
    colour = 255 * np.concatenate([red, heat, blue], 2)
    grey = image.mean(2, keepdims=True)
    mixed = grey * (1 - 0.8 * heat) + colour * 0.8 * heat

    height, width, _ = image.shape
    gap = np.full((1 + height // 40, width, 3), 255)
    return np.concatenate([image, gap, mixed]).astype(np.uint8)


def _panel(axes, grid, **texts):
    axes.set(axisbelow=True, **texts)
    axes.grid(axis=grid, color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)


def draw_curves(rows, path):
    """The report's figures 6 and 7, as a picture: loss, precision, recall and F1, learning rate.

    rows    dicts of log.jsonl, one an epoch; what is missing, None or NaN is left out
    raises  ImportError without matplotlib, OSError
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    def column(key):
        values = [row.get(key) for row in rows]
        return np.array(values, dtype=np.float64)

    figure = Figure((13, 3.9), layout="constrained")
    panels = losses, scores, rate = figure.subplots(1, 3)
    epochs = column("epoch")

    # A figure that older logs do not have has no curve.
    for panel, key, label, colour, style, factor in CURVES:
        values = factor * column(key)
        if not np.isnan(values).all():
            axes = panels[panel]
            axes.plot(epochs, values, style, label=label, color=colour, marker=".")

    scale = "log" if (column("lr") > 0).any() else "linear"
    _panel(losses, "both", title="Loss", ylabel="binary cross-entropy")
    _panel(scores, "both", title="Precision, recall, F1", ylabel="mean over frames, %")
    _panel(rate, "both", title="Learning rate", yscale=scale)
    scores.set_ylim(bottom=0)

    # Epochs are whole numbers, also where there is one alone.
    for axes in panels:
        axes.set_xlabel("epoch")
        axes.set_xlim(epochs.min() - 0.5, epochs.max() + 0.5)
        ticks = MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)
        axes.xaxis.set_major_locator(ticks)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, framealpha=0.6)

    # The title says what the picture is looked at for.
    f1 = 100 * column("val_f1")
    if not np.isnan(f1).all():
        best = np.nanargmax(f1)
        point = epochs[best], f1[best]
        scores.plot(*point, "o", color=RED, markersize=8, clip_on=False)
        after = f"after epoch {epochs[best]:.0f} of {epochs.max():.0f}"
        title = f"Best F1 on validation: {f1[best]:.1f} %, {after}"
        figure.suptitle(title, weight="bold", parse_math=False)
    figure.savefig(path, dpi=120)


def _name(axes, classes, places):
    """The names of the classes beside the axis, and in each row its F1, or why it is 0."""
    names = [row["name"] for row in classes]
    names = [name if len(name) <= 38 else f"{name[:38]}…" for name in names]
    axes.set_yticks(places, names, fontsize=8, parse_math=False)

    # A class without a bar says why it has none, in the colour of its name.
    labels = axes.get_yticklabels()
    for row, place, name in zip(classes, places, labels, strict=True):
        text, colour = f"{100 * row['f1']:.0f}", "black"
        if not row["support"]:
            text, colour = "no frame has this label", "#888888"
        elif not row["f1"] and not row["predicted"]:
            text, colour = "0: never predicted", RED
        elif not row["f1"]:
            text, colour = f"0: all {row['predicted']} predictions wrong", RED
        axes.text(0.6, place, text, color=colour, fontsize=8, va="center_baseline")
        name.set_color(colour)


def draw_classes(report, path):
    """F1 of each class beside the number of its frames, as a picture, best first.

    report  of metrics.report; of more than MOST_CLASSES classes, the most frequent are drawn
    raises  ImportError without matplotlib, OSError
    """
    from matplotlib.figure import Figure

    total = len(report["classes"])
    classes = sorted(report["classes"], key=lambda row: -row["support"])
    classes = classes[:MOST_CLASSES]
    classes.sort(key=lambda row: -row["f1"])  # those without a frame stay last
    places = np.arange(len(classes))

    def percent(key):
        return [100 * row[key] if row["f1"] else math.nan for row in classes]

    # A line of text a class, and room for titles and legend; inches.
    height = 1.9 + 0.2 * len(classes)
    figure = Figure((11, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    precision = percent("precision")
    recall = percent("recall")
    left.barh(places, percent("f1"), color="#a6cbe3", label="F1")
    left.hlines(places, precision, recall, color="#999999", linewidth=0.8)
    left.plot(precision, places, "o", color=BLUE, markersize=4, label="precision")
    left.plot(recall, places, "D", color=RED, markersize=4, label="recall")

    support = right.barh(places, [row["support"] for row in classes], color="#bbbbbb")
    right.bar_label(support, fontsize=8, padding=2)
    # The line that a figure has to be read beside.
    constant = report["constant"]
    if constant:
        label = f"always answering {constant['answer']}: F1, mean over frames"
        left.axvline(100 * constant["f1"], color=GREY, linestyle=":", label=label)

    _name(left, classes, places)
    _panel(left, "x", title="F1, precision and recall, %", xlim=(0, 101))
    _panel(right, "x", title="frames with the label")
    left.set_ylim(len(classes) - 0.4, -0.6)
    right.tick_params(left=False)
    right.set_xticks([])
    legend = figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # $ is a letter of a class's name

    shown = f"the {len(classes)} most frequent of {total}" if len(classes) < total else total
    chosen = f"scores >= {report['threshold']:.3g} ({report['threshold_from']})"
    samples = 100 * report["samples"]["f1"]
    macro = 100 * report["macro"]["f1"]
    first = f"Classes: {shown}; frames: {report['images']}; {chosen}"
    second = f"F1 {samples:.1f} %, mean over frames; {macro:.1f} %, mean over classes"
    figure.suptitle(f"{first}\n{second}", weight="bold", parse_math=False)
    figure.savefig(path, dpi=120)
