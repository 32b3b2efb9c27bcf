"""Alpha of a photograph's subject by a published matting network.

    alpha = matte(picture, graph, network)              # (H, W), float32, 0 to 1

The network is an ONNX graph that runs in onnxruntime, on the CPU. Before there is a session, the file's SHA-256 is the
published one, and the graph keeps no data elsewhere and uses no operator but those that onnxruntime ships. Needs the
extra `cutout`. Runs in a picture process, whose bound of memory is the network's.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.families.matting import MattingNetwork
from layerdiffuse_mcp.images.alpha import Bytes, Floats, to_float
from layerdiffuse_mcp.installed import check, program

OPERATORS = frozenset({"", "ai.onnx", "com.microsoft"})
"""Domains of the operators that onnxruntime ships."""
MAX_DEPTH = 32
"""Of graphs within graphs."""

Report = Callable[[float], None]


def ignore(_: float) -> None:
    """A report that nobody reads."""


def matte(picture: Bytes, path: Path, network: MattingNetwork, report: Report = ignore) -> Floats:
    """The subject's alpha, (H, W), float32, 0 to 1, of a picture (H, W, 3) or (H, W, 4), uint8, as if it were opaque.

    Raises:
        ModelNotFound: the extra is not installed.
        CheckpointError: the file is not the published one, or not such a graph.
        MemoryError: there is too little.
    """
    check(network.extra, network.name)
    failures: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    report(0.05)
    try:
        session = _session(path, network)
        report(0.25)
        given = session.get_inputs()
        if len(given) != 1 or given[0].type != "tensor(float)" or len(given[0].shape) != 4:
            raise CheckpointError(f"{network.name} takes {len(given)} inputs, and one picture of float32 is expected.")
        last = session.get_outputs()[-1].name
        found = session.run([last], {given[0].name: network_input(picture, network)})[0]
    except (failures.Fail, failures.RuntimeException, failures.InvalidGraph, failures.InvalidArgument) as error:
        if "alloc" in str(error):
            raise MemoryError(str(error)) from error
        raise CheckpointError(f"{network.name} cannot be run here: {str(error)[:300]}") from error
    report(0.9)
    values = np.asarray(found, np.float32)
    if values.ndim != 4 or values.shape[:2] != (1, 1):
        raise CheckpointError(f"{network.name} gave {values.shape}, and (1, 1, height, width) is expected.")
    plane = values[0, 0]
    alpha = np.clip(1 / (1 + np.exp(-np.clip(plane, -30, 30))) if network.logits else plane, 0, 1)
    height, width = picture.shape[:2]
    sized = Image.fromarray(alpha.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(sized, np.float32), 0, 1)


def network_input(picture: Bytes, network: MattingNetwork) -> Floats:
    """A picture as a network takes it: (1, 3, side, side), float32."""
    size = (network.side, network.side)
    rgb = Image.fromarray(np.ascontiguousarray(picture[..., :3])).resize(size, Image.Resampling.BILINEAR)
    mean, deviation = np.array(network.mean, np.float32), np.array(network.deviation, np.float32)
    scaled = (to_float(np.asarray(rgb)) - mean) / deviation
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)


def check_graph(content: bytes, name: str) -> None:
    """Make sure that a graph is whole in itself and runs no foreign code.

    Raises:
        CheckpointError: it keeps data in other files, uses operators that onnxruntime does not ship, or is none.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
    except DecodeError as error:
        raise CheckpointError(f"{name} is no ONNX graph. Fetch it again: models prepare {name}.") from error
    graphs = [graph for part in (model.graph, *model.functions) for graph in _graphs(part, MAX_DEPTH, name)]
    for tensor in (tensor for graph in graphs for tensor in _tensors(graph)):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise CheckpointError(f"{name} keeps data in other files, which is not allowed.")
    domains = {node.domain for graph in graphs for node in graph.node}
    foreign = domains - OPERATORS - {function.domain for function in model.functions}
    if foreign:
        raise CheckpointError(f"{name} uses operators that onnxruntime does not ship ({', '.join(sorted(foreign))}).")


def _graphs(graph: Any, depth: int, name: str) -> Iterator[Any]:
    """A graph, or a function of a model, and the graphs within it."""
    if depth == 0:
        raise CheckpointError(f"{name} has graphs in graphs, more than {MAX_DEPTH} deep.")
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
                yield from _graphs(inner, depth - 1, name)


def _tensors(graph: Any) -> Iterator[Any]:
    """Everything in a graph that holds numbers."""
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t


def _session(path: Path, network: MattingNetwork) -> Any:
    """An onnxruntime session on what was checked: the file is read once."""
    import onnxruntime

    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != network.remote.sha256:
        raise CheckpointError(
            f"The file of {network.name} is not the published one. Fetch it again: "
            f"`{program()} models prepare {network.name} --verify`."
        )
    check_graph(content, network.name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # memory that is free is given back
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
