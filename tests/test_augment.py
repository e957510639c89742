"""augment.py against albumentations (0.4.5 recorded, 2.0.8), OpenCV, Pillow and closed forms."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import augment
import decoding
from augment import FILL, ReportAugment, draw, generator
from tests.processes import ended, script

HERE = Path(__file__).parent
GOLDEN = np.load(HERE / "golden" / "augment_albumentations_0.4.5.npz")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors here are small: threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def planes(images):
    """(..., H, W, 3) array -> (N, 3, H, W) uint8 tensor."""
    return torch.from_numpy(images.reshape(-1, *images.shape[-3:])).permute(0, 3, 1, 2).contiguous()


def together(frames, sizes, size, tries):
    """What augment.at_once says of an accelerator: the whole batch, uncut."""
    return len(frames), torch.tensor(frames.shape[2:]).expand_as(sizes)


def warp(frames, scale, crop, pad, degrees, flip, size=224, label_maps=None, sizes=None):
    """Images and label maps by one given geometry a sample, made as ReportAugment makes them."""
    sizes = augment.true_sizes(frames, sizes)
    draws = draw(len(frames), generator(0, 0, 0), sizes, size)._replace(
        scale=scale.double()[:, None], crop=crop[:, None], pad=pad[:, None],
        degrees=degrees.double()[:, None], flip=flip.bool()[:, None])
    samples, cuts = augment.at_once(frames, sizes, size, 1)
    plan = augment.make_plan(draws, sizes, cuts, size)
    images, maps = [], []
    for i in range(0, len(frames), samples):
        rows, (height, width) = slice(i, i + samples), cuts[i].tolist()
        part = augment.Plan(*(field[rows] for field in plan))
        images.append(augment.warp(frames[rows, :, :height, :width], part, size))
        if label_maps is not None:
            cut = label_maps[rows, :height, :width]
            maps.append(augment.warp_labels(cut, part, size)[:, 0])
    return torch.cat(images), torch.cat(maps) if maps else None


def difference(a, b):
    return (a.int() - b.int()).abs()


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(seed))


def smooth(*shape, seed=0):
    """Like natural pictures: noise blurred over 8 pixels, stretched to all levels."""
    small = [*shape[:2], shape[2] // 8 + 2, shape[3] // 8 + 2]
    return F.interpolate(noise(*small, seed=seed).float(), shape[2:], mode="bicubic",
                         align_corners=False).clamp(0, 255).to(torch.uint8)


def p_value(counts, probabilities):
    """Of Pearson's chi-square: the regularised upper incomplete gamma function."""
    expected = torch.as_tensor(probabilities, dtype=torch.float64) * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2)


# --------------------------------------------------------- recorded outputs of albumentations 0.4.5


def test_golden_tables_are_equal():
    gamma = torch.from_numpy(GOLDEN["gamma_percent"]) / 100
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(len(gamma), 3, 1, 1)
    wanted = torch.from_numpy(GOLDEN["gamma_lut"]).view(-1, 1, 16, 16).expand_as(levels)
    assert torch.equal(augment.gamma(levels, gamma), wanted)
    contrast = torch.from_numpy(GOLDEN["bc_alpha_beta"])
    wanted = torch.from_numpy(GOLDEN["bc_lut"]).view(-1, 1, 16, 16).expand(-1, 3, -1, -1)
    assert torch.equal(augment.brightness_contrast(levels[: len(contrast)], contrast), wanted)


def test_golden_photometric_ops_are_equal():
    small = planes(GOLDEN["small"])
    for shift, wanted in zip(GOLDEN["hsv_params"], GOLDEN["hsv_out"], strict=True):
        got = augment.hue_saturation_value(small, torch.from_numpy(shift)[None])
        assert torch.equal(got, planes(wanted))
    assert torch.equal(augment.gaussian_blur(small), planes(GOLDEN["gauss"]))
    assert torch.equal(augment.median_blur(small), planes(GOLDEN["median"]))
    kernels = torch.from_numpy(GOLDEN["motion_kernels"]).float()
    got = augment.motion_blur(small.repeat(3, 1, 1, 1), kernels)
    assert torch.equal(got, planes(GOLDEN["motion_out"]))
    table, _ = augment.motion_kernels()  # the recorded kernels were drawn by the library
    assert ((table[:, None] - kernels).abs().amax((2, 3)) < 1e-6).any(0).all()


def test_golden_rotation():
    # OpenCV 4.2 rounds coordinates to 1/32 pixel: that is the whole difference
    small = planes(GOLDEN["small"]).flip(1)  # the recording filled with 104, 117, 124
    for degrees, wanted in zip(GOLDEN["rotate_degrees"], GOLDEN["rotate_fill"], strict=True):
        zero = torch.zeros(1, 2, dtype=torch.long)
        got, _ = warp(small, torch.ones(1), zero, zero, torch.tensor([degrees]),
                              torch.zeros(1))
        error = difference(got.flip(1), planes(wanted)).float()
        assert error.max() <= 4
        assert error.mean() <= 0.15


def chain_draws(number):
    """Draws that make the recorded geometry and nothing else."""
    flip, scale, *_, degrees = GOLDEN["chain_params"][number]
    top, left, pad_top, pad_left = GOLDEN["chain_offsets"][number].tolist()
    sizes = torch.tensor([GOLDEN["big"].shape[:2]])
    plain = draw(1, generator(0, 0, 0), sizes, without=augment.OPS)
    return plain._replace(
        flip=torch.tensor([[flip > 0]]), scale=torch.tensor([[scale]]),
        crop=torch.tensor([[[top, left]]]), pad=torch.tensor([[[pad_top, pad_left]]]),
        degrees=torch.tensor([[degrees]]))


def levels_of(images):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (augment.IMAGENET_MEAN,
                                                         augment.IMAGENET_STD))
    return ((images * std + mean) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("number", range(3))
def test_golden_chain(number):
    big = planes(GOLDEN["big"]).flip(1)
    wanted = planes(GOLDEN["chain_out"][number]).flip(1)
    turned = GOLDEN["chain_params"][number][-1] != 0
    draws = chain_draws(number)
    geometry = [v[:, 0] for v in (draws.scale, draws.crop, draws.pad, draws.degrees, draws.flip)]
    straight, _ = warp(big, *geometry[:3], 0 * geometry[3], geometry[4])
    one, zero = torch.ones(1), torch.zeros(1, 2, dtype=torch.long)
    twice, _ = warp(straight, one, zero, zero, geometry[3], 0 * one)
    error = difference(twice, wanted).float()
    assert error.max() <= (4 if turned else 1)  # 1/32 pixel where it turns
    assert error.mean() <= 0.15  # cv2.resize 4.2 truncates its fixed point: 0.12
    images, _ = ReportAugment().apply(big, draws)
    once = difference(levels_of(images), wanted).float()
    assert once.mean() <= (1.0 if turned else 0.15)  # one interpolation is sharper than two
    assert (once.mean() > 2 * error.mean()) == turned


def loader_labels(label_map, flip, scale, top, left, pad_top, pad_left, degrees, size=224):
    """The course loader's steps on a label map, in float64 loops over rows and columns."""
    if flip:
        label_map = label_map[:, ::-1]
    height, width = label_map.shape
    h, w = (max(1, int(np.round(n * scale))) for n in (height, width))
    s = 1.0 if (h, w) == (height, width) else scale
    rows = [min(math.floor(y / s), height - 1) for y in range(h)]
    columns = [min(math.floor(x / s), width - 1) for x in range(w)]
    scaled = label_map[rows][:, columns]
    window = scaled[top : top + size, left : left + size]
    square = np.full((size, size), 255, np.uint8)
    square[pad_top : pad_top + window.shape[0], pad_left : pad_left + window.shape[1]] = window
    if degrees == 0:
        return square
    out = np.full_like(square, 255)
    cos, sin, c = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), size / 2
    for y in range(size):
        for x in range(size):
            px = math.floor(cos * (x - c) - sin * (y - c) + c + 0.5)
            py = math.floor(sin * (x - c) + cos * (y - c) + c + 0.5)
            if 0 <= px < size and 0 <= py < size:
                out[y, x] = square[py, px]
    return out


@pytest.mark.parametrize("number", range(3))
def test_labels_of_the_recorded_chain_follow_the_loader_on_every_pixel(number):
    label_map = noise(320, 570, seed=number)  # noise: any pixel off by one shows
    draws = chain_draws(number)
    flip, scale, *_, degrees = GOLDEN["chain_params"][number]
    wanted = loader_labels(label_map.numpy(), flip > 0, scale, *GOLDEN["chain_offsets"][number],
                           degrees)
    geometry = [v[:, 0] for v in (draws.scale, draws.crop, draws.pad, draws.degrees, draws.flip)]
    frames = torch.zeros(1, 3, 320, 570, dtype=torch.uint8)
    _, got = warp(frames, *geometry, label_maps=label_map[None])
    assert (got[0].numpy() == wanted).all()


