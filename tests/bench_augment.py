"""Images per second of the report's training transform, here and in the peers that are installed.

    python -m tests.bench_augment [--seconds 3] [--repeats 3] [--batch 64]

320x570 uint8 frames -> (B, 3, 224, 224) float32 normalised: flip, scale, pad, crop, rotate, one of
three tones, one of three 3x3 blurs, dropout. One process, one CPU thread, contenders interleaved;
CPU-ms (process time) is the figure that a busy machine disturbs least. On CUDA: this one alone,
batch 64 to 256. Peers (pip install): albumentations==2.0.8 opencv-python-headless kornia

differs  The work is not the same everywhere. torchvision has no motion or median blur, no several
         holes and no draws per sample in a batch (stand-ins, one image at a time); kornia has no
         choice of one op per sample (each of the six has p = 1/6) and pads with zeros.
"""

import argparse
import os
import random
import statistics
import time
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

import augment
from augment import FILL, IMAGENET_MEAN, IMAGENET_STD, ReportAugment


def ours(frames):
    transform, step = ReportAugment(), iter(range(10**9))
    return lambda: transform(frames, augment.generator(0, 0, next(step)))[0]


def albumentations_2(frames):
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    transform = A.Compose([
        A.HorizontalFlip(p=0.5),
        A.RandomScale(scale_limit=(-0.5, 1.0), interpolation=cv2.INTER_LINEAR, p=1),
        A.PadIfNeeded(224, 224, position="random", border_mode=cv2.BORDER_CONSTANT, fill=FILL),
        A.RandomCrop(224, 224),
        A.Rotate((-10, 10), border_mode=cv2.BORDER_CONSTANT, fill=FILL, p=0.5),
        A.OneOf([A.RandomGamma((60, 120)), A.HueSaturationValue(10, 20, 20),
                 A.RandomBrightnessContrast(0.2, 0.2)], p=0.5),
        A.OneOf([A.GaussianBlur((3, 3), (0.8, 0.8)), A.MotionBlur((3, 3)), A.MedianBlur((3, 3))],
                p=0.5),
        A.CoarseDropout((1, 5), (8, 8), (8, 8), fill=0, p=0.5),
        A.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])
    images = [np.ascontiguousarray(f.permute(1, 2, 0).numpy()) for f in frames]

    def run():
        out = torch.empty(len(images), 3, 224, 224)
        for slot, image in zip(out, images, strict=True):
            slot.copy_(torch.from_numpy(transform(image=image)["image"]).permute(2, 0, 1))
        return out

    return run


def torchvision_2(frames):
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as V

    kernels, _ = augment.motion_kernels()

    def gamma(x):
        return V.adjust_gamma(x, random.uniform(0.6, 1.2))

    def motion(x):
        kernel = random.choice(kernels).expand(3, 1, 3, 3)
        padded = F.pad(x[None].float(), (1, 1, 1, 1), "reflect")
        return F.conv2d(padded, kernel, groups=3)[0].round().to(torch.uint8)

    def scale(x):
        s = random.uniform(0.5, 2)
        x = V.resize(x, [round(n * s) for n in x.shape[1:]], antialias=False)
        spare = [max(0, 224 - n) for n in x.shape[1:]]
        top, left = (random.randint(0, n) for n in spare)
        return V.pad(x, [left, top, spare[1] - left, spare[0] - top], fill=FILL)

    def dropout(x):
        for _ in range(random.randint(1, 5)):
            top, left = random.randint(0, 216), random.randint(0, 216)
            x = V.erase(x, top, left, 8, 8, torch.zeros(3, 1, 1, dtype=torch.uint8))
        return x

    def chance(op):
        return lambda x: op(x) if random.random() < 0.5 else x

    bilinear = v2.InterpolationMode.BILINEAR
    transform = v2.Compose([
        v2.RandomHorizontalFlip(0.5), scale, v2.RandomCrop(224),
        chance(v2.RandomRotation(10, bilinear, fill=FILL)),
        chance(v2.RandomChoice([gamma, v2.ColorJitter(saturation=0.1, hue=20 / 360),
                                v2.ColorJitter(brightness=0.2, contrast=0.2)])),
        chance(v2.RandomChoice([v2.GaussianBlur(3, 0.8), motion,
                                lambda x: augment.median_blur(x[None])[0]])),
        chance(dropout), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ])
    return lambda: torch.stack([transform(frame) for frame in frames])


def kornia_batched(frames):
    import kornia.augmentation as K
    from torch import nn

    transform = nn.Sequential(
        K.RandomHorizontalFlip(p=0.5),
        K.RandomAffine(10, scale=(0.5, 2.0), p=1.0),
        K.RandomCrop((224, 224)),
        K.RandomGamma((0.6, 1.2), p=1 / 6),
        K.ColorJiggle(saturation=0.1, hue=20 / 360, p=1 / 6),
        K.ColorJiggle(brightness=0.2, contrast=0.2, p=1 / 6),
        K.RandomGaussianBlur((3, 3), (0.8, 0.8), p=1 / 6),
        K.RandomMotionBlur(3, 35.0, 0.5, p=1 / 6),
        K.RandomMedianBlur((3, 3), p=1 / 6),
        K.RandomErasing((0.001, 0.006), p=0.5),
        K.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)),
    )
    return lambda: transform(frames.float().div_(255))


def measure(contenders, seconds, repeats, batch):
    """Interleaved repeats of {name: run}; prints images/s, median (min-max), and CPU-ms/image."""
    walls, cpus = ({name: [] for name in contenders} for _ in range(2))
    for run in contenders.values():
        run()
    for _ in range(repeats):
        for name, run in contenders.items():
            wall, cpu, n = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - wall < seconds:
                run()
                n += batch
            walls[name].append(n / (time.perf_counter() - wall))
            cpus[name].append((time.process_time() - cpu) / n * 1e3)
    print(f"{'contender':34} {'images/s median (min-max)':>28} {'CPU-ms/image':>14}")
    for name, rates in walls.items():
        spread = f"{statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f})"
        print(f"{name:34} {spread:>28} {statistics.median(cpus[name]):14.2f}")


def on_cuda(frames, seconds, repeats):
    """Ours alone, at three batch sizes."""

    def until_idle(run):
        run()
        torch.cuda.synchronize()

    for batch in (64, 128, 256):
        run = ours(frames[torch.arange(batch) % len(frames)])
        measure({f"batch {batch}": partial(until_idle, run)}, seconds, repeats, batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3, help="least duration of a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64, help="images per call on the CPU")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # its import would ask the network for news
    smooth = torch.rand(args.batch, 3, 40, 72).mul(255)
    frames = F.interpolate(smooth, (320, 570), mode="bicubic").clamp(0, 255).to(torch.uint8)
    contenders = {}
    for package, make in (("torch", ours), ("albumentations", albumentations_2),
                          ("torchvision", torchvision_2), ("kornia", kornia_batched)):
        try:
            version = __import__(package).__version__
        except ImportError as missing:
            print(f"{package}: left out ({missing})")
            continue
        contenders[f"{package} {version}"] = make(frames)
    contenders = {name.replace("torch ", "augment.py, torch ", name.startswith("torch ")): run
                  for name, run in contenders.items()}
    measure(contenders, args.seconds, args.repeats, args.batch)
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        on_cuda(frames.cuda(), args.seconds, args.repeats)


if __name__ == "__main__":
    main()
