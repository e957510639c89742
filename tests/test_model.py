"""model.py against the peers, the published tables and its own promises about training.

    python -m pytest tests/test_model.py
    python -m pytest tests/test_model.py -m slow   # every architecture, source, size: half an hour

The peers are built on the meta device and filled with random weights. Each BN takes statistics near
those of its own input in one forward pass, in forward order: perturbing them all afterwards makes
deep networks chaotic. Their state dicts then go through weights.load. Features are compared as
max |difference| / std, to 1e-3 in float32 (other orders of summation give up to 1.4e-4) and 1e-9 in
float64; every deliberate mistake below gives more than 1e-2. At 64 px the last maps of B5 and B7
are 2 x 2, and a change of 1e-7 becomes one of .05: there only float64 says something.
"""

import copy
import importlib
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import model
import weights
from model import COEFFICIENTS, create_model
from tests import plain
from tests.plain import shapes_alone
from weights import NORM

timm = pytest.importorskip("timm")

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
MISTAKE = 1e-2


# ----------------------------------------------------------------------------------------- peers


def pretrainedmodels(name, **options):
    net = getattr(pytest.importorskip("pretrainedmodels"), name)(pretrained=None, **options)
    net.avg_pool = nn.AdaptiveAvgPool2d(1)  # theirs is fixed to the native size
    return net


def lukemelas(arch):
    peer = pytest.importorskip("efficientnet_pytorch").EfficientNet
    net = peer.from_name(arch.replace("_", "-"), image_size=None)  # None: pad by the map at hand
    net._global_params = net._global_params._replace(drop_connect_rate=0)
    return net


def torchvision_net(arch):
    drop = {"stochastic_depth_prob": 0.0} if "efficient" in arch else {}
    return getattr(torchvision.models, arch)(**drop)


SE = "se_resnext101_32x4d"
PEERS = {  # (arch, naming, flavour, peer) -> its constructor
    ("resnet34", "torchvision", None, "torchvision"): lambda: torchvision_net("resnet34"),
    ("resnet34", "timm", None, "timm"): lambda: timm.create_model("resnet34"),
    ("resnet34", "cadene", None, "pretrainedmodels"): lambda: pretrainedmodels("resnet34"),
    ("seresnext101", "cadene", "cadene", "timm"): lambda: timm.create_model(
        "legacy_seresnext101_32x4d"
    ),
    ("seresnext101", "cadene", "cadene", "pretrainedmodels"): lambda: pretrainedmodels(SE),
    ("seresnext101", "timm", "gluon", "timm"): lambda: timm.create_model("seresnext101_32x4d"),
    ("pnasnet5large", "timm", None, "timm"): lambda: timm.create_model("pnasnet5large"),
    ("pnasnet5large", "cadene", None, "pretrainedmodels"): lambda: pretrainedmodels(
        "pnasnet5large", num_classes=1001
    ),
}
for arch in COEFFICIENTS:
    sources = {
        ("torchvision", "torchvision", "torchvision"): partial(torchvision_net, arch),
        ("timm", "tf", "timm"): partial(timm.create_model, f"tf_{arch}"),
        ("lukemelas", "tf", "efficientnet_pytorch"): partial(lukemelas, arch),
    }
    if arch[-1] in "01234":
        own = partial(timm.create_model, arch)
        sources["timm", "torchvision", "timm, its own"] = own
    if arch == "efficientnet_lite0":  # which the other two do not have
        sources = {source: build for source, build in sources.items() if source[0] == "timm"}
    PEERS.update({(arch, *source): build for source, build in sources.items()})


def on_cpu(build, dtype):
    """A network in memory that is left as it is."""
    with shapes_alone():
        net = build()
    return net.to(dtype).to_empty(device="cpu")


def randomise(peer, x):
    """Random weights of He's scale; BN statistics .3 sigma and x .6 to 1.6 off those of x. Returns
    the features and logits that the peer then has for x."""
    generator = torch.Generator().manual_seed(0)
    for module in peer.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = math.sqrt(6 / module.weight[0].numel())
            module.weight.data.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.data.uniform_(-0.3, 0.3, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
            module.num_batches_tracked.zero_()

    def calibrate(bn, inputs):
        variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
        shift = torch.empty_like(mean).uniform_(-0.5, 0.5, generator=generator)  # sigma .29
        scale = torch.empty_like(mean).uniform_(0.6, 1.6, generator=generator)
        bn.running_mean.copy_(mean + shift * variance.sqrt())
        bn.running_var.copy_(variance * scale + 1e-6)

    hooks = [
        m.register_forward_pre_hook(calibrate)
        for m in peer.modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    last = [m for m in peer.modules() if isinstance(m, nn.Linear)][-1]
    features = []
    hooks.append(last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0])))
    with torch.no_grad():
        logits = peer.eval()(x)
    for hook in hooks:
        hook.remove()
    return features[0], logits