# ------------------------------------------------------------------- OpenCV and closed forms


def test_blurs_and_resize_against_opencv():
    cv2 = pytest.importorskip("cv2")
    table, _ = augment.motion_kernels()
    for make, shape in ((noise, (224, 224)), (smooth, (101, 67)), (noise, (2, 2))):
        x = make(1, 3, *shape)
        image = np.ascontiguousarray(x[0].permute(1, 2, 0))
        assert torch.equal(augment.gaussian_blur(x), planes(cv2.GaussianBlur(image, (3, 3), 0)))
        assert torch.equal(augment.median_blur(x), planes(cv2.medianBlur(image, 3)))
        for kernel in table:  # float sums in another order: no tie is near in these
            wanted = cv2.filter2D(image, -1, kernel.numpy())
            assert torch.equal(augment.motion_blur(x, kernel[None]), planes(wanted))


def opencv_hsv(image, shift):
    """(3, H, W) uint8 with hue, saturation and value shifted, through OpenCV's 8-bit HSV."""
    cv2 = pytest.importorskip("cv2")
    dh, ds, dv = shift
    hsv = cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0)), cv2.COLOR_RGB2HSV)
    hue, sat, val = (hsv[..., i].astype(np.float64) for i in range(3))
    hsv = np.stack([np.floor((hue + dh) % 180), np.floor(np.clip(sat + ds, 0, 255)),
                    np.floor(np.clip(val + dv, 0, 255))], 2).astype(np.uint8)
    return planes(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))[0]


def test_hue_saturation_value_against_opencv():
    grey = noise(1, 1, 64, 64).expand(1, 3, -1, -1)
    x = torch.cat([noise(4, 3, 64, 64), smooth(4, 3, 64, 64), grey])
    shifts = torch.tensor([[0, 0, 0], [9.7, -3.2, 19], [-9.9, 20, -20], [-0.5, -0.5, -0.5],
                           [5, 255, 0], [-180, -255, 255], [200, 0, 0], [3, 3, 3], [0, 19.5, 0.0]])
    got = augment.hue_saturation_value(x, shifts)
    for one, shift, result in zip(x, shifts.tolist(), got, strict=True):
        error = difference(opencv_hsv(one, shift), result)
        assert error.max() <= 1
        assert (error > 0).float().mean() <= 0.001  # OpenCV 5 fuses a multiply and add: 0.005 %


@pytest.mark.slow
def test_every_colour_survives_the_round_trip_as_in_opencv():
    cv2 = pytest.importorskip("cv2")
    wrong = 0
    for red in range(256):
        green, blue = np.mgrid[:256, :256]
        image = np.stack([np.full_like(green, red), green, blue], 2).astype(np.uint8)
        wanted = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), cv2.COLOR_HSV2RGB)
        error = difference(augment.hue_saturation_value(planes(image), torch.zeros(1, 3)),
                           planes(wanted))
        assert error.max() <= 1
        wrong += int((error > 0).sum())
    assert wrong <= 1e-4 * 3 * 2**24


def random_geometry(batch, seed, size=224, shape=(320, 570)):
    """Geometry of B samples, with padding, shrinking, growing, turning, and copies."""
    sizes = torch.tensor(shape).expand(batch, 2)
    d = draw(batch, generator(seed, 1, 1), sizes, size)
    scale, crop, pad = d.scale[:, 0].clone(), d.crop[:, 0].clone(), d.pad[:, 0].clone()
    for i, s in ((0, 0.5), (1, 1.0), (2, 1.0005), (3, 2.0)):  # 2x2 averaging; copy; copy
        scale[i] = s
    whole = torch.tensor([[round(n * s) for n in shape] for s in scale.tolist()])
    crop = torch.minimum(crop, (whole - size).clamp(min=0))
    pad = torch.minimum(pad, (size - whole).clamp(min=0))
    return scale, crop, pad, d.degrees[:, 0], d.flip[:, 0]


def test_warp_against_the_loader_in_opencv():
    cv2 = pytest.importorskip("cv2")
    batch = 16
    frames = torch.cat([smooth(8, 3, 320, 570), noise(8, 3, 320, 570)])
    maps = noise(batch, 320, 570)
    scale, crop, pad, degrees, flip = random_geometry(batch, 3)
    assert (degrees != 0).any() and (scale < 0.7).any()
    straight, _ = warp(frames, scale, crop, pad, 0 * degrees, flip)
    none, zeros = torch.zeros(batch), torch.zeros(batch, 2, dtype=torch.long)
    turned, _ = warp(straight, torch.ones(batch), zeros, zeros, degrees, none)
    _, labels = warp(frames, scale, crop, pad, 0 * degrees, flip, label_maps=maps)
    for i in range(batch):
        s, (top, left), (pad_top, pad_left) = scale[i].item(), crop[i].tolist(), pad[i].tolist()
        image = np.ascontiguousarray(frames[i].permute(1, 2, 0))
        label = maps[i].numpy()
        if flip[i]:
            image, label = np.fliplr(image), np.fliplr(label)
        image = cv2.resize(image, None, fx=s, fy=s, interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, None, fx=s, fy=s, interpolation=cv2.INTER_NEAREST)
        image, label = (v[top : top + 224, left : left + 224] for v in (image, label))
        square = np.full((224, 224, 3), FILL, np.uint8)
        square[pad_top:, pad_left:][: image.shape[0], : image.shape[1]] = image
        marks = np.full((224, 224), 255, np.uint8)
        marks[pad_top:, pad_left:][: label.shape[0], : label.shape[1]] = label
        assert difference(straight[i : i + 1], planes(square)).max() <= 1  # fixed point
        assert (labels[i].numpy() == marks).all()
        square = straight[i].permute(1, 2, 0).contiguous().numpy()
        matrix = cv2.getRotationMatrix2D((112, 112), degrees[i].item(), 1.0)
        square = cv2.warpAffine(square, matrix, (224, 224), flags=cv2.INTER_LINEAR,
                                borderMode=cv2.BORDER_CONSTANT, borderValue=FILL)
        error = difference(turned[i : i + 1], planes(square))
        if cv2.__version__ >= "5":  # earlier ones round coordinates to 1/32 pixel
            assert error.max() <= 1
            assert (error > 0).float().mean() <= 0.001
        assert error.float().mean() <= 1


def reference_warp(frame, scale, crop, pad, degrees, flip, size):
    """The map of a single sample pixel by pixel in Python floats; returns (size, size, 3) float."""
    height, width, _ = frame.shape
    h, w = (max(1, round(n * scale)) for n in (height, width))
    rect_h, rect_w = min(size, h), min(size, w)
    s = 1.0 if (h, w) == (height, width) else scale
    cos, sin, c = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), size / 2
    out = np.empty((size, size, 3))

    def coverage(u, rect):
        return min(max(min(u + 1, rect - u), 0), 1)

    def source(u, offset, rect, n):
        q = (min(max(u, 0), rect - 1) + offset + 0.5) / s - 0.5
        return min(max(q, 0), n - 1)

    for y in range(size):
        for x in range(size):
            ux = cos * (x - c) - sin * (y - c) + c - pad[1]
            uy = sin * (x - c) + cos * (y - c) + c - pad[0]
            qx, qy = source(ux, crop[1], rect_w, width), source(uy, crop[0], rect_h, height)
            if flip:
                qx = width - 1 - qx
            x0, y0 = int(qx), int(qy)
            x1, y1, ax, ay = min(x0 + 1, width - 1), min(y0 + 1, height - 1), qx - x0, qy - y0
            value = ((frame[y0, x0] * (1 - ax) + frame[y0, x1] * ax) * (1 - ay)
                     + (frame[y1, x0] * (1 - ax) + frame[y1, x1] * ax) * ay)
            cover = coverage(ux, rect_w) * coverage(uy, rect_h)
            out[y, x] = np.array(FILL) + cover * (value - np.array(FILL))
    return out


