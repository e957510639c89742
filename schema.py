"""What a file from elsewhere may hold: looked at before it is read, and before it is used.

A right hash proves that a file is whole, and not that it is friendly. Reading runs no code, but a
tensor may still claim a shape that its optimizer writes to, and a text stand where a number should.
So plain values are compared with a table of rules, and tensors with those of the network and the
optimizer that are to take them:

    fault({"epoch": 3, "threshold": 2.0}, {"epoch": whole(0, 9), "threshold": FRACTION})
    -> "threshold: 2.0, must be a number from 0 to 1"

`fault` and its like return the first fault in words that begin with its key, or None.
"""

import os
import re
import stat
import unicodedata
import warnings
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import torch

DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip
HUGE = 1e30  # in no tensor of a training is a number beyond it, squares of gradients included


# ---------------------------------------------------------------------------------------- reading


def open_file(path):
    """Opens a file for reading bytes; a pipe, of which nobody may write the other end, is an
    OSError."""
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise OSError(None, "is a pipe or a device, not a file", str(path))
    return open(path, "rb")


def read_tensors(file, size):
    """What an open file of torch.save holds: tensors on the CPU and plain values; no code runs.

    size    bytes of the file, above which its parts are not unpacked: torch packs nothing
    raises  ValueError with a reason in one line
    """
    try:
        if file.read(4) == b"PK\3\4":
            _refuse_packed(zipfile.ZipFile(file).infolist(), size)
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd pickle's; the refusal says enough
            return plain(torch.load(file, map_location="cpu", weights_only=True), {})
    except MemoryError:
        raise
    except Exception as error:  # on damaged and hostile files parsers raise anything
        raise ValueError(reason(error)) from error


def _refuse_packed(entries, size):
    """Raises ValueError where the parts of a zip file take more bytes than the file."""
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > size:
        raise ValueError(f"{size:,} bytes that unpack to {unpacked:,}")
    # Readers of zip files disagree on where a list of parts is that bytes stand before, or are
    # packed: then torch could read another list than this.
    if any(entry.compress_type for entry in entries) or min(e.header_offset for e in entries):
        raise ValueError("packed, as torch does not pack")


def plain(value, done, depth=0):
    """A tree of plain dicts, lists and tensors, in the place of those of a pickle: what was pickled
    may have attributes, such as `items`, that hide the methods of its class.

    done  {id of a part: (the part, what is in its place)}
    """
    if id(value) in done:
        return done[id(value)][1]
    if depth > 100:
        raise ValueError("nested more than 100 deep")

    if isinstance(value, dict):
        copy = {}
        done[id(value)] = value, copy
        for key, part in dict.items(value):
            copy[key] = plain(part, done, depth + 1)
        return copy
    if type(value) in (list, tuple):
        copy = type(value)(plain(part, done, depth + 1) for part in value)
    elif isinstance(value, torch.Tensor):
        copy = torch.Tensor.detach(value)
    else:
        return value
    done[id(value)] = value, copy
    return copy


def reason(error) -> str:
    """Why a file cannot be read, in one line: without the advice of torch's to run its code."""
    if called := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it would call {called[1]}, and weights are read as tensors only"
    text = str(error).partition("Weights only load failed")[0] or "holds more than tensors"
    return visible(f"{type(error).__name__} {' '.join(text.partition('. ')[0].split())}"[:160])


def visible(text) -> str:
    """With escapes for the control characters but line breaks, which could move the cursor."""
    return re.sub("[\0-\x09\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def in_a_line(value, most=100) -> str:
    """A value as a part of one line, of about so many characters at most."""
    text = visible(str(value)).replace("\n", "\\n")
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


# ----------------------------------------------------------------------------------- plain values


class Rule(NamedTuple):
    """What a value must be."""

    words: str
    holds: Callable  # value -> bool
    optional: bool = False  # whether its key may be missing


def number(least, most) -> Rule:  # NaN is none
    words = f"a number from {least:.9g} to {most:.9g}"
    return Rule(words, lambda value: type(value) in (int, float) and least <= value <= most)


def whole(least, most) -> Rule:
    words = f"a whole number from {least:,} to {most:,}"
    return Rule(words, lambda value: type(value) is int and least <= value <= most)


def one_of(*choices) -> Rule:
    words = " or ".join(map(repr, choices))
    return Rule(words, lambda value: type(value) in (str, type(None)) and value in choices)


def several(length, rule) -> Rule:
    def holds(values):
        is_list = type(values) in (list, tuple) and len(values) == length
        return is_list and all(rule.holds(value) for value in values)

    return Rule(f"a list of {length}, each {rule.words}", holds)


def _is_plain(value):
    is_short = type(value) is not int or value.bit_length() < 64
    return value is None or (type(value) in (bool, int, float, str) and is_short)


def _are_flags(value):
    """Whether these are the flags of a run, as its args hold them."""
    return isinstance(value, dict) and all(
        type(name) is str and (_is_plain(v) or (type(v) is list and all(map(_is_plain, v))))
        for name, v in value.items()
    )


def is_name(value) -> bool:
    """Whether a class may be called so: a text that can be printed and written."""
    if type(value) is not str or not 0 < len(value) <= 1000:
        return False
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in value)


