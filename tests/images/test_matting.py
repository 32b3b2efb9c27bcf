"""Matting networks: the graph is checked before it runs, and what it finds becomes alpha."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from layerdiffuse_mcp import installed
from layerdiffuse_mcp.errors import CheckpointError, ModelNotFound
from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.images.matting import check_graph, matte, network_input
from tests.images.graphs import graph, matting, pinned


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def red_disc(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc on grey, and where it is."""
    rows, columns = np.mgrid[:height, :width]
    inside = np.hypot(rows - height / 2, columns - width / 2) < height / 3
    return np.where(inside[..., None], (230, 20, 20), (120, 120, 120)).astype(np.uint8), inside


@pytest.mark.parametrize("logits", [True, False])
def test_a_network_finds_the_subject_at_the_pictures_own_size(file: Path, logits: bool):
    network, content = matting(logits=logits)
    file.write_bytes(content)
    picture, inside = red_disc(150, 220)
    alpha = matte(picture, file, network)
    assert alpha.shape == (150, 220)
    assert alpha.dtype == np.float32
    assert (alpha > 0.5)[inside].mean() > 0.97
    assert (alpha < 0.5)[~inside].mean() > 0.97


def test_a_picture_is_given_as_the_networks_were_trained():
    network, _ = matting()
    given = network_input(np.full((10, 30, 4), 255, np.uint8), network)
    assert given.shape == (1, 3, 64, 64)
    assert given.dtype == np.float32
    white = [(1 - mean) / deviation for mean, deviation in zip(network.mean, network.deviation, strict=True)]
    assert given[0, :, 5, 5] == pytest.approx(white, abs=1e-5)


def test_another_file_than_the_published_one_is_not_run(file: Path):
    network, content = matting()
    file.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError, match="not the published one"):
        matte(red_disc(8, 8)[0], file, network)


def test_data_in_other_files_and_foreign_operators_are_refused_before_there_is_a_session(file: Path):
    for model, words in (
        (graph(external=True), "data in other files"),
        (graph(domain="evil.example"), "evil.example"),
    ):
        network, content = pinned("tiny", model.SerializeToString())
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            matte(red_disc(8, 8)[0], file, network)


def nested(inner: onnx.GraphProto) -> onnx.ModelProto:
    """A graph whose only node chooses `inner`."""
    choice = helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)
    given = helper.make_tensor_value_info("yes", TensorProto.BOOL, [])
    found = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([choice], "outer", [given], [found]))


def test_graphs_within_a_graph_are_checked_too():
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.0])
    good = helper.make_graph([helper.make_node("Constant", [], ["out"], value=value)], "inner", [], [])
    check_graph(nested(good).SerializeToString(), "tiny")
    outside = TensorProto(name="value", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for node in (
        helper.make_node("Thing", [], ["out"], domain="evil.example"),
        helper.make_node("Constant", [], ["out"], value=outside),
    ):
        bad = helper.make_graph([node], "inner", [], [])
        with pytest.raises(CheckpointError):
            check_graph(nested(bad).SerializeToString(), "tiny")


def test_what_is_no_graph_is_refused(file: Path):
    network, content = pinned("tiny", b"\x80\x02 no graph")
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="no ONNX graph"):
        matte(red_disc(8, 8)[0], file, network)


def test_a_graph_of_another_form_is_refused_in_words(file: Path):
    network, content = matting()
    model = onnx.load_model_from_string(content)
    del model.graph.input[0].type.tensor_type.shape.dim[0]
    network, content = pinned("tiny", model.SerializeToString())
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="tiny"):
        matte(red_disc(8, 8)[0], file, network)


def test_every_published_network_is_pinned_and_free():
    for network in MATTING.values():
        assert network.remote.pinned
        assert network.remote.path.endswith(".onnx")
        assert network.remote.licence == "MIT"


def test_without_the_extra_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, file: Path):
    monkeypatch.setattr(installed, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match=r"pip install 'layerdiffuse-mcp\[cutout\]'"):
        matte(red_disc(8, 8)[0], file, matting()[0])