@pytest.mark.parametrize("whole", [False, True])
def test_warp_against_a_loop(whole, monkeypatch):
    if whole:  # what an accelerator runs
        monkeypatch.setattr(augment, "at_once", together)
    rows = [  # frame, scale, crop, pad, degrees, flip
        ((20, 33), 1.0, (0, 9), (4, 0), 0.0, False),
        ((20, 33), 0.5, (0, 0), (13, 5), 10.0, True),
        ((31, 17), 1.9, (30, 8), (0, 0), -10.0, True),
        ((8, 8), 7.3, (34, 0), (0, 0), 180.0, False),
        ((3, 40), 2.6, (0, 80), (16, 0), 37.0, False),
        ((1, 1), 30.0, (3, 6), (0, 0), 5.0, True),
        ((40, 40), 0.01, (0, 0), (11, 23), 0.0, False),
        ((40, 40), 0.03, (0, 0), (23, 0), 90.0, True),
    ]
    frames, sizes = torch.zeros(len(rows), 3, 40, 40, dtype=torch.uint8), []
    for i, ((h, w), *_) in enumerate(rows):
        frames[i, :, :h, :w] = noise(3, h, w, seed=i)
        sizes.append((h, w))
    scale, crop, pad, degrees, flip = (torch.tensor(v) for v in list(zip(*rows, strict=True))[1:])
    scale, degrees = scale.double(), degrees.double()
    got, _ = warp(frames, scale, crop, pad, degrees, flip, size=24,
                          sizes=torch.tensor(sizes))
    for i, ((h, w), *row) in enumerate(rows):
        frame = frames[i, :, :h, :w].permute(1, 2, 0).double().numpy()
        wanted = reference_warp(frame, *row, 24)
        error = np.abs(got[i].permute(1, 2, 0).numpy() - wanted)
        # half a level of rounding, float32 coordinates; 2^-10 pixel of inset in whole batches
        assert error.max() <= 0.5 + (0.3 if whole else 0.02), i


def test_normalize_and_dropout_closed_forms():
    x = noise(3, 3, 16, 17)
    mean, std = torch.tensor(augment.IMAGENET_MEAN), torch.tensor(augment.IMAGENET_STD)
    wanted = (x.double() - 255 * mean.double().view(3, 1, 1)) / (255 * std.double().view(3, 1, 1))
    # two float32 roundings of values up to 4.4 and of the factor: 3 * 2^-24 * 4.4
    assert (augment.normalize(x, mean, std) - wanted).abs().max() < 1e-6
    corners = torch.tensor([[[0, 0], [0, 0]], [[8, 9], [3, 2]], [[4, 5], [5, 6]]])
    for holes in ([2, 2, 2], [1, 2, 1], [2, 1, 1]):
        wanted = x.clone()
        for i, squares in enumerate(corners.tolist()):
            for top, left in squares[: holes[i]]:
                wanted[i, :, top : top + 8, left : left + 8] = 0
        assert torch.equal(augment.coarse_dropout(x, corners, torch.tensor(holes)), wanted)


def test_median_and_sharpen_by_brute_force():
    x = noise(2, 3, 9, 7)
    padded = F.pad(x, (1, 1, 1, 1), "replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    assert torch.equal(augment.median_blur(x), padded.flatten(4).median(4).values)
    kernels = draw(2, generator(0, 0, 0), torch.full((2, 2), 9), extra=("sharpen",)).edge
    padded = F.pad(x.double(), (1, 1, 1, 1), "reflect").unfold(2, 3, 1).unfold(3, 3, 1)
    wanted = (padded * kernels[:, None, None, None].double()).sum((4, 5)).clamp(0, 255)
    # sums up to 2040 in float32: the result may lie on either side of a tie
    assert (augment.sharpen(x, kernels) - wanted).abs().max() <= 0.5 + 1e-3


def one_op_after_the_other(frames, d, size):
    """(B, 3, size, size) uint8: the ops in the report's order, each sample for itself."""
    x, _ = warp(
        frames, *(v[:, 0] for v in (d.scale, d.crop, d.pad, d.degrees, d.flip)), size
    )
    rows = []
    for i in range(len(frames)):
        one, row = x[i : i + 1], slice(i, i + 1)
        one = one.flip(2) if d.vflip[i] else one
        one = one.mT.contiguous() if d.transpose[i] else one
        one = {0: one, 1: augment.gamma(one, d.gamma[row]),
               2: augment.hue_saturation_value(one, d.shift[row]),
               3: augment.brightness_contrast(one, d.contrast[row])}[d.tone[i].item()]
        one = {0: one, 1: augment.gaussian_blur(one), 2: augment.motion_blur(one, d.motion[row]),
               3: augment.median_blur(one)}[d.blur[i].item()]
        if d.sharpen[i]:
            one = augment.sharpen(one, d.edge[row])
        if d.holes[i]:
            one = augment.coarse_dropout(one, d.corners[row], d.holes[row])
        rows.append(one)
    return torch.cat(rows)


def test_whole_pipeline_applies_ops_in_the_reported_order():
    batch = 40
    frames, sizes = smooth(batch, 3, 160, 200), torch.tensor([[160, 200]]).expand(batch, 2)
    d = draw(batch, generator(5, 0, 0), sizes, 96, extra=augment.EXTRA)
    for field in ("tone", "blur"):
        assert set(getattr(d, field).tolist()) == {0, 1, 2, 3}
    images, _ = ReportAugment(96).apply(frames, d)
    assert torch.equal(levels_of(images), one_op_after_the_other(frames, d, 96))


# --------------------------------------------------- an installed albumentations, fresh draws


@pytest.fixture(scope="module")
def library():
    """albumentations 2.0.8, whose apply() takes what its transforms would draw.

    Left to the recording: the tint of greys, and sizes and weights of its own draws.
    """
    with pytest.MonkeyPatch.context() as patch:  # else the import asks the network for news
        patch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
        return pytest.importorskip("albumentations")


def library_hsv(library, image, shift):
    """Its saturation and value shifts truncate towards zero, those of 0.4.5 were floored."""
    dh, ds, dv = shift.tolist()
    return library.HueSaturationValue().apply(image, dh, math.floor(ds), math.floor(dv))


def library_gaussian(library, image):
    """It has no [1 2 1] table any more; this is its kernel of sigma = 1 / sqrt(2 ln 2)."""
    return library.GaussianBlur().apply(image, np.array([0.25, 0.5, 0.25]))


def library_dropout(library, image, corners):
    holes = np.concatenate((corners.flip(1), corners.flip(1) + 8), 1)  # x1, y1, x2, y2
    return library.CoarseDropout(fill=0).apply(image, holes, seed=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(57, 64), (33, 31), (8, 97), (101, 67), (2, 3)])
def test_ops_against_albumentations(library, seed, shape):
    u = np.random.default_rng(seed)
    image = u.integers(0, 256, (*shape, 3), np.uint8)
    x = planes(image)
    gamma, alpha, beta = u.uniform(0.6, 1.2), u.uniform(0.8, 1.2), u.uniform(-0.2, 0.2)
    kernel = augment.motion_kernels()[0][u.integers(36)]
    pairs = {
        "gamma": (augment.gamma(x, torch.tensor([gamma], dtype=torch.float64)),
                  library.RandomGamma().apply(image, gamma)),
        "brightness": (augment.brightness_contrast(x, torch.tensor([[alpha, beta]])),
                       library.RandomBrightnessContrast().apply(image, alpha, 255 * beta)),
        "motion": (augment.motion_blur(x, kernel[None]),
                   library.MotionBlur().apply(image, kernel.numpy())),
        "median": (augment.median_blur(x), library.MedianBlur().apply(image, 3)),
        "vflip": (augment.flip_vertically(x), library.VerticalFlip().apply(image)),
        "transpose": (augment.transpose(x), library.Transpose().apply(image)),
    }
    if min(shape) >= augment.HOLE:
        corners = torch.from_numpy(u.integers(0, np.array(shape) - 7, (u.integers(1, 6), 2)))
        pairs["dropout"] = (augment.coarse_dropout(x, corners[None], torch.tensor([len(corners)])),
                            library_dropout(library, image, corners))
    for name, (got, wanted) in pairs.items():
        assert torch.equal(got, planes(wanted)), name
    # its separable filter rounds most ties to even, GaussianBlur all up: 1 level on 3 % of noise
    padded = F.pad(x.double(), (1, 1, 1, 1), "reflect")
    taps = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]).double().expand(3, 1, 3, 3)
    tie = F.conv2d(padded, taps, groups=3) % 16 == 8
    error = difference(augment.gaussian_blur(x), planes(library_gaussian(library, image)))
    assert error.max() <= 1 and not error[~tie].any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(57, 64), (33, 128), (31, 97), (8, 31)])