def pair(case, size, dtype=torch.float32, **options):
    """A randomised peer, ours with its weights, and images with the peer's features and logits."""
    arch, naming, flavour, _ = case
    width = size[1] if isinstance(size, tuple) else size
    height = size[0] if isinstance(size, tuple) else size
    x = torch.randn(2, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))
    peer = on_cpu(PEERS[case], dtype)
    theirs = randomise(peer, x)
    if flavour:
        options["flavour"] = flavour
    net = on_cpu(lambda: create_model(arch, 1000, "linear", **options), dtype)
    assert weights.load(net, peer.state_dict(), naming) == "classifier loaded"
    return peer, net.eval(), x, *theirs


def difference(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.std())


def case_name(case):
    return "-".join(str(part) for part in case if part)


def check_equal(case, sizes, dtypes):
    for size in sizes:
        for dtype in dtypes:
            _, net, x, features, logits = pair(case, size, dtype)
            if logits.shape[1] == 1001:
                logits = logits[:, 1:]
            with torch.no_grad():
                ours = net.forward_features(x)
                assert ours.shape == (2, net.num_features)
                assert difference(ours, features) < TOLERANCE[dtype]
                assert difference(net.head(ours), logits) < TOLERANCE[dtype]


# Sizes: one even at every SAME layer, one where they differ, one not square. Most are in float64:
# on maps this small float32 alone is 2e-3 off it, ours and the peer's, and another CPU other.
# All of PEERS, at 224 px, are in the slow half.
QUICK = [
    (("resnet34", "torchvision", None, "torchvision"), [(65, 84)], [torch.float64]),
    (("seresnext101", "cadene", "cadene", "timm"), [(64, 66)], [torch.float64]),
    (("pnasnet5large", "timm", None, "timm"), [(64, 75)], [torch.float32]),
    (("efficientnet_b0", "torchvision", "torchvision", "torchvision"), [40], [torch.float64]),
    (("efficientnet_b0", "timm", "tf", "timm"), [(40, 43)], [torch.float64]),
    (("efficientnet_b0", "lukemelas", "tf", "efficientnet_pytorch"), [(64, 75)], [torch.float64]),
    (("efficientnet_b0", "timm", "torchvision", "timm, its own"), [64], [torch.float64]),
    (("efficientnet_b7", "timm", "tf", "timm"), [64], [torch.float64]),
    (("efficientnet_lite0", "timm", "tf", "timm"), [40], [torch.float64]),
]


@pytest.mark.parametrize(("case", "sizes", "dtypes"), QUICK, ids=[case_name(q[0]) for q in QUICK])
def test_features_equal_the_peers(case, sizes, dtypes):
    check_equal(case, sizes, dtypes)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", PEERS, ids=case_name)
def test_features_equal_every_peer_at_224_and_an_odd_size(case, dtype):
    other = 235 if case[0] == "pnasnet5large" else 107  # the sizes where Cadene's padding is right
    sizes = [other, 236] if case[3] == "pretrainedmodels" and "pnas" in case[0] else [224, other]
    check_equal(case, sizes, [dtype])


# ------------------------------------------------------------------------------ negative controls


def features_of(net, x):
    with torch.no_grad():
        return net.forward_features(x)


def with_eps(eps):
    def change(net):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = eps

    return change


def symmetric(net):
    for module in net.modules():
        if isinstance(module, model.SameConv2d):
            module.__class__ = nn.Conv2d  # its own padding is k // 2


def same(net):
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.__class__ = model.SameConv2d


def other_stem_pool(net):
    net.pool_padding = 1 - net.pool_padding


def squeeze_by_maximum(net):
    for module in net.modules():
        if isinstance(module, model.SqueezeExcitation):
            module.squeeze = torch.amax


