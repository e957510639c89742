"""All that is drawn: training curves, bars of classes, pages of frames."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps


def write_page(path, pictures, captions, columns=6):
    """An image file of (H, W, 3) uint8 pictures, each above its lines of (text, colour)."""
    width, height, line = 288, 164, 12  # pixels of a cell's picture, of a line of text
    lines = max(len(caption) for caption in captions)
    cell = height + line * lines + 8
    sheet = Image.new("RGB", (width * columns, cell * -(-len(pictures) // columns)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = k % columns * width, k // columns * cell
        picture = ImageOps.contain(Image.fromarray(picture), (width - 8, height - 4))
        sheet.paste(picture, (x + 4, y + 4))
        for n, (text, colour) in enumerate(caption):
            pen.text((x + 4, y + height + n * line), text, colour, font=ImageFont.load_default())
    sheet.save(path)


BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"  # Okabe & Ito 2008
GREY = "#666666"
MOST_CLASSES = 120  # in a picture


def _tidy(axes, grid, **texts):
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

    epochs, figure = column("epoch"), Figure((13, 3.9), layout="constrained")
    losses, scores, rate = figure.subplots(1, 3)
    for axes, key, label, colour, style, factor in (
        (losses, "loss", "training", BLUE, "--", 1),
        (losses, "val_loss", "validation", RED, "-", 1),
        (scores, "val_precision", "validation precision", GREEN, "-", 100),
        (scores, "val_recall", "validation recall", ORANGE, "-", 100),
        (scores, "val_f1", "validation F1", RED, "-", 100),
        (scores, "f1", "training F1", BLUE, "--", 100),
        (losses, "constant_loss", "constant answer", GREY, ":", 1),
        (scores, "constant_f1", "F1 of the constant answer", GREY, ":", 100),
        (rate, "lr", None, "#444444", "-", 1),
    ):
        values = factor * column(key)
        if not np.isnan(values).all():
            axes.plot(epochs, values, style, label=label, color=colour, marker="o",
                      markersize=3 * (len(rows) < 50 and style != ":"),
                      linewidth=1 + (key == "val_f1"))
    _tidy(losses, "both", title="Loss", ylabel="binary cross-entropy")
    _tidy(scores, "both", title="Precision, recall, F1", ylabel="mean over frames, %")
    _tidy(rate, "both", title="Learning rate",
          yscale="log" if (column("lr") > 0).any() else "linear")
    scores.set_ylim(bottom=0)
    for axes in (losses, scores, rate):
        axes.set(xlabel="epoch", xlim=(epochs.min() - 0.5, epochs.max() + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, framealpha=0.6)
    f1 = column("val_f1")
    if not np.isnan(f1).all():
        best = np.nanargmax(f1)
        scores.plot(epochs[best], 100 * f1[best], "o", color=RED, markersize=8, clip_on=False)
        figure.suptitle(f"Best F1 on validation: {100 * f1[best]:.1f} %, after epoch "
                        f"{epochs[best]:.0f} of {epochs.max():.0f}", fontsize=12, weight="bold")
    figure.savefig(path, dpi=120)


def draw_classes(report, path):
    """F1 of each class beside the number of its frames, as a picture, best first.

    report  of `report`; of more than MOST_CLASSES classes, the most frequent are drawn
    raises  ImportError without matplotlib, OSError
    """
    from matplotlib.figure import Figure

    total = len(report["classes"])
    classes = sorted(report["classes"], key=lambda row: -row["support"])[:MOST_CLASSES]
    classes.sort(key=lambda row: -row["f1"])  # those without a frame stay last
    y, support = np.arange(len(classes)), [row["support"] for row in classes]
    f1, precision, recall = (
        [100 * row[key] if row["f1"] else math.nan for row in classes]
        for key in ("f1", "precision", "recall"))
    names = [row["name"][:38] + "…" * (len(row["name"]) > 38) for row in classes]
    figure = Figure((11, 1.9 + 0.2 * len(classes)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    left.barh(y, f1, color="#a6cbe3", label="F1")
    left.hlines(y, precision, recall, color="#999999", linewidth=0.8)
    left.plot(precision, y, "o", color=BLUE, markersize=4, label="precision")
    left.plot(recall, y, "D", color=RED, markersize=4, label="recall")
    right.bar_label(right.barh(y, support, color="#bbbbbb"), fontsize=8, padding=2)
    if constant := report["constant"]:
        left.axvline(100 * constant["f1"], color=GREY, linestyle=":", linewidth=1,
                     label=f"always answering {constant['answer']}: F1, mean over frames")
    left.set_yticks(y, names, fontsize=8, parse_math=False)
    for row, place, name in zip(classes, y, left.get_yticklabels(), strict=True):
        text, colour = f"{100 * row['f1']:.0f}", "black"
        if not row["support"]:
            text, colour = "no frame has this label", "#888888"
        elif not row["f1"]:
            n = row["predicted"]
            text, colour = f"0: {f'all {n} predictions wrong' if n else 'never predicted'}", RED
        left.text(0.6, place, text, color=colour, fontsize=8, va="center_baseline")
        name.set_color(colour)
    _tidy(left, "x", title="F1, precision and recall, %", xlim=(0, 101))
    _tidy(right, "x", title="frames with the label")
    left.set_ylim(len(classes) - 0.4, -0.6)
    left.tick_params(labeltop=True)
    right.tick_params(left=False)
    right.set_xticks([])
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    samples, macro = (100 * report[key]["f1"] for key in ("samples", "macro"))
    shown = f"the {len(y)} most frequent of " * (len(y) < total)
    figure.suptitle(
        f"Classes: {shown}{total}; frames: {report['images']}; scores >= {report['threshold']:.3g} "
        f"({report['threshold_from']})\nF1 {samples:.1f} %, mean over frames; {macro:.1f} %, mean "
        "over classes", fontsize=12, weight="bold")
    figure.savefig(path, dpi=120)
