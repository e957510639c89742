"""All that is drawn: training curves, bars of classes, pages of frames, heat over a frame.

Charts need matplotlib (pip install matplotlib), which is imported where it is used.
"""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"  # Okabe & Ito 2008
GREY, BLACK = "#666666", "#444444"
MOST_CLASSES = 120  # in a chart
CELL = (288, 164)  # pixels of a page's cell, width and height, in which a picture has a margin of 4
LINE = 12  # pixels of a line of text
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


def write_page(path, images, captions, columns=6, cell=CELL):
    """An image file of (H, W, 3) uint8 images, each above its lines of (text, colour)."""
    width, height = cell
    depth = height + LINE * max(len(caption) for caption in captions) + 8
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (width * columns, depth * rows), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default()

    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = k % columns * width + 4
        top = k // columns * depth
        image = ImageOps.contain(Image.fromarray(image), (width - 8, height - 4))
        sheet.paste(image, (left, top + 4))
        for n, (text, colour) in enumerate(caption):
            pen.text((left, top + height + n * LINE), text, colour, font=font)
    sheet.save(path)


def heated(image, heat):
    """An (H, W, 3) uint8 image under heat (H, W, 1) in [0, 1]: red where it is low, then yellow."""
    colour = 255 * np.concatenate([np.ones_like(heat), heat, np.zeros_like(heat)], 2)
    return (image * (1 - 0.6 * heat) + colour * 0.6 * heat).astype(np.uint8)


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
        return np.array([row.get(key) for row in rows], dtype=np.float64)

    figure = Figure((13, 3.9), layout="constrained")
    panels = losses, scores, rate = figure.subplots(1, 3)
    epochs = column("epoch")
    for panel, key, label, colour, style, factor in CURVES:
        values = factor * column(key)
        if not np.isnan(values).all():
            panels[panel].plot(epochs, values, style, label=label, color=colour, marker=".")

    scale = "log" if (column("lr") > 0).any() else "linear"
    _panel(losses, "both", title="Loss", ylabel="binary cross-entropy")
    _panel(scores, "both", title="Precision, recall, F1", ylabel="mean over frames, %")
    _panel(rate, "both", title="Learning rate", yscale=scale)
    scores.set_ylim(bottom=0)
    for axes in panels:
        axes.set(xlabel="epoch", xlim=(epochs.min() - 0.5, epochs.max() + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, framealpha=0.6)

    f1 = 100 * column("val_f1")
    if not np.isnan(f1).all():
        best = np.nanargmax(f1)
        scores.plot(epochs[best], f1[best], "o", color=RED, markersize=8, clip_on=False)
        figure.suptitle(f"Best F1 on validation: {f1[best]:.1f} %, after epoch {epochs[best]:.0f} "
                        f"of {epochs.max():.0f}", weight="bold")  # fmt: skip
    figure.savefig(path, dpi=120)


def draw_classes(report, path):
    """F1 of each class beside the number of its frames, as a picture, best first.

    report  of metrics.report; of more than MOST_CLASSES classes, the most frequent are drawn
    raises  ImportError without matplotlib, OSError
    """
    from matplotlib.figure import Figure

    total = len(report["classes"])
    classes = sorted(report["classes"], key=lambda row: -row["support"])[:MOST_CLASSES]
    classes.sort(key=lambda row: -row["f1"])  # those without a frame stay last
    places = np.arange(len(classes))

    def percent(key):
        return [100 * row[key] if row["f1"] else math.nan for row in classes]

    figure = Figure((11, 1.9 + 0.2 * len(classes)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    left.barh(places, percent("f1"), color="#a6cbe3", label="F1")
    left.hlines(places, percent("precision"), percent("recall"), color="#999999", linewidth=0.8)
    left.plot(percent("precision"), places, "o", color=BLUE, markersize=4, label="precision")
    left.plot(percent("recall"), places, "D", color=RED, markersize=4, label="recall")
    support = right.barh(places, [row["support"] for row in classes], color="#bbbbbb")
    right.bar_label(support, fontsize=8, padding=2)
    if report["constant"]:
        label = f"always answering {report['constant']['answer']}: F1, mean over frames"
        left.axvline(100 * report["constant"]["f1"], color=GREY, linestyle=":", label=label)

    names = [row["name"] if len(row["name"]) <= 38 else f"{row['name'][:38]}…" for row in classes]
    left.set_yticks(places, names, fontsize=8, parse_math=False)
    for row, place, name in zip(classes, places, left.get_yticklabels(), strict=True):
        text, colour = f"{100 * row['f1']:.0f}", "black"
        if not row["support"]:
            text, colour = "no frame has this label", "#888888"
        elif not row["f1"] and not row["predicted"]:
            text, colour = "0: never predicted", RED
        elif not row["f1"]:
            text, colour = f"0: all {row['predicted']} predictions wrong", RED
        left.text(0.6, place, text, color=colour, fontsize=8, va="center_baseline")
        name.set_color(colour)

    _panel(left, "x", title="F1, precision and recall, %", xlim=(0, 101))
    _panel(right, "x", title="frames with the label")
    left.set_ylim(len(classes) - 0.4, -0.6)
    right.tick_params(left=False)
    right.set_xticks([])
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)

    shown = f"the {len(classes)} most frequent of {total}" if len(classes) < total else total
    chosen = f"scores >= {report['threshold']:.3g} ({report['threshold_from']})"
    samples, macro = 100 * report["samples"]["f1"], 100 * report["macro"]["f1"]
    figure.suptitle(
        f"Classes: {shown}; frames: {report['images']}; {chosen}\nF1 {samples:.1f} %, mean over "
        f"frames; {macro:.1f} %, mean over classes", weight="bold")  # fmt: skip
    figure.savefig(path, dpi=120)