MISTAKES = [
    (("resnet34", "torchvision", None, "torchvision"), 64, with_eps(1e-3)),
    (("seresnext101", "cadene", "cadene", "timm"), 64, other_stem_pool),
    (("seresnext101", "timm", "gluon", "timm"), 64, other_stem_pool),
    (("seresnext101", "timm", "gluon", "timm"), 64, squeeze_by_maximum),
    (("seresnext101", "timm", "gluon", "timm"), 64, with_eps(1e-3)),
    (("pnasnet5large", "timm", None, "timm"), 64, symmetric),
    (("pnasnet5large", "timm", None, "timm"), 64, with_eps(1e-5)),
    (("efficientnet_b0", "timm", "tf", "timm"), 64, symmetric),
    (("efficientnet_b0", "timm", "tf", "timm"), 64, with_eps(1e-5)),
    (("efficientnet_b0", "torchvision", "torchvision", "torchvision"), 64, same),
    (("efficientnet_b0", "torchvision", "torchvision", "torchvision"), 64, with_eps(1e-3)),
    (("efficientnet_b0", "torchvision", "torchvision", "torchvision"), 64, squeeze_by_maximum),
    (("efficientnet_b7", "timm", "tf", "timm"), 64, symmetric),
    (("efficientnet_b7", "timm", "tf", "timm"), 64, with_eps(1e-5)),
]
SMALL = ("resnet34", "efficientnet_b0")


@pytest.mark.parametrize(
    ("case", "size", "change"),
    [
        pytest.param(*m, marks=() if m[0][0] in SMALL else pytest.mark.slow, id=f"{m[0][0]}-{i}")
        for i, m in enumerate(MISTAKES)
    ],
)
def test_a_mistake_is_seen(case, size, change):
    _, net, x, features, _ = pair(case, size, torch.float64)
    assert difference(features_of(net, x), features) < TOLERANCE[torch.float64]
    change(net)
    assert difference(features_of(net, x), features) > MISTAKE


@pytest.mark.slow
def test_a_missing_last_relu_is_seen():
    _, net, x, features, _ = pair(("pnasnet5large", "timm", None, "timm"), 64)
    last = []
    net.cell_11.register_forward_hook(lambda cell, inputs, output: last.append(output))
    assert difference(features_of(net, x), features) < TOLERANCE[torch.float32]
    assert difference(last[0].mean((2, 3)), features) > MISTAKE


def test_symmetric_padding_is_same_padding_where_every_strided_map_is_odd():
    """At 1 mod 32, so no test at such a size can tell the flavours apart."""
    _, net, x, *_ = pair(("efficientnet_b0", "timm", "tf", "timm"), 65)
    before = features_of(net, x)
    symmetric(net)
    assert torch.equal(features_of(net, x), before)


# ------------------------------------------------------------------------------------- train mode


def train_step(net, x):
    net.train()
    if hasattr(net, "drop_rate"):
        net.drop_rate = 0.0  # timm's legacy SE networks drop features without a module for it
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    logits = net(x)
    logits.square().mean().backward()
    gradient = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters()))
    return logits.detach(), gradient


TRAINED = [
    (("resnet34", "torchvision", None, "torchvision"), ()),
    (("efficientnet_b0", "timm", "tf", "timm"), ()),
    (("efficientnet_b0", "torchvision", "torchvision", "torchvision"), ()),
    (("efficientnet_b5", "torchvision", "torchvision", "torchvision"), pytest.mark.slow),
    (("seresnext101", "cadene", "cadene", "timm"), pytest.mark.slow),
    (("seresnext101", "timm", "gluon", "timm"), pytest.mark.slow),
    (("pnasnet5large", "timm", None, "timm"), pytest.mark.slow),
    (("efficientnet_b7", "timm", "tf", "timm"), pytest.mark.slow),
]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=marks, id=case_name(case)) for case, marks in TRAINED]
)
def test_a_training_step_equals_the_peer(case):
    """Batch statistics, gradient, and the step of the running means: only there momentum shows."""
    options = {"drop_connect": 0.0} if "efficient" in case[0] else {}
    peer, net, x, *_ = pair(case, 40 if case[0] in SMALL else 96, torch.float64, **options)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    (theirs, their_gradient), (ours, gradient) = train_step(peer, x), train_step(net, x)
    # float64, but the last maps have 2 x 2 x 2 values a channel to normalise by
    assert difference(ours, theirs) < 1e-7
    assert gradient == pytest.approx(their_gradient, rel=1e-6)
    after, expected = net.state_dict(), weights.rename(net, peer.state_dict(), case[1])
    means = [key for key in after if key.endswith("running_mean")]
    step = torch.cat([after[key] - before[key] for key in means])
    assert difference(step, torch.cat([expected[key] - before[key] for key in means])) < 1e-7
    assert after[means[0].replace("running_mean", "num_batches_tracked")] == 1