def test_hue_saturation_value_against_albumentations(library, seed, shape):
    u = np.random.default_rng(seed)
    image = u.integers(0, 256, (*shape, 3), np.uint8)
    image[: shape[0] // 2, :, 1:] = image[: shape[0] // 2, :, :1]  # greys
    x = planes(image)
    shift = torch.from_numpy(u.uniform((-10, -20, -20), (10, 20, 20)))
    wanted = planes(library_hsv(library, image, shift))
    grey = (x == x[:, :1]).all(1, keepdim=True)
    got = augment.hue_saturation_value(x, shift[None])
    # it keeps greys grey, 0.4.5 tinted them, by up to 19 levels here: ours without saturation
    kept = augment.hue_saturation_value(x, shift[None] * torch.tensor([1, 0, 1]))
    error = difference(torch.where(grey, kept, got), wanted)
    assert error.max() <= 1  # OpenCV truncates in vectors of pixels, rounds in a row's last few
    vectors = error[..., : shape[1] // 32 * 32]
    assert (vectors > 0).sum() <= 1e-3 * vectors.numel()  # OpenCV 5 fuses multiply and add: 5e-4


@pytest.mark.parametrize("seed", range(3))
def test_drawn_chain_against_albumentations(library, seed):
    batch = 24
    frames = torch.cat([smooth(12, 3, 320, 320, seed=seed), noise(12, 3, 320, 320, seed=seed)])
    frames[:, 0] |= 1
    frames[:, 1] &= 254  # no greys
    d = draw(batch, generator(seed, 2, 3), torch.full((batch, 2), 320),
             without=("scale", "crop", "rotate"), extra=("vflip", "transpose"))
    images, _ = ReportAugment().apply(frames, d)
    for i, got in enumerate(levels_of(images)):
        x = frames[i].permute(1, 2, 0).contiguous().numpy()
        x = library.HorizontalFlip().apply(x) if d.flip[i, 0] else x
        x = x[48:272, 48:272]  # scale 1, the middle
        x = library.VerticalFlip().apply(x) if d.vflip[i] else x
        x = np.ascontiguousarray(library.Transpose().apply(x) if d.transpose[i] else x)
        if d.tone[i] == 1:
            x = library.RandomGamma().apply(x, d.gamma[i].item())
        elif d.tone[i] == 2:
            x = library_hsv(library, x, d.shift[i])
        elif d.tone[i] == 3:
            alpha, beta = d.contrast[i].tolist()
            x = library.RandomBrightnessContrast().apply(x, alpha, 255 * beta)
        if d.blur[i] == 1:
            x = library_gaussian(library, x)
        elif d.blur[i] == 2:
            x = library.MotionBlur().apply(x, d.motion[i].numpy())
        elif d.blur[i] == 3:
            x = library.MedianBlur().apply(x, 3)
        if d.holes[i]:
            x = library_dropout(library, x, d.corners[i, : d.holes[i]])
        error = difference(got[None], planes(x))
        assert error.max() <= 1, i
        allowed = (0.001 if d.tone[i] == 2 else 0) + (0.07 if d.blur[i] == 1 else 0)  # as above
        assert (error > 0).float().mean() <= allowed, i


# ------------------------------------------------------------------------------------- draws


def test_draw_probabilities_are_the_stated_ones():
    n = 40_000
    d = draw(n, generator(11, 0, 0), torch.tensor([[320, 570]]).expand(n, 2), extra=augment.EXTRA)
    sixths = [1 / 2, 1 / 6, 1 / 6, 1 / 6]
    kernels, weights = augment.motion_kernels()
    kind = (d.motion[:, None] == kernels).flatten(2).all(2).long().argmax(1)
    coins = [d.flip[:, 0], d.degrees[:, 0] != 0, d.holes > 0, d.vflip, d.transpose, d.sharpen]
    spare = ((d.scale[:, 0] * 570).round() - 223).long()  # crop columns to choose from
    alpha = -d.edge[:, 0, 0]
    free = 224 - (d.scale[:, 0] * 320).round()  # rows to pad
    position = (d.crop[:, 0, 1].double() + 0.5) / spare.clamp(min=1)
    cases = [
        (d.tone, sixths), (d.blur, sixths), (kind, weights),
        ((d.gamma * 100).round().long() - 60, [1 / 61] * 61),
        (d.holes[d.holes > 0] - 1, [1 / 5] * 5),
        *((coin.long(), [1 / 2, 1 / 2]) for coin in coins),
        *((((v - low) / (high - low) * 20).long(), [1 / 20] * 20) for v, low, high in (
            (d.scale[:, 0], 0.5, 2), (d.degrees[:, 0][d.degrees[:, 0] != 0], -10, 10),
            (d.shift[:, 0], -10, 10), (d.shift[:, 1], -20, 20), (d.shift[:, 2], -20, 20),
            (d.contrast[:, 0], 0.8, 1.2), (d.contrast[:, 1], -0.2, 0.2), (alpha, 0.2, 0.5),
            ((d.edge[:, 1, 1] - 1) / alpha - 7, 0.5, 1.0))),
        *((d.corners[:, k, axis], [1 / 217] * 217) for k in (0, 4) for axis in (0, 1)),
        ((position[spare > 100] * 4).long(), [1 / 4] * 4),
        *((d.pad[:, 0, 0][free == n], [1 / (n + 1)] * (n + 1)) for n in (1, 3)),
    ]
    for i, (values, probabilities) in enumerate(cases):
        counts = torch.bincount(values, minlength=len(probabilities)).double()
        assert len(counts) == len(probabilities), i
        assert p_value(counts, probabilities) > 1e-4, i  # fixed seed; 34 cases
    joint = torch.bincount(4 * d.tone + d.blur, minlength=16).double()  # independent of each other
    assert p_value(joint, torch.outer(*[torch.tensor(sixths)] * 2).flatten()) > 1e-4


def test_motion_kernels_are_the_36_lines():
    kernels, weights = augment.motion_kernels()
    assert len({tuple(k.flatten().tolist()) for k in kernels}) == 36
    assert torch.allclose(kernels.sum((1, 2)), torch.ones(36))
    assert abs(weights.sum() - 1) < 1e-12
    taps = (kernels > 0).sum((1, 2))
    assert abs(weights[taps == 2].sum() - 46 / 81) < 1e-12  # counted on the library
    assert abs(weights[taps == 3].sum() - 35 / 81) < 1e-12
    centred = (kernels == kernels.flip(1, 2)).flatten(1).all(1)
    assert abs(weights[centred].sum() - 1 / 9) < 1e-12


def test_motion_kernels_against_opencv_lines():
    cv2 = pytest.importorskip("cv2")
    kernels, _ = augment.motion_kernels()
    lines = set()
    for a in range(9):
        for b in range(9):
            if a != b:
                image = np.zeros((3, 3), np.uint8)
                cv2.line(image, divmod(a, 3), divmod(b, 3), 1)
                lines.add(tuple(image.flatten().tolist()))
    assert lines == {tuple((k > 0).int().flatten().tolist()) for k in kernels}


def test_generator_is_a_pure_function_and_neighbours_are_unrelated():
    first = torch.rand(5, generator=generator(1, 2, 3, 4))
    assert torch.equal(first, torch.rand(5, generator=generator(1, 2, 3, 4)))
    keys = {(1, 2, 3, 4), (2, 1, 3, 4), (1, 3, 2, 4), (1, 2, 4, 3), (-1, 2, 3, 4), (2**62, 2, 3, 4),
            (1, 9, 3, 4), (1, 2, 9, 4), (1, 2, 3, 9)}  # each of the four counts
    assert len({torch.rand(1, generator=generator(*k)).item() for k in keys}) == len(keys)
    u = torch.stack([torch.rand(16, generator=generator(0, 0, step), dtype=torch.float64)
                     for step in range(2000)])
    assert len({row[0].item() for row in u}) == 2000
    a, b = u[:-1] - 0.5, u[1:] - 0.5
    correlation = (a * b).mean(0) * 12
    assert correlation.abs().max() < 4.5 / math.sqrt(1999)  # 4.5 sigma, 16 columns
    counts = torch.bincount((u[:, 0] * 20).long(), minlength=20).double()
    assert p_value(counts, [1 / 20] * 20) > 1e-4


def test_rows_stand_alone():
    """Permuted frames and draws permute the output; a small batch is a prefix; padding is inert."""
    frames, maps = smooth(24, 3, 120, 160), noise(24, 120, 160) % 60
    labels = torch.zeros(24, 43)
    sizes = torch.tensor([[120, 160]]).expand(24, 2)
    transform = ReportAugment(96, extra=augment.EXTRA)
    images, found = transform(frames, generator(3, 1, 4), labels, maps)
    again, _ = transform(frames, generator(3, 1, 4), labels, maps)
    assert torch.equal(images, again)
    few, found_few = transform(frames[:7], generator(3, 1, 4), labels[:7], maps[:7])
    assert torch.equal(few, images[:7]) and torch.equal(found_few, found[:7])
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    d = draw(24, generator(3, 1, 4), sizes, 96, extra=augment.EXTRA)
    mixed, found_mixed = transform.apply(frames[order], augment.Draws(*(v[order] for v in d)),
                                         labels, maps[order])
    assert torch.equal(mixed, images[order]) and torch.equal(found_mixed, found[order])
    wide, wide_maps = F.pad(frames, (0, 50, 0, 30), value=255), F.pad(maps, (0, 50, 0, 30), value=3)
    padded, found_padded = transform(wide, generator(3, 1, 4), labels, wide_maps, sizes)
    assert torch.equal(padded, images) and torch.equal(found_padded, found)


def test_whole_batches_agree_with_single_samples(monkeypatch):
    """What an accelerator runs, on the CPU: within 1 level on 99.9 % of values, labels equal."""
    frames, maps = smooth(24, 3, 160, 200), torch.full((24, 160, 200), 255, dtype=torch.uint8)
    maps[:, 20:50, 30:60], maps[:, 100:140, 120:130] = 4, 40
    labels = augment.visible_labels(maps, 43)
    sizes = torch.tensor([[160, 200], [150, 180], [100, 200]]).repeat(8, 1)
    for options in ({"empty": "redraw"}, {"extra": augment.EXTRA}):
        transform = ReportAugment(96, **options)
        single = transform(frames, generator(0, 0, 1), labels, maps, sizes)
        with monkeypatch.context() as patch:
            patch.setattr(augment, "at_once", lambda *of: (5, together(*of)[1]))  # five, and four
            whole = transform(frames, generator(0, 0, 1), labels, maps, sizes)
            patch.setattr(augment, "at_once", together)
            at_once = transform(frames, generator(0, 0, 1), labels, maps, sizes)
            height, width = sizes.view(-1, 2, 1, 1, 1).unbind(1)
            inside = (torch.arange(160)[:, None] < height) & (torch.arange(200) < width)
            wild = torch.where(inside, frames, 255)
            inert = transform(wild, generator(0, 0, 1), labels, maps, sizes)
        assert (difference(levels_of(single[0]), levels_of(whole[0])) <= 1).float().mean() >= 0.999
        assert torch.equal(single[1], whole[1])
        assert torch.equal(at_once[0], whole[0]) and torch.equal(at_once[1], whole[1])
        assert torch.equal(inert[0], at_once[0])  # the padding is never sampled


@pytest.mark.parametrize("make, shape, size", [
    (noise, (32, 8, 8), 32), (smooth, (6, 61, 130), 224), (noise, (6, 320, 570), 224),
    (smooth, (2, 2000, 1500), 96), (noise, (2, 1500, 2000), 96), (noise, (64, 40, 30), 24)])
def test_whole_batches_agree_at_any_size(make, shape, size, monkeypatch):
    batch, *sides = shape
    frames, maps = make(batch, 3, *sides, seed=1), noise(batch, *sides) % 60
    maps[:, sides[0] // 4 :] = 255
    labels, transform = torch.zeros(batch, 43), ReportAugment(size, empty="redraw")
    u = torch.rand(batch, 2, generator=generator(0, 0, 0))
    for sizes in (None, (torch.tensor(sides) * (1 + u) / 2).ceil().long()):
        single = transform(frames, generator(7, 0, 0), labels, maps, sizes)
        with monkeypatch.context() as patch:
            patch.setattr(augment, "at_once", together)
            whole = transform(frames, generator(7, 0, 0), labels, maps, sizes)
        assert (difference(levels_of(single[0]), levels_of(whole[0])) <= 1).float().mean() >= 0.999
        assert torch.equal(single[1], whole[1])


@pytest.mark.parametrize("tries", [1, 8])
def test_an_accelerator_works_on_as_many_frames_as_fit(tries):
    sizes = torch.tensor([[7, 5]]).expand(1024, 2)
    for height, width in ((320, 570), (2000, 2000), (20_000, 10_000)):
        frames = torch.empty(1024, 3, height, width, dtype=torch.uint8, device="meta")
        samples, cuts = augment.at_once(frames, sizes, 224, tries)
        assert cuts.tolist() == [[height, width]] * 1024
        one = 4 * 3 * height * width + tries * 224**2 * 5 * 16  # float32; pairs of float64
        assert samples * one <= 2**30 < (samples + 1) * one or samples == 1
        assert samples >= 128 or tries > 1 or height > 320  # the report's batches in one go


OPERATIONS = {  # fields of Draws that it takes
    "flip_vertically": (), "transpose": (),
    "gamma": ("gamma",), "brightness_contrast": ("contrast",), "hue_saturation_value": ("shift",),
    "gaussian_blur": (), "motion_blur": ("motion",), "median_blur": (),
    "sharpen": ("edge",), "coarse_dropout": ("corners", "holes"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_ops_do_not_change_a_bit_in_whole_batches(name):
    x, batch = torch.cat([noise(6, 3, 33, 33), smooth(6, 3, 33, 33)]), 12
    d = draw(batch, generator(2, 0, 0), torch.full((batch, 2), 33), 33, extra=augment.EXTRA)
    op, parameters = getattr(augment, name), [getattr(d, field) for field in OPERATIONS[name]]
    single = [op(x[i : i + 1], *(p[i : i + 1] for p in parameters)) for i in range(batch)]
    assert torch.equal(op(x, *parameters), torch.cat(single))
    rows = torch.arange(batch)
    for chosen in (rows % 3 == 0, rows < 0, rows >= 0):
        wanted = [single[i] if chosen[i] else x[i : i + 1] for i in rows]
        before = x.clone()
        assert torch.equal(augment.on_rows(x, chosen, op, *parameters), torch.cat(wanted))
        assert torch.equal(x, before)


@pytest.mark.parametrize("whole", [False, True])
def test_padding_does_not_move_a_bit(whole, monkeypatch):
    """Values at ties, where any weight on the padding would tip the rounding."""
    if whole:
        monkeypatch.setattr(augment, "at_once", together)
    wide = torch.tensor([(16, n) for n in range(1005, 2000, 23)])
    zero = torch.zeros(len(wide))
    for sizes in (wide, wide.flip(1)):
        height, width = sizes.amax(0).tolist()
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        x = 10 + 2 * ((columns if height > width else rows) % 2)  # halfway at scale 2: 10.5, 11.5
        inside = (rows < sizes[:, :1, None]) & (columns < sizes[:, 1:, None])
        crop = (2 * sizes - 64).clamp(min=0)  # the far end
        for flip in (zero, zero + 1):
            shown = crop if flip[0] == 0 else 0 * crop
            dark, bright = (warp(
                torch.where(inside, x, level).to(torch.uint8)[:, None].expand(-1, 3, -1, -1),
                zero + 2, shown, 0 * crop, zero, flip, 64, sizes=sizes)[0] for level in (0, 255))
            assert torch.equal(dark, bright)


# ------------------------------------------------------------------------- labels and switches


def test_labels_are_those_still_visible():
    frames, sizes = smooth(32, 3, 320, 400), torch.tensor([[320, 400]]).expand(32, 2)
    maps = torch.full((32, 320, 400), 255, dtype=torch.uint8)
    maps[:, 40:80, 20:60], maps[:, 200:300, 300:380], maps[:, 100:101, 200:201] = 3, 17, 42
    maps[:, 0:2, 0:2] = 77  # no such class
    labels = torch.ones(32, 43)
    transform = ReportAugment(64)
    _, found = transform(frames, generator(0, 0, 0), labels, maps)
    d = draw(32, generator(0, 0, 0), sizes, 64)
    for i in range(32):
        geometry = (d.flip[i, 0], d.scale[i, 0].item(), *d.crop[i, 0].tolist(),
                    *d.pad[i, 0].tolist(), d.degrees[i, 0].item())
        left = set(np.unique(loader_labels(maps[i].numpy(), *geometry, size=64))) - {255, 77}
        assert set(torch.nonzero(found[i])[:, 0].tolist()) == left, i
    assert set(found.unique().tolist()) == {0, 1} and found.dtype == torch.float32
    for other in (ReportAugment(labels="frame")(frames, generator(0, 0, 0), labels, maps),
                  transform(frames, generator(0, 0, 0), labels)):
        assert torch.equal(other[1], labels)
    assert transform(frames, generator(0, 0, 0))[1] is None


def test_empty_crops_are_redrawn():
    frames = smooth(64, 3, 160, 280)
    maps = torch.full((64, 160, 280), 255, dtype=torch.uint8)
    maps[:32, 60:80, 200:230] = 9  # half of the frames show an actor at all
    labels = augment.visible_labels(maps, 43)
    kept, seen = ReportAugment(64)(frames, generator(0, 0, 0), labels, maps)
    redrawn, seen_now = ReportAugment(64, empty="redraw")(frames, generator(0, 0, 0), labels, maps)
    empty = seen.sum(1) == 0
    assert 10 < empty[:32].sum() < 32  # so that there is something to redraw
    assert (seen_now[:32].sum(1) == 0).sum() <= 2
    assert torch.equal(kept[~empty], redrawn[~empty])
    assert torch.equal(kept[32:], redrawn[32:])  # nothing to find: the first geometry stays
    assert (kept[:32] != redrawn[:32])[empty[:32]].flatten(1).any(1).float().mean() > 0.9
    frame = ReportAugment(64, empty="redraw", labels="frame")
    assert torch.equal(frame(frames, generator(0, 0, 0), labels, maps)[0], redrawn)
    with pytest.raises(ValueError, match="label maps"):
        frame(frames, generator(0, 0, 0), labels)


@pytest.mark.parametrize("name", augment.OPS + augment.EXTRA)
def test_a_switch_changes_its_op_alone(name):
    sizes = torch.tensor([[320, 570]]).expand(500, 2)
    extra = name in augment.EXTRA
    plain = draw(500, generator(0, 0, 0), sizes)
    switched = draw(500, generator(0, 0, 0), sizes, without=() if extra else (name,),
                    extra=(name,) if extra else ())
    fields = {"scale": {"scale", "crop", "pad"}, "crop": {"crop", "pad"}, "rotate": {"degrees"},
              "gamma": {"tone"}, "hsv": {"tone"}, "brightness": {"tone"}, "gaussian": {"blur"},
              "motion": {"blur"}, "median": {"blur"}, "dropout": {"holes"}}.get(name, {name})
    changed = {f for f in plain._fields
               if not torch.equal(getattr(plain, f), getattr(switched, f))}
    assert changed == fields
    for field in fields & {"tone", "blur"}:
        gone = augment.FORCE[name][field]
        before, after = getattr(plain, field), getattr(switched, field)
        assert torch.equal(after, torch.where(before == gone, 0, before))
    if name == "scale":
        assert (switched.scale == 1).all()
    if name == "crop":
        spare = (plain.scale[..., None] * sizes[:, None]).round() - 224
        assert torch.equal(switched.crop, ((spare.clamp(min=0) + 1) / 2).long())
    if name in ("flip", "rotate", "dropout"):
        assert not getattr(switched, next(iter(fields))).any()


def test_vertical_flip_and_transpose_turn_picture_and_nothing_else():
    frames, sizes = smooth(8, 3, 100, 120), torch.tensor([[100, 120]]).expand(8, 2)
    transform = ReportAugment(64)
    d = draw(8, generator(0, 0, 0), sizes, 64)._replace(holes=torch.zeros(8, dtype=torch.long),
                                                         blur=torch.zeros(8, dtype=torch.long))
    plain, _ = transform.apply(frames, d)
    rows = torch.arange(8) % 2 == 0
    flipped, _ = transform.apply(frames, d._replace(vflip=rows))
    assert torch.equal(flipped, torch.where(rows.view(-1, 1, 1, 1), plain.flip(2), plain))
    turned, _ = transform.apply(frames, d._replace(transpose=rows))
    assert torch.equal(turned, torch.where(rows.view(-1, 1, 1, 1), plain.mT, plain))


def test_field_of_view_is_that_of_a_320_pixel_frame_at_224():
    for shape, size in (((320, 570), 224), ((160, 285), 112), ((720, 1280), 64), ((400, 320), 448)):
        d = draw(2000, generator(0, 0, 0), torch.tensor([shape]).expand(2000, 2), size)
        seen = size / d.scale[:, 0] / min(shape)  # side of the window in short sides of the frame
        assert 0.35 <= seen.min() < 0.351 and 1.39 < seen.max() <= 1.4  # 224/320/2 .. 224/320/0.5


# ------------------------------------------------------------------------------ any batch works


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 61), (2, 1, 1), (1, 2000, 2000), (2, 9, 500),
                                   (1024, 12, 10)])
def test_any_batch_and_frame_size(shape):
    """As one op after the other, whose warp is the loop's, and labels as the warped maps show."""
    batch, height, width = shape
    frames, maps = noise(batch, 3, height, width), noise(batch, height, width)
    sizes = torch.tensor([[height, width]]).expand(batch, 2)
    d = draw(batch, generator(0, 0, 0), sizes, 32, extra=augment.EXTRA)
    d = d._replace(degrees=d.degrees + 3)  # so that each is turned
    images, labels = ReportAugment(32, extra=augment.EXTRA).apply(
        frames, d, torch.zeros(batch, 43), maps
    )
    first = type(d)(*(v[:40] for v in d))
    assert torch.equal(levels_of(images[:40]), one_op_after_the_other(frames[:40], first, 32))
    geometry = [v[:, 0] for v in (d.scale, d.crop, d.pad, d.degrees, d.flip)]
    warped, shown = warp(frames, *geometry, 32, label_maps=maps)
    wanted = [[c in row for c in range(43)] for row in (set(m.flatten().tolist()) for m in shown)]
    assert torch.equal(labels, torch.tensor(wanted).float())
    for i in range(min(batch, 2)):
        row = [v[i].tolist() for v in geometry]
        frame = frames[i].permute(1, 2, 0).double().numpy()
        error = np.abs(warped[i].permute(1, 2, 0).numpy() - reference_warp(frame, *row, 32))
        # half a level of rounding; float32 coordinates are off by 2^-24 of them, times 255 levels
        assert error.max() <= 0.52 + max(height, width) * 2**-24 * 255


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1024, 320, 570), (8, 2000, 2000), (64, 720, 1280)])
def test_big_batches(shape):
    batch, height, width = shape
    frames = noise(1, 3, height, width).expand(batch, -1, -1, -1)
    d = draw(batch, generator(0, 0, 0), torch.tensor([[height, width]]).expand(batch, 2))
    images, _ = ReportAugment().apply(frames, d)
    last = type(d)(*(v[-2:] for v in d))
    assert torch.equal(levels_of(images[-2:]), one_op_after_the_other(frames[-2:], last, 224))


