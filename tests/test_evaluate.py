"""evaluate.py: what it writes is computed anew, from the weights in the checkpoints."""

import csv
import hashlib
import json
import math
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from test_flags import sklearns
from test_train import CUDA, run

import augment
import checkpoint
import data
import evaluate
import model
from tests import plain

pytestmark = pytest.mark.usefixtures("own_cache", "signals")

ON_CPU = ["--device", "cpu", "--workers", "0"]


@pytest.fixture(scope="module")
def members(scenes, tmp_path_factory):
    """Two checkpoints that have nothing in common but their classes: the first one's average is to
    be scored, the second sees letterboxes of another size in other colours."""
    folder = tmp_path_factory.mktemp("members")
    torch.manual_seed(2)
    net = model.create_model("tiny", 43)
    own = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    start = {"config": net.config, "model": net.state_dict()}
    torch.save(start | {"input_config": net.input_config | own}, folder / "start.pt")
    adam = ["--optimizer", "adam", "--lr", "0.003"]
    assert run(scenes, folder / "a", *adam, "--ema", "0.9", "--epochs", "3") == 0
    second = f"--image-size 48 --fit letterbox --seed 4 --weights {folder}/start.pt"
    assert run(scenes, folder / "b", *adam, *second.split()) == 0
    return [folder / "a/best.pt", folder / "b/best.pt"]


@pytest.fixture(scope="module")
def pictures(scenes):
    """(names, their pictures' paths, labels (9, 43)) of the validation frames."""
    dataset = data.A2D(scenes, "val")
    return dataset.names, [f"{scenes}/pngs320H/{n}.png" for n in dataset.names], dataset.labels


def probabilities(file, paths):
    """(N, C) float64 of a checkpoint's network on pictures, from its average where it has one."""
    state = checkpoint.load(file)
    weights = state["model"] if state["average"] is None else state["average"]
    inputs, fit = state["input_config"], state["args"]["fit"]
    images = [plain.view(plain.read(path), inputs["size"], fit, inputs["mean"], inputs["std"])
              for path in paths]  # fmt: skip
    return plain.tiny(weights, torch.stack(images)).sigmoid()


def evaluated(out, *flags):
    return evaluate.main([*map(str, flags), *ON_CPU, "--out", str(out)])


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def check_predictions(path, names, expected, threshold, labels=None):
    rows = table(path)
    assert [row["name"] for row in rows] == list(names)
    for i, row in enumerate(rows):
        # four digits, of float32
        shown = torch.tensor([float(row[name]) for name in data.CLASSES], dtype=torch.float64)
        assert torch.allclose(shown, expected[i], atol=6e-5)
        predicted = [c for c in range(43) if expected[i][c] >= threshold]
        assert row["predicted"] == "|".join(data.CLASSES[c] for c in predicted)
        truth = [] if labels is None else [c for c in range(43) if labels[i][c]]
        assert row["labels"] == "|".join(data.CLASSES[c] for c in truth)


def words_of_line(text, start):
    """The words of the one line that begins so."""
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line.split()


def test_scores_of_a_checkpoint(scenes, members, pictures, tmp_path, capsys):
    """Of the average, at the threshold that validation in training chose."""
    names, paths, labels = pictures
    assert evaluated(tmp_path, members[0], "--data", scenes) == 0
    state, expected = checkpoint.load(members[0]), probabilities(members[0], paths)
    images = torch.stack([plain.view(plain.read(path), 32) for path in paths])
    assert (plain.tiny(state["model"], images).sigmoid() - expected).abs().max() > 1e-3
    threshold = state["threshold"]
    check_predictions(tmp_path / "predictions.csv", names, expected, threshold, labels)

    predicted = expected >= threshold
    printed = capsys.readouterr().out
    percent = [f"{100 * score:.1f}" for score in sklearns(predicted, labels)]
    at = f"mean over images, >= {threshold:.3g} (validation in training)"
    assert words_of_line(printed, at)[-3:] == percent
    assert words_of_line(printed, f"{members[0]} (tiny, epoch {state['epoch']})")[-5:] == [
        "1.00", f"{threshold:.2f}", *percent
    ]  # fmt: skip
    per_class = zip(*sklearns(predicted, labels, None), strict=True)
    for row, scores in zip(table(tmp_path / "report.csv"), per_class, strict=True):
        assert [float(row[k]) for k in ("precision", "recall", "f1")] == pytest.approx(list(scores))
        c = data.CLASSES.index(row["name"])
        assert (int(row["support"]), int(row["predicted"])) == (
            labels[:, c].sum(), predicted[:, c].sum()
        )  # fmt: skip
        if labels[:, c].any():
            ap = sklearn.metrics.average_precision_score(labels[:, c], expected[:, c])
            assert float(row["ap"]) == pytest.approx(ap)
        else:
            assert row["ap"] == ""
    constant = state["frequency"].double().clamp(1e-4, 1 - 1e-4)
    loss = F.binary_cross_entropy(expected, labels.double())
    of_constant = F.binary_cross_entropy(constant.expand(9, -1), labels.double())
    assert f"loss {loss:.4f}, of the constant answer {of_constant:.4f}" in printed


