"""Triton kernels compiled for a GPU that need not be there, and what their code says."""

import heapq
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

TYPES = {"n": "i32", "B": "i32", "seed": "i64", "offset": "i64"}
TYPES |= {"ticket_ptr": "*i32", "rng_ptr": "*i64"}
UNALIGNED = "ticket_ptr", "rng_ptr"


class Code(NamedTuple):
    sass: str
    ttgir: str
    stack: int  # bytes
    local: int  # loads and stores of local memory
    shared: int  # bytes

    def instructions(self):
        return len(re.findall(r"/\*[0-9a-f]{4,}\*/ +[^/\s]", self.sass))


def build(folder, kernel, architecture, types, constants):
    """The Code of a kernel. Pointers but the generator's and the counter's are 16-byte aligned, n
    is a multiple of 16, what has no type is *fp32.

    constants  its tl.constexpr arguments, num_warps and num_stages, and None for what is left out
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    options = {name: value for name, value in constants.items() if name not in names}
    constants = {name: value for name, value in constants.items() if name in names}
    types = {n: (TYPES | types).get(n, "*fp32") for n in names}
    types |= dict.fromkeys(constants, "constexpr")
    aligned = [n for n in names if n == "n" or types[n][0] == "*" and n not in UNALIGNED]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(kernel, types, constants, attributes)
    target = GPUTarget("cuda", architecture, 32)
    result = triton.compile(source, target, options | {"enable_fp_fusion": True})

    cubin = folder / "kernel.cubin"
    cubin.write_bytes(result.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    sass = subprocess.check_output([tools / "nvdisasm", "-c", cubin], text=True)
    usage = subprocess.check_output([tools / "cuobjdump", "-res-usage", cubin], text=True)
    stack = int(re.search(r"STACK:(\d+)", usage)[1])
    local = len(re.findall(r"\b(?:LDL|STL)\b", sass))
    return Code(sass, result.asm["ttgir"], stack, local, result.metadata.shared)


def shortest_path(sass):
    """Instructions a thread issues on the shortest way from entry to exit: that of a full block."""
    code, labels = [], {}
    for line in sass.splitlines():
        if match := re.match(r"(\.L_x_\d+):", line):
            labels[match[1]] = len(code)
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ +)?([^;]+)", line):
            code.append((match[1] is not None, match[2]))
    queue, seen = [(1, 0)], set()
    while queue:
        steps, at = heapq.heappop(queue)
        if at in seen:
            continue
        seen.add(at)
        predicated, operation = code[at]
        if operation.startswith("EXIT") and not predicated:
            return steps
        if operation.startswith("BRA"):
            heapq.heappush(queue, (steps + 1, labels[re.search(r"\.L_x_\d+", operation)[0]]))
            predicated = predicated or re.match(r"BRA(\.\S+)? +!?U?P\d", operation)
        if predicated or not operation.startswith("BRA"):
            heapq.heappush(queue, (steps + 1, at + 1))
    raise AssertionError("no exit")


# ------------------------------------------------- shared memory refilled while a product reads it

NAME = r"%[\w#-]+"  # of a value in Triton's GPU code


def scalar(text, operands):
    """The value of an operation on integers, None where it is not known."""
    if match := re.search(r"= arith\.constant (-?\d+) : i32", text):
        return int(match[1])
    match = re.search(r"= arith\.(\w+) (?:(\w+), )?%.* : i32$", text)
    if match is None or None in operands[:2]:
        return None
    operation, comparison = match[1], match[2]
    if operation == "select":
        condition, yes, no = operands
        return yes if condition else no
    a, b = operands
    if operation == "cmpi":
        return {"slt": a < b, "sge": a >= b, "eq": a == b}.get(comparison)
    return {"addi": a + b, "subi": a - b, "muli": a * b, "andi": a & b}.get(operation)


class SharedMemory:
    """Walks through Triton's GPU code as one warp group does: a loop's body up to six times, the
    branches of a condition one after the other.

    An asynchronous product (warp_group_dot) reads its operands until a wait leaves it out of the
    products that may be pending. The slots of a pipelined buffer are told apart by the values of
    the integers that index them; one that is not known may be any slot.
    """

    def __init__(self, ttgir):
        self.lines = [re.sub(r" loc\(.*\)$", "", line) for line in ttgir.splitlines()]
        self.values = {}  # name -> int, or (buffer, slot) of a memory descriptor, or None
        self.reading = []  # for each product in flight, the (buffer, slot) that it reads
        self.refilled = []  # the lines that write where a product in flight reads
        self.walk(0, len(self.lines))

    def step(self, text):
        result = re.match(r"(%[\w-]+)(?::\d+)? = ", text)
        operands = [self.values.get(n) for n in re.findall(NAME, text.split(" = ", 1)[-1])]
        value = scalar(text, operands)
        if "= ttg.local_alloc" in text:
            value = result[1], 0
        elif "= ttg.memdesc_index" in text:
            value = operands[0][0], operands[1]
        elif "= ttg.memdesc_" in text:
            value = operands[0]
        elif "= ttng.warp_group_dot_wait" in text:
            pending = int(re.search(r"pendings = (\d+)", text)[1])
            del self.reading[: len(self.reading) - pending]
        elif "= ttng.warp_group_dot " in text:
            if "isAsync = true" in text:
                self.reading.append([o for o in operands[:2] if isinstance(o, tuple)])
            else:  # it waits for itself, and so for those before it
                self.reading.clear()
        elif re.search(r"ttg\.(async_copy_global_to_local|local_store) ", text):
            buffer, slot = operands[1]
            read = [s for product in self.reading for b, s in product if b == buffer]
            if any(s == slot or None in (s, slot) for s in read):
                self.refilled.append(text)
        if result:
            self.values[result[1]] = value

    def walk(self, start, end):
        at = start
        while at < end:
            text = self.lines[at].strip()
            if re.match(r"(%\S+ = )?scf\.for ", text):
                at = self.loop(at, text)
            else:
                self.step(text)
                at += 1

    def loop(self, at, text):
        """Walks through the loop that begins in a line, and returns the line after it."""
        indent = self.lines[at][: -len(self.lines[at].lstrip())]
        end = next(i for i in range(at, len(self.lines)) if self.lines[i].startswith(f"{indent}}}"))
        head = re.search(rf"for ({NAME}) = ({NAME}) to ({NAME}) step ({NAME})", text)
        low, high, by = (self.values.get(name) for name in head.groups()[1:])
        known = None not in (low, high, by)
        turns = len(range(low, high, by)) if known else 6
        pairs = re.findall(rf"({NAME}) = ({NAME})", text.partition("iter_args(")[2])
        carried = [self.values.get(initial) for _, initial in pairs]
        for turn in range(min(6, turns)):
            self.values[head[1]] = low + turn * by if known else None
            self.values.update(zip((name for name, _ in pairs), carried, strict=True))
            self.walk(at + 1, end)
            following = self.lines[end - 1].split(" : ")[0]  # scf.yield
            carried = [self.values.get(name) for name in re.findall(NAME, following)]
        return end + 1