# ------------------------------------------------------------------------------- tables and shapes


PARAMETERS = {  # with 1000 classes; without; with the report's head; features; BN layers
    "resnet34": (21_797_672, 21_284_672, 21_427_051, 512, 36),
    "seresnext101": (48_955_416, 46_906_416, 47_442_011, 2048, 104),
    "pnasnet5large": (86_057_668, 81_736_668, 82_853_895, 4320, 201),
    "efficientnet_b0": (5_288_548, 4_007_548, 4_346_535, 1280, 49),
    "efficientnet_b1": (7_794_184, 6_513_184, 6_852_171, 1280, 69),
    "efficientnet_b2": (9_109_994, 7_700_994, 8_072_749, 1408, 69),
    "efficientnet_b3": (12_233_232, 10_696_232, 11_100_755, 1536, 78),
    "efficientnet_b4": (19_341_616, 17_548_616, 18_018_675, 1792, 96),
    "efficientnet_b5": (30_389_784, 28_340_784, 28_876_379, 2048, 116),
    "efficientnet_b6": (43_040_704, 40_735_704, 41_336_835, 2304, 134),
    "efficientnet_b7": (66_347_960, 63_786_960, 64_453_627, 2560, 163),
    "efficientnet_lite0": (4_652_008, 3_371_008, 3_709_995, 1280, 49),
}


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameter_counts(arch):
    with shapes_alone():
        linear, mish = create_model(arch, 1000, "linear"), create_model(arch)
    total, backbone, with_mish, features, norms = PARAMETERS[arch]

    def count(net):
        return sum(p.numel() for p in net.parameters())

    assert (count(linear), count(mish)) == (total, with_mish)
    assert count(linear) - count(linear.head) == backbone
    assert linear.num_features == features
    assert sum(isinstance(m, nn.BatchNorm2d) for m in linear.modules()) == norms


