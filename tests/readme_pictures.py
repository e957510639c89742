"""Makes the README's pictures, of a run and its evaluation, in pictures/.

    python train.py --arch efficientnet_lite0
    python evaluate.py runs/efficientnet_lite0-demo/best.pt
    python train.py --arch efficientnet_lite0 --image-size 256 --out runs/lite0-256
    python evaluate.py runs/lite0-256/best.pt --explain bird-flying car-running ball-none
    python -m tests.readme_pictures runs/efficientnet_lite0-demo runs/lite0-256

mish.png is the report's figure 5, from mish_kernel's closed forms. The charts, with at most 256
colours, and the predictions are the first run's, the explanations the second's; pages of frames are
JPEG. augment.jpg shows three drawn scenes. adam.png is made by tests/study_adam.py.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

import augment
import data
import evaluate
from mish_kernel import slope, value

AUGMENTED = (70, 200, 230)  # frames in validation: a bird, a car, and one of another shape


def draw_mish(path):
    x = torch.linspace(-6, 6, 601, dtype=torch.float64)
    s = x.sigmoid()
    curves = (  # name, f, f', colour (Okabe & Ito 2008), style
        ("ReLU", x.relu(), (x > 0).double(), "#888888", "--"),
        ("SiLU", x * s, s * (1 + x * (1 - s)), "#0072B2", "-"),
        ("Mish", value(x), slope(x), "#D55E00", "-"),
    )
    low, high = torch.tensor([-2.0, 0.0], dtype=torch.float64)  # slope < 0, > 0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    minimum = low.item(), value(low).item()

    figure = Figure((9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for k, (axes, title) in enumerate(zip(panels, ("function", "first derivative"), strict=True)):
        for name, *f, colour, style in curves:
            axes.plot(x, f[k], style, label=name, color=colour, linewidth=1.5 + (name == "Mish"))
        axes.set(title=title, xlabel="x", xlim=(-6, 6), ylim=((-1, 4), (-0.2, 1.2))[k])
        axes.grid(color="#e4e4e4")
        axes.spines[:].set_visible(False)
        axes.axhline(0, color="#666666", linewidth=0.8)
        axes.axvline(0, color="#666666", linewidth=0.8)
        axes.legend(loc="upper left")
        axes.plot(minimum[0], (minimum[1], 0)[k], "o", color="#D55E00")
    panels[0].annotate("minimum of Mish\n({:.4f}, {:.4f})".format(*minimum), minimum, (-5.6, 0.8),
                       arrowprops={"arrowstyle": "-", "color": "#666666"})
    figure.suptitle("Mish: x tanh(ln(1 + e$^x$))", weight="bold")
    figure.savefig(path, dpi=100)


def draw_augmentations(path):
    frames = evaluate.open_sets("demo", ("val",))["val"]
    batch = data.collate([frames[i] for i in AUGMENTED])
    augment.preview(path, batch.frames, batch.sizes, augment.ReportAugment(112))


if __name__ == "__main__":
    run, explained = map(Path, sys.argv[1:])
    folder = Path(__file__).parents[1] / "pictures"
    draw_mish(folder / "mish.png")
    draw_augmentations(folder / "augment.jpg")
    for chart in ("curves.png", "classes.png"):
        with Image.open(run / chart) as image:
            small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small.save(folder / chart, optimize=True)
    for source, page in ((run, "predictions"), (explained, "explain")):
        with Image.open(source / f"evaluate-val/{page}.png") as image:
            image.save(folder / f"{page}.jpg", quality=75)
    print(f"written: {', '.join(sorted(file.name for file in folder.iterdir()))}")
