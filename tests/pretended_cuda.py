"""A program as on a GPU, on a machine without one:

    python -m tests.pretended_cuda "train FLAGS" "evaluate FLAGS"      one after the other

Tensors of a device "cuda" have a shape, a type and a device, but no values (torch's FakeTensor):
what is brought back to the host is 0. So this shows what needs no values: that nothing is computed
from tensors of two devices, that every call of torch.cuda is a possible one, and where the host
waits for the GPU. Prints the number of waits by function, of each command. Backward passes do not
run, for torch's engine looks for a driver: each parameter that the loss depends on gets a gradient
of its shape.
"""

import collections
import contextlib
import shlex
import sys
import threading
import traceback
from argparse import Namespace
from pathlib import Path

import torch
import triton
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).parents[1]
FAKE, ONE_AT_A_TIME = FakeTensorMode(allow_non_fake_inputs=True), threading.Lock()
waits = collections.Counter()


def wait():
    """Counts one for the function of ours that is running."""
    own = [f.name for f in traceback.extract_stack() if Path(f.filename).parent == ROOT]
    waits[own[-1] if own else "?"] += 1


def on_cuda(device):
    return device is not None and torch.device(device).type == "cuda"


class PretendedCuda(TorchDispatchMode):
    """Operators on tensors of the device, and those that make or fetch some; others run as ever."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, device = func.name(), kwargs.get("device")
        fake = any(isinstance(x, FakeTensor) for x in tree_leaves((args, kwargs)))
        if not fake and not on_cuda(device):
            return func(*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            wait()
            return args[0].dtype.is_floating_point and 0.0
        if name == "aten::_to_copy" and fake and device is not None and not on_cuda(device):
            wait()
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        blocking = name == "aten::_to_copy" and on_cuda(device) and not kwargs.get("non_blocking")
        if blocking or name in ("aten::nonzero", "aten::masked_select"):
            wait()
        if name.startswith("aten::_fused_sgd"):  # has no fake implementation, returns nothing
            return None

        def stand_in(x):
            real = isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)
            return FAKE.from_tensor(x) if real else x

        args, kwargs = tree_map(stand_in, (args, kwargs))
        with FAKE:
            return func(*args, **kwargs)


class Stream:
    cuda_stream, device = 0, 0

    def wait_stream(self, stream):
        pass


class Generator:
    offset = 0

    def initial_seed(self):
        return 0

    def get_offset(self):
        return self.offset

    def set_offset(self, offset):
        self.offset = offset

    def manual_seed(self, seed):
        return self


def module_to(module, device=None, dtype=None, memory_format=torch.preserve_format):
    """torch's swaps a tensor's insides, which a fake one does not let happen."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and on_cuda(device):
                    moved = torch.empty_like(tensor, device=device, requires_grad=False)
                    if moved.dim() == 4:
                        moved = moved.contiguous(memory_format=memory_format)
                    parameter = tensors is part._parameters
                    tensors[name] = torch.nn.Parameter(moved) if parameter else moved
    return module


def backward(loss):
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
            if hasattr(node, "variable") and node.variable.grad is None:
                node.variable.grad = torch.empty_like(node.variable, requires_grad=False)


def to(tensor, *args, **kwargs):
    """Tensor.to; decoding threads have no dispatch mode."""
    if _get_current_dispatch_mode() is None and "cuda" in map(str, args):
        with ONE_AT_A_TIME, PretendedCuda():
            return tensor_to(tensor, *args, **kwargs)
    return tensor_to(tensor, *args, **kwargs)


def save(state, file):
    def values(x):
        return torch.zeros(x.shape, dtype=x.dtype) if isinstance(x, FakeTensor) else x

    torch_save(tree_map(values, state), file)


tensor_to, torch_save = torch.Tensor.to, torch.save


def pretend():
    """Puts stand-ins where torch would call CUDA's driver, and where Triton would compile."""
    torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing
    cuda, tensor = torch.cuda, torch.Tensor
    cuda.is_available, cuda.device_count, cuda.current_device = lambda: True, lambda: 1, lambda: 0
    cuda._lazy_init = cuda.empty_cache = lambda: None
    cuda.synchronize = cuda.reset_peak_memory_stats = cuda.manual_seed_all = lambda *_: None
    cuda.max_memory_allocated = cuda.memory_allocated = lambda *_: 0
    cuda.get_device_name, cuda.get_device_capability = lambda *_: "none", lambda *_: (9, 0)
    cuda.is_current_stream_capturing, cuda.is_bf16_supported = lambda: False, lambda *_: True
    fake_tensor.init_gpu_context = lambda _: None
    cuda.default_generators = (Generator(),)
    cuda.current_stream, cuda.Stream = lambda *_: Stream(), lambda *_: Stream()
    cuda.stream = cuda.device_of = lambda _: contextlib.nullcontext()
    cuda.graph = lambda *_, **__: contextlib.nullcontext()
    cuda.CUDAGraph = lambda: Namespace(replay=lambda: None)
    cuda.get_device_properties = lambda *_: Namespace(total_memory=1)
    tensor.record_stream, tensor.pin_memory = lambda *_: None, lambda x, *_: x
    tensor.to, tensor.backward, torch.save = to, backward, save
    torch.autograd.grad = lambda output, inputs: [torch.empty_like(inputs)]
    torch.nn.Module.to = module_to
    triton.runtime.jit.KernelInterface.__getitem__ = lambda kernel, grid: lambda *_, **__: None


def main(commands):
    pretend()
    import evaluate
    import train

    for command in commands:
        name, *flags = shlex.split(command)
        program = {"train": train, "evaluate": evaluate}[name]
        waits.clear()
        with PretendedCuda():
            code = program.main(flags)
        print("waits:", dict(waits))
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