@pytest.mark.parametrize(
    "case",
    [
        ("resnet34", "torchvision", None, "torchvision"),
        ("seresnext101", "timm", "gluon", "timm"),
        ("pnasnet5large", "timm", None, "timm"),
        ("efficientnet_b4", "torchvision", "torchvision", "torchvision"),
        ("efficientnet_b5", "torchvision", "torchvision", "torchvision"),
        ("efficientnet_b5", "timm", "tf", "timm"),
    ],
    ids=case_name,
)
def test_batch_norms_have_the_peers_eps_and_momentum(case):
    with shapes_alone():
        options = {"flavour": case[2]} if case[2] else {}
        nets = PEERS[case](), create_model(case[0], 1000, "linear", **options)
    theirs, ours = (
        {(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
        for net in nets
    )
    assert ours == theirs


TINY = {  # each block's convolution: (out, in), and the head
    "blocks.0.conv": (24, 3), "blocks.1.conv": (48, 24), "blocks.2.conv": (96, 48),
    "blocks.3.conv": (112, 96), "blocks.4.conv": (96, 112),
    "head.0": (256, 96), "head.3": (43, 256),
}  # fmt: skip


@pytest.mark.parametrize("size", [32, 47, 64])
def test_tiny_is_its_five_convolutions(size):
    """Its pools too: each feature is a maximum of the last map."""
    torch.manual_seed(0)
    net = create_model("tiny").double()
    shapes = {name: tuple(net.get_submodule(name).weight.shape[:2]) for name in TINY}
    assert shapes == TINY and net.num_features == 96
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    moving = dict(before)
    net.head[2].p = 0.0
    trained = net(images)
    wanted = plain.tiny(before, images, batch_statistics=True, moving=moving)
    assert torch.allclose(trained, wanted, rtol=1e-9, atol=1e-12)
    after = net.eval().state_dict()
    side = (size + 1) // 2 // 8
    assert net.feature_map(images).shape == (3, 96, side, side)
    assert all(torch.allclose(after[name], moving[name]) for name in after)
    assert torch.allclose(net(images), plain.tiny(after, images), rtol=1e-9, atol=1e-12)


def test_a_model_without_options_is_the_reports():
    with torch.device("meta"):
        net = create_model("tiny")
    first, _, dropout, last = net.head
    assert (first.out_features, dropout.p, last.out_features) == (256, 0.5, 43)
    assert net.config == {"arch": "tiny", "num_classes": 43, "head": "mish", "dropout": 0.5}


@pytest.mark.parametrize("arch, at_224, at_own", [
    ("efficientnet_b7", "5.170", "37.746 @ 600"), ("resnet34", "3.664", "3.664 @ 224"),
    pytest.param("pnasnet5large", "10.818", "24.937 @ 331", marks=pytest.mark.slow),
    pytest.param("seresnext101", "7.975", "7.975 @ 224", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_table_of_the_command(capsys, monkeypatch, arch, at_224, at_own):
    monkeypatch.setattr(model, "ARCHITECTURES", {arch: model.ARCHITECTURES[arch]})
    with pytest.raises(SystemExit, match="2"):
        model.main(["foo"])
    model.main([])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines[arch].split()[3] == at_224 and at_own in lines[arch]
    assert lines["b0"].split()[1:] == ["1.0", "1.0", "224", "1.00", "1.00", "224"]
    assert lines["b7"].split()[1:] == ["2.0", "3.1", "600", "1.95", "3.58", "596"]  # 1.1^7, 1.2^7


def test_the_scaling_rule_is_near_the_published_table_and_is_not_it():
    assert model.compound_scaling(0) == (1, 1, 224) == COEFFICIENTS["efficientnet_b0"]
    width, depth, resolution = model.compound_scaling(7)
    assert (round(width, 2), round(depth, 2), round(resolution)) == (1.95, 3.58, 596)
    for arch, published in COEFFICIENTS.items():
        best = min(  # within 17 % at the best exponent: B7 is the furthest, by its depth
            max(abs(math.log(a / b)) for a, b in zip(rule, published, strict=True))
            for rule in (model.compound_scaling(phi / 20) for phi in range(141))
        )
        assert best < math.log(1.17), arch
    blocks = sum(math.ceil(repeats * depth) for _, repeats, *_ in model.STAGES)
    assert (blocks, model.round_channels(1280, width)) == (61, 2496)
    with torch.device("meta"):
        b7 = create_model("efficientnet_b7")
    assert (sum(b7.repeats), b7.num_features) == (55, 2560)


def test_round_channels_is_torchvisions():
    divisible = torchvision.models._utils._make_divisible
    for channels in (16, 24, 32, 40, 80, 112, 192, 320, 1280, 1, 7, 9, 11):
        for width in (0.1, 0.5, 1.0, 1.1, 1.2, 1.4, 1.6, 1.8, 1.95, 2.0):
            assert model.round_channels(channels, width) == divisible(channels * width, 8)


def test_se_squeezes_a_quarter_of_the_blocks_input_and_drop_connect_rises_from_zero():
    with torch.device("meta"):
        blocks = [b for stage in create_model("efficientnet_b7").stages for b in stage]
    assert [b.se.fc1.out_channels for b in blocks[:5]] == [16, 8, 8, 8, 8]
    assert [b.drop_connect for b in blocks] == pytest.approx([0.2 * i / 55 for i in range(55)])
    assert [b.residual for b in blocks[:5]] == [False, True, True, True, False]


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_convolution_is_timms(kernel, stride):
    conv2d_same = importlib.import_module("timm.layers.conv2d_same").conv2d_same
    conv = model.SameConv2d(2, 4, kernel, stride, kernel // 2, groups=2).double()
    for height in range(1, 20):
        x = torch.randn(1, 2, height, 21 - height, dtype=torch.float64)
        expected = conv2d_same(x, conv.weight, conv.bias, (stride, stride), (0, 0), (1, 1), 2)
        assert torch.equal(conv(x), expected)
        assert conv(x).shape[2:] == (math.ceil(height / stride), math.ceil((21 - height) / stride))


@pytest.mark.parametrize("stride", [1, 2])
def test_same_pool_is_timms_and_never_its_padding(stride):
    max_pool2d_same = importlib.import_module("timm.layers.pool2d_same").max_pool2d_same
    for height in range(1, 20):
        x = -1 - torch.rand(1, 2, height, 21 - height)  # zeros would win if they padded
        expected = max_pool2d_same(x, (3, 3), (stride, stride))
        assert torch.equal(model.max_pool_same(x, stride), expected)
    assert model.max_pool_same(torch.full((1, 1, 4, 5), -math.inf), stride).isinf().all()


def test_factorized_reduction_by_its_definition():
    block = on_cpu(lambda: model.FactorizedReduction(3, 4), torch.float64).eval()
    randomise(
        nn.Sequential(
            block,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            on_cpu(lambda: nn.Linear(4, 1), torch.float64),
        ),
        torch.randn(2, 3, 6, 6, dtype=torch.float64),
    )
    for size in ((6, 6), (7, 7), (6, 7), (1, 2)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        y = x.clamp(min=0)
        shifted = torch.zeros_like(y)
        shifted[:, :, :-1, :-1] = y[:, :, 1:, 1:]
        halves = [
            torch.einsum("oc,bchw->bohw", path.conv.weight[:, :, 0, 0], z[:, :, ::2, ::2])
            for path, z in ((block.path_1, y), (block.path_2, shifted))
        ]
        expected = block.final_path_bn(torch.cat(halves, 1))
        torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)  # float64 sums of 3


def test_squeeze_excitation_by_its_equations():
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    for pool, squeeze in (("avg", np.mean), ("max", np.max)):
        se = model.SqueezeExcitation(8, 2, nn.ReLU(), pool).double()
        w1, b1, w2, b2 = (p.detach().numpy().squeeze() for p in se.parameters())
        s = squeeze(x.numpy(), (2, 3)) @ w1.T + b1
        gate = 1 / (1 + np.exp(-(np.maximum(s, 0) @ w2.T + b2)))
        np.testing.assert_allclose(se(x).detach(), x.numpy() * gate[..., None, None], rtol=1e-12)
        assert torch.autograd.gradcheck(se, x.clone().requires_grad_())


def test_drop_connect_skips_samples_and_keeps_the_expectation():
    torch.manual_seed(0)
    block = create_model("efficientnet_b0", drop_connect=0.8).stages[1][1].train()
    assert block.residual and block.drop_connect == pytest.approx(0.8 * 2 / 16)
    block.drop_connect = 0.7
    x = torch.randn(1, 24, 4, 4).expand(4000, -1, -1, -1)  # equal samples: equal batch statistics
    added = block(x) - x
    kept = added.flatten(1).abs().amax(1) > 0
    assert abs(kept.float().mean() - 0.3) < 0.03  # 4 sigma of 4000 draws at .3
    block.drop_connect = 0.0
    branch = (block(x) - x)[kept]
    torch.testing.assert_close(added[kept], branch / 0.3, rtol=1e-3, atol=1e-3)  # after x is added
    expected = block.eval()(x[:2])
    block.drop_connect = 0.7
    assert torch.equal(block(x[:2]), expected)


@pytest.mark.parametrize("arch", ["tiny", "resnet34", "efficientnet_b0"])
@pytest.mark.parametrize("head", ["mish", "linear"])
def test_forward_is_head_of_features(arch, head):
    net = create_model(arch, 7, head).eval()
    x = torch.randn(1, 3, 47, 33)
    with torch.no_grad():
        features = net.forward_features(x)
        assert features.shape == (1, net.num_features)
        assert torch.equal(net(x), net.head(features)) and net(x).shape == (1, 7)
        strided = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(net(strided), net(x), rtol=1e-3, atol=1e-4)  # other kernels


def test_options_are_checked_and_rebuild_the_net():
    net = create_model("efficientnet_b0", 5, "linear", flavour="torchvision", se_pool="max")
    again = create_model(**net.config)
    assert again.config == net.config and str(again) == str(net)
    assert net.input_config == {
        "size": 224, "mean": NORM[0], "std": NORM[1], "interpolation": "bicubic"
    }  # fmt: skip
    for arguments, listed in (
        ({"arch": "resnet"}, "resnet34"),
        ({"arch": "resnet34", "head": "softmax"}, "mish, linear"),
        ({"arch": "seresnext101", "flavour": "caffe"}, "cadene, gluon"),
        ({"arch": "seresnext101", "se_pool": "min"}, "avg, max"),
        ({"arch": "efficientnet_b0", "se": False}, "has no se"),
        ({"arch": "tiny", "flavour": "tf"}, "has no flavour"),
        ({"arch": "ResNet50"}, "did you mean resnet34"),
        ({"arch": None}, "arch None: choose from tiny"),
        ({"arch": "tiny", "num_class": 5}, "num_classes, .*did you mean num_classes"),
        ({"arch": "seresnext101", "se_pol": "max"}, "did you mean se_pool"),
        ({"arch": "resnet34", "pretrained": True}, 'has no pretrained, .*; .* weights="imagenet"'),
        ({"arch": "resnet34", "weights": True}, 'weights True: "imagenet", '),
    ):
        with pytest.raises(ValueError, match=listed):
            create_model(**arguments)
    create_model("tiny", flavour=None)  # an unset option of another architecture


# ----------------------------------------------------------------------------------------- training


def test_class_activation_of_a_linear_head_is_cam():
    """Zhou et al. 2016, eq. 1: the maps, weighted by the linear layer behind the average pool."""
    torch.manual_seed(0)
    net, images = create_model("resnet34", 5, "linear").eval(), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = torch.einsum("f,bfhw->bhw", net.head.weight[3], net.feature_map(images)).relu()
    expected /= expected.amax((1, 2), keepdim=True)
    ours = model.class_activation(net.train(), images, 3)
    assert ours.shape == (2, 1, 3, 2) and not net.training
    assert torch.allclose(ours[:, 0], expected, rtol=1e-4, atol=1e-6)  # sums of 512 in float32
    assert all(p.grad is None for p in net.parameters())


def one_step(arch, size, checkpoint_activations, **options):
    torch.manual_seed(3)
    net = create_model(
        arch, 5, checkpoint_activations=checkpoint_activations, dropout=0.5, **options
    )
    torch.manual_seed(4)  # dropout and drop_connect
    net(torch.randn(3, 3, size, size)).square().mean().backward()
    return {f"{k}.grad": p.grad for k, p in net.named_parameters()} | net.state_dict()


@pytest.mark.parametrize(
    "arch",
    ["tiny", "resnet34", "efficientnet_b0"]
    + [pytest.param(a, marks=pytest.mark.slow) for a in ("seresnext101", "pnasnet5large")],
)
def test_checkpointing_activations_changes_nothing(arch):
    """Gradients, and the running statistics that a second forward would move twice, bit for bit."""
    options = {"drop_connect": 0.9} if arch in COEFFICIENTS else {}  # drawn once, used twice
    plain, checkpointed = (one_step(arch, 64, flag, **options) for flag in (False, True))
    assert len(plain) == len(checkpointed)
    for name, value in plain.items():
        assert torch.equal(value, checkpointed[name]), name


def test_checkpointing_keeps_less():
    def kept(flag):
        net, total = create_model("resnet34", 5, checkpoint_activations=flag), 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            net(torch.randn(1, 3, 64, 64))
        return total - sum(p.numel() for p in net.parameters())

    assert kept(True) < 0.5 * kept(False)


def test_frozen_parts_do_not_move():
    net = create_model("resnet34", 5).train()
    x = torch.randn(2, 3, 64, 64)

    def moved(**frozen):
        model.set_frozen(net, **frozen)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        net.train()  # as every epoch does
        net.zero_grad()
        net(x).square().mean().backward()
        trained = {name for name, p in net.named_parameters() if p.grad is not None}
        return trained, {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}

    names = {name for name, _ in net.named_parameters()}
    norms = {name for name in names if re.search(r"bn\d\.|downsample\.1", name)}
    head = {name for name in names if name.startswith("head.")}
    assert moved(backbone=True) == (head, set())
    assert moved(bn=True) == (names - norms, set())
    trained, changed = moved()
    assert trained == names and len(changed) == 36 * 3
    assert net.head.training and net.layer1.training
    net.eval()
    model.set_frozen(net, backbone=True)
    assert not any(m.training for m in net.modules())
    net.train()
    assert net.head.training and not net.layer1[0].bn1.training


def test_initial_weights_have_hes_variance():
    for conv in (m for m in create_model("efficientnet_b0").modules() if isinstance(m, nn.Conv2d)):
        n, k = conv.weight.numel(), conv.kernel_size[0]
        expected = 2 / (k * k * conv.out_channels / conv.groups)
        spread = math.sqrt(2 / n)  # of a mean of n squares of normal numbers, over their variance
        assert abs(float(conv.weight.detach().square().mean()) / expected - 1) < 6 * spread


def test_parameter_groups_hold_every_parameter_once():
    net = create_model("efficientnet_b0")
    backbone, head = model.parameter_groups(net, 0.1, head_lr=0.3, weight_decay=5e-5)
    assert {id(p) for p in backbone["params"] + head["params"]} == {id(p) for p in net.parameters()}
    assert len(backbone["params"] + head["params"]) == len(list(net.parameters()))
    assert {id(p) for p in head["params"]} == {id(p) for p in net.head.parameters()}
    optimizer = torch.optim.SGD([backbone, head])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-5, 5e-5]
    assert [g["lr"] for g in model.parameter_groups(net, 0.1)] == [0.1, 0.1]


@pytest.mark.parametrize("head", ["mish", "linear"])
def test_prior_bias(head):
    net = create_model("tiny", 4, head)
    model.set_prior_bias(net, [0.25, 0.0, 1.0, 0.5])
    bias = (net.head[-1] if head == "mish" else net.head).bias.detach()
    expected = [math.log(1 / 3), math.log(1e-4 / (1 - 1e-4)), math.log((1 - 1e-4) / 1e-4), 0.0]
    torch.testing.assert_close(bias, torch.tensor(expected), rtol=1e-6, atol=1e-6)  # float32
    net.head(torch.zeros(1, net.num_features)).sum().backward()


@pytest.mark.parametrize(
    ("arch", "lr", "steps"),
    [
        ("tiny", 0.5, 60),
        pytest.param("resnet34", 0.05, 40, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 0.5, 60, marks=pytest.mark.slow),
        pytest.param("seresnext101", 0.05, 60, marks=pytest.mark.slow),
        pytest.param("pnasnet5large", 0.05, 60, marks=pytest.mark.slow),
    ],
)
def test_learns_one_batch_from_scratch(arch, lr, steps):
    """Momentum .9 as in the report; where features are means of normalised maps, lr .05 is slow."""
    torch.manual_seed(0)
    net = create_model(arch, 43, dropout=0.0).train()
    x = F.interpolate(torch.randn(16, 3, 4, 4), size=(64, 64), mode="bilinear")
    y = (torch.rand(16, 43) < 0.1).float()
    model.set_prior_bias(net, y.mean(0))
    optimizer = torch.optim.SGD(model.parameter_groups(net, lr), momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < 0.5 * losses[0], losses[:: max(1, steps // 10)]


@pytest.mark.parametrize("checkpoint_activations", [False, True])
@pytest.mark.parametrize("arch", ["tiny", pytest.param("efficientnet_b0", marks=pytest.mark.slow)])
def test_compiles_whole_and_trains_alike(arch, checkpoint_activations):
    """Without the code generator, so that equal means equal: gradients and buffers."""
    options = {} if arch == "tiny" else {"drop_connect": 0.0}
    net = create_model(arch, 5, "linear", checkpoint_activations=checkpoint_activations, **options)
    compiled = copy.deepcopy(net)
    x = torch.randn(2, 3, 48, 43)
    for run in (net, torch.compile(compiled, backend="aot_eager", fullgraph=True)):
        run(x).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert torch.equal(compiled.get_parameter(name).grad, parameter.grad), name
    for name, value in net.state_dict().items():
        assert torch.equal(compiled.state_dict()[name], value), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("arch", ["seresnext101", "efficientnet_b0", "pnasnet5large"])
def test_cuda_equals_cpu(arch):
    net = create_model(arch, 5, "linear").eval()
    x = torch.randn(2, 3, 75, 64)
    with torch.no_grad():
        expected = net.double()(x.double())
        got = net.cuda().to(memory_format=torch.channels_last)(x.double().cuda())
    assert difference(got.cpu(), expected) < 1e-9


@pytest.mark.parametrize("size", [32, 64])
def test_activations_of_tiny_counted_by_hand(size):
    """Of each block: convolution, BN, ReLU, and the pool, or what stands for it."""
    numbers, side = 0, size
    for width, stride, pool in model.TINY:
        side //= stride
        numbers += 3 * width * side**2
        side //= 2 if pool else 1
        numbers += width * side**2
    found = model.activation_bytes({"arch": "tiny", "num_classes": 7, "head": "linear"}, size)
    assert found == 4 * (numbers + 7)  # float32
