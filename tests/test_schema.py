"""schema.py: whatever stands in a file, it is refused by its key, or nothing changes by it."""

import collections
import copy
import math
import random

import pytest
import torch
from test_train import SMALL

import checkpoint
import evaluate
import model
import train
import weights

pytestmark = pytest.mark.usefixtures("own_cache", "signals")

LARGE = 10**400
OWN = {"step": 3, "w": torch.zeros(2, 3), "inner": {"n": torch.zeros((), dtype=torch.int64)}}
MISFITS = {  # a part of OWN: what is given, what is said of it
    "a dict": ({}, "x.step: is missing"), "no dict": ([], "x: of type list, must be a dict"),
    "shape": ({"w": torch.zeros(3, 2)}, "x.w: float32 (3, 2), must be float32 (2, 3)"),
    "dtype": ({"w": torch.zeros(2, 3).double()}, "x.w: float64 (2, 3), must be float32 (2, 3)"),
    "tensor": ({"w": 1.5}, "x.w: 1.5, must be a tensor"),
    "NaN": ({"w": torch.full((2, 3), math.nan)}, "x.w: numbers from nan to nan, must be from -1e+30"
            " to 1e+30"),
    "count": ({"inner": {"n": torch.tensor(-1)}}, "x.inner.n: numbers from -1 to -1, must be from 0"
              " to 1e+30"),
    "number": ({"step": -1}, "x.step: -1, must be a whole number from 0 to"),
    "bool": ({"step": True}, "x.step: True, must be a whole number"),
    "many digits": ({"step": LARGE}, "x.step: a number of more than 18 digits, must be a whole"),
    "key": ({"more\n": 1}, "x.more\\n: is unexpected"),
    "overlap": ({"w": torch.zeros(1).expand(2, 3)}, "x.w: (2, 3) elements overlap in memory"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_a_misfit_is_named_by_its_key_and_nothing_is_copied(tmp_path, name):
    given, said = MISFITS[name]
    own = copy.deepcopy(OWN)
    whole = given if name in ("a dict", "no dict") else OWN | given
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.restore(tmp_path / "a.pt", "x", whole, own)
    assert str(caught.value).startswith(f"{tmp_path}/a.pt: {said}")
    assert equal(own, OWN)


RUNS = {
    "sgd": "--optimizer sgd --lr 0.02 --amp fp16",
    "adam": "--optimizer adam --lr 0.001",
    "adamw": "--optimizer adamw --lr 0.001 --ema 0.9",
}
WORLD = train.distributed.World()


class Ran:
    """A finished run of two epochs: its flags, its frames, what its last.pt holds."""

    def __init__(self, scenes, folder, optimizer):
        flags = [*SMALL, *RUNS[optimizer].split(), "--epochs", "2", "--data", str(scenes)]
        flags += ["--out", str(folder), "--cache", "ram"]
        assert train.main(flags) == 0
        self.folder, self.last = folder, folder / "last.pt"
        self.args = train.parse_args([*flags, "--resume"])
        self.sets = evaluate.open_sets(str(scenes), keep="cpu", size=32).values()
        self.state = checkpoint.load(self.last)
        self.content = self.last.read_bytes()

    def resumed(self):
        """All that goes on from last.pt, by train.py's own steps."""
        run = checkpoint.Run(self.folder, "same")
        try:
            args = train.settle_weights(self.args, run.saved, WORLD)
            run.refuse_other_flags(vars(args), train.FREE_TO_CHANGE)
            trainer = train.make_trainer(args, run.saved, *self.sets, WORLD)
        finally:
            run.lock.close()
        about = {"args": None, "best_sha256": run.named, "trained_on": None}
        return trainer.state() | about

    def evaluated(self):
        """All that a score depends on, of which last.pt may be a best.pt."""
        predictor = evaluate.Predictor(self.last, "cpu")
        view = {name: getattr(predictor.transform, name) for name in ("size", "mean", "std", "fit")}
        return {"net": predictor.net.state_dict(), "view": view, "classes": predictor.classes,
                "threshold": predictor.threshold}  # fmt: skip

    def as_weights(self):
        """All that a training begins with, of which last.pt is the --weights."""
        net = model.create_model("tiny", 43, weights=str(self.last))
        state = net.state_dict()
        # What BN counts need not be in a file of weights, and nothing reads it.
        used = {key: value for key, value in state.items() if "num_batches" not in key}
        return {"net": used, "inputs": net.input_config}


@pytest.fixture(scope="module")
def ran(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: Ran(scenes, folder / name, name) for name in RUNS}


def equal(a, b):
    """Whether two trees are of the same bits."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def places(value, path=()):
    """The path of every part of a tree but its root."""
    if not isinstance(value, (list, dict)):
        return
    for key in range(len(value)) if isinstance(value, list) else value:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def part(tree, path):
    for key in path:
        tree = tree[key]
    return tree


DROPPED = object()


def changed(tree, path, value):
    """A copy of the containers of a tree, with another part."""
    if not path:
        return value
    tree = list(tree) if isinstance(tree, list) else dict(tree)
    if value is DROPPED and len(path) == 1:
        del tree[path[0]]
    else:
        tree[path[0]] = changed(tree[path[0]], path[1:], value)
    return tree


def mutants(value):
    """(what is done, the value in its place) of a leaf."""
    yield "dropped", DROPPED
    if not isinstance(value, str):
        yield "a text", "text"
    yield "None", None
    yield "a list", [[]]
    if not isinstance(value, torch.Tensor):
        yield "NaN", math.nan
        yield "huge", 1e39
        yield "larger", LARGE
        yield "below 0", -1e39
        yield "a tensor", torch.zeros(2)
        return

    yield "a number", 1.0
    yield "a dict", {"a": value}
    yield "a dimension more", value[None]
    yield "zeros(0)", torch.zeros(0)
    yield "zeros(2)", torch.zeros(2)
    yield "float64", value.double() if value.dtype != torch.float64 else value.float()
    yield "sparse", torch.zeros(3, 3).to_sparse()
    yield "meta", torch.empty(value.shape, device="meta")
    yield "huge", torch.zeros(1).expand(10**9)
    if value.shape != (1,):
        yield "zeros(1)", torch.zeros(1, dtype=value.dtype)
    if value.ndim == 2:
        yield "turned", value.t().contiguous()
    if value.is_floating_point():
        yield "of NaN", torch.full_like(value, math.nan)
        yield "of infinity", torch.full_like(value, math.inf)
        yield "of 1e38", torch.full_like(value, 1e38)
    if value.numel() > 1:
        yield "stride 0", torch.zeros(1, dtype=value.dtype).expand(value.shape)
    if value.ndim > 1:
        yield "overlapping", torch.zeros(value.numel(), dtype=value.dtype).as_strided(
            value.shape, [1] * value.ndim)  # fmt: skip


def is_refused_or_equal(ran, use, state, expected):
    """Whether a use of the state, with its hash, ends with code 3 in one line; else it is equal."""
    ran.last.write_bytes(b"".join(checkpoint.pack(state)))
    try:
        found = use()
    except ValueError as error:
        assert error.exit_code == 3 and "\n" not in str(error), repr(error)
        assert str(ran.folder) in str(error), str(error)
        return True
    finally:
        ran.last.write_bytes(ran.content)
    assert equal(found, expected)
    return False


USES = [(name, "resumed") for name in RUNS]
USES += [(name, use) for name in ("sgd", "adamw") for use in ("evaluated", "as_weights")]


@pytest.mark.parametrize(
    "every", [pytest.param(1, marks=pytest.mark.slow, id="all"), pytest.param(127, id="some")]
)
@pytest.mark.parametrize("optimizer, use", USES)
def test_every_leaf_of_a_checkpoint(ran, optimizer, use, every):
    """Each in some twenty ways, or every 127th of these: refused in one line, or of no effect."""
    run = ran[optimizer]
    use_it = getattr(run, use)
    expected = copy.deepcopy(use_it())
    whole = run.state
    if use != "resumed":  # of a best.pt, which has less
        whole = whole | {"optimizer": None, "scaler": None, "best_sha256": None}

    leaves = [path for path in places(whole) if not isinstance(part(whole, path), (dict, list))]
    cases = [(path, *mutant) for path in leaves for mutant in mutants(part(whole, path))]
    refused = dict.fromkeys(whole, 0)
    for path, done, other in cases[::every]:
        try:
            state = changed(whole, path, other)
            refused[path[0]] += is_refused_or_equal(run, use_it, state, expected)
        except Exception as error:
            raise AssertionError(f"{path} {done}") from error

    # What is looked at in each part is refused in some way; the others are of no use.
    of_no_use = set() if use == "resumed" else {"args"}
    if not whole["scaler"]:
        of_no_use.add("scaler")
    if every == 1:
        assert {name for name, count in refused.items() if not count} <= of_no_use, refused
    assert sum(refused.values()) > len(cases[::every]) / 2


class Shadowed:
    """Pickled, it is an OrderedDict or a tensor with attributes in the place of its methods."""

    def __init__(self, value, **attributes):
        self.value, self.attributes = value, attributes

    def __reduce__(self):
        if isinstance(self.value, dict):
            return collections.OrderedDict, (), self.attributes, None, iter(self.value.items())
        rebuild, arguments = self.value.__reduce_ex__(2)[:2]
        rest = rebuild, torch.Tensor, arguments, self.attributes
        return torch._tensor._rebuild_from_type_v2, rest


def shadowed(value):
    """All dicts, or all tensors, of a tree so."""
    attributes = ("get", "items", "keys", "values", "_metadata", "pop")
    if isinstance(value, dict):
        return Shadowed({k: shadowed(v) for k, v in value.items()}, **dict.fromkeys(attributes, 5))
    if isinstance(value, list):
        return [shadowed(part) for part in value]
    return value


def shadowed_tensors(value):
    attributes = ("numel", "aminmax", "isfinite", "is_floating_point", "stride", "copy_", "detach",
                  "contiguous", "clamp", "dim", "nbytes_")  # fmt: skip
    if isinstance(value, dict):
        return {k: shadowed_tensors(v) for k, v in value.items()}
    if isinstance(value, torch.Tensor):
        return Shadowed(value, **dict.fromkeys(attributes, torch.Size))
    return value


@pytest.mark.parametrize("make", [shadowed, shadowed_tensors])
@pytest.mark.parametrize("optimizer, use", USES)
def test_attributes_in_the_place_of_methods_do_nothing(ran, optimizer, use, make):
    run = ran[optimizer]
    use_it = getattr(run, use)
    expected = copy.deepcopy(use_it())
    assert not is_refused_or_equal(run, use_it, make(run.state), expected)


def test_a_nan_behind_an_attribute_is_seen(ran):
    run = ran["adam"]
    bad = torch.full_like(run.state["model"]["head.3.bias"], math.nan)
    model = run.state["model"] | {"head.3.bias": Shadowed(bad, numel=torch.Size)}
    assert is_refused_or_equal(run, run.evaluated, run.state | {"model": model}, None)


def test_many_names_of_one_part_take_no_time(tmp_path):
    """40 lists, of which each holds the one before twice: 2^40 parts, if they were copied."""
    value = []
    for _ in range(40):
        value = [value, value]
    torch.save({"model": {"a": torch.zeros(1)}, "more": value}, tmp_path / "w.pth")
    assert weights.unwrap(weights.read(tmp_path / "w.pth"), "w")[0]["a"] == 0
    for _ in range(99):
        value = [value]
    torch.save({"model": {"a": torch.zeros(1)}, "more": value}, tmp_path / "w.pth")
    with pytest.raises(weights.WeightsError, match="nested more than 100 deep"):
        weights.read(tmp_path / "w.pth")


def recursive():
    value = {}
    value["model"] = value["state"] = value
    return value


def strange(rng):
    """Something that no checkpoint has anywhere."""
    return rng.choice([
        DROPPED, None, True, "", "text\x1b[2J", b"bytes", -1, LARGE, math.nan, (), [], {}, {1: 2},
        [[[]]], recursive(), {"a": torch.zeros(2)}, torch.zeros(0), torch.zeros(2, 3).to_sparse(),
        torch.zeros(2, 2).to_sparse_csr(), torch.empty(3, device="meta"), torch.zeros((1,) * 70),
        torch.zeros(4).to(torch.float8_e4m3fn), torch.zeros(4, dtype=torch.complex64),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8), torch.Size([1]),
        torch.float32, torch.zeros(1).expand(2**40),
    ])  # fmt: skip


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]
)
@pytest.mark.filterwarnings("ignore")  # prototypes of torch
def test_random_structural_mutations(ran, seed):
    """100 of each seed: one to three parts of any size replaced, dropped, renamed, or added."""
    rng = random.Random(seed)
    uses = ["resumed", "evaluated", "as_weights"]
    expected = {(name, use): copy.deepcopy(getattr(ran[name], use)()) for name in ran
                for use in uses}  # fmt: skip
    refused = 0
    for _ in range(100):
        name, use = rng.choice(list(RUNS)), rng.choice(uses)
        run, state = ran[name], ran[name].state
        steps = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            # All depths alike, since most parts are tensors far below.
            found = list(places(state))
            depth = rng.choice(sorted({len(path) for path in found}))
            path = rng.choice([path for path in found if len(path) == depth])
            other = strange(rng)
            if rng.random() < 0.2:
                path = (*path[:-1], "more" if isinstance(path[-1], str) else path[-1])
            steps.append((path, repr(other)[:60] if other is not DROPPED else "dropped"))
            try:
                state = changed(state, path, other)
            except (KeyError, IndexError):
                continue
            if other == {} or type(other) is dict:
                break  # what is recursive has no end
        try:
            refused += is_refused_or_equal(run, getattr(run, use), state, expected[name, use])
        except Exception as error:
            raise AssertionError(f"{use} {steps}") from error
    assert refused > 30