def test_memory_layout_does_not_matter():
    frames, maps = smooth(6, 3, 90, 130), noise(6, 90, 130) % 50
    labels = torch.zeros(6, 43)
    wanted = ReportAugment(64)(frames, generator(0, 0, 0), labels, maps)
    strided = torch.zeros(6, 3, 180, 260, dtype=torch.uint8)[..., ::2, ::2].copy_(frames)
    strided_maps = torch.zeros(6, 130, 90, dtype=torch.uint8).mT.copy_(maps)
    shown = smooth(1, 3, 90, 130).expand(6, -1, -1, -1)
    for other in (frames.contiguous(memory_format=torch.channels_last), strided):
        images, found = ReportAugment(64)(other, generator(0, 0, 0), labels, strided_maps)
        assert torch.equal(images, wanted[0]) and torch.equal(found, wanted[1])
        assert torch.equal(augment.EvalTransform(64)(other), augment.EvalTransform(64)(frames))
    assert torch.equal(ReportAugment(64)(shown, generator(0, 0, 0))[0],
                       ReportAugment(64)(shown.contiguous(), generator(0, 0, 0))[0])
    before = frames.clone()
    ReportAugment(64)(frames, generator(0, 0, 0))
    assert torch.equal(frames, before)  # the input is not written


def test_extreme_draws():
    """Of any scale, angle and shift, the geometry is the loop's and the tones their formulas'."""
    frames, sizes = noise(6, 3, 40, 50), torch.tensor([[40, 50]]).expand(6, 2)
    d = draw(6, generator(0, 0, 0), sizes, 32)
    d = d._replace(
        scale=torch.tensor([1e-4, 1e4, 0.5, 1.0, 1.0, 64.0]).double()[:, None],
        crop=torch.tensor([[0, 0], [399_968, 499_968], [0, 0], [8, 18], [0, 0],
                           [2528, 3168]])[:, None],
        pad=torch.tensor([[31, 31], [0, 0], [12, 7], [0, 0], [0, 0], [0, 0]])[:, None],
        degrees=torch.tensor([0, 10, -180, 90, 360, 45.0]).double()[:, None],
        flip=torch.tensor([True] * 3 + [False] * 3)[:, None],
        tone=torch.tensor([1, 2, 2, 3, 3, 1]),
        gamma=torch.tensor([1e-3, 1, 1, 1, 1, 50.0]).double(),
        shift=torch.tensor([[400.0, 300, 300], [-400, -300, -300]] * 3).double(),
        contrast=torch.tensor([[0.0, 9], [0, -9], [50, -20]] * 2).double(),
        blur=0 * d.blur, holes=0 * d.holes)
    images, _ = ReportAugment(32).apply(frames, d)
    got = levels_of(images)
    geometry = [v[:, 0] for v in (d.scale, d.crop, d.pad, d.degrees, d.flip)]
    warped, _ = warp(frames, *geometry, 32)
    for i in range(6):
        row = [v[i].tolist() for v in geometry]
        frame = frames[i].permute(1, 2, 0).double().numpy()
        error = np.abs(warped[i].permute(1, 2, 0).numpy() - reference_warp(frame, *row, 32))
        assert error.max() <= 0.52, i  # half a level of rounding, float32 coordinates
    x = warped.double()
    for i in (0, 5):
        wanted = (255 * (x[i] / 255) ** d.gamma[i]).floor()
        # a 255 / 255 a rounding below 1 loses a level, as in the library
        assert difference(got[i], wanted).max() <= 1
    for i in (3, 4):
        alpha, beta = d.contrast[i]
        assert torch.equal(got[i].double(), (alpha * x[i] + 255 * beta).clamp(0, 255).floor())
    for i in (1, 2):
        assert difference(got[i], opencv_hsv(warped[i], d.shift[i].tolist())).max() <= 1