def test_a_threshold_and_a_least_number_of_labels_are_given(
    scenes, members, pictures, tmp_path, capsys
):
    """Two labels a frame: those that reach the threshold, or else the likeliest."""
    names, paths, labels = pictures
    expected = probabilities(members[0], paths)
    ranked = expected.sort(1, descending=True).values
    threshold = round(ranked[:, 1].median().item(), 4)  # some frames have two above it, some less
    predicted = expected >= threshold
    assert len(set(predicted.sum(1).tolist())) > 1
    at_least = predicted | (expected >= ranked[:, 1:2])
    for flags, decided in (([], predicted), (["--min-labels", 2], at_least)):
        given = ["--data", scenes, "--threshold", threshold, *flags]
        assert evaluated(tmp_path, members[0], *given) == 0
        for row, own in zip(table(tmp_path / "predictions.csv"), decided, strict=True):
            shown = [data.CLASSES[c] for c in own.nonzero()[:, 0].tolist()]
            assert row["predicted"] == "|".join(shown)
        at = f"mean over images, >= {threshold:.3g} (given)"
        percent = [f"{100 * score:.1f}" for score in sklearns(predicted, labels)]
        printed = capsys.readouterr().out
        assert words_of_line(printed, at)[-3:] == percent
        if "--min-labels" in flags:
            least = flags[flags.index("--min-labels") + 1]
            rows = table(tmp_path / "predictions.csv")
            decided = torch.tensor([[c in row["predicted"].split("|") for c in data.CLASSES]
                                    for row in rows])  # fmt: skip
            p, r, f1 = (f"{100 * score:.1f}" for score in sklearns(decided, labels))
            said = f"\nwith --min-labels {least}, as in predictions.csv: precision {p}, recall {r}"
            assert f"{said}, F1 {f1} %; below" in printed


REFUSED = {
    "--batch-size 0": "--batch-size 0: must be a whole number from 1 to 100,000",
    "--workers -1": "--workers -1: must be a whole", "--workers 513": "--workers 513: must be",
    "--min-labels -1": "--min-labels -1: must be", "--threshold 1.1": "--threshold 1.1: must be",
    "--threshold nan": "--threshold nan: must be", "--blend fit": "--blend: of several",
    f"--batch-size {'9' * 300}": "--batch-size a number of more than 18 digits: must be",
    f"--workers {'9' * 31}": "--workers a number of more than 18 digits: must be",
    "--out=": "--out: names no folder", "--device=": "--device: is cpu, cuda or cuda:N",
    "--images=": "--images: of a table",
    "b.pt --blend fit --threshold 0.5": "--blend fit finds one", "--device tpu": "--device: is cpu",
    "--split all": "invalid choice", "--lr 1": "unrecognized arguments",
    "--treshold 1": "--treshold 1; did you mean --threshold?", "--split tset": "did you mean test?",
    "--split test": "--split test: the drawn scenes have train and val",
    "--images x": "--images: of a table of your own",
    "--workers -1 --batch-size 0": "--workers -1: must be a whole number from 0 to 512; --batch-",
}  # fmt: skip


@pytest.mark.parametrize("flags", REFUSED)
def test_flags_of_an_evaluation_that_cannot_work_are_refused(capsys, flags):
    with pytest.raises(SystemExit) as caught:
        evaluate.parse_args(["a.pt", *flags.split()])
    assert caught.value.code == 2 and REFUSED[flags] in capsys.readouterr().err


def test_flags_of_an_evaluation_have_defaults_and_help(capsys):
    args = vars(evaluate.parse_args(["a.pt", "b.pt", "--device", "cpu"]))
    assert args == {
        "checkpoints": ["a.pt", "b.pt"], "data": "demo", "split": None, "images": None,
        "blend": "mean", "explain": [], "threshold": None, "min_labels": 0, "out": None,
        "batch_size": 64, "workers": min(8, os.cpu_count()), "amp": "off", "device": "cpu",
    }  # fmt: skip
    with pytest.raises(SystemExit):
        evaluate.parse_args(["--help"])
    text = capsys.readouterr().out
    parts = re.split(r"^  --", text, flags=re.M)[1:]
    assert 10 < len(parts) <= 15 and "None" not in text
    assert all(len(part.split()) >= 4 for part in parts)
    for taken in ("--threshold 0", "--threshold 1", "--workers 0", "--batch-size 1"):
        evaluate.parse_args(["a.pt", *taken.split()])


# --------------------------------------------------------------------------------- from Python


@pytest.mark.parametrize("batch", [64, 4])
def test_a_predictor_says_what_the_weights_say(members, pictures, monkeypatch, batch):
    """Of paths, opened images and lists, whatever the batch: labels by falling probability, those
    that reach the threshold of validation in training, seen as the checkpoint's network sees."""
    monkeypatch.setattr(evaluate, "BATCH_SIZE", batch)
    names, paths, _ = pictures
    for member in members:
        predictor = evaluate.Predictor(str(member), device="cpu")
        threshold = checkpoint.load(member)["threshold"]
        assert predictor.classes == data.CLASSES and predictor.threshold == threshold
        expected = probabilities(member, paths)
        assert (expected >= threshold).sum() not in (0, expected.numel())
        answers = predictor(paths)
        assert len(answers) == 9
        for answer, row in zip(answers, expected, strict=True):
            reached = [c for c in row.argsort(descending=True).tolist() if row[c] >= threshold]
            assert [name for name, _ in answer] == [data.CLASSES[c] for c in reached]
            shown = torch.tensor([p for _, p in answer], dtype=torch.float64)
            assert torch.allclose(shown, row[reached], atol=1e-5)  # float32
        with Image.open(paths[3]) as image:
            alone = predictor(paths[3]), predictor(Path(paths[3])), predictor(image)
            both = predictor([image, paths[5]])
        for answer, i in zip([*alone, *both], (3, 3, 3, 3, 5), strict=True):
            assert [name for name, _ in answer] == [name for name, _ in answers[i]]
            shown, wanted = ([p for _, p in row] for row in (answer, answers[i]))
            assert shown == pytest.approx(wanted, abs=1e-6)  # float32, in other batches
        assert len(both) == 2 and predictor([]) == []


