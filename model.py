"""The report's networks, written out; their published ImageNet weights are found by weights.py.

    python model.py           # a table: parameters, multiply-adds, features, published weights
    net = create_model("seresnext101", num_classes=43, weights="imagenet")
    logits = net(images)      # (B, 3, H, W) normalised by net.input_config -> (B, 43)

ResNet-34            He et al. 2016, arXiv 1512.03385, table 1
SE-ResNeXt101 32x4d  Xie et al. 2017, arXiv 1611.05431; Hu et al. 2018, arXiv 1709.01507
PNASNet-5-Large      Liu et al. 2018, arXiv 1712.00559, figure 1
EfficientNet-B0..B7  Tan, Le 2019, arXiv 1905.11946, table 1
EfficientNet-Lite0   Google 2020: B0 without SE, with ReLU6; small, for first runs on a CPU

One set of parameters can be several functions, and weights are right under one of them. `flavour`
says which, and follows the weights unless given:
    efficientnet  tf           SAME padding, computed from the map at hand; BN eps 1e-3
                  torchvision  symmetric padding; BN eps 1e-5 in B0-B4, 1e-3 in B5-B7
    seresnext101  cadene       stem pool in ceil mode, without padding, as in Caffe
                  gluon        stem pool padded by 1
The report says that SE squeezes by the global maximum. The SE paper and all published weights use
the average, so that is the default here, and se_pool="max" the report's wording.
"""

import argparse
import inspect
import math
import os
from collections import OrderedDict
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from layouts import did_you_mean
from mish_kernel import MishHead
from weights import FLAVOURS, WEIGHTS, family, input_config, load, open_weights

BATCH_NORM = (nn.BatchNorm2d, nn.SyncBatchNorm)

# ---------------------------------------------------------------------------- what all of them use


class Network(nn.Module):
    """A backbone's feature_map, a global average pool, and the head on it."""

    checkpoint_activations = frozen_backbone = frozen_bn = False

    def forward(self, images):
        return self.head(self.forward_features(images))  # (B, 3, H, W) -> (B, num_classes)

    def forward_features(self, images):
        return self.pool(self.feature_map(images))  # (B, F, H/32, W/32) -> (B, F); tiny: H/16

    def pool(self, x):
        return x.mean((2, 3))

    def run(self, block, *inputs):
        """block(*inputs), of which checkpoint_activations keeps only the inputs for backward."""
        if not (self.checkpoint_activations and torch.is_grad_enabled()):
            return block(*inputs)
        options = {"use_reentrant": False}
        if not torch.compiler.is_compiling():  # compiled, a buffer is updated once anyway
            options["context_fn"] = lambda: (nullcontext(), averages_held(block))
        return checkpoint(block, *inputs, **options)

    def frozen(self, name, module):
        """Whether set_frozen froze one of named_modules()."""
        backbone = name.partition(".")[0] not in ("", "head")
        bn = isinstance(module, BATCH_NORM)
        return (self.frozen_backbone and backbone) or (self.frozen_bn and bn)

    def train(self, mode=True):
        """As nn.Module's, but what set_frozen froze stays in evaluation mode."""
        super().train(mode)
        for name, module in self.named_modules():
            module.training = module.training and not self.frozen(name, module)
        return self