def _are_names(value):
    are_names = type(value) is list and all(map(is_name, value))
    return are_names and len(set(value)) == len(value) > 0


TEXT = Rule("a text", lambda value: type(value) is str)
FRACTION = number(0, 1)
NAMES = Rule("a list of different texts without control characters", _are_names)
ARGS = Rule("texts, each with a plain value or a list of them", _are_flags)


def fault(value, rule, key="") -> str | None:
    """What does not hold of a value: rule is a Rule, or a dict with one for each key."""
    if isinstance(rule, Rule):
        return None if rule.holds(value) else f"{key}: {shown(value)}, must be {rule.words}"

    required = [name for name, part in rule.items() if not getattr(part, "optional", False)]
    if wrong := keys_fault(value, required, rule, key):
        return wrong
    parts = (fault(value[name], rule[name], _below(key, name)) for name in value)
    return next(filter(None, parts), None)


def keys_fault(value, required, allowed, key) -> str | None:
    """What does not hold of the keys of a dict."""
    if not isinstance(value, dict):
        return f"{key or 'all of it'}: {shown(value)}, must be a dict"
    for name in required:
        if name not in value:
            return f"{_below(key, name)}: is missing"
    for name in value:
        if name not in allowed:
            return f"{_below(key, shown(name))}: is unexpected"
    return None


def _below(key, name) -> str:
    return f"{key}.{name}" if key else str(name)


def shown(value) -> str:
    """A value in a few words; of a compound one, its type."""
    if type(value) is int and not _is_plain(value):
        return "a number of more than 18 digits"
    return in_a_line(value) if _is_plain(value) else f"of type {type(value).__name__}"


def described(value) -> str:
    """What somebody has passed, in a few words: its type and, of a tensor or an array, more."""
    words = type(value).__name__
    if hasattr(value, "dtype"):
        words += f" of {value.dtype} {tuple(value.shape)}"
    place = getattr(value, "device", "cpu")
    return words if str(place) == "cpu" else f"{words} on {place}"


# --------------------------------------------------------------------------------------- tensors


def tensor_fault(value, key="") -> str | None:
    """Why a value is no tensor that can be copied: (…) numbers, each in a place of its own."""
    if type(value) is not torch.Tensor:
        return f"{key}: {shown(value)}, must be a tensor"
    is_plain = value.layout is torch.strided and not value.is_nested
    if not is_plain or value.device.type != "cpu" or value.dtype not in DTYPES:
        kind = "nested" if value.is_nested else f"{value.layout}, {value.dtype}, {value.device}"
        return f"{key}: is no plain tensor of numbers ({kind})"
    if value.ndim > 8:
        return f"{key}: has {value.ndim} dimensions"

    # Many elements in one place take no room in a file, and all that there is in memory.
    if value.numel():
        span = 1 + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
        if span < value.numel():
            return f"{key}: {tuple(value.shape)} elements overlap in memory"
    return None


def tree_fault(given, own, key) -> str | None:
    """What differs between two trees of dicts, tensors and numbers: their keys, shapes and types.

    A number in `given` that is not finite, or beyond HUGE, or below 0 where it counts something, is
    a fault too.
    """
    if isinstance(own, dict):
        if wrong := keys_fault(given, own, own, key):
            return wrong
        parts = (tree_fault(given[name], own[name], _below(key, name)) for name in own)
        return next(filter(None, parts), None)

    if not isinstance(own, torch.Tensor):
        rule = whole(0, 10**18) if type(own) is int else number(0, HUGE)
        return fault(given, rule, key)
    if wrong := tensor_fault(given, key):
        return wrong
    if given.shape != own.shape or given.dtype != own.dtype:
        has, needs = (f"{t.dtype} {tuple(t.shape)}".removeprefix("torch.") for t in (given, own))
        return f"{key}: {has}, must be {needs}"
    return range_fault(given, key)


def range_fault(tensor, key) -> str | None:
    """What is wrong with the numbers in a tensor: whole ones are counts."""
    if not tensor.numel():
        return None
    least, most = (limit.item() for limit in tensor.aminmax())
    lowest = -HUGE if tensor.is_floating_point() else 0
    if lowest <= least and most <= HUGE:
        return None
    return f"{key}: numbers from {least:g} to {most:g}, must be from {lowest:g} to {HUGE:g}"


@torch.no_grad()
def copy_into(own, given):
    """Copies the tensors of a tree without fault into those of `own`, whose places stay theirs."""
    for name, value in own.items():
        if isinstance(value, dict):
            copy_into(value, given[name])
        else:
            value.copy_(given[name])