def test_a_predictor_takes_a_gpu_where_there_is_one(members):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = evaluate.Predictor(members[0])
    assert predictor.device == device and not predictor.net.training
    assert {p.device.type for p in predictor.net.parameters()} == {device}


def test_a_predictor_names_an_image_that_cannot_be_read(members, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    predictor = evaluate.Predictor(members[0], "cpu")
    with pytest.raises(data.DataError, match="a.png: cannot be read"):
        predictor(tmp_path / "a.png")
    with pytest.raises(data.DataError, match="float pixels"):
        predictor(Image.new("F", (30, 30)))
    Image.effect_noise((60, 60), 50).save(tmp_path / "b.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:900])
    image = Image.open(tmp_path / "b.jpg")
    with image, pytest.raises(data.DataError, match="image: cannot be read .*truncated"):
        predictor(image)
    with pytest.raises(checkpoint.CheckpointError, match="gone.pt"):
        evaluate.Predictor(tmp_path / "gone.pt")


@pytest.mark.parametrize("given, words", [
    (np.zeros((8, 9, 3), np.uint8), r"ndarray of uint8 \(8, 9, 3\)"),
    ([np.zeros((8, 9, 3))], r"ndarray of float64 \(8, 9, 3\)"),
    (torch.zeros(2, 3, 8, 9), r"Tensor of torch\.float32 \(2, 3, 8, 9\)"),
    (None, "NoneType"),
])
def test_a_predictor_says_what_an_image_is(members, given, words):
    predictor = evaluate.Predictor(members[0], "cpu")
    with pytest.raises(TypeError, match=f"a list of them, got {words}; .*fromarray .*to_pil_image"):
        predictor(given)


def test_a_blend_of_members_that_see_differently(scenes, members, pictures, tmp_path, capsys):
    """Each member's own size, colours and fit; the mean of their thresholds."""
    names, paths, labels = pictures
    assert evaluated(tmp_path, *members, "--data", scenes) == 0
    a, b = (probabilities(file, paths) for file in members)
    assert (a - b).abs().max() > 0.02
    thresholds = [checkpoint.load(file)["threshold"] for file in members]
    threshold = sum(thresholds) / 2
    check_predictions(tmp_path / "predictions.csv", names, (a + b) / 2, threshold, labels)
    printed = capsys.readouterr().out
    for start, weight, at, scores in (
        (f"{members[0]} ", "0.50", thresholds[0], a), (f"{members[1]} ", "0.50", thresholds[1], b),
        ("blend", "1.00", threshold, (a + b) / 2),
    ):  # fmt: skip
        percent = [f"{100 * score:.1f}" for score in sklearns(scores >= at, labels)]
        assert words_of_line(printed, start)[-5:] == [weight, f"{at:.2f}", *percent]


def test_a_blend_of_a_file_has_its_weights_and_threshold(scenes, members, pictures, tmp_path):
    names, paths, labels = pictures
    weights = dict(zip(map(str, members), (0.8, 0.2), strict=True))
    other_order = {str(file): weights[str(file)] for file in reversed(members)}
    blend = tmp_path / "blend.json"
    blend.write_text(json.dumps({"weights": other_order, "threshold": 0.123}))
    assert evaluated(tmp_path / "out", *members, "--data", scenes, "--blend", blend) == 0
    a, b = (probabilities(file, paths) for file in members)
    expected = 0.8 * a + 0.2 * b
    check_predictions(tmp_path / "out/predictions.csv", names, expected, 0.123, labels)


def test_a_fitted_blend_is_the_best_of_its_grid(scenes, members, pictures, tmp_path, capsys):
    names, paths, labels = pictures
    assert evaluated(tmp_path, *members, "--data", scenes, "--blend", "fit") == 0
    kept = json.loads((tmp_path / "blend.json").read_text())
    a, b = (probabilities(file, paths) for file in members)
    w, v = (kept["weights"][str(file)] for file in members)
    expected = w * a + v * b
    check_predictions(tmp_path / "predictions.csv", names, expected, kept["threshold"], labels)

    mixtures = [k / 20 * a + (1 - k / 20) * b for k in range(21)]
    highest = max(plain.best_f1(mixture, labels)[1] for mixture in mixtures)
    assert plain.best_f1(expected, labels) == pytest.approx((kept["threshold"], highest))
    percent = [f"{100 * score:.1f}" for score in sklearns(expected >= kept["threshold"], labels)]
    at = f"mean over images, >= {kept['threshold']:.3g} (these frames)"
    assert words_of_line(capsys.readouterr().out, at)[-3:] == percent


def test_a_blend_that_is_of_others_or_no_blend_is_refused(scenes, members, tmp_path, capsys):
    files = list(map(str, members))
    half = dict.fromkeys(files, 0.5)
    for blend, says in (
        ("{", "no blend of these"), ("[" * 100_000, "no blend of these"), ("[]", "must be a dict"),
        ("{}", "weights: is missing"), ("\0", "control character"),
        ({"weights": {files[0]: 1.0}, "threshold": 0.5}, f"weights.{files[1]}: is missing"),
        ({"weights": dict.fromkeys(files, 0.4), "threshold": 0.5}, "shares of 1"),
        ({"weights": half, "threshold": 1.5}, "threshold: 1.5, must be a number from 0 to 1"),
        ({"weights": half, "threshold": True}, "threshold: True"),
        ({"weights": half, "threshold": math.nan}, "threshold: nan"),
        ({"weights": half}, "threshold: is missing"), ({"weights": []}, "threshold: is missing"),
        ({"weights": half, "threshold": "0.5"}, "threshold: 0.5, must be a number"),
        ({"weights": dict.fromkeys(files, "x"), "threshold": 0.5}, "weights: of type dict, must"),
        ({"weights": dict.fromkeys(files, math.nan), "threshold": 0.5}, "weights: of type dict"),
        ({"weights": [0.5, 0.5], "threshold": 0.5}, "weights: of type list, must"),
        ({"weights": half, "threshold": 0.5, "more": 1}, "more: is unexpected"),
        ({"weights": half | {"c.pt": 0.5}, "threshold": 0.5}, "c.pt: is unexpected"),
    ):
        text = blend if isinstance(blend, str) else json.dumps(blend)
        (tmp_path / "blend.json").write_text(text)
        flags = ["--data", scenes, "--blend", tmp_path / "blend.json"]
        assert evaluated(tmp_path / "out", *members, *flags) == 3
        errors = capsys.readouterr().err
        assert says in errors and errors.count("\n") == 1, (blend, errors)


@CUDA
def test_cuda_evaluation_is_the_cpus(scenes, members, tmp_path):
    common = [str(members[0]), "--data", str(scenes), "--amp", "off"]
    for device in ("cpu", "cuda"):
        out = str(tmp_path / device)
        assert evaluate.main([*common, "--device", device, "--out", out]) == 0
    tables = [table(tmp_path / device / "predictions.csv") for device in ("cpu", "cuda")]
    for cpu, cuda in zip(*tables, strict=True):
        for name in data.CLASSES:  # TF32 keeps 10 bits of a factor
            assert float(cuda[name]) == pytest.approx(float(cpu[name]), abs=2e-3)


def test_split_names_the_frames_that_are_scored(members, scenes, tmp_path):
    """--split: the rows of that split, in their order, and no others."""
    names = sorted((scenes / "pngs320H").rglob("*.png"))[:6]
    lines = ["path,labels,split"]
    for i, (name, split) in enumerate(zip(names, "train val test test val test".split(),
                                          strict=True)):  # fmt: skip
        shutil.copy(name, tmp_path / f"{i}.png")
        lines.append(f"{i}.png,cat-eating,{split}")
    (tmp_path / "own.csv").write_text("\n".join(lines))
    for split, rows in (("test", "235"), ("val", "14"), ("train", "0")):
        flags = ["--data", tmp_path / "own.csv", "--split", split]
        assert evaluated(tmp_path / split, members[0], *flags) == 0
        paths = [tmp_path / f"{i}.png" for i in rows]
        threshold = checkpoint.load(members[0])["threshold"]
        labels = torch.zeros(len(rows), 43)
        labels[:, data.CLASSES.index("cat-eating")] = 1
        check_predictions(tmp_path / split / "predictions.csv", [f"{i}.png" for i in rows],
                          probabilities(members[0], paths), threshold, labels)  # fmt: skip


INK = {"right": "#009E73", "wrong": "#D55E00", "missed": "#666666", "": "#444444"}
STROKES = {"right": [(0, 4, 3, 8, 8, 0)], "wrong": [(0, 0, 8, 8), (0, 8, 8, 0)],
           "missed": [(0, 5, 8, 5)], "": []}  # fmt: skip
LEGEND = [("right", "right"), ("wrong: predicted, not true", "wrong"),
          ("missed: true, not predicted", "missed")]  # fmt: skip


def write(pen, left, top, text, kind):
    """A line of text of 14 pixels, 14 to the right where it has a sign."""
    for stroke in STROKES[kind]:
        corners = np.reshape(stroke, (-1, 2)) + (left, top + 6)
        pen.line(corners.flatten().tolist(), INK[kind], width=2)
    left += 14 if kind else 0
    pen.text((left, top), text, INK[kind], font=ImageFont.load_default(14))


def page(frames, captions, legend):
    """The picture of frames, six in a row above their captions: cells of 288 by 164, 18 a line."""
    lines = max(map(len, captions))
    rows = -(-len(frames) // 6)
    cell = 164 + 18 * lines + 8
    first = 26 if legend else 0
    sheet = Image.new("RGB", (288 * 6, first + cell * rows), "white")
    pen = ImageDraw.Draw(sheet)
    left = 4
    for text, kind in legend:
        write(pen, left, 4, text, kind)
        left += 44 + ImageFont.load_default(14).getlength(text)
    for k, (frame, caption) in enumerate(zip(frames, captions, strict=True)):
        left, top = 288 * (k % 6), first + cell * (k // 6)
        sheet.paste(ImageOps.contain(frame, (280, 160)), (left + 4, top + 4))
        for n, (text, kind) in enumerate(caption):
            write(pen, left + 4, top + 164 + 18 * n, text, kind)
    return np.asarray(sheet)


def caption(probability, predicted, truth):
    """Predicted labels, the likeliest first, right or wrong; then the missed ones."""
    ranked = sorted(range(43), key=lambda c: -probability[c])
    lines = [(f"{data.CLASSES[c]} {probability[c]:.0%}", "right" if truth[c] else "wrong")
             for c in ranked if predicted[c]]  # fmt: skip
    missed = [(data.CLASSES[c], "missed") for c in ranked if truth[c] and not predicted[c]]
    return (lines + missed)[:4]


def test_the_page_shows_what_was_right_and_what_was_missed(scenes, members, pictures, tmp_path):
    names, paths, labels = pictures
    blend = tmp_path / "blend.json"
    scores = probabilities(members[0], paths)
    threshold = scores.flatten().sort().values[-14].item() - 1e-4  # 14 of 9 x 43 are predicted
    weights = {str(members[0]): 1.0, str(members[1]): 0.0}
    blend.write_text(json.dumps({"weights": weights, "threshold": threshold}))
    assert evaluated(tmp_path, *members, "--data", scenes, "--blend", blend) == 0
    captions = [caption(scores[i], scores[i] >= threshold, labels[i]) for i in range(9)]
    kinds = {kind for lines in captions for _, kind in lines}
    assert kinds == {"right", "wrong", "missed"}
    expected = page([Image.open(path).convert("RGB") for path in paths], captions, LEGEND)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "predictions.png")), expected)


def test_unlabelled_pictures_have_neither_signs_nor_a_legend(scenes, members, tmp_path):
    """Of 62 pictures every second one is on the page, up to 24."""
    for copy in ("a", "b"):
        shutil.copytree(scenes / "pngs320H", tmp_path / "pictures" / copy)
    names = sorted(path.relative_to(tmp_path / "pictures").as_posix()
                   for path in (tmp_path / "pictures").rglob("*.png"))  # fmt: skip
    paths = [tmp_path / "pictures" / name for name in names]
    out = tmp_path / "out"
    assert evaluated(out, members[0], "--data", tmp_path / "pictures") == 0
    threshold = checkpoint.load(members[0])["threshold"]
    expected = probabilities(members[0], paths)
    check_predictions(out / "predictions.csv", names, expected, threshold)
    written = {path.name for path in out.iterdir()}
    assert written == {"predictions.csv", "predictions.png"}
    shown = range(0, 62, 2)[:24]
    captions = [caption(expected[i], expected[i] >= threshold, expected[i] >= threshold)
                for i in shown]  # fmt: skip
    plain = [[(text, "") for text, _ in lines] for lines in captions]
    assert any(plain)
    frames = [Image.open(paths[i]).convert("RGB") for i in shown]
    ours = np.asarray(Image.open(out / "predictions.png"))
    assert np.array_equal(ours, page(frames, plain, ()))


def test_an_explanation_is_of_the_likeliest_frames(scenes, members, pictures, tmp_path):
    """A row a class, below its name: its six likeliest frames, the likeliest first, and whether
    they have it."""
    names, paths, labels = pictures
    blend = tmp_path / "blend.json"
    weights = {str(members[0]): 0.0, str(members[1]): 1.0}
    blend.write_text(json.dumps({"weights": weights, "threshold": 0.5}))
    commonest = data.CLASSES[int(labels.sum(0).argmax())]
    classes = [commonest, "bird-flying"]
    flags = ["--data", scenes, "--explain", *classes, "--blend", blend]
    assert evaluated(tmp_path, *members, *flags) == 0
    scores = probabilities(members[1], paths)
    ours = np.asarray(Image.open(tmp_path / "explain.png"))
    depth = 28 + 328 + 18 + 8  # a title, the frame twice, its caption
    assert ours.shape == (26 + 2 * depth, 6 * 288, 3)

    expected = Image.new("RGB", (6 * 288, 26 + 2 * depth), "white")
    pen = ImageDraw.Draw(expected)
    legend = [("the frame has the label", "right"), ("the frame does not have it", "wrong"),
              ("below each frame, from red to yellow: what in it speaks for the class", "")]
    left, kinds = 4, set()
    for text, kind in legend:
        write(pen, left, 4, text, kind)
        left += 44 + ImageFont.load_default(14).getlength(text)
    for row, name in enumerate(classes):
        top, c = 26 + depth * row, data.CLASSES.index(name)
        pen.text((4, top + 4), name, "black", font=ImageFont.load_default(18))
        for column, i in enumerate(scores[:, c].argsort(descending=True)[:6].tolist()):
            kind = "right" if labels[i, c] else "wrong"
            kinds.add(kind)
            write(pen, 288 * column + 4, top + 28 + 328, f"{scores[i, c]:.0%}", kind)
            frame = Image.open(paths[i]).convert("RGB")
            gap = 1 + frame.height // 40
            twice = Image.new("RGB", (frame.width, 2 * frame.height + gap), "white")
            twice.paste(frame, (0, 0))
            twice.paste(frame, (0, frame.height + gap))
            tile = ImageOps.contain(twice, (280, 324))
            left, upper = 288 * column + 4, top + 28 + 4
            expected.paste(tile, (left, upper))

            # The lower of the two is under a heat that differs by its place.
            half = tile.height * frame.height // twice.height
            lower = slice(upper + half - 1, upper + tile.height), slice(left, left + tile.width)
            a, b = (np.asarray(p).astype(float)[lower].mean(2) for p in (ours, expected))
            assert np.corrcoef(a.flatten(), b.flatten())[0, 1] > 0.5
            expected.paste(Image.fromarray(ours[lower]), (left, upper + half - 1))
    assert kinds == {"right", "wrong"}
    assert np.array_equal(ours, np.asarray(expected))


class WhiteSeer(model.Network):
    """Says how much of an image is white."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(3, 1)
        self.head.weight.data.fill_(1.0)

    def feature_map(self, x):
        return F.avg_pool2d((x > 0.9).float(), 4)


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize("height, width", [(40, 160), (200, 100), (100, 103)])
def test_an_explanation_lies_where_the_network_looked(tmp_path, fit, height, width):
    frame = np.zeros((height, width, 3), np.uint8)
    top, left = height // 2, 3 * width // 4
    frame[top : top + height // 8, left : left + width // 8] = 255
    Image.fromarray(frame).save(tmp_path / "a.png")
    view = augment.EvalTransform(64, (0, 0, 0), (1, 1, 1), fit)
    predictor = Namespace(net=WhiteSeer(), transform=view, classes=["white"], device="cpu")
    folder = data.ImageFolder(tmp_path / "a.png")
    evaluate.explain(tmp_path / "page.png", predictor, folder, ["white"], torch.ones(1, 1))
    page = np.asarray(Image.open(tmp_path / "page.png")).astype(float)
    page = page[26 + 28 + 4 : 26 + 28 + 328, 4:284]  # below a legend and the class
    heat = np.maximum(page[..., 0] - page[..., 2], 0)  # red and yellow, not white, grey, black
    above = height + 1 + height // 40  # the frame itself, and a gap
    scale = min(280 / width, 324 / (above + height))  # the page's: the longer side fills the cell
    rows, columns = np.indices(heat.shape)
    centre = [(heat * axis).sum() / heat.sum() for axis in (rows, columns)]
    assert not heat[: int(scale * above)].any()
    expected = [scale * (above + top + height / 16), scale * (left + width / 16)]
    # a cell of the map is 4 of 64 pixels
    assert centre == pytest.approx(expected, abs=scale * max(height, width) * 4 / 64)


def test_a_checkpoint_of_two_classes_scores_its_own(tmp_path):
    """Classes are in the order of classes.txt, and a label's column is its name's."""
    pair = [((40, 40), (0, 0, 250), "zebra"), ((40, 40), (250, 0, 0), "ant")]
    rows = [(*picture, split) for split in ("train", "train", "val", "val") for picture in pair]
    own = plain.own_csv(tmp_path, ["zebra", "ant"], rows)
    flags = "--augment none --epochs 40 --optimizer adamw --lr 0.01 --dropout 0".split()
    assert run(own, tmp_path / "run", *flags) == 0
    best = checkpoint.load(tmp_path / "run/best.pt")
    assert best["class_names"] == ["zebra", "ant"] and best["best"]["f1"] == 1
    assert evaluated(tmp_path, tmp_path / "run/best.pt", "--data", own) == 0
    for i, row in enumerate(table(tmp_path / "predictions.csv"), 4):
        assert row["name"] == f"{i}.png"
        assert row["predicted"] == row["labels"] == ("zebra", "ant")[i % 2]


# ----------------------------------------------------------------------------- frames of one's own


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder with run/best.pt of cat and dog, trained on the rows of pets.csv, which names no
    splits and has test_layouts's hash hold out 3 of 12."""
    folder = tmp_path_factory.mktemp("pets")
    lines = ["path,labels"]
    for i in range(12):
        Image.new("RGB", (40, 30), [(250, 0, 0), (0, 0, 250)][i % 2]).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{'cat dog'.split()[i % 2]}")
    (folder / "pets.csv").write_text("\n".join(lines))
    flags = "--augment none --epochs 30 --optimizer adamw --lr 0.01 --dropout 0".split()
    assert run(folder / "pets.csv", folder / "run", *flags) == 0
    return folder


def said(pets, out, capsys, *flags):
    """Exit code, lines of stdout until the table, stderr."""
    capsys.readouterr()
    code = evaluated(out, pets / "run", *flags)
    text, errors = (t.replace(str(pets), "P") for t in capsys.readouterr())
    return code, text.splitlines(), errors


def test_a_runs_folder_means_its_best(pets, tmp_path):
    """Where results go, and in the file of a blend."""
    for name in "ab":
        shutil.copytree(pets / "run", tmp_path / name)
    flags = ["--data", str(pets / "pets.csv"), *ON_CPU]
    assert evaluate.main([str(tmp_path / "a"), *flags]) == 0
    assert (tmp_path / "a/evaluate-val/predictions.csv").exists()

    fitted = ["--blend", "fit", "--out", str(tmp_path / "o")]
    assert evaluate.main([str(tmp_path / "a"), str(tmp_path / "b"), *fitted, *flags]) == 0
    files = [str(tmp_path / name / "best.pt") for name in "ab"]
    given = ["--blend", str(tmp_path / "o/blend.json"), "--out", str(tmp_path / "p")]
    assert evaluate.main([*files, *given, *flags]) == 0
    blend = json.loads((tmp_path / "o/blend.json").read_text())
    assert list(blend["weights"]) == files
    blend["weights"] = {str(tmp_path / name): 0.5 for name in "ab"}
    (tmp_path / "o/blend.json").write_text(json.dumps(blend))
    assert evaluate.main([*files, *given, *flags]) == 0


def test_an_evaluation_replaces_one_and_nothing_else(pets, tmp_path, capsys, charts):
    out = tmp_path / "out"
    assert evaluated(out, pets / "run", "--data", pets / "pets.csv", "--explain", "cat") == 0
    names = {"predictions.csv", "predictions.png", "report.csv", "classes.png", "explain.png"}
    assert {path.name for path in out.iterdir()} == names
    assert "earlier" not in capsys.readouterr().out
    assert evaluated(out, pets / "run", "--data", pets / "0.png") == 0
    older = f"note: report.csv, classes.png, explain.png in {out} is of an earlier evaluation\n"
    assert older in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == names
    assert evaluated(out, pets / "run", "--data", pets / "pets.csv", "--explain", "cat") == 0
    assert "earlier" not in capsys.readouterr().out

    # The table that is to be scored, and what a training has written.
    shutil.copy(pets / "pets.csv", pets / "report.csv")
    for folder, data_flag, says in (
        (pets, pets / "report.csv", "report.csv would be replaced, as predictions.csv is missing"),
        (pets / "run", pets / "pets.csv", "is a training's – choose another --out"),
    ):
        before = (folder / "report.csv").read_text()
        assert evaluated(folder, pets / "run", "--data", data_flag) == 3
        assert says in capsys.readouterr().err
        assert (folder / "report.csv").read_text() == before
        assert not (folder / "predictions.csv").exists()
    (pets / "report.csv").unlink()


def test_drawn_scenes_are_not_scored_by_other_classes(pets, tmp_path, capsys):
    assert evaluated(tmp_path, pets / "run") == 3
    assert "has other classes than the drawn scenes – name frames" in capsys.readouterr().err


HELD_OUT = [i for i in range(12) if hashlib.sha256(f"{i}.png".encode()).digest()[0] % 5 == 0]


def test_all_rows_of_a_table_without_splits_are_scored(pets, tmp_path, capsys):
    """Of the table that was trained on, the held out ones. A run's folder means its best.pt."""
    (pets / "test.csv").write_text("path,labels\n" + "".join(f"{i}.png,cat\n" for i in range(5)))
    for flags, names in (
        (["test.csv"], range(5)), (["test.csv", "--split", "test"], range(5)),
        (["pets.csv"], HELD_OUT), (["pets.csv", "--split", "val"], HELD_OUT),
        (["pets.csv", "--split", "train"], [i for i in range(12) if i not in HELD_OUT]),
    ):  # fmt: skip
        out = tmp_path / "out"
        code, text, errors = said(pets, out, capsys, "--data", pets / flags[0], *flags[1:])
        assert (code, errors) == (0, "")
        scored = [row["name"] for row in table(out / "predictions.csv")]
        assert scored == [f"{i}.png" for i in names]
        note = "note: the network was trained on this list, so what it held out is scored; --split "
        assert (f"{note}train scores the rest" in text) == (flags == ["pets.csv"])
        hashed = "names no splits: a fifth of its rows, by a hash of the path, is val"
        said_so = f"note: P/pets.csv: {hashed}" in text
        assert said_so == ("val" in flags or flags == ["pets.csv"])


def test_frames_that_were_trained_on_are_told_in_any_list(pets, tmp_path, capsys):
    """By name and size of their files, wherever they are: a corrected row, another order, a copy.
    """
    lines = (pets / "pets.csv").read_text().splitlines()
    trained_on = 12 - len(HELD_OUT)
    i = min({*range(12)} - {*HELD_OUT})
    (pets / "fixed.csv").write_text("\n".join([*lines[: i + 1], f"{i}.png,", *lines[i + 2 :]]))
    (pets / "order.csv").write_text("\n".join([lines[0], *lines[:0:-1]]))
    (pets / "held.csv").write_text("path,labels\n" + "".join(f"{i}.png,cat\n" for i in HELD_OUT))
    (tmp_path / "x/cat").mkdir(parents=True)
    shutil.copy(pets / f"{i}.png", tmp_path / f"x/cat/{i}.png")
    Image.new("RGB", (50, 30)).save(tmp_path / f"x/cat/{i + 1}.png")  # of another size
    for spec, seen, of in (
        (pets / "fixed.csv", trained_on, 12), (pets / "order.csv", trained_on, 12),
        (pets / "held.csv", 0, 3), (tmp_path / "x", 1, 2),
    ):  # fmt: skip
        code, text, _ = said(pets, tmp_path / "out", capsys, "--data", spec)
        warned = [line for line in text if line.startswith("warning: P/run/best.pt was")]
        expected = f"warning: P/run/best.pt was trained on {seen} of these {of} frames"
        assert code == 0 and warned == ([expected] if seen else [])


def test_each_of_several_checkpoints_is_asked_what_it_was_trained_on(pets, tmp_path, capsys):
    """Also of before a resume with other frames."""
    flags = ["--augment", "none", "--out", str(tmp_path / "b"), "--epochs"]
    (tmp_path / "v").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "v/x.png")
    (tmp_path / "v/v.csv").write_text("path,labels\nx.png,dog\n")
    other = ["--val", str(tmp_path / "v/v.csv"), *flags]
    assert run(pets / "pets.csv", tmp_path / "b", *other, "1") == 0
    few = "path,labels\n" + "".join(f"{i}.png,{'cat dog'.split()[i % 2]}\n" for i in range(6))
    (pets / "few6.csv").write_text(few)
    override = ["--resume", "override", "--t-max", "0"]
    assert run(pets / "few6.csv", tmp_path / "b", *flags, "2", *override) == 0
    for order in ([pets / "run", tmp_path / "b"], [tmp_path / "b", pets / "run"]):
        capsys.readouterr()
        assert evaluated(tmp_path / "out", *order, "--data", pets / "pets.csv") == 0
        warned = [x for x in capsys.readouterr().out.splitlines() if x.startswith("warning: ")]
        trained_on = {pets / "run": 12 - len(HELD_OUT), tmp_path / "b": 12}
        assert warned == [
            f"warning: {path}/best.pt was trained on {trained_on[path]} of these 12 frames"
            for path in order
        ]