@contextmanager
def averages_held(block):
    """Meanwhile a block runs a second time, and must not move its BN averages again."""
    norms = [m for m in block.modules() if isinstance(m, BATCH_NORM) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield  # ends in an exception of checkpoint's once it has all it needs
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count


def chain(**modules):
    """nn.Sequential, with the names that the published state dicts use."""
    return nn.Sequential(OrderedDict(modules))


def initialise(net):
    """He et al. 2015: variance 2 / fan_out, fan_out = k k C_out / groups. BN starts as identity."""
    for conv in net.modules():
        if not isinstance(conv, nn.Conv2d):
            continue
        fan_out = conv.weight[:, 0].numel() / conv.groups
        nn.init.normal_(conv.weight, 0, math.sqrt(2 / fan_out))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    return net


class SqueezeExcitation(nn.Module):
    """Scales channels by what the whole map shows: SE paper, eq. 2-4. pool "avg", or "max".

    The two fully connected layers are published as 1x1 convolutions, whose names and shapes stay.
    """

    def __init__(self, channels, squeezed, act, pool):
        super().__init__()
        self.squeeze = torch.mean if pool == "avg" else torch.amax
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.act = act
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x):  # (B, C, h, w)
        z = self.squeeze(x, (2, 3))  # (B, C)  eq. 2
        hidden = F.linear(z, self.fc1.weight.flatten(1), self.fc1.bias)  # (B, squeezed)
        hidden = self.act(hidden)
        scale = F.linear(hidden, self.fc2.weight.flatten(1), self.fc2.bias)  # (B, C)
        scale = scale.sigmoid()  # eq. 3
        return x * scale[:, :, None, None]  # (B, C, h, w)  eq. 4


def same_padding(length, kernel, stride):
    """Pixels before and after a map of that length, so that ceil(length / stride) come out."""
    total = max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """TensorFlow's SAME padding: it depends on the map, and an odd pixel of it goes at the end.

    At stride 2 it is kernel // 2 on both sides if the length is odd, so symmetric padding is right
    only there.
    """

    def forward(self, x):  # (B, in, h, w)
        top, bottom = same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
        padding = (top, left)
        if top != bottom or left != right:
            x = F.pad(x, (left, right, top, bottom))
            padding = 0
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)


TINY = (  # channels, stride, whether a 2x2 max-pool follows
    (24, 2, True),
    (48, 1, True),
    (96, 1, False),
    (112, 1, True),
    (96, 1, False),
)


class Tiny(Network):
    """Five 3x3 convolutions, 0.28 M parameters: learns the drawn scenes at 64 px. From no paper.

    Pools by the maximum, also globally: an actor covers a small part of a frame.
    """

    num_features = 96

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = 3
        for width, stride, pool in TINY:
            block = chain(
                conv=nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                bn=nn.BatchNorm2d(width),
                act=nn.ReLU(inplace=True),
                pool=nn.MaxPool2d(2) if pool else nn.Identity(),
            )
            self.blocks.append(block)
            channels = width

    def feature_map(self, x):  # (B, 3, H, W)
        for block in self.blocks:
            x = self.run(block, x)
        return x  # (B, 96, H/16, W/16)

    def pool(self, x):
        return x.amax((2, 3))


# ------------------------------------------------------------- ResNet-34 and SE-ResNeXt101 32x4d


