"""A matting network in miniature, as an ONNX graph of the published ones' form: what is red is the subject.

network, content = matting("tiny")          # a MattingNetwork that is pinned to `content`
"""

import hashlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from layerdiffuse_mcp.families.entries import HubFile
from layerdiffuse_mcp.families.matting import MattingNetwork

SIDE = 64
COMMIT = "0123456789abcdef0123456789abcdef01234567"  # the hub double's
STEEP = 30.0


def graph(*, logits: bool = True, side: int = SIDE, domain: str = "", external: bool = False) -> onnx.ModelProto:
    """(1, 3, side, side), normalised as ImageNet is -> (1, 1, side, side): by how much red is stronger than green."""
    weight = np.zeros((1, 3, 1, 1), np.float32)
    weight[0, :, 0, 0] = (0.229 * STEEP, -0.224 * STEEP, 0)
    bias = np.array([STEEP * (0.485 - 0.456 - 0.5)], np.float32)
    tensors = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    if external:
        tensors[0].ClearField("raw_data")
        tensors[0].data_location = TensorProto.EXTERNAL
        tensors[0].external_data.add(key="location", value="/etc/passwd")
    last = "output_image" if logits else "logits"
    nodes = [helper.make_node("Conv", ["input_image", "weight", "bias"], [last], domain=domain)]
    if not logits:
        nodes.append(helper.make_node("Sigmoid", ["logits"], ["output_image"]))
    given = helper.make_tensor_value_info("input_image", TensorProto.FLOAT, [1, 3, side, side])
    found = helper.make_tensor_value_info("output_image", TensorProto.FLOAT, [1, 1, side, side])
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(helper.make_graph(nodes, "tiny", [given], [found], tensors), opset_imports=opsets)
    model.ir_version = 8
    return model


def matting(name: str = "birefnet-lite", *, logits: bool = True, **options: object) -> tuple[MattingNetwork, bytes]:
    """A network pinned to its content."""
    return pinned(name, graph(logits=logits, **options).SerializeToString(), logits=logits)  # type: ignore[arg-type]


def pinned(name: str, content: bytes, *, logits: bool = True) -> tuple[MattingNetwork, bytes]:
    """A network whose file is this content."""
    remote = HubFile(
        repo="someone/matting-ONNX",
        path="onnx/model.onnx",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        licence="MIT",
        revision=COMMIT,
    )
    network = MattingNetwork(
        name=name, description="red things", remote=remote, memory=1_000_000_000, side=SIDE, logits=logits
    )
    return network, content