@pytest.mark.parametrize("frames, sizes, message", [
    (torch.zeros(2, 3, 8, 8), None, "uint8"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.float16), None, "uint8"),
    (np.zeros((2, 3, 8, 8), np.uint8), None, "uint8"),
    (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), None, r"\(B, 3, H, W\)"),
    (torch.zeros(3, 8, 8, dtype=torch.uint8), None, r"\(B, 3, H, W\)"),
    (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), None, "empty"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([[9, 8]]), r"1\.\.\(8, 8\)"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([[0, 8]]), r"1\.\.\(8, 8\)"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([8, 8]), "int64"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.tensor([[8.0, 8.0]]), "int64"),
])
def test_wrong_frames_are_a_clear_error(frames, sizes, message):
    for transform in (lambda *a: ReportAugment(32)(a[0], generator(0, 0, 0), sizes=a[1]),
                      augment.EvalTransform(32)):
        with pytest.raises((TypeError, ValueError), match=message):
            transform(frames, sizes)


SLIPS = {  # what somebody passes in place of frames (1, 3, H, W)
    "colours last": lambda frames: frames.permute(0, 2, 3, 1),
    "one frame": lambda frames: frames[0],
    "one frame, colours last": lambda frames: frames[0].permute(1, 2, 0),
    "floats": lambda frames: frames / 255,
    "int64": lambda frames: frames.long(),
    "array": lambda frames: frames.numpy(),
    "array, colours last": lambda frames: frames.permute(0, 2, 3, 1).numpy(),
    "array of one frame in floats": lambda frames: frames[0].permute(1, 2, 0).numpy() / 255,
    "PIL image": lambda frames: Image.fromarray(frames[0].permute(1, 2, 0).numpy()),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_an_error_says_how_to_make_frames(slip):
    """In code that does make them."""
    frames = noise(1, 3, 8, 9)
    given = SLIPS[slip](frames)
    with pytest.raises((TypeError, ValueError), match="frames are a tensor") as caught:
        augment.EvalTransform(32)(given)
    code = re.search(r"; (?:of floats in 0\.\.1 )?(.*) makes them$", str(caught.value))[1]
    made = eval(code, {"frames": given, "torch": torch, "decoding": decoding})
    assert torch.equal(made, frames)


@pytest.mark.parametrize("given, words", [
    ("a.png", "str"),
    ([noise(3, 8, 9)], "list"),
    (noise(2, 1, 8, 9), r"Tensor of torch\.uint8 \(2, 1, 8, 9\)"),
    (noise(0, 8, 9, 3), r"Tensor of torch\.uint8 \(0, 8, 9, 3\)"),
])
def test_an_error_says_what_can_be_no_frames(given, words):
    with pytest.raises((TypeError, ValueError), match=f"not empty, got {words}$"):
        ReportAugment(32)(given, generator(0, 0, 0))


class Elsewhere(torch.Generator):
    device = torch.device("cuda:0")


@pytest.mark.parametrize("given, words", [
    (0, "int"),
    (None, "NoneType"),  # torch would draw by its own generator, and never again the same
    (np.random.default_rng(0), "Generator"),
    (Elsewhere(), "Elsewhere on cuda:0"),
])
def test_an_error_says_where_a_generator_comes_from(given, words):
    advice = r"augment\.generator\(seed, epoch, step\) makes one"
    with pytest.raises(TypeError, match=f"on the CPU, got {words}; {advice}$"):
        ReportAugment(32)(noise(1, 3, 8, 9), given)


def test_wrong_options_are_a_clear_error():
    for options in ({"without": ["blurr"]}, {"without": ["vflip"]}, {"extra": ["gamma"]},
                    {"labels": "all"}, {"empty": "drop"}):
        with pytest.raises(ValueError, match="choose from"):
            ReportAugment(**options)
    with pytest.raises(ValueError, match=r"without='flip': .* as \['flip'\]$"):
        ReportAugment(without="flip")
    with pytest.raises(ValueError, match="hole"):
        ReportAugment(4)
    for options in ({"fit": "crop"}, {"interpolation": "nearest"}):
        with pytest.raises(ValueError, match="choose from"):
            augment.EvalTransform(**options)
    frames = noise(2, 3, 16, 16)
    for maps in (torch.zeros(2, 16, 16), torch.zeros(2, 16, 15, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="label_maps are uint8"):
            ReportAugment(16)(frames, generator(0, 0, 0), torch.zeros(2, 43), maps)
    for maps in (None, noise(2, 16, 16)):
        for labels in (torch.zeros(43), torch.zeros(3, 43), torch.zeros(2, 43, 1),
                       torch.zeros(2, 43, dtype=torch.long)):
            for option in ("visible", "frame"):
                with pytest.raises(ValueError, match=r"labels are float32 \(2, classes\)"):
                    ReportAugment(16, labels=option)(frames, generator(0, 0, 0), labels, maps)


def test_autocast_changes_nothing():
    frames = smooth(12, 3, 90, 130)
    wanted = ReportAugment(64, extra=augment.EXTRA)(frames, generator(0, 0, 0))[0]
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            got = ReportAugment(64, extra=augment.EXTRA)(frames, generator(0, 0, 0))[0]
            shown = augment.EvalTransform(64)(frames)
        assert got.dtype == shown.dtype == torch.float32
        assert torch.equal(got, wanted)


# ------------------------------------------------------------------------------- evaluation


def test_squash_is_the_courses_resize():
    cv2 = pytest.importorskip("cv2")
    frames = torch.cat([smooth(2, 3, 320, 570), noise(2, 3, 320, 570)])
    got = levels_of(augment.EvalTransform()(frames))
    for i, frame in enumerate(frames):
        image = np.ascontiguousarray(frame.permute(1, 2, 0))
        error = difference(got[i : i + 1], planes(cv2.resize(image, (224, 224)))).float()
        assert error.max() <= 1 and error.mean() < 0.2  # cv2's fixed point


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_does_not_depend_on_the_batch(fit, interpolation):
    transform = augment.EvalTransform(48, fit=fit, interpolation=interpolation)
    heights = torch.arange(64) % 5 * 7 + 60
    sizes = torch.stack((heights, 150 - heights), 1)
    frames = smooth(64, 3, 88, 90)
    for i, (height, width) in enumerate(sizes.tolist()):
        frames[i, :, height:], frames[i, :, :, width:] = 0, 0
    wanted = torch.cat([transform(f[None, :, :h, :w]) for f, (h, w)
                        in zip(frames, sizes.tolist(), strict=True)])
    for batch in (1, 7, 64):
        parts = zip(frames.split(batch), sizes.split(batch), strict=True)
        assert torch.equal(torch.cat([transform(f, s) for f, s in parts]), wanted)


@pytest.mark.parametrize("fit", ["squash", "letterbox"])
def test_frame_box_is_where_the_view_shows_the_frame(fit):
    """A white frame, of sizes that leave even and odd bands, and less than a row."""
    view = augment.EvalTransform(64, (0, 0, 0), (1, 1, 1), fit)
    for height, width in [(h, 90) for h in range(60, 130, 3)] + [(1, 500), (500, 1)]:
        image = view(torch.full((1, 3, height, width), 255, dtype=torch.uint8))[0, 0]
        top, left, h, w = view.frame_box(height, width)
        expected = torch.zeros(64, 64, dtype=torch.bool)
        expected[top : top + h, left : left + w] = True
        assert torch.equal(image > 0.9, expected)
    # 102 x 224 / 640 is 35.7
    view = augment.EvalTransform(224, fit=fit)
    wanted = (94, 0, 36, 224) if fit == "letterbox" else (0, 0, 224, 224)
    assert view.frame_box(102, 640) == wanted


def test_letterbox_and_bicubic_against_pillow():
    frame = smooth(1, 3, 100, 150)
    image = Image.fromarray(np.ascontiguousarray(frame[0].permute(1, 2, 0)))
    wanted = Image.new("RGB", (60, 60), FILL)
    wanted.paste(image.resize((60, 40), Image.Resampling.BICUBIC), (0, 10))
    got = levels_of(augment.EvalTransform(60, fit="letterbox", interpolation="bicubic")(frame))
    assert difference(got, planes(np.array(wanted))).max() <= 1  # Pillow rounds between the passes


# --------------------------------------------------------------------------- preview and script


def previewed(path, frames, sizes, transform):
    """{op: (B, 3, size, size) levels}, and whole draws, (B, draws, 3, size, size), of the page."""
    size = transform.size
    augment.preview(path, frames, sizes, transform, seed=3)
    names = ["frame", *(name for name in augment.OPS if name not in transform.without)]
    names += transform.extra
    sheet = np.array(Image.open(path).convert("RGB"))
    depth, width = size + 4 + 8, max(88, size + 8)
    batch, title = len(frames), 28
    assert sheet.shape == (18 + title + 2 * batch * depth, len(names) * width, 3)
    heads = sheet[:18].reshape(18, len(names), width, 3)
    assert (heads < 128).any((0, 2, 3)).all()  # each column has a title
    lines = sheet[18 + batch * depth :][:title]
    assert (lines < 128).any()  # and the draws
    rows = np.concatenate([sheet[18 : 18 + batch * depth], sheet[18 + title + batch * depth :]])
    cells = rows.reshape(2, batch, depth, len(names), width, 3)
    shown = cells[:, :, 4 : 4 + size, :, 4 : 4 + size]
    alone, draws = torch.from_numpy(shown.copy()).permute(0, 1, 3, 5, 2, 4)  # (B, columns, 3, …)
    return dict(zip(names, alone.unbind(1), strict=True)), draws


@pytest.mark.parametrize("height, width", [(80, 128), (160, 70), (64, 64)])
def test_preview_shows_ops_alone_on_the_whole_frame(tmp_path, height, width):
    """Each tile is what the op, with the draws of the page's seed, makes of the whole frame, which
    is fitted into the middle."""
    frames, sizes = smooth(2, 3, height, width), torch.tensor([[height, width]] * 2)
    transform = ReportAugment(64, without=("median",), extra=("vflip",))
    alone, _ = previewed(tmp_path / "grid.png", frames, sizes, transform)
    frame = alone["frame"]
    view = augment.EvalTransform(64, fit="letterbox")
    # Augmentation cuts levels off where evaluation rounds them.
    assert difference(frame, levels_of(view(frames))).max() <= 1
    assert difference(alone["flip"], levels_of(view(frames.flip(3)))).max() <= 1

    draws = draw(2, generator(3, 0, 0), sizes, 64)
    holes = torch.full((2,), augment.HOLES)
    for name, expected in {
        "gamma": augment.gamma(frame, draws.gamma),
        "hsv": augment.hue_saturation_value(frame, draws.shift),
        "brightness": augment.brightness_contrast(frame, draws.contrast),
        "gaussian": augment.gaussian_blur(frame),
        "motion": augment.motion_blur(frame, draws.motion),
        "dropout": augment.coarse_dropout(frame.clone(), draws.corners, holes),
        "vflip": augment.flip_vertically(frame),
    }.items():
        assert torch.equal(alone[name], expected), name

    # Scale and crop are what they are in training: windows of a frame that is not shrunk to fit.
    for name in ("scale", "crop"):
        others = [op for op in augment.OPS if op != name]
        window = ReportAugment(64, without=others)(frames, generator(3, 0, 0))[0]
        assert torch.equal(alone[name], levels_of(window)), name
    scale = 64 / max(height, width)
    pad = torch.tensor([[64 - height * scale, 64 - width * scale]] * 2).long() // 2
    scale, degrees = torch.tensor([[scale, 10.0]] * 2, dtype=torch.float64).unbind(1)
    turned, _ = warp(frames, scale, torch.zeros_like(pad), pad, degrees, torch.zeros(2), 64)
    assert torch.equal(alone["rotate"], turned)


def test_preview_shows_whole_draws_of_every_frame(tmp_path):
    """As training makes them, also where frames differ in size."""
    frames, sizes = smooth(2, 3, 80, 100), torch.tensor([[80, 100], [60, 90]])
    transform = ReportAugment(96, without=("hsv", "median"))
    alone, draws = previewed(tmp_path / "grid.png", frames, sizes, transform)
    assert draws.shape == (2, len(alone), 3, 96, 96) == (2, 10, 3, 96, 96)
    for step in range(10):
        made, _ = transform(frames, generator(3, 0, step), sizes=sizes)
        assert torch.equal(draws[:, step], levels_of(made))


def test_script_writes_a_grid_and_names_what_is_wrong(tmp_path, monkeypatch, capsys):
    for i, shape in enumerate(((40, 50), (64, 32))):
        picture = np.ascontiguousarray(smooth(1, 3, *shape)[0].permute(1, 2, 0))
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    pictures = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    options = ["--size", "32", "--out", str(tmp_path / "grid.png"), "--with", "sharpen"]
    augment.main([*pictures, *options])
    assert capsys.readouterr().out == f"written: {tmp_path / 'grid.png'}\n"
    columns = 1 + len(augment.OPS) + 1
    shape = columns * 88, 18 + 2 * 44 + 28 + 2 * 44  # two rows of ops, two of whole draws
    assert Image.open(tmp_path / "grid.png").size == shape
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    assert ended(script("augment.py", tmp_path / "log", pictures[0], tmp_path / "2.png")) == 3
    errors = (tmp_path / "log").read_text()
    assert errors.count("\n") == 1 and str(tmp_path / "2.png") in errors  # of two, the one
    for wrong in (["none.png"], ["1.png", "--size", "7"], ["1.png", "--seed", str(2**63)],
                  ["1.png", "--out", "no/grid.png"], ["1.png", "--out", "grid.xyz"]):
        monkeypatch.chdir(tmp_path)
        assert wrong[-1] in augment.main(wrong)
    assert "is one of the pictures" in augment.main([pictures[1], "--out", "1.png"])
    assert (tmp_path / "1.png").read_bytes() == whole


# -------------------------------------------------------------------------------------- CUDA


def without_values(batch):
    """Frames, generator, labels and label maps, on the meta device."""
    frames, maps = (torch.empty(batch, *shape, dtype=torch.uint8, device="meta")
                    for shape in ((3, 60, 80), (60, 80)))
    return frames, generator(0, 0, 0), torch.empty(batch, 43, device="meta"), maps


@pytest.mark.parametrize("options", [{"empty": "redraw"}, {}])
def test_the_devices_part_never_asks_for_a_value(options):
    """Meta tensors have none: what would synchronise on CUDA is an error on them."""
    images, labels = ReportAugment(48, extra=augment.EXTRA, **options)(*without_values(16))
    assert images.is_meta and images.shape == (16, 3, 48, 48)
    assert labels.is_meta and labels.shape == (16, 43)


def test_the_devices_part_is_180_kernels_whatever_the_batch():
    """60,000 images/s at batch 64 is 1.07 ms a batch, at some 5 us a launch."""
    views = {"view", "slice", "select", "expand", "permute", "transpose", "unsqueeze", "split",
             "unbind", "split_with_sizes", "_unsafe_view", "empty", "new_empty", "alias", "detach",
             "unfold"}

    class Launches(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.ops = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            name = func.overloadpacket.__name__
            on_device = any(isinstance(t, torch.Tensor) and t.is_meta for t in tree_leaves(out))
            copied = name == "_to_copy" and args[0].is_cpu  # beside the kernels
            if on_device and not copied and name not in views:
                self.ops.append(func)
            return out

    counts = []
    for batch in (64, 256):
        arguments = without_values(batch)
        with Launches() as launches:
            ReportAugment(48)(*arguments)
        counts.append(len(launches.ops))
    assert counts[0] == counts[1] <= 180


@CUDA
@pytest.mark.parametrize("options", [{}, {"empty": "redraw"}])
def test_cuda_agrees_and_never_synchronises(options):
    frames, maps = smooth(64, 3, 320, 400), torch.full((64, 320, 400), 255, dtype=torch.uint8)
    maps[:, 50:150, 60:160], maps[:, 250:280, 300:340] = 5, 41
    labels = augment.visible_labels(maps, 43)
    transform = ReportAugment(extra=augment.EXTRA, **options)
    wanted = transform(frames, generator(0, 0, 0), labels, maps)
    device = frames.cuda(), labels.cuda(), maps.cuda()
    first = transform(device[0], generator(0, 0, 0), *device[1:])  # libraries load here
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = transform(device[0], generator(0, 0, 0), *device[1:])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (difference(levels_of(got[0].cpu()), levels_of(wanted[0])) <= 1).float().mean() >= 0.999
    assert torch.equal(got[1].cpu(), wanted[1])
    few = transform(device[0][:7], generator(0, 0, 0), device[1][:7], device[2][:7])
    for i in (0, 1):  # images, labels: the same again, and in a smaller batch
        assert torch.equal(got[i], first[i]) and torch.equal(got[i][:7], few[i])


@CUDA
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_cuda_evaluation_agrees(interpolation):
    frames, view = smooth(7, 3, 320, 570), augment.EvalTransform(interpolation=interpolation)
    got = view(frames.cuda())
    # a float32 coordinate near 570 is right to 6e-5 pixel, of up to 48 levels: 5e-5 normalised
    assert torch.allclose(got.cpu(), view(frames), atol=2e-4)
    assert torch.equal(got[:1], view(frames[:1].cuda()))


def test_mirror_turns_about_half_of_the_images_round():
    x = torch.randn(4000, 1, 2, 3)
    y = augment.mirror(x, augment.generator(0, 1, 2))
    mirrored = (y == x.flip(3)).flatten(1).all(1)
    same = (y == x).flatten(1).all(1)
    assert torch.equal(mirrored, ~same)
    assert abs(mirrored.float().mean() - 0.5) < 0.04  # five standard deviations
    again = augment.mirror(x, augment.generator(0, 1, 2))
    assert torch.equal(again, y)
    assert not torch.equal(augment.mirror(x, augment.generator(0, 1, 3)), y)