def shortcut(in_channels, out_channels, stride):
    """None, the identity; or where the shape changes 1x1 convolution and BN, option B of ResNet."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut: figure 5, left, of the ResNet paper."""

    expansion = 1

    def __init__(self, in_channels, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = shortcut(in_channels, planes, stride)

    def forward(self, x):  # (B, in, h, w)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, planes, h/stride, w/stride)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class SEResNeXtBottleneck(nn.Module):
    """1x1, 3x3 in 32 groups, 1x1, SE, and the shortcut. Of 32x4d: cardinality x base_width."""

    expansion = 4
    cardinality, base_width, reduction = 32, 4, 16

    def __init__(self, in_channels, planes, stride, se_pool):
        super().__init__()
        width = planes * self.base_width // 64 * self.cardinality  # 128, 256, 512, 1024
        out = planes * self.expansion  # 256, 512, 1024, 2048
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, 3, stride, padding=1, groups=self.cardinality, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.se = SqueezeExcitation(out, out // self.reduction, nn.ReLU(True), se_pool)
        self.downsample = shortcut(in_channels, out, stride)

    def forward(self, x):  # (B, in, h, w)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, width, h, w)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)  # (B, width, h/stride, w/stride)
        y = self.se(self.bn3(self.conv3(y)))  # (B, out, h/stride, w/stride)
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(Network):
    """Stem and pool, four layers of blocks. pool_padding 0: Caffe's pool, whose windows start at
    pixel 0 and whose last one may overhang; 1: they start at -1."""

    def __init__(self, block, depths, pool_padding=1, **options):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool_padding = pool_padding
        self.num_features = 64
        for layer, (planes, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), 1):
            blocks = nn.Sequential()
            for i in range(depth):
                stride = 2 if layer > 1 and i == 0 else 1
                blocks.append(block(self.num_features, planes, stride, **options))
                self.num_features = planes * block.expansion
            self.add_module(f"layer{layer}", blocks)

    def feature_map(self, x):  # (B, 3, H, W)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, 64, H/2, W/2)
        x = F.max_pool2d(x, 3, 2, self.pool_padding, ceil_mode=self.pool_padding == 0)
        # (B, 64, H/4, W/4); then 64, 128, 256, 512 planes at /4, /8, /16, /32, times expansion
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = self.run(block, x)
        return x  # (B, 512 or 2048, H/32, W/32)


def resnet34():
    return ResNet(BasicBlock, (3, 4, 6, 3))


def seresnext101(flavour="cadene", se_pool="avg"):
    padding = {"cadene": 0, "gluon": 1}[flavour]
    return ResNet(SEResNeXtBottleneck, (3, 4, 23, 3), padding, se_pool=se_pool)


# ---------------------------------------------------------------------------------------- PNASNet

pnas_bn = partial(nn.BatchNorm2d, eps=1e-3)


def max_pool_same(x, stride):
    """3x3 max-pool, SAME padding (with -inf): an even map is padded by the overhang at its end."""
    h, w = x.shape[2:]
    padding = (1, 1) if stride == 1 else (h % 2, w % 2)
    return F.max_pool2d(x, 3, stride, padding, ceil_mode=True)  # (B, C, h/stride, w/stride)


def relu_conv_bn(in_channels, out_channels, stride=1):
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return chain(relu=nn.ReLU(), conv=conv, bn=pnas_bn(out_channels))


def separable(in_channels, out_channels, kernel, stride=1):
    """The paper's k x k separable convolution: twice ReLU, depthwise, pointwise, BN."""

    def pair(channels, stride):
        conv = SameConv2d if stride == 2 else nn.Conv2d  # at stride 1 SAME is symmetric
        shape = channels, channels, kernel, stride, kernel // 2
        return chain(
            depthwise_conv2d=conv(*shape, groups=channels, bias=False),
            pointwise_conv2d=nn.Conv2d(channels, out_channels, 1, bias=False),
        )

    return chain(
        relu_1=nn.ReLU(),
        separable_1=pair(in_channels, stride),
        bn_sep_1=pnas_bn(out_channels),
        relu_2=nn.ReLU(inplace=True),
        separable_2=pair(out_channels, 1),
        bn_sep_2=pnas_bn(out_channels),
    )


class FactorizedReduction(nn.Module):
    """Halves a map by two 1x1 convolutions, one of its even pixels and one of its odd ones."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        half = out_channels // 2
        self.path_1 = chain(conv=nn.Conv2d(in_channels, half, 1, bias=False))
        self.path_2 = chain(conv=nn.Conv2d(in_channels, half, 1, bias=False))
        self.final_path_bn = pnas_bn(out_channels)

    def forward(self, x):  # (B, in, h, w)
        x = F.relu(x)
        even = x[:, :, ::2, ::2]  # (B, in, h/2, w/2), rounded up
        odd = x[:, :, 1::2, 1::2]  # rounded down
        odd = F.pad(odd, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        halves = self.path_1(even), self.path_2(odd)
        return self.final_path_bn(torch.cat(halves, 1))  # (B, out, h/2, w/2)


class Cell(nn.Module):
    """Five sums of two operations on the outputs of the two cells before, concatenated: figure 1.

    prev, cur  channels of those outputs; prev None: the first cell, whose left input is its right
    stride     2 in a reduction cell
    halve      prev has a map of twice the size of cur's
    """

    def __init__(self, prev, cur, width, stride=1, halve=False):
        super().__init__()
        self.stride = stride
        left = width if prev else cur
        project = FactorizedReduction if halve else relu_conv_bn
        self.conv_prev_1x1 = project(prev, width) if prev else nn.Identity()
        self.conv_1x1 = relu_conv_bn(cur, width)
        self.comb_iter_0_left = separable(left, width, 5, stride)
        self.comb_iter_0_right = nn.Identity()  # after a pool that is `width` wide
        if left != width:
            conv = nn.Conv2d(left, width, 1, bias=False)
            self.comb_iter_0_right = chain(conv=conv, bn=pnas_bn(width))
        self.comb_iter_1_left = separable(width, width, 7, stride)
        self.comb_iter_2_left = separable(width, width, 5, stride)
        self.comb_iter_2_right = separable(width, width, 3, stride)
        self.comb_iter_3_left = separable(width, width, 3)
        self.comb_iter_4_left = separable(left, width, 3, stride)
        self.comb_iter_4_right = relu_conv_bn(width, width, 2) if stride == 2 else nn.Identity()

    def forward(self, prev, cur):
        left = self.conv_prev_1x1(prev)  # (B, width, h, w); cell_stem_0 keeps prev's channels
        right = self.conv_1x1(cur)  # (B, width, h, w)
        left_pool = self.comb_iter_0_right(max_pool_same(left, self.stride))
        right_pool = max_pool_same(right, self.stride)
        block_0 = self.comb_iter_0_left(left) + left_pool  # (B, width, h/stride, w/stride)
        block_1 = self.comb_iter_1_left(right) + right_pool
        block_2 = self.comb_iter_2_left(right) + self.comb_iter_2_right(right)
        block_3 = self.comb_iter_3_left(block_2) + right_pool
        block_4 = self.comb_iter_4_left(left) + self.comb_iter_4_right(right)
        return torch.cat((block_0, block_1, block_2, block_3, block_4), 1)  # (B, 5 width, ...)


class PNASNet(Network):
    """PNASNet-5-Large: N = 4 cells in a stage, F = 216 filters. The sizes are for 331 px."""

    num_features = 4320

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(3, 96, 3, 2, bias=False)  # VALID padding, and no ReLU after it
        self.conv_0 = chain(conv=conv, bn=pnas_bn(96))  # (B, 96, 165, 165)
        self.cell_stem_0 = Cell(None, 96, 54, stride=2)  # (B, 270, 83, 83)
        self.cell_stem_1 = Cell(96, 270, 108, stride=2, halve=True)  # (B, 540, 42, 42)
        self.cell_0 = Cell(270, 540, 216, halve=True)  # (B, 1080, 42, 42)
        self.cell_1 = Cell(540, 1080, 216)
        self.cell_2 = Cell(1080, 1080, 216)
        self.cell_3 = Cell(1080, 1080, 216)
        self.cell_4 = Cell(1080, 1080, 432, stride=2)  # (B, 2160, 21, 21)
        self.cell_5 = Cell(1080, 2160, 432, halve=True)
        self.cell_6 = Cell(2160, 2160, 432)
        self.cell_7 = Cell(2160, 2160, 432)
        self.cell_8 = Cell(2160, 2160, 864, stride=2)  # (B, 4320, 11, 11)
        self.cell_9 = Cell(2160, 4320, 864, halve=True)
        self.cell_10 = Cell(4320, 4320, 864)
        self.cell_11 = Cell(4320, 4320, 864)

    def feature_map(self, images):  # (B, 3, H, W)
        prev = cur = self.conv_0(images)
        for cell in self.children():
            if isinstance(cell, Cell):
                prev, cur = cur, self.run(cell, prev, cur)
        return F.relu(cur)  # (B, 4320, H/32, W/32)


# ----------------------------------------------------------------------------------- EfficientNet

STAGES = (  # table 1, stages 2..8: output channels, repeats, kernel, stride, expansion of B0
    (16, 1, 3, 1, 1),
    (24, 2, 3, 2, 6),
    (40, 2, 5, 2, 6),
    (80, 3, 3, 2, 6),
    (112, 3, 5, 1, 6),
    (192, 4, 5, 2, 6),
    (320, 1, 3, 1, 6),
)
COEFFICIENTS = {  # width, depth, resolution (pixels), as published with the weights
    "efficientnet_b0": (1.0, 1.0, 224),
    "efficientnet_b1": (1.0, 1.1, 240),
    "efficientnet_b2": (1.1, 1.2, 260),
    "efficientnet_b3": (1.2, 1.4, 300),
    "efficientnet_b4": (1.4, 1.8, 380),
    "efficientnet_b5": (1.6, 2.2, 456),
    "efficientnet_b6": (1.8, 2.6, 528),
    "efficientnet_b7": (2.0, 3.1, 600),
    "efficientnet_lite0": (1.0, 1.0, 224),
}


def compound_scaling(phi, alpha=1.2, beta=1.1, gamma=1.15):
    """Eq. 3: the width, depth and resolution that spend 2^phi times the work of B0.

    differs  COEFFICIENTS are not this rule: alpha, beta, gamma were searched at phi = 1, and what
             was published is rounded by hand. phi = 7 gives 1.95, 3.58, 596 px: 61 blocks and 2496
             features, where B7 has 55 and 2560, and no published weights fit.
    """
    return beta**phi, alpha**phi, 224 * gamma**phi


def round_channels(channels, width):
    """channels * width, to the nearest multiple of 8 that is not more than 10 % below."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels * width else rounded


class ConvBNAct(nn.Sequential):
    """Convolution without bias, batch norm, activation.

    act           a class of activations
    same_padding  TensorFlow's, computed from the map at hand, where it differs: at stride 2
    """

    def __init__(
        self, in_channels, out_channels, kernel, stride=1, groups=1, act=nn.Identity,
        same_padding=False,
    ):  # fmt: skip
        conv = SameConv2d if same_padding and stride == 2 else nn.Conv2d
        shape = in_channels, out_channels, kernel, stride, kernel // 2
        conv = conv(*shape, groups=groups, bias=False)
        bn = nn.BatchNorm2d(out_channels)
        super().__init__(OrderedDict(conv=conv, bn=bn, act=act(inplace=True)))


class MBConv(nn.Module):
    """1x1 expand, depthwise, SE, 1x1 project; added to its input where the shapes agree.

    se_pool       as in SqueezeExcitation; None: there is no SE
    drop_connect  probability that a sample skips the block in training; others are / (1 - it)
    """

    def __init__(
        self, in_channels, out_channels, kernel, stride, expansion, act, same_padding, se_pool,
        drop_connect,
    ):  # fmt: skip
        super().__init__()
        mid = in_channels * expansion
        self.expand = ConvBNAct(in_channels, mid, 1, act=act) if expansion > 1 else None
        self.dw = ConvBNAct(
            mid, mid, kernel, stride, groups=mid, act=act, same_padding=same_padding
        )

        # SE squeezes to a quarter of the block's input, not of mid.
        self.se = None
        if se_pool:
            self.se = SqueezeExcitation(mid, in_channels // 4, act(inplace=True), se_pool)

        self.project = ConvBNAct(mid, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels
        self.drop_connect = drop_connect

    def forward(self, x):  # (B, in, h, w)
        y = x if self.expand is None else self.expand(x)  # (B, mid, h, w)
        y = self.dw(y)  # (B, mid, h/stride, w/stride)
        y = y if self.se is None else self.se(y)
        y = self.project(y)  # (B, out, h/stride, w/stride)
        if not self.residual:
            return y

        if self.training and self.drop_connect:
            keep = 1 - self.drop_connect
            kept = y.new_empty(len(y), 1, 1, 1).bernoulli_(keep)
            y = y * kept.div_(keep)
        return y.add_(x)


class EfficientNet(Network):
    """Stem, seven stages of MBConv, 1x1 top. Lite0 leaves out SE, and its activation is ReLU6."""

    def __init__(self, arch, flavour="tf", se_pool="avg", drop_connect=0.2):
        super().__init__()
        width, depth, _ = COEFFICIENTS[arch]
        lite = arch == "efficientnet_lite0"
        act = nn.ReLU6 if lite else nn.SiLU
        same_padding = flavour == "tf"

        channels = round_channels(32, width)
        self.stem = ConvBNAct(3, channels, 3, stride=2, act=act, same_padding=same_padding)

        self.stages = nn.ModuleList()
        self.repeats = [math.ceil(stage[1] * depth) for stage in STAGES]
        index = 0
        for (out, _, kernel, stride, expansion), repeats in zip(STAGES, self.repeats, strict=True):
            out_channels = round_channels(out, width)
            stage = nn.Sequential()
            for i in range(repeats):
                drop = drop_connect * index / sum(self.repeats)  # rises linearly, from 0
                block = MBConv(
                    in_channels=channels,
                    out_channels=out_channels,
                    kernel=kernel,
                    stride=stride if i == 0 else 1,
                    expansion=expansion,
                    act=act,
                    same_padding=same_padding,
                    se_pool=None if lite else se_pool,
                    drop_connect=drop,
                )
                stage.append(block)
                channels = out_channels
                index += 1
            self.stages.append(stage)

        self.num_features = round_channels(1280, width)
        self.top = ConvBNAct(channels, self.num_features, 1, act=act)

        # Momentum does not touch loaded weights: 0.1 for tf is timm's choice, TensorFlow had 0.01.
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and flavour == "tf":
                module.eps = 1e-3
            elif isinstance(module, nn.BatchNorm2d) and depth > 2:  # B5, B6, B7
                module.eps = 1e-3
                module.momentum = 0.01

    def feature_map(self, x):  # (B, 3, H, W)
        x = self.stem(x)  # (B, 32 width, H/2, W/2); stages: /2, /4, /8, /16, /16, /32, /32
        for stage in self.stages:
            for block in stage:
                x = self.run(block, x)
        return self.top(x)  # (B, 1280 width, H/32, W/32)


ARCHITECTURES = {
    "tiny": Tiny,
    "resnet34": resnet34,
    "seresnext101": seresnext101,
    "pnasnet5large": PNASNet,
    **{arch: partial(EfficientNet, arch) for arch in COEFFICIENTS},
}

# ------------------------------------------------------------------------------- the public thing


def create_model(
    arch, num_classes=43, head="mish", weights=None, dropout=0.5, checkpoint_activations=False,
    class_names=None, **options,
):  # fmt: skip
    """A network of ARCHITECTURES with a head, and with published weights if asked for.

    head      "mish": the report's Linear(F, 256), Mish, dropout, Linear(256, C); "linear": a Linear
    weights   None or "none"; "imagenet": the first of WEIGHTS; a tag there; a file, in any naming
    dropout   probability, in the Mish head
    checkpoint_activations  backward computes each block again: less memory, the same result
    class_names  what the C classes are: a classifier of other classes in the weights is left out
    options   flavour, se_pool, drop_connect, where the arch has them; None: default
    returns   net with .arch .num_features .head; .input_config: size (pixels), mean, std,
              interpolation, those of the weights; .weights_info: a line on what was loaded;
              .trained_on: by which frames, and .knows_classes: whether the classifier is for
              class_names, of a checkpoint of train.py; .config: create_model(**net.config) is the
              same net with random weights
    raises    ValueError naming the choices; WeightsError
    """
    options = {option: value for option, value in options.items() if value is not None}
    check_options(arch, head, weights, options)

    # The weights come first, since they say which of two functions the network is to be.
    source = open_weights(arch, weights) if weights not in (None, "none") else None
    is_assumed = bool(source) and source.is_assumed and "flavour" not in options
    if family(arch) in FLAVOURS:
        default = source.flavour if source else FLAVOURS[family(arch)][0]
        options.setdefault("flavour", default)

    net = initialise(ARCHITECTURES[arch](**options))
    net.arch, net.checkpoint_activations = arch, checkpoint_activations
    if head == "mish":
        net.head = MishHead(net.num_features, num_classes, p=dropout)
    else:
        net.head = nn.Linear(net.num_features, num_classes)

    net.config = {"arch": arch, "num_classes": num_classes, "head": head, "dropout": dropout}
    net.config |= options
    net.input_config = input_config(arch)
    net.weights_info, net.knows_classes = "none: random initialisation", False
    net.trained_on = torch.empty(0, dtype=torch.int64)
    if source:
        net.input_config |= source.input_config
        net.trained_on = source.trained_on
        state = source.state
        if class_names and source.class_names and source.class_names != class_names:
            state = {key: value for key, value in state.items() if not key.startswith("head.")}
        classifier = load(net, state, source.naming, source.path)
        if classifier == "classifier loaded":
            net.knows_classes = class_names is not None and source.class_names == class_names
        description = source.description
        if "flavour" in options:
            description += f", {options['flavour']} flavour{' (assumed)' if is_assumed else ''}"
        file = f"sha256 {source.sha256[:8]}, {source.path}"
        net.weights_info = f"{description}, {classifier}, {file}"
    return net


def check_options(arch, head, weights, options):
    """raises  ValueError naming what can be chosen"""
    choices = {
        "arch": ARCHITECTURES, "head": ("mish", "linear"), "se_pool": ("avg", "max"),
        "flavour": FLAVOURS.get(family(str(arch))),
    }  # fmt: skip
    known = ["arch", "num_classes", "head", "weights", "dropout", "checkpoint_activations"]
    known += inspect.signature(ARCHITECTURES.get(arch, Tiny)).parameters
    for option, value in {"arch": arch, "head": head, **options}.items():
        if option not in known:
            hint = did_you_mean(option, known)
            if option == "pretrained":
                hint = '; published weights are weights="imagenet"'
            raise ValueError(f"{arch} has no {option}, only {', '.join(known)}{hint}")
        if option in choices and value not in choices[option]:
            listed = ", ".join(choices[option])
            hint = did_you_mean(str(value).lower(), choices[option])
            raise ValueError(f"{option} {value!r}: choose from {listed}{hint}")
    if not isinstance(weights, (str, os.PathLike, type(None))):
        raise ValueError(f'weights {weights!r}: "imagenet", a name in python model.py, or a file')


def class_activation(net, images, c):
    """Grad-CAM (Selvaraju et al. 2017, eq. 1, 2): what speaks for class c, in evaluation mode.

    (B, 3, H, W) -> (B, 1, h, w) on the map before the global pool, at least 0, at most 1 in each
    """
    net.eval()
    with torch.no_grad():
        maps = net.feature_map(images)  # (B, F, h, w)
    logits = net.head(net.pool(maps.requires_grad_()))  # (B, C)
    (gradient,) = torch.autograd.grad(logits[:, c].sum(), maps)

    alpha = gradient.mean((2, 3), keepdim=True)  # (B, F, 1, 1)  eq. 1
    heat = (alpha * maps.detach()).sum(1, keepdim=True).relu()  # (B, 1, h, w)  eq. 2
    return heat / heat.amax((2, 3), keepdim=True).clamp(min=1e-9)


@torch.no_grad()
def set_prior_bias(net, frequency):
    """Sets the last bias to logit(frequency), to start from the prior (Lin et al. 2017, 4.1), but
    for a classifier that was loaded for these very classes, and has learned its bias.

    frequency  (C,) in [0, 1], clipped to [1e-4, 1 - 1e-4], so that biases are within 9.3 of 0
    """
    if net.knows_classes:
        return
    last = net.head[-1] if isinstance(net.head, nn.Sequential) else net.head
    frequency = torch.as_tensor(frequency, dtype=torch.float64)
    last.bias.copy_(frequency.logit(eps=1e-4))


def set_frozen(net, backbone=False, bn=False):
    """Freezes, or frees, the backbone and every BN: no gradient, and evaluation mode in train()."""
    net.frozen_backbone, net.frozen_bn = backbone, bn
    for name, module in net.named_modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(not net.frozen(name, module))
    net.train(net.training)


def parameter_groups(net, lr, head_lr=None, weight_decay=0.0):
    """For an optimizer: backbone at lr, head at head_lr (None: lr); all of both is decayed."""
    backbone = [p for name, p in net.named_parameters() if not name.startswith("head.")]
    head = list(net.head.parameters())
    if head_lr is None:
        head_lr = lr
    return [
        {"name": "backbone", "params": backbone, "lr": lr, "weight_decay": weight_decay},
        {"name": "head", "params": head, "lr": head_lr, "weight_decay": weight_decay},
    ]


def activation_bytes(config, size) -> int:
    """What the layers of create_model(**config) give out in training, in float32, for an image of
    size x size pixels. The peak of a step on a CPU, less weights and gradients, was 0.96 to 1.24 of
    it for ResNet-34, SE-ResNeXt101, PNASNet, B0, B7 and Lite0."""
    with torch.device("meta"):  # which computes shapes alone
        net = create_model(**config).eval()  # whose shapes are those of training, in half the time
        image = torch.empty(1, 3, size, size)

    given = []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _, __, output: given.append(output.nbytes))
    net(image)
    return sum(given)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Print a table of the architectures: parameters, multiply-adds and features, "
        "and the names that train.py --weights knows, with their top-1 on ImageNet. Nothing is "
        "downloaded."
    )
    parser.parse_args(argv)
    print("parameters and G multiply-adds with a linear head of 1000 classes\n")
    print(f"{'':<19} parameters features  224 px      its size  weights and their top-1 in %")
    for arch in ARCHITECTURES:
        with torch.device("meta"):
            net = create_model(arch, 1000, "linear").eval()
        own = COEFFICIENTS[arch][2] if arch in COEFFICIENTS else net.input_config["size"]
        parameters = sum(p.numel() for p in net.parameters())
        at_224, at_own = multiply_adds(net, 224), multiply_adds(net, own)

        tags = [f"{tag} {record.top1:.1f}" for (a, tag), record in WEIGHTS.items() if a == arch]
        tags = ", ".join(tags).replace("nan", "(not published)")
        print(f"{arch:<19}{parameters:>11,}{net.num_features:>9}{at_224:>8.3f}"
              f"{f'{at_own:.3f} @ {own}':>14}  {tags}")  # fmt: skip

    print("\nEfficientNet's width, depth and resolution, as published and by eq. 3\n")
    for phi in range(8):
        width, depth, resolution = COEFFICIENTS[f"efficientnet_b{phi}"]
        published = f"{width:.1f}  {depth:.1f}  {resolution}"
        width, depth, resolution = compound_scaling(phi)
        print(f"b{phi}   {published}   {width:.2f}  {depth:.2f}  {resolution:.0f}")


def multiply_adds(net, size) -> float:
    """Of one image, in 10^9; net is on the meta device."""
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() / 2e9


if __name__ == "__main__":
    main()
