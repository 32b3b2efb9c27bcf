"""Where workers run in a Ray cluster, from what Ray says of its nodes."""

from typing import Any

import pytest

from layerdiffuse_mcp.backends.nodes import Slot, slots
from layerdiffuse_mcp.backends.places import Place
from layerdiffuse_mcp.settings import Settings


def node(name: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {
        "NodeID": f"id-{name}",
        "NodeName": name,
        "NodeManagerAddress": "10.0.0.1",
        "NodeManagerHostname": "machine",
        "Alive": alive,
        "Resources": {"memory": 1e9, **resources},
    }


def found(*nodes: dict[str, Any], **fields: Any) -> list[tuple[str, int, int, int]]:
    return [(slot.name, slot.index, slot.gpus, slot.cpus) for slot in slots(nodes, Settings(**fields))]


def test_each_gpu_has_a_worker_and_nodes_without_one_have_none():
    nodes = node("b", CPU=8, GPU=2), node("a", CPU=16, GPU=1), node("head", CPU=4)
    assert found(*nodes) == [("a", 0, 1, 0), ("b", 0, 1, 0), ("b", 1, 1, 0)]
    assert slots(nodes, Settings())[1] == Slot("id-b", "b", 0, 1, 0, Place(threads=4))


def test_without_gpus_each_node_has_one_worker_on_all_of_its_cpus():
    assert found(node("b", CPU=8), node("a", CPU=2), node("head")) == [("a", 0, 0, 2), ("b", 0, 0, 8)]


def test_a_node_without_gpus_has_as_many_workers_as_its_cpus_allow():
    nodes = node("a", CPU=5), node("b", CPU=1)
    assert found(*nodes, ray_cpus=2) == [("a", 0, 0, 2), ("a", 1, 0, 2)]
    assert slots(nodes, Settings(ray_cpus=2))[0].place == Place(threads=2, sharing=2)


def test_gpus_stay_idle_where_the_settings_name_the_processor():
    assert found(node("a", CPU=4, GPU=2), device="cpu") == [("a", 0, 0, 4)]


def test_the_first_room_of_each_node_comes_first():
    nodes = node("a", GPU=4), node("b", GPU=4)
    assert found(*nodes)[:3] == [("a", 0, 1, 0), ("b", 0, 1, 0), ("a", 1, 1, 0)]


def test_a_node_that_is_gone_has_no_room():
    assert found(node("a", alive=False, GPU=1)) == []


@pytest.mark.parametrize(("given", "said"), [("gpu-7", "gpu-7"), ("10.0.0.1", "machine"), ("", "machine")])
def test_a_node_is_called_by_its_name_else_by_that_of_its_machine(given: str, said: str):
    assert slots([node("a", CPU=1) | {"NodeName": given}], Settings())[0].name == said