def test_further_columns_of_images_without_labels_are_no_classes(pets, tmp_path, capsys):
    (pets / "meta.csv").write_text("path,width,flash\n0.png,40,1\n1.png,40,0\n")
    code, text, _ = said(pets, tmp_path / "out", capsys, "--data", pets / "meta.csv")
    assert code == 0 and "all 2 frames" in text
    assert "note: P/meta.csv: ignored columns: width, flash" in text


def test_a_photograph_is_seen_alike_from_python_and_by_the_command(pets, tmp_path):
    """Both reduce it as it is decoded; a PIL image is reduced by another filter."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 15, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((3000, 1800)).save(tmp_path / "a.jpg", quality=95)
    assert evaluated(tmp_path / "out", pets / "run", "--data", tmp_path / "a.jpg") == 0
    (row,) = table(tmp_path / "out/predictions.csv")
    shown = [float(row[name]) for name in ("cat", "dog")]
    predictor = evaluate.Predictor(pets / "run", "cpu")
    path = tmp_path / "a.jpg"
    assert predictor.probabilities([path])[0].tolist() == pytest.approx(shown, abs=6e-5)
    with Image.open(path) as image:
        assert predictor.probabilities([image])[0].tolist() == pytest.approx(shown, abs=0.01)


def test_images_without_labels_are_predicted_and_few_are_printed(pets, tmp_path, capsys):
    (pets / "list.csv").write_text("file\n" + "".join(f"{i}.png\n" for i in range(11)))
    (pets / "few.csv").write_text("path,labels\n0.png,\n1.png,\n")
    code, text, _ = said(pets, tmp_path / "many", capsys, "--data", pets / "list.csv")
    rows = table(tmp_path / "many/predictions.csv")
    assert code == 0 and len(rows) == 11 and "all 11 frames" in text
    assert not any(line.startswith("0.png") for line in text)

    flags = ["--data", pets / "few.csv", "--threshold"]
    for threshold, labels in (("0", 4), ("0.9999", 0)):
        code, text, _ = said(pets, tmp_path / "few", capsys, *flags, threshold)
        rows = table(tmp_path / "few/predictions.csv")
        assert code == 0 and sum(len(row["predicted"].split("|")) for row in rows) >= labels
        for row in rows:
            ranked = sorted(((float(row[c]), c) for c in ("cat", "dog")), reverse=True)
            told = [f"{c} {p:.0%}" for p, c in ranked if c in row["predicted"]]
            nothing = f"no label; the likeliest is {ranked[0][1]} {ranked[0][0]:.0%}"
            assert f"{row['name']}: {', '.join(told) or nothing}" in text
    assert not all(row["predicted"] for row in rows)


def test_class_folders_are_scored_where_the_checkpoint_knows_them(pets, tmp_path, capsys):
    for name in ("a/cat/1.png", "a/dog/2.png", "b/x/1.png", "c/cat/1.png", "c/dgo/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pets / "0.png", tmp_path / name)
    code, text, _ = said(pets, tmp_path / "out", capsys, "--data", tmp_path / "a")
    assert code == 0 and "classes: cat 1, dog 1" in text
    assert [row["labels"] for row in table(tmp_path / "out/predictions.csv")] == ["cat", "dog"]
    code, text, _ = said(pets, tmp_path / "out", capsys, "--data", tmp_path / "b")
    assert code == 0 and "all 1 frames" in text
    code, _, errors = said(pets, tmp_path / "out", capsys, "--data", tmp_path / "c")
    assert code == 3 and errors == (
        f"evaluate.py: {tmp_path}/c: the folders dgo are none of the classes cat, dog; did you "
        "mean dog? – rename them, or name a folder of pictures alone\n"
    )
    for name, message in (
        ("a/cover.png", "cover.png are in no class folder, and the others are – move them"),
        ("b/Cat/1.png", "the folders Cat, x are none of the classes cat, dog; did you mean cat? – "
         "rename them, or name a folder of pictures alone"),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(pets / "0.png", tmp_path / name)
        code, _, errors = said(pets, tmp_path / "out", capsys, "--data", tmp_path / name[0])
        assert (code, errors) == (3, f"evaluate.py: {tmp_path}/{name[0]}: {message}\n")


LACKS = "P/t.csv:1: has no column of cat, of the classes cat, dog – add what is true of each frame"
UNSCORED = {  # table -> the message
    "path,dog\n0.png,1\n": LACKS,
    "path,dog,cta\n0.png,1,0\n":
    f"2 problems:\n  {LACKS}\n  P/t.csv:1: column cta is none of the classes cat, dog – "
    "rename or remove it; did you mean cat?",
    "path,labels\n" + "".join(f"{i}.png,dgo\n" for i in range(9)):
    "P/t.csv:2 (and 8 more rows): unknown label 'dgo' – classes are cat, dog; did you mean dog?",
    "path,labels,split\n0.png,dog,test\n":
    "P/t.csv: no row is of split val, but of test – add some, or take another",
}  # fmt: skip


@pytest.mark.parametrize("text", UNSCORED)
def test_what_a_checkpoint_does_not_know_is_refused(pets, tmp_path, capsys, text):
    (pets / "t.csv").write_text(text)
    code, _, errors = said(pets, tmp_path / "out", capsys, "--data", pets / "t.csv")
    assert (code, errors) == (3, f"evaluate.py: {UNSCORED[text]}\n")


def test_the_origin_of_a_blends_threshold_is_said(members, scenes, tmp_path, capsys):
    pair = [*members, "--data", scenes]
    for flags, origin in (
        ([members[0], "--data", scenes], "validation in training"),
        (pair, "validation in training, their mean"), ([*pair, "--threshold", "0.2"], "given"),
        ([*pair, "--blend", "fit"], "these frames"),
        ([*pair, "--blend", tmp_path / "blend.json"], "blend.json"),
    ):  # fmt: skip
        assert evaluated(tmp_path, *flags) == 0
        assert f" ({origin}) " in " ".join(capsys.readouterr().out.split())
