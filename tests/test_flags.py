"""The flags: what they are without being given, what is refused, and what each of them does.

Each of CASES is one run of the command line on 22 frames, whose weights, average and log are those
of a plain training, written with torch alone: tests/plain.py. What a flag does elsewhere is named
in ELSEWHERE.
"""

import itertools
import json
import math
import os
import re
import shlex
from pathlib import Path

import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from test_train import run

import augment
import checkpoint
import data
import model
import train
from tests import plain

pytestmark = pytest.mark.usefixtures("own_cache", "signals")

# --------------------------------------------------------- defaults, bounds, refused pairs


def test_every_flag_has_help(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(["--help"])
    text = capsys.readouterr().out
    flags = re.findall(r"^  (--[a-z-]+)", text, re.M)
    assert 30 < len(flags) <= 45 and "None" not in text
    parts = re.split(r"^  --", text, flags=re.M)[1:]
    for flag, part in zip(flags, parts, strict=True):
        without_default = re.sub(r"\[[^\[\]]*\]\s*$", "", part.split("\n\n")[0])
        assert len(without_default.split()) >= 3, f"{flag} has no help"  # flag, value, a word


BY_OTHER_RULES = ("--arch", "--data", "--weights", "--workers", "--amp", "--device", "--val",
                  "--images", "--head-lr", "--out")  # fmt: skip
CASES_OF_DRAWN_SCENES = "on a GPU", "from random weights"


def told_defaults(text):
    """{flag: two pairs, of A2D and of the drawn scenes: the default, {network or case: another}},
    from the brackets at the end of the help."""
    found = {}
    for help_of_flag in re.split(r"^  (?=--)", text, flags=re.M)[1:]:
        brackets = re.search(r"\[([^\[\]]*)\]\s*(?:^\S|\Z)", help_of_flag, re.M)
        if not brackets:
            continue
        halves = []
        for half in " ".join(brackets[1].split()).split("; drawn scenes "):
            default, *others = half.split(", ")
            named = {}
            for other in others:
                case = [case for case in CASES_OF_DRAWN_SCENES if other.startswith(case)]
                value = other.split()[-1]
                for who in case or other.split()[:-1]:
                    named[who] = value
            halves.append((default, named))
        found[help_of_flag.split()[0]] = halves if len(halves) == 2 else halves * 2
    return found


def test_help_tells_the_values_that_runs_have(capsys, monkeypatch):
    """For every network: on A2D, and on drawn scenes on a CPU, on a GPU, from random weights."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        train.parse_args(["--help"])
    told = told_defaults(capsys.readouterr().out)
    assert told.keys() >= {"--epochs", "--lr", "--batch-size", "--image-size", "--seed", "--data"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for arch, flags in itertools.product(model.ARCHITECTURES, (
        "--data A2D/", "", "--device cpu", "--device cpu --weights none", "--weights none",
    )):  # fmt: skip
        args = vars(train.parse_args(["--arch", arch, *flags.split()]))
        drawn = "A2D" not in flags
        for flag, halves in told.items():
            if flag in BY_OTHER_RULES:
                continue
            value, named = halves[drawn]
            value = named.get(arch, value)
            if drawn and arch != "tiny":
                value = named.get("on a GPU", value) if "cpu" not in flags else value
                value = named.get("from random weights", value) if "none" in flags else value
            wanted = args[flag[2:].replace("-", "_")]
            wanted = wanted if isinstance(wanted, list) else [wanted]
            assert [type(w)(v) for w, v in zip(wanted, value.split(), strict=True)] == wanted


@pytest.mark.parametrize("flags", [
    "--data A2D/", "--arch tiny", "--arch resnet34 --weights none --lr 0.0123456789012",
    "--data A2D/ --t-max 0 --clip-grad 0 --workers 0 --weight-decay 0 --dropout 0",
    "--data A2D/ --schedule multistep --without gamma hsv --with vflip --ema 0.999 --compile",
    "--data mine.csv --val 'of mine.csv' --images 'some folder/' --head linear --seed 3",
    "--arch efficientnet_b7 --data A2D/ --out 'a b' --freeze-bn --device cpu",
])  # fmt: skip
def test_the_command_line_that_is_printed_makes_the_run_again(flags):
    args = train.parse_args(shlex.split(flags))
    again = train.parse_args(shlex.split(train.command_line(args)))
    for name, value in vars(args).items():
        if name not in ("argv", "may_go_without", "milestones", "t_max"):
            assert vars(again)[name] == value, name
    if args.schedule != "cosine":
        assert again.milestones == args.milestones
    if args.schedule != "multistep":
        assert again.t_max == args.t_max


def test_each_rank_has_a_gpu_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for ranks, flags, device in (
        ("2", "", "cuda:1"), ("2", "--device cuda", "cuda:1"), ("2", "--device cuda:0", "cuda:0"),
        ("2", "--device cpu", "cpu"), ("1", "", "cuda"), ("two", "", "cuda"),
    ):  # fmt: skip
        monkeypatch.setenv("WORLD_SIZE", ranks)
        args = train.parse_args(["--data", "A2D/", *flags.split()])
        assert (args.device, args.ranks) == (device, 2 if ranks == "2" else 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train.parse_args(["--sync-bn"]).sync_bn
    assert "torchrun on GPUs" in usage(capsys, "--sync-bn", "--device", "cpu")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "torchrun on GPUs" in usage(capsys, "--sync-bn", "--device", "cuda")


FINE_TUNED = {
    "weights": "imagenet", "image_size": 128, "augment": "flip", "cache": "ram", "batch_size": 16,
    "accumulate": 1, "optimizer": "adamw", "lr": 1e-3, "head_lr": 1e-3, "weight_decay": 5e-5,
    "schedule": "cosine", "t_max": 0, "warmup": 1, "epochs": 3, "workers": 0, "amp": "off",
}  # fmt: skip
FROM_NOTHING = FINE_TUNED | {
    "weights": "none", "image_size": 64, "augment": "none", "batch_size": 32, "warmup": 0,
    "epochs": 2,
}  # fmt: skip
REPORTS = {
    "head": "mish", "weights": "imagenet", "image_size": 224, "augment": "report", "cache": "off",
    "batch_size": 64, "accumulate": 1, "optimizer": "sgd", "lr": 0.05, "head_lr": 0.05,
    "weight_decay": 5e-5, "schedule": "two-stage", "t_max": 150, "warmup": 0, "epochs": 100,
    "milestones": [5, 10, 20, 40, 75], "dropout": 0.5, "clip_grad": 5.0, "seed": 0, "ema": 0,
    "pos_weight": 0, "freeze_backbone": 0, "fit": "squash", "labels": "visible",
    "without": [], "extra": [], "may_go_without": False,
    "checkpoint_activations": False, "sync_bn": False, "freeze_bn": False, "compile": False,
    "deterministic": False, "dry_run": False, "out": "runs/resnet34-A2D",
    "resume": None, "arch": "resnet34", "data": "A2D/", "val": None, "images": None,
    "device": "cpu", "amp": "off", "ranks": 1,
}  # fmt: skip


def recipe(flags, like, **options):
    """Of the flags' values, those that `like` has."""
    args = vars(train.parse_args([*flags.split(), "--device", "cpu"], **options))
    return {name: args[name] for name in like}


def test_recipes_of_the_report():
    """Everything that a run without flags is made with, on a CPU."""
    assert recipe("--arch resnet34 --data A2D/", REPORTS) == REPORTS
    args = vars(train.parse_args("--arch resnet34 --data A2D/ --device cpu".split()))
    assert args.keys() - REPORTS.keys() == {"workers", "argv", "threads"}
    assert args["workers"] == min(8, os.cpu_count())
    changed = {"batch_size": 24, "accumulate": 3}
    for arch, changes in (
        ("efficientnet_b7", changed), ("pnasnet5large", changed), ("seresnext101", {}),
        ("efficientnet_b0", {}), ("tiny", {"weights": "none", "image_size": 64}),
    ):  # fmt: skip
        wanted = REPORTS | changes | {"arch": arch, "out": f"runs/{arch}-A2D"}
        assert recipe(f"--arch {arch} --data A2D/", wanted) == wanted
    assert train.parse_args(["--data", "A2D/"]).arch == "seresnext101"


def test_recipes_of_the_drawn_scenes(monkeypatch):
    """A published network is fine-tuned; from random weights, other rates and sizes."""
    assert recipe("--arch resnet34", FINE_TUNED) == FINE_TUNED
    assert recipe("--arch resnet34 --weights none", FROM_NOTHING) == FROM_NOTHING
    assert recipe("--arch resnet34", FROM_NOTHING, scratch=True) == FROM_NOTHING
    tiny = FROM_NOTHING | {"lr": 4e-3, "head_lr": 4e-3, "epochs": 30}
    assert recipe("--arch tiny", tiny) == tiny
    lite = FINE_TUNED | {"epochs": 5}
    assert recipe("--arch efficientnet_lite0 --data demo:9/9", lite) == lite
    given = FROM_NOTHING | {"lr": 0.1, "head_lr": 0.1, "image_size": 96}
    assert recipe("--arch resnet34 --lr 0.1 --image-size 96", given, scratch=True) == given
    assert train.parse_args(["--arch", "resnet34"]).may_go_without
    for flags in ("--arch tiny", "--arch resnet34 --weights imagenet", "--data A2D/"):
        assert not train.parse_args(flags.split()).may_go_without
    own = train.parse_args(["--data", "demo.csv"])  # a file, and not the drawn scenes
    assert (own.image_size, own.optimizer, own.may_go_without) == (224, "sgd", False)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_a_gpu = {"epochs": 20, "image_size": 224, "cache": "device", "workers": 0}
    on_a_gpu |= {"amp": "fp16", "device": "cuda"}
    args = vars(train.parse_args(["--arch", "resnet34"]))
    assert {name: args[name] for name in on_a_gpu} == on_a_gpu
    args = train.parse_args(["--arch", "tiny"])
    assert (args.epochs, args.image_size, args.device) == (30, 64, "cuda")


def test_run_folders_are_called_after_network_and_data():
    for flags, folder in (
        ("--arch tiny", "runs/tiny-demo"),
        ("--arch tiny --data demo:8/4", "runs/tiny-demo"),
        ("--data Release/", "runs/seresnext101-A2D"),
        ("--data somewhere/Mine.CSV", "runs/seresnext101-Mine"),
        ("--data somewhere/mine.csv --out x", "x"),
    ):
        assert train.parse_args(flags.split()).out == folder


def usage(capsys, *flags):
    with pytest.raises(SystemExit) as caught:
        train.parse_args(list(flags))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_wrong_flags_are_refused_together(capsys):
    flags = "--lr -1 --epochs 0 --batch-size 0 --ema 1 --dropout 2 --seed -1"
    message = usage(capsys, *flags.split())
    for flag in ("--lr", "--epochs", "--batch-size", "--ema", "--dropout", "--seed"):
        assert f"{flag} " in message.split("error:")[1]
    assert "--head mish" in usage(capsys, "--head", "linear", "--dropout", "0.1")
    assert "--augment report" in usage(capsys, "--augment", "none", "--without", "gamma")
    assert "--device" in usage(capsys, "--device", "tpu")
    assert "--dry-run and --resume" in usage(capsys, "--resume", "--dry-run")
    assert "--cache device" in usage(capsys, "--cache", "device", "--workers", "2")
    assert "invalid choice" in usage(capsys, "--resume", "last.pt")
    assert "--freeze-backbone" in usage(capsys, "--freeze-backbone", "3")
    assert "--out: names no folder" in usage(capsys, "--out", "")
    assert "invalid choice" in usage(capsys, "--arch", "resnet35")
    assert usage(capsys, "--arch", "resnet43").endswith("; did you mean resnet34?\n")
    assert usage(capsys, "--epcohs=3").endswith("--epcohs=3; did you mean --epochs?\n")
    assert usage(capsys, "--bananas", "3").endswith("arguments: --bananas 3\n")
    assert "--val, --images" in usage(capsys, "--val", "a.csv")
    assert "--labels" in usage(capsys, "--augment", "none", "--labels", "frame")
    assert "--milestones" in usage(capsys, "--schedule", "cosine", "--milestones", "5")
    assert "--t-max" in usage(capsys, "--schedule", "multistep", "--t-max", "9")
    assert "--milestones" in usage(capsys, "--schedule", "multistep", "--milestones", "0", "2")
    if not torch.cuda.is_available():
        assert "no CUDA" in usage(capsys, "--device", "cuda")


def test_a_gpu_that_is_not_there_is_refused(capsys, monkeypatch):
    """torch would take cuda:256 for cuda:0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name in ("cuda:2", "cuda:256"):
        assert f"{name}: the last GPU here is cuda:1" in usage(capsys, "--device", name)
    with monkeypatch.context() as torchrun:
        for name, value in (("RANK", "2"), ("LOCAL_RANK", "2"), ("WORLD_SIZE", "3")):
            torchrun.setenv(name, value)
        assert "cuda:2: the last GPU here is cuda:1, and torchrun's processes" in usage(capsys)
    for name in ("cuda:01", "cuda:1000", "cuda:-1", "gpu"):
        assert "is cpu, cuda or cuda:N" in usage(capsys, "--device", name)
    for name in ("cuda", "cuda:1", "cpu"):
        assert train.parse_args(["--device", name]).device == name


LONG = "9" * 300
BOUNDS = {  # flag: the last values that are taken, the first that are not
    "--lr": ("1e-12 1e30", "0 -1 nan inf 1e31"), "--head-lr": ("1e-12 1e30", "0 nan inf"),
    "--epochs": ("1 1000000", f"0 1000001 {LONG}"), "--batch-size": ("1 100000", f"0 {LONG}"),
    "--accumulate": ("1 100000", f"0 100001 {LONG}"), "--image-size": ("32 4096", "31 4097"),
    "--weight-decay": ("0 1000", "-1e-9 nan inf"), "--t-max": ("0 1000000000", f"-1 {LONG}"),
    "--warmup": ("0 0.1 1e6", "-0.1 nan inf"), "--freeze-backbone": ("0", f"-1 {LONG}"),
    "--clip-grad": ("0 1e9", "-1e-9 1e39 inf nan"), "--pos-weight": ("0 1e6", "-0.1 1e39 inf nan"),
    "--workers": ("0 512", f"-1 513 {'9' * 31}"), "--milestones": ("1", f"0 -1 {LONG}"),
    "--seed": (f"0 {2**62 - 1}", f"-1 {2**62} {LONG}"), "--dropout": ("0 1", "-0.01 1.01 nan"),
    "--ema": ("0 0.999999", "-0.01 1 nan"),
}  # fmt: skip


@pytest.mark.parametrize("flag", BOUNDS)
def test_values_up_to_the_bound_are_taken(capsys, flag):
    taken, refused = (values.split() for values in BOUNDS[flag])
    data = ["--data", "A2D/"]
    for value in taken:
        args = vars(train.parse_args([*data, flag, value]))
        given = args[flag[2:].replace("-", "_")]
        assert given == ([int(value)] if isinstance(given, list) else type(given)(value))
    for value in refused:
        message = usage(capsys, *data, f"{flag}={value}").split("error: ")[1]
        first, *others = message.split("; ")
        assert first.startswith(f"{flag} ") and ": must be " in first
        # --lr gives its value to --head-lr, and --freeze-backbone leaves no epoch.
        expected = flag == "--lr" or (flag == "--freeze-backbone" and value != "-1")
        assert len(others) == expected


TOGETHER = {  # flags that cannot work: what is said of them, and the like that can
    "--head linear --dropout 0.1": ("--dropout belongs", ["--head linear", "--dropout 0.1"]),
    "--augment none --without gamma": ("need --augment report", ["--without gamma"]),
    "--augment flip --with sharpen": ("need --augment report", ["--augment report --with sharpen"]),
    "--augment none --labels frame": ("need --augment report", ["--labels frame"]),
    "--schedule cosine --milestones 9": ("cosine has none", ["--schedule multistep --milestones 9",
                                                             "--milestones 9"]),
    "--schedule multistep --t-max 9": ("of the cosine", ["--schedule cosine --t-max 9",
                                                         "--t-max 9"]),
    "--epochs 2 --freeze-backbone 2": ("no epoch for it", ["--epochs 3 --freeze-backbone 2"]),
    "--cache device --workers 1": ("in no other", ["--cache ram --workers 1", "--cache device"]),
    "--sync-bn": ("torchrun on GPUs", []),
    "--device cpu:0": ("is cpu, cuda or cuda:N", ["--device cpu"]),
    "--device acuda": ("is cpu, cuda or cuda:N", []),
    "--dry-run --resume": ("choose one", ["--dry-run", "--resume"]),
}  # fmt: skip


@pytest.mark.parametrize("flags", TOGETHER)
def test_flags_that_cannot_work_together_are_refused_and_others_are_not(capsys, flags):
    says, others = TOGETHER[flags]
    assert says in usage(capsys, "--data", "A2D/", *flags.split()).split("error: ")[1]
    for other in others:
        train.parse_args(["--data", "A2D/", *other.split()])


# ------------------------------------------------------------------------------ their effects

LR = 0.02  # SMALL's
ETA_MIN = 5e-6
N, BATCH, STEPS = 22, 8, 3  # frames, SMALL's batch, steps an epoch


def cosine(step, t_max=150, lr=LR):
    return ETA_MIN + (lr - ETA_MIN) * (1 + math.cos(math.pi * step / t_max)) / 2


def both(rates):
    """Backbone and head at the same rates."""
    return [(rate, rate) for rate in rates]


def head_at(head_lr):
    """The cosine's rates, and the head's, which have the same factor."""
    return [(cosine(step), head_lr * cosine(step) / LR) for step in range(STEPS)]


ONE_EPOCH = [both(map(cosine, range(3)))]
TWO_EPOCHS = [*ONE_EPOCH, both(map(cosine, range(3, 6)))]
# flags, [(rate of backbone and head in each step) of each epoch], what plain.Training is made with
CASES = {
    "--optimizer sgd": ("--weight-decay 0.1", ONE_EPOCH, {"decay": 0.1}),
    "--optimizer adam": (
        "--optimizer adam --lr 0.001 --weight-decay 0.1",
        [both(cosine(s, lr=0.001) for s in range(3))],
        {"make": torch.optim.Adam, "decay": 0.1},
    ),
    "--optimizer adamw": (
        "--optimizer adamw --lr 0.001 --weight-decay 0.1",
        [both(cosine(s, lr=0.001) for s in range(3))],
        {"make": torch.optim.AdamW, "decay": 0.1},
    ),
    "--lr": ("--lr 0.003", [both(cosine(s, lr=0.003) for s in range(3))], {}),
    "--head-lr": ("--head-lr 0.1", [head_at(0.1)], {}),
    "--clip-grad": ("--clip-grad 0.05", ONE_EPOCH, {"clip": 0.05}),
    "--batch-size": ("--batch-size 5", [both(map(cosine, range(5)))], {}),
    "--accumulate": ("--accumulate 2", [both(map(cosine, range(2)))], {}),
    "--pos-weight": ("--pos-weight 3", ONE_EPOCH, {}),
    "--epochs": ("--epochs 2", TWO_EPOCHS, {}),
    "--freeze-backbone": ("--freeze-backbone 1 --epochs 2", TWO_EPOCHS, {}),
    "--freeze-bn": ("--freeze-bn", ONE_EPOCH, {"freeze_bn": True}),
    "--ema": ("--ema 0.9", ONE_EPOCH, {"ema": 0.9}),
    "--ema 0.1": ("--ema 0.1", ONE_EPOCH, {"ema": 0.1}),
    "--t-max": ("--t-max 2", [both(cosine(s, 2) for s in range(3))], {}),
    "--t-max 0": ("--t-max 0 --epochs 2", [both(cosine(s, 6) for s in range(3)),
                                           both(cosine(s, 6) for s in range(3, 6))], {}),
    "--milestones": (
        "--schedule multistep --milestones 1 --epochs 2", [both([LR] * 3), both([LR / 4] * 3)], {},
    ),
    "--schedule two-stage": (
        "--schedule two-stage --milestones 1 --epochs 3",
        [both(map(cosine, range(3))), both([LR / 10] * 3), both([LR / 40] * 3)], {},
    ),
    "--warmup": (
        "--warmup 1 --schedule multistep --milestones 9 --epochs 2",
        [both([LR / 4, LR / 2, 3 * LR / 4]), both([LR] * 3)], {},
    ),
    "--seed": ("--seed 3 --epochs 2", TWO_EPOCHS, {}),
    "--head": ("--head linear", ONE_EPOCH, {}),
    "--dropout": ("--dropout 0.3 --epochs 2", TWO_EPOCHS, {}),
    "--image-size": ("--image-size 48", ONE_EPOCH, {}),
    "--fit": ("--fit letterbox", ONE_EPOCH, {}),
    "--augment flip": ("--augment flip", ONE_EPOCH, {}),
    "--augment report": ("--augment report", ONE_EPOCH, {}),
    "--without": ("--augment report --without crop rotate hsv", ONE_EPOCH, {}),
    "--with": ("--augment report --with vflip sharpen", ONE_EPOCH, {}),
    "--labels": ("--augment report --labels frame", ONE_EPOCH, {}),
    "--amp": ("--amp bf16", ONE_EPOCH, {}),
    "--checkpoint-activations": ("--checkpoint-activations", ONE_EPOCH, {}),
    "--workers": ("--workers 1 --cache off", ONE_EPOCH, {}),
}  # fmt: skip
TESTS = Path(__file__).parent
# What no case above shows, and the test that does.
ELSEWHERE = {
    "--arch": "test_flags.py test_recipes_of_the_drawn_scenes",
    "--weights": "test_flags.py test_weights_of_a_file",
    "--sync-bn": "test_flags.py test_wrong_flags_are_refused",  # it needs several GPUs
    "--val": "test_layouts.py test_a_list_of_validation",
    "--images": "test_layouts.py test_what_people_have",
    "--data": "test_train.py test_train_and_evaluate_own_classes",
    "--cache": "test_train.py test_frames_kept_are_decoded_once",
    "--compile": "test_train.py test_a_resumed_run_ends",
    "--deterministic": "test_flags.py test_deterministic",
    "--device": "test_train.py test_no_step_waits_for_a_pretended_gpu",
    "--out": "test_flags.py test_run_folders_are_called",
    "--resume": "test_flags.py test_a_resume_goes_on",
    "--dry-run": "test_train.py test_dry_run",
}


def test_no_flag_is_left_out(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(["--help"])
    flags = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.M))
    shown = {word for name, (given, *_) in CASES.items() for word in f"{name} {given}".split()}
    shown = {word for word in shown if word.startswith("--")}
    assert flags == shown | ELSEWHERE.keys()
    for flag, place in ELSEWHERE.items():
        file, test = place.split()
        assert f"def {test}" in (TESTS / file).read_text(), flag


@pytest.fixture(scope="module")
def frames(scenes):
    """split -> (levels of each frame, labels (N, 43), the data set)."""
    found = {}
    for split in ("train", "val"):
        dataset = data.A2D(scenes, split)
        levels = [plain.read(scenes / "pngs320H" / f"{name}.png") for name in dataset.names]
        found[split] = levels, dataset.labels, dataset
    return found


def options(flags):
    """The flags that say what the network sees, as the oracle takes them."""
    given = flags.split()

    def after(flag, default):
        return given[given.index(flag) + 1] if flag in given else default

    return {
        "size": int(after("--image-size", 32)), "fit": after("--fit", "squash"),
        "seed": int(after("--seed", 0)), "batch": int(after("--batch-size", BATCH)),
        "accumulate": int(after("--accumulate", 1)), "augment": after("--augment", "none"),
        "labels": after("--labels", "visible"), "without": following(given, "--without"),
        "extra": following(given, "--with"), "dropout": float(after("--dropout", 0)),
    }  # fmt: skip


def following(given, flag):
    if flag not in given:
        return ()
    names = []
    for word in given[given.index(flag) + 1 :]:
        if word.startswith("--"):
            break
        names.append(word)
    return names


def batches(frames, epoch, seen):
    """What plain.Training.epoch takes: the images and labels of each window's micro-batches."""
    levels, labels, dataset = frames["train"]
    colours = seen.get("mean", plain.IMAGENET[0]), seen.get("std", plain.IMAGENET[1])
    views = [plain.view(frame, seen["size"], seen["fit"], *colours) for frame in levels]
    views = torch.stack(views)
    order = data.order(N, seen["seed"], epoch)
    torch.manual_seed(seen["seed"] + epoch)  # the report reseeds, and dropout alone draws from it
    micro, result = 0, []
    for window in plain.windows(order, seen["batch"], seen["accumulate"]):
        part = []
        for rows in window:
            draws = augment.generator(seen["seed"], epoch, micro)
            images, wanted = views[rows], labels[rows]
            if seen["augment"] == "flip":
                drawn = torch.rand(len(rows), generator=draws) < 0.5
                images = torch.where(drawn[:, None, None, None], images.flip(3), images)
            if seen["augment"] == "report":
                images, wanted = reported(dataset, rows, draws, seen)
            kept = F.dropout(torch.ones(len(rows), 256), seen["dropout"])
            part.append((images, wanted, kept))
            micro += 1
        result.append(part)
    return result


def reported(dataset, rows, draws, seen):
    """The rows under the report's augmentation, which test_augment.py compares with others'."""
    batch = data.collate([dataset[i] for i in rows])
    transform = augment.ReportAugment(
        seen["size"], *plain.IMAGENET, without=seen["without"], extra=seen["extra"],
        labels=seen["labels"],
    )  # fmt: skip
    return transform(batch.frames, draws, batch.labels, batch.label_maps, batch.sizes)


def positive_weights(labels, cap):
    """Negatives over positives of the training frames, at most cap; a class without positives has
    the cap."""
    positives = labels.sum(0)
    return ((len(labels) - positives) / positives).clamp(max=cap)


PARTS = {"statistics": "running", "head": r"^head\.", "backbone": r"^blocks\..*(weight|bias)$"}


def change(after, before, part):
    """What training has made of a part of the network, as one vector."""
    names = [name for name in sorted(before) if re.search(PARTS[part], name)]
    return torch.cat([(after[k].detach().double() - before[k].double()).flatten() for k in names])


def away(ours, theirs, before):
    """The distance of two trained networks, in parts of the way that both went: the largest of
    backbone, head and statistics. What has not moved must not."""
    found = []
    for part in PARTS:
        expected = change(theirs, before, part)
        error = (change(ours, before, part) - expected).norm()
        assert expected.any() or not error
        found.append((error / expected.norm()).item() if expected.any() else 0.0)
    return max(found)


# float32 against float64, three to nine steps: 3e-4 of the way, and 4e-3 where rounding moves the
# place of a maximum or the sign before a ReLU; bf16, of 8 bits, 0.2. A forgotten momentum, decay,
# weight or rate is 5e-2 of the way or more.
CLOSE, CLOSE_BF16 = 1e-2, 0.4


def begin(frames, seed=0, head="mish"):
    """The weights before the first step: random, the last bias from the training labels."""
    torch.manual_seed(seed)
    start = model.create_model("tiny", 43, head).state_dict()
    frequency = frames["train"][1].double().mean(0)
    bias = "head.bias" if head == "linear" else "head.3.bias"
    start[bias] = frequency.clamp(1e-4, 1 - 1e-4).logit().float()
    return start


def validation_loss(frames, weights, seen):
    levels, labels, _ = frames["val"]
    images = torch.stack([plain.view(frame, seen["size"], seen["fit"]) for frame in levels])
    return plain.cross_entropy(plain.tiny(weights, images), labels.double()).mean().item()


@pytest.mark.parametrize("name", CASES)
def test_the_run_is_the_plain_training(scenes, frames, tmp_path, name):
    flags, rates, given = CASES[name]
    seen = options(flags)
    command = "--augment none --epochs 1 --weight-decay 0".split()
    if name != "--head":
        command += ["--dropout", "0"]
    assert run(scenes, tmp_path / "run", *command, *flags.split()) == 0

    start = begin(frames, seen["seed"], "linear" if name == "--head" else "mish")
    if name == "--pos-weight":
        given = given | {"pos_weight": positive_weights(frames["train"][1], 3)}
    training = plain.Training(start, **given)
    rows = []
    for epoch, rate in enumerate(rates):
        frozen = name == "--freeze-backbone" and epoch == 0
        rows.append(training.epoch(batches(frames, epoch, seen), rate, frozen))

    close = CLOSE_BF16 if name == "--amp" else CLOSE
    last = checkpoint.load(tmp_path / "run/last.pt")
    assert away(last["model"], training.weights, start) < close
    if name == "--amp":
        assert away(last["model"], training.weights, start) > CLOSE  # it did compute in 16 bits
    assert (last["average"] is None) == (training.average is None)
    if training.average:
        assert away(last["average"], training.average, start) < close
        assert away(last["average"], training.weights, start) > 0.05
    log = checkpoint.read_log(tmp_path / "run/log.jsonl")
    for logged, expected in zip(log, rows, strict=True):
        assert logged["lr"] == pytest.approx(expected["lr"], rel=1e-6)
        assert logged["loss"] == pytest.approx(expected["loss"], rel=close / 2)
        assert logged["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=2 * close)
    expected = validation_loss(frames, training.scored(), seen)
    assert log[-1]["val_loss"] == pytest.approx(expected, rel=close / 2)


def test_a_resume_goes_on_where_the_run_was(scenes, frames, tmp_path):
    """Momentum, the average and its number of steps are those of the first epoch, and so is the
    threshold at which the augmented frames are scored."""
    flags = "--augment none --dropout 0 --weight-decay 0 --ema 0.9".split()
    assert run(scenes, tmp_path, *flags, "--epochs", "1") == 0
    assert run(scenes, tmp_path, *flags, "--epochs", "2", "--resume", "override") == 0
    seen, start = options(""), begin(frames)
    training = plain.Training(start, ema=0.9)
    for epoch in (0, 1):
        rates = both(cosine(3 * epoch + step) for step in range(3))
        training.epoch(batches(frames, epoch, seen), rates)
    last = checkpoint.load(tmp_path / "last.pt")
    assert away(last["model"], training.weights, start) < CLOSE
    assert away(last["average"], training.average, start) < CLOSE
    assert last["averaged"] == 6
    for state, name in zip(last["optimizer"]["state"].values(), training.trained, strict=False):
        momentum = training.optimizer.state[training.weights[name]]["momentum_buffer"]
        assert torch.allclose(state["momentum_buffer"].double(), momentum, rtol=0.05, atol=1e-4)

    first, second = checkpoint.read_log(tmp_path / "log.jsonl")
    labels = frames["train"][1][data.order(N, 0, 1)].bool()
    predicted = training.probabilities >= first["threshold"]
    hits = (predicted & labels).sum(1).double()
    expected = {
        "precision": hits / predicted.sum(1).clamp(min=1), "recall": hits / labels.sum(1),
        "f1": 2 * hits / (predicted.sum(1) + labels.sum(1)),
    }  # fmt: skip
    for name, values in expected.items():
        # a probability beside the threshold may fall on its other side: one label of 22 frames
        assert second[name] == pytest.approx(values.mean().item(), abs=0.02), name
    assert first["f1"] == 0 < second["f1"] - 0.05


def test_an_average_that_a_resume_adds_begins_with_its_weights(scenes, frames, tmp_path):
    flags = "--augment none --dropout 0 --weight-decay 0".split()
    assert run(scenes, tmp_path, *flags, "--epochs", "1") == 0
    assert run(scenes, tmp_path, *flags, "--epochs", "2", "--resume", "override",
               "--ema", "0.9") == 0  # fmt: skip
    seen, start = options(""), begin(frames)
    training = plain.Training(start)
    training.epoch(batches(frames, 0, seen), both(map(cosine, range(3))))
    training.ema = 0.9
    training.epoch(batches(frames, 1, seen), both(map(cosine, range(3, 6))))
    last = checkpoint.load(tmp_path / "last.pt")
    assert away(last["average"], training.average, start) < CLOSE


def test_weights_of_a_file_are_trained_in_its_own_colours(scenes, frames, tmp_path):
    """--weights: backbone, head and what the pictures are normalised by are the file's; the last
    bias is the training labels'."""
    torch.manual_seed(5)
    net = model.create_model("tiny", 43)
    colours = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    state = {"config": net.config, "model": net.state_dict(),
             "input_config": net.input_config | colours}  # fmt: skip
    torch.save(state, tmp_path / "theirs.pt")
    flags = "--augment none --dropout 0 --weight-decay 0 --epochs 1".split()
    assert run(scenes, tmp_path / "run", *flags, "--weights", str(tmp_path / "theirs.pt")) == 0

    start = net.state_dict() | {"head.3.bias": begin(frames)["head.3.bias"]}
    assert all(torch.equal(value, start[name]) for name, value in checkpoint.load(
        tmp_path / "run/last.prev.pt")["model"].items())  # fmt: skip
    seen = options("") | colours
    training = plain.Training(start)
    training.epoch(batches(frames, 0, seen), both(map(cosine, range(3))))
    last = checkpoint.load(tmp_path / "run/last.pt")
    assert away(last["model"], training.weights, start) < CLOSE
    assert last["input_config"] == {"size": 32, "interpolation": "bilinear"} | colours


@pytest.mark.parametrize("given", [True, False])
def test_deterministic_is_asked_of_torch(scenes, tmp_path, given):
    flags = ["--deterministic"] * given
    assert run(scenes, tmp_path, *flags, "--epochs", "1") == 0
    assert torch.are_deterministic_algorithms_enabled() == given
    assert torch.backends.cudnn.benchmark == (not given)


def saved_bytes(function):
    """What a function's forward passes keep for their backward passes."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(sizes)


def test_checkpointed_activations_are_not_kept(scenes, tmp_path):
    flags = "--augment none --epochs 1 --batch-size 22".split()
    all_of_them = saved_bytes(lambda: run(scenes, tmp_path / "a", *flags))
    some = saved_bytes(lambda: run(scenes, tmp_path / "b", *flags, "--checkpoint-activations"))
    assert 0 < some < all_of_them / 2


# ------------------------------------------------------------------ what a run derives and keeps


@pytest.fixture(scope="module")
def averaged(scenes, tmp_path_factory):
    """The folder of two epochs of which an average is scored."""
    out = tmp_path_factory.mktemp("averaged")
    assert run(scenes, out, "--ema", "0.9", "--lr", "0.3") == 0
    return out


def sklearns(predicted, labels, average="samples"):
    """Precision, recall, F1."""
    *scores, _ = sklearn.metrics.precision_recall_fscore_support(
        labels.bool(), predicted, average=average, zero_division=0
    )
    return scores


def test_the_log_and_the_best_are_of_the_average_on_validation_frames(averaged, frames):
    last = checkpoint.load(averaged / "last.pt")
    row = checkpoint.read_log(averaged / "log.jsonl")[-1]
    levels, labels, _ = frames["val"]
    images = torch.stack([plain.view(frame, 32) for frame in levels])
    probabilities = plain.tiny(last["average"], images).sigmoid()
    threshold, f1 = plain.best_f1(probabilities, labels)
    assert row["threshold"] == last["threshold"] == threshold
    assert row["val_f1"] == pytest.approx(f1, abs=1e-6)
    loss = F.binary_cross_entropy(probabilities, labels.double()).item()
    assert row["val_loss"] == pytest.approx(loss, rel=1e-5)
    at_half = probabilities >= 0.5
    or_best = at_half | (F.one_hot(probabilities.argmax(1), 43).bool() & ~at_half.any(1)[:, None])
    chosen = probabilities >= threshold
    for names, predicted in (
        (("val_precision", "val_recall", "val_f1"), chosen), ((0, 0, "val_f1_at_half"), at_half),
        ((0, 0, "val_f1_top1"), or_best),
    ):  # fmt: skip
        for name, value in zip(names, sklearns(predicted, labels), strict=True):
            assert not name or row[name] == pytest.approx(value, abs=1e-9)
    present = labels.any(0)
    mean_ap = sklearn.metrics.average_precision_score(labels[:, present], probabilities[:, present])
    assert row["val_map"] == pytest.approx(mean_ap, abs=1e-6)
    others = plain.tiny(last["model"], images).sigmoid()
    assert (others - probabilities).abs().max() > 1e-3  # the raw weights would score otherwise

    log = checkpoint.read_log(averaged / "log.jsonl")
    best = checkpoint.load(averaged / "best.pt")
    assert best["best"]["epoch"] == best["epoch"] == 1 + max(
        range(2), key=lambda epoch: log[epoch]["val_f1"]
    )
    assert best["threshold"] == log[best["epoch"] - 1]["threshold"]


def test_checkpoints_hold_these_keys_and_no_others(averaged):
    last, best = (checkpoint.load(averaged / name) for name in ("last.pt", "best.pt"))
    keys = {"config", "class_names", "frequency", "input_config", "args", "epoch", "best",
            "threshold", "model", "average", "averaged", "optimizer", "scaler",
            "frames", "trained_on", "best_sha256"}  # fmt: skip
    assert last.keys() == best.keys() == keys
    assert best["optimizer"] is None and best["scaler"] is None
    assert last["optimizer"]["state"] and last["scaler"] == {}  # without fp16 it has no scale
    assert last["config"] == {
        "arch": "tiny", "num_classes": 43, "head": "mish", "dropout": 0.5
    }  # fmt: skip
    assert last["input_config"] == {
        "size": 32, "mean": plain.IMAGENET[0], "std": plain.IMAGENET[1],
        "interpolation": "bilinear",
    }  # fmt: skip
    assert (last["epoch"], last["averaged"]) == (2, 6)
    assert last["class_names"] == data.CLASSES
    assert json.loads(json.dumps(last["args"])) == last["args"]
    own = model.create_model("tiny", 43).state_dict()
    for state in (last, best):
        assert state["model"].keys() == state["average"].keys() == own.keys()


def test_positives_are_weighed_by_the_training_labels_alone(tmp_path):
    """Three training frames in four have the label, no validation frame has it."""
    labels = ["a", "a", "a", "", "", "", "", ""]
    splits = ["train"] * 4 + ["val"] * 4
    rows = [((30, 30), (30 * i, 90, 200 - 20 * i), *row)
            for i, row in enumerate(zip(labels, splits, strict=True))]  # fmt: skip
    own = plain.own_csv(tmp_path, ["a", "b"], rows)
    flags = "--augment none --epochs 1 --dropout 0 --lr 1e-9 --pos-weight 2".split()
    assert run(own, tmp_path / "run", *flags) == 0
    state = checkpoint.load(tmp_path / "run/last.prev.pt")
    assert state["frequency"].tolist() == [0.75, 0]
    expected = torch.tensor([0.75, 1e-4], dtype=torch.float64).logit()
    assert torch.allclose(state["model"]["head.3.bias"].double(), expected, rtol=1e-6)

    images = torch.stack([plain.view(plain.read(tmp_path / f"{i}.png"), 32) for i in range(4)])
    labels = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 0]], dtype=torch.float64)
    logits = plain.tiny(state["model"], images, batch_statistics=True)
    weight = torch.tensor([1 / 3, 2], dtype=torch.float64)  # (1 - 3/4) / (3/4), and the cap
    expected = plain.cross_entropy(logits, labels, weight).mean().item()
    row = checkpoint.read_log(tmp_path / "run/log.jsonl")[0]
    assert row["loss"] == pytest.approx(expected, rel=1e-4)
