"""A request that is no longer wanted ends in whatever it does, and leaves the engine as it was."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.api.requests import EncodeRequest, GenerateRequest, Request
from layerdiffuse_mcp.engine.device import threads
from layerdiffuse_mcp.engine.device.cancellation import CHECK_BYTES, asking, check
from layerdiffuse_mcp.engine.device.placement import place
from layerdiffuse_mcp.engine.models.components import Components, LoraUse
from layerdiffuse_mcp.engine.transparency.decode import decode
from layerdiffuse_mcp.engine.transparency.latent_file import read_latent
from layerdiffuse_mcp.engine.transparency.networks import TransparentDecoder
from layerdiffuse_mcp.engine.weights.patcher import Full, Patch, PatchStack
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile, is_finite
from layerdiffuse_mcp.errors import Cancelled
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.settings import Settings
from tests.engine.narrow_bases import copy_of, read_base, same
from tests.narrow import write_base, write_lora
from tests.saving import Engine, same_pixels


class Questions:
    """Answers that nothing is cancelled until the question of that number, which is; counts the questions."""

    def __init__(self, last: int | None = None) -> None:
        self.count, self._last, self._lock = 0, last, threading.Lock()

    def __call__(self) -> bool:
        with self._lock:
            self.count += 1
            return self._last is not None and self.count >= self._last


def requests(folder: Path) -> dict[str, Request]:
    write_lora(folder / "models" / "loras" / "spice.safetensors")
    shape = {"width": 64, "height": 64, "steps": 2, "seed": 1}
    given = {"foreground": folder / "given.png"}
    return {
        "a LoRA on SD 1.5": GenerateRequest(prompt="a cup <lora:spice:1>", model="tiny-sd15", **shape),
        "an edit": GenerateRequest(prompt="a cup", model="tiny-sdxl", image=folder / "given.png", **shape),
        "a control picture": GenerateRequest(
            prompt="a cup", task=Task.BACKGROUND_FROM_FOREGROUND, inputs=given, model="tiny-sd15", **shape
        ),
        "two stages": GenerateRequest(
            prompt="a cup", task=Task.BACKGROUND_FROM_FOREGROUND, inputs=given, model="tiny-sdxl", **shape
        ),
        "encoding": EncodeRequest(image=folder / "given.png", model="tiny-sd15"),
    }


def ignore(_: Progress) -> None:
    return None


@pytest.mark.parametrize(
    ("name", "offload"),
    [
        ("a LoRA on SD 1.5", "none"),
        ("an edit", "none"),
        ("a control picture", "in_turn"),
        ("two stages", "layers"),
        ("encoding", "none"),
    ],
)
def test_a_request_ends_at_any_question_and_the_next_one_is_as_if_nothing_had_been(folder, tmp_path, name, offload):
    request = requests(folder)[name]
    settings = Settings(output_dir=tmp_path, models_dir=folder / "models", device="cpu", offload=offload)

    fresh, cold, warm = Engine(settings), Questions(), Questions()
    expected = fresh.run(request, ignore, cold)
    fresh.run(request, ignore, warm)
    fresh.close()

    engine = Engine(settings)
    stops = [int((cold.count - warm.count) * share) for share in (0.2, 0.4)]  # while it is loaded and patched
    stops += [int(warm.count * share) for share in (0.05, 0.5, 0.99)]  # while pictures are encoded, drawn, decoded
    cancelled = 0
    for stop in stops:
        try:
            engine.run(request, ignore, Questions(max(1, stop)))
        except Cancelled:
            cancelled += 1
    assert cancelled >= 4  # what one run has loaded the next need not, so the last may come to its end
    again = engine.run(request, ignore)
    assert all(same_pixels(a.path, b.path) for a, b in zip(expected.images, again.images, strict=True))
    for a, b in zip(expected.latents, again.latents, strict=True):
        assert torch.equal(read_latent(a).latent, read_latent(b).latent)
    engine.close()


def test_encoding_tells_how_far_it_is(engine: Engine, folder: Path) -> None:
    told: list[str] = []
    request = EncodeRequest(image=folder / "given.png", model="tiny-sd15")
    engine.run(request, lambda step: told.append(step.message))
    assert told[-3].startswith("encoding 56x72 pixels")
    assert [text[:12] for text in told[-2:]] == ["encoding 1/2", "encoding 2/2"]


def test_views_that_are_decoded_side_by_side_ask_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "ALL", 2)
    decoder = TransparentDecoder((8, 8, 8, 8, 16, 16, 16)).eval()
    askers: set[int] = set()

    def cancelled() -> bool:
        askers.add(threading.get_ident())
        return len(askers) > 1

    views: list[int] = []
    with pytest.raises(Cancelled), asking(cancelled):
        decode(
            decoder,
            torch.rand(1, 3, 64, 128),
            torch.randn(1, 4, 8, 16),
            memory=10**9,
            on_view=lambda done, _: views.append(done),
        )
    assert threading.get_ident() not in askers
    assert not views or max(views) < 8


def test_nobody_is_asked_outside_of_a_run(engine: Engine) -> None:
    with asking(lambda: True):
        pass
    check()
    nn.Identity()(torch.zeros(1))


@pytest.fixture
def large(tmp_path: Path) -> TensorFile:
    """A sparse file of one tensor of three times what goes between two questions."""
    path = tmp_path / "large.safetensors"
    header = f'{{"w":{{"dtype":"U8","shape":[{3 * CHECK_BYTES}],"data_offsets":[0,{3 * CHECK_BYTES}]}}}}'.encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 3 * CHECK_BYTES)
    return TensorFile(path)


def test_large_tensors_ask_while_they_are_read_and_looked_at(large: TensorFile) -> None:
    looks: dict[str, Callable[[], object]] = {
        "read": lambda: large.read("w"),
        "finite": lambda: is_finite(large.tensor("w").view(torch.float16)),
    }
    for what, look in looks.items():
        questions = Questions()
        with asking(questions):
            look()
        assert questions.count >= 3, what


@pytest.mark.parametrize("history", [(), ("a",)])
def test_a_change_of_weights_that_is_cancelled_leaves_a_base_to_come_back(tmp_path, history) -> None:
    checkpoint = read_base(tmp_path, "sdxl")
    unet = checkpoint.unet()
    before = copy_of(unet)
    stack = PatchStack(unet, checkpoint.parts["unet"].weights)
    torch.manual_seed(3)
    patches = {
        name: Patch(name, {key: (Full(torch.randn(p.shape)),) for key, p in unet.named_parameters()}) for name in "ab"
    }
    stack.set(*(patches[name] for name in history))
    with pytest.raises(Cancelled), asking(Questions(20)):
        stack.set(patches["b"])
    assert stack.patches == ()
    with pytest.raises(Cancelled), asking(Questions(5)):
        stack.onload("cpu")
    stack.onload("cpu")
    assert same(unet, before)
    stack.set(patches["a"])
    stack.set()
    assert same(unet, before)


def test_a_wide_encode_ends_within_seconds(engine: Engine, folder: Path) -> None:
    Image.fromarray(np.zeros((1024, 1024, 4), np.uint8)).save(folder / "wide.png")
    stop = threading.Event()
    ended: list[float] = []

    def on_step(step: Progress) -> None:
        if step.message.startswith("encoding 1024x1024"):
            stop.set()
            ended.append(time.monotonic())

    with pytest.raises(Cancelled):
        engine.run(EncodeRequest(image=folder / "wide.png", model="tiny-sd15"), on_step, stop.is_set)
    assert time.monotonic() - ended[0] < 10


def test_a_lora_that_is_cancelled_on_the_second_network_is_on_none(tmp_path: Path) -> None:
    path = write_base(tmp_path, "sd15")
    unet, text = "unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v", "te_encoder_layers_0_mlp_fc1"
    shapes = {unet: (32, 32), text: (64, 32)}
    tensors: dict[str, torch.Tensor] = {}
    for name, (rows, columns) in shapes.items():
        tensors[f"lora_{name}.lora_up.weight"] = torch.randn(rows, 4)
        tensors[f"lora_{name}.lora_down.weight"] = torch.randn(4, columns)
    save_file(tensors, tmp_path / "both.safetensors")
    loras = (LoraUse(tmp_path / "both.safetensors", 1.0, 1.0),)

    def fresh() -> Components:
        return Components(read_checkpoint(path), place("cpu", "float32"))

    whole, model = Questions(), fresh()
    model.load()
    with asking(whole):
        model.use_loras(loras)  # the last question comes before the text encoder's weight
    model = fresh()
    model.load()
    unet_before, text_before = copy_of(model.network("unet")), copy_of(model.networks("text")[0])
    with pytest.raises(Cancelled), asking(Questions(whole.count)):
        model.use_loras(loras)
    for _ in range(2):
        assert same(model.network("unet"), unet_before)
        assert same(model.networks("text")[0], text_before)
        model.use_loras(loras)
        assert not same(model.network("unet"), unet_before)
        assert not same(model.networks("text")[0], text_before)
        model.use_loras(())
