"""torch.export and ONNX: a network that is exported for any number of images is the eager one."""

import pytest
import torch

import mish_kernel
from model import create_model

BATCH = {0: torch.export.Dim("batch")}
SLOW = pytest.mark.slow


def sensible(arch):
    """(network in evaluation mode, 5 images of 64 px). Its BN statistics are the images' own: with
    those of a new network the deep ones answer all images nearly alike, or with millions."""
    torch.manual_seed(0)
    net, images = create_model(arch), torch.randn(5, 3, 64, 64)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    return net.eval(), images


def namespaces(program):
    """Of the operators that an exported program calls; those of torch itself are aten's."""
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return {str(call).partition(".")[0] for call in calls}


@pytest.mark.parametrize("arch", [
    "tiny", *(pytest.param(arch, marks=SLOW) for arch in ("efficientnet_b0", "resnet34",
                                                          "seresnext101")),
])  # fmt: skip
def test_a_network_exported_with_two_images_takes_one_and_five(arch, tmp_path):
    net, images = sensible(arch)
    with torch.no_grad():
        expected = {count: net(images[:count]) for count in (1, 5)}

    # The same operators in the same order: the same bits.
    program = torch.export.export(net, (images[:2],), dynamic_shapes=(BATCH,))
    assert namespaces(program) == {"aten"}
    for count, logits in expected.items():
        assert torch.equal(program.module()(images[:count]), logits)

    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    names = {"input_names": ["images"], "output_names": ["logits"]}
    path = tmp_path / "net.onnx"
    torch.onnx.export(program, f=path, dynamo=True, verbose=False, **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    # In units of the images' spread, other orders of summation and BN folded into convolutions
    # give 1e-5 in Tiny to 6e-4 in SE-ResNeXt101; symmetric padding in place of SAME gives 85.
    spread = expected[5].std(0).mean()
    for count, logits in expected.items():
        (answer,) = session.run(["logits"], {"images": images[:count].numpy()})
        assert (torch.from_numpy(answer) - logits).abs().max() < 1e-2 * spread


@pytest.mark.parametrize("strict", [False, True])
def test_a_head_is_exported_without_its_kernels(strict, monkeypatch):
    """As on a GPU, whose kernels are run by operators that no other program knows."""
    monkeypatch.setattr(mish_kernel, "INTERPRET", True)
    assert mish_kernel.has_kernels(torch.device("cpu"))
    head, x = mish_kernel.MishHead(64, 7).eval(), torch.randn(2, 64)
    program = torch.export.export(head, (x,), dynamic_shapes=(BATCH,), strict=strict)
    assert namespaces(program) == {"aten"}
