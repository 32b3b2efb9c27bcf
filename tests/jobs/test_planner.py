"""Whatever can be refused is refused when it is asked for: before anything waits, loads, or starts a worker."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.api.plan import DrawPlan, EncodePlan, PlannedLora, batch_key
from layerdiffuse_mcp.api.requests import DecodeRequest, EncodeRequest, GenerateRequest, PrepareRequest
from layerdiffuse_mcp.api.sets import set_of
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import InvalidRequest, LayerDiffuseError, ModelNotFound
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import MAX_TOKENS, Task
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.identify import text_layers, text_widths
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings
from tests.hub.files import FLUX_KEYS, LORA_KEYS, tensors, write
from tests.results import facts_of, text_of

DRAW, EDIT, ENCODE = "generate_transparent", "edit_transparent", "encode_transparent_image"
DECODE, BEHIND = "decode_transparent_latent", "generate_foreground_from_background"


def options(**given: Any) -> dict[str, Any]:
    return {"options": given}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unknown model": (
        DRAW,
        options(model="poket"),
        "There is no model 'poket'. Did you mean pocket? Allowed: pocket",
    ),
    "a model that is not here": (DRAW, options(model="realvisxl-v4"), "not on this machine. Fetch it"),
    "a method of another family": (
        DRAW,
        {"options": {"method": "layer_xl_transparent_attn"}},
        "belongs to sdxl models",
    ),
    "an option that does not act": (
        DRAW,
        {"options": {"layer_weight": 0.5}},
        "layer_weight would change nothing: SD 1.5",
    ),
    "a missing LoRA": (DRAW, {"prompt": "a cup <lora:none:1>"}, "There is no LoRA 'none'"),
    "a LoRA without strength": (DRAW, {"prompt": "a cup <lora:none:x>"}, "write <lora:name:0.8>"),
    "a prompt that is too long later": (DRAW, {"prompt": f"[a cup:{'cup ' * 4097}:0.5]"}, "prompt has 4097 tokens"),
    "too many prompts at once": (DRAW, {"prompt": " AND ".join(["a cup"] * 9)}, "AND joins 9 prompts, and at most 8"),
    "a weight too large": (DRAW, {"prompt": "a cup:1000"}, "The weight 1000 behind 'a cup' is more than 100"),
    "changes too deep": (DRAW, {"prompt": "[" * 50 + "a" + ":1]" * 50}, "more than 40 deep"),
    "AND for a layer": (
        "generate_layers",
        options(layer_prompts={"foreground": "a cat AND a dog"}),
        "foreground_prompt has AND in it",
    ),
    "a prompt that is too long": (DRAW, {"prompt": "cup " * 4097}, f"at most {MAX_TOKENS} are allowed"),
    "a negative prompt that is too long": (
        DRAW,
        {"options": {"negative_prompt": "a " * 4097}},
        "negative_prompt has 4097 tokens",
    ),
    "a seed past the largest": (DRAW, {"seed": 2**32 - 1, "count": 2}, "choose a smaller seed"),
    "seeds of frames past the largest": ("generate_layers", {"seed": 2**32 - 3, "count": 2}, "smaller seed"),
    "a size out of range": (DRAW, {"size": "4096x512"}, "from 16 to 2048"),
    "no picture": (EDIT, {"image": "text.png"}, "is not a picture"),
    "a picture that is too large": (EDIT, {"image": "wide.png"}, "too large"),
    "a picture too wide to encode": (ENCODE, {"image": "strip.png"}, "at most 2048 a side"),
    "a missing picture": (EDIT, {"image": "none.png"}, "There is no file"),
    "no latent": (DECODE, {"latent": "text.png"}, "The latent cannot be read: text.png is not a safetensors file"),
    "a latent of another shape": (DECODE, {"latent": "five.safetensors"}, "holds no transparent latent"),
    "a latent too large": (DECODE, {"latent": "huge.safetensors"}, "at most 256x256 is decoded"),
    "a latent of another family": (DECODE, {"latent": "xl.safetensors", "model": "pocket"}, "is a latent of a sdxl"),
    "a photo to edit": (EDIT, {"image": "photo.jpg"}, "photo.jpg has no transparency"),
    "a photo to edit in part": (EDIT, {"image": "photo.jpg", "mask": "cup.png"}, "Call cut_out on it first"),
    "a picture to edit whose alpha hides nothing": (EDIT, {"image": "solid.png"}, "Call cut_out on it first"),
    "a fit that is none": (DRAW, options(fit="crop"), "unknown fit 'crop'. Allowed: as_is, contain"),
    "a picture too long to crop": (EDIT, {"image": "thread.png"}, "The image picture of 50000x1 cannot be fitted to"),
    "a mask too long to crop": (EDIT, {"image": "cup.png", "mask": "thread.png"}, "The mask picture of 50000x1"),
    "a layer picture too long to crop": (
        BEHIND,
        {"background": "thread.png", "size": "64x64"},
        "background picture of",
    ),
}


@pytest.fixture
def pictures(settings: Settings) -> Path:
    """Pictures that may be read, good and bad."""
    folder = settings.output
    folder.mkdir(parents=True)
    (folder / "text.png").write_text("no picture, and long enough for a header")
    Image.new("RGBA", (20, 10), (255, 0, 0, 128)).save(folder / "cup.png")
    Image.new("L", (4000, 3000)).save(folder / "wide.png")
    Image.new("L", (2100, 4)).save(folder / "strip.png")
    Image.new("LA", (50_000, 1)).save(folder / "thread.png")
    Image.new("RGBA", (20, 10), (9, 9, 9, 255)).save(folder / "solid.png")
    Image.new("RGB", (20, 10)).save(folder / "photo.jpg")
    write(folder / "five.safetensors", tensors({"latent": (5, 8, 8)}))
    write(folder / "huge.safetensors", tensors({"latent": (4, 257, 8)}))
    write(folder / "xl.safetensors", tensors({"latent": (4, 8, 8)}, {"family": "sdxl"}))
    return folder


@pytest.mark.anyio
async def test_what_can_be_refused_is_refused_at_once_and_starts_no_worker(
    settings: Settings, rehearsal: str, pictures: Path
) -> None:
    backends: list[LocalBackend] = []

    def open_backend(given: Settings) -> LocalBackend:
        backends.append(LocalBackend(given, rehearsal))
        return backends[-1]

    server = create_server(settings.model_copy(update={"max_pixels": 10_000_000}), open_backend)
    async with Client(server) as client:
        for name, (tool, arguments, words) in REFUSED.items():
            plain = {} if tool in (ENCODE, DECODE) else {"prompt": "a cup"}
            result = await client.call_tool(tool, plain | arguments)
            assert result.is_error, name
            assert words in text_of(result), f"{name}: {text_of(result)}"
            assert backends[0].state()[0].phase == "stopped", name
        assert facts_of(await client.call_tool("list_jobs", {}))["total"] == 0
        assert not (await client.call_tool("unload_models", {})).is_error
        assert backends[0].state()[0].phase == "stopped"


def test_planning_imports_no_torch(settings: Settings) -> None:
    code = (
        "import sys\n"
        "from layerdiffuse_mcp.api.requests import GenerateRequest\n"
        "from layerdiffuse_mcp.jobs.planner import plan\n"
        "from layerdiffuse_mcp.settings import Settings\n"
        "plan(GenerateRequest(prompt='a cup', model='pocket'), Settings())\n"
        "assert not {'torch', 'diffusers', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "LAYERDIFFUSE_MODELS_DIR": "none"})


def test_a_picture_is_named_by_its_content_and_its_shape_is_the_results(settings: Settings, pictures: Path) -> None:
    made = plan(GenerateRequest(prompt="a cup", image=pictures / "cup.png", seed=1), settings)
    [task] = made.tasks
    assert isinstance(task, DrawPlan)
    assert task.image is not None
    assert made.inputs == {task.image.sha256: pictures / "cup.png"}
    assert (task.image.name, task.model, task.width, task.height) == ("cup.png", "pocket", 192, 64)
    (pictures / "cup.png").rename(pictures / "mug.png")
    [encode] = plan(EncodeRequest(image=pictures / "mug.png"), settings).tasks
    assert isinstance(encode, EncodePlan)
    assert (encode.image.name, encode.image.sha256) == ("mug.png", task.image.sha256)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are not UTF-8")
def test_a_file_name_that_is_not_utf_8_hinders_no_plan(settings: Settings, pictures: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(pictures) + b"/\xff.png"))
    (pictures / "cup.png").rename(odd)
    [task] = plan(GenerateRequest(prompt="a cup", image=odd), settings).tasks
    assert batch_key(task)


def test_the_base_advises_through_its_header(settings: Settings) -> None:
    [task] = plan(GenerateRequest(prompt="a cup", model="pocket"), settings).tasks
    assert isinstance(task, DrawPlan)
    assert {stage.guidance_scale for stage in task.stages} == {4.0}


def test_textual_inversions_are_planned_by_name_and_checked(settings: Settings) -> None:
    [width] = text_widths(catalog.base_file(catalog.find("pocket", settings), settings), FAMILIES["sd15"]) or ()
    folder = settings.models_dir / "embeddings"
    write(folder / "charm.safetensors", tensors({"emb_params": (3, width)}))
    write(folder / "wide.safetensors", tensors({"clip_l": (3, 768), "clip_g": (3, 1280)}))
    write(folder / "old.pt", b"pickle")
    [task] = plan(GenerateRequest(prompt="zxqv Charm", negative_prompt="dull"), settings).tasks
    assert isinstance(task, DrawPlan)
    assert task.inversions == ("charm",)
    assert not task.unknown_subject
    [plain] = plan(GenerateRequest(prompt="zxqv charming"), settings).tasks
    assert isinstance(plain, DrawPlan)
    assert (plain.inversions, plain.unknown_subject) == ((), True)
    for prompt, words in {
        "a wide cup": f"'wide', whose vectors have 768 and 1280 numbers, and those of pocket have {width}",
        "an old cup": "old.pt is a pickle, which can run code when it is opened: get the .safetensors file",
        "charm " * 1500: "prompt has 4500 tokens",
    }.items():
        with pytest.raises(InvalidRequest, match=words):
            plan(GenerateRequest(prompt=prompt), settings)


def test_a_lora_is_resolved_and_one_that_is_not_here_is_fetched_only_if_it_may_be(settings: Settings) -> None:
    write(settings.models_dir / "loras" / "spice.safetensors", tensors(LORA_KEYS))
    listed = b'[[lora]]\nname = "far"\nrepo = "me/mine"\nfile = "far.safetensors"\n'
    write(settings.models_dir / "models.toml", listed)
    [task] = plan(GenerateRequest(prompt="a cup <lora:SPICE:0.5:0.8>"), settings).tasks
    assert isinstance(task, DrawPlan)
    assert task.loras == (PlannedLora(name="spice", strength=0.8, text_strength=0.5),)
    with pytest.raises(ModelNotFound, match="prepare_model with model='far'"):
        plan(GenerateRequest(prompt="a cup <lora:far:1>"), settings)
    may = settings.model_copy(update={"auto_download": True})
    [task] = plan(GenerateRequest(prompt="a cup <lora:far:1>"), may).tasks
    assert isinstance(task, DrawPlan)
    assert [lora.name for lora in task.loras] == ["far"]


def test_an_unusable_request_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(InvalidRequest, match="leave the method open"):
        plan(GenerateRequest(prompt="x", method="layer_xl_transparent_conv"), settings)
    with pytest.raises(LayerDiffuseError, match="prepare_model fetches them"):
        plan(GenerateRequest(prompt="x", task="extract_foreground", inputs={}), settings)


def test_a_clip_skip_is_at_most_as_deep_as_the_text_encoder_of_the_base_that_is_here(settings: Settings) -> None:
    layers = text_layers(catalog.find("pocket", settings).path, FAMILIES["sd15"])
    assert layers is not None
    plan(GenerateRequest(prompt="a cup", model="pocket", clip_skip=layers), settings)
    with pytest.raises(InvalidRequest, match=f"pocket has {layers} layers: choose 1 to {layers}, or leave it out"):
        plan(GenerateRequest(prompt="a cup", model="pocket", clip_skip=layers + 1), settings)


def test_a_base_without_transparent_latents_is_refused_before_anything_is_read_for_it(settings: Settings) -> None:
    write(settings.models_dir / "other.safetensors", tensors(FLUX_KEYS))
    write(settings.models_dir / "models.toml", b'[[base]]\nname = "other"\npath = "other.safetensors"\n')
    latent = write(settings.models_dir / "a.latent", tensors({"latent": (4, 8, 8)}))
    with pytest.raises(InvalidRequest, match=r"other is a Flux model in one file: layer models do not fit it\. Name a"):
        plan(DecodeRequest(latent=latent, model="other"), settings)


def test_a_sampler_that_a_method_avoids_is_told_of_in_the_plan_and_the_method_advises_another(
    settings: Settings, pictures: Path
) -> None:
    may = settings.model_copy(update={"auto_download": True})
    asked = {"task": Task.BACKGROUND_FROM_FOREGROUND, "inputs": {"foreground": pictures / "cup.png"}, "model": "sdxl"}
    for sampler, notes in (
        ("DPM++ 2M SDE", ("DPM++ 2M SDE leaves artefacts with layer_xl_fgble2bg: Euler a is advised.",)),
        ("UniPC", ()),
        (None, ()),
    ):
        [task] = plan(GenerateRequest(prompt="a cup", sampler=sampler, **asked), may).tasks
        assert isinstance(task, DrawPlan)
        assert tuple(note for note in task.notes if "compose_layers" not in note) == notes


def test_what_a_generation_lacks_is_planned_as_a_download_where_it_may_be_fetched(settings: Settings) -> None:
    listed = b'[[lora]]\nname = "far"\nrepo = "me/mine"\nfile = "far.safetensors"\n'
    write(settings.models_dir / "models.toml", listed)
    may = settings.model_copy(update={"auto_download": True})
    made = plan(GenerateRequest(prompt="a cup <lora:far:1>", model="realistic-vision-v51"), may)
    base, lora = made.downloads
    assert (base.model, base.methods) == ("realistic-vision-v51", ("layer_sd15_transparent_attn",))
    assert (lora.model, lora.methods) == ("far", ())
    assert plan(GenerateRequest(prompt="a cup", model="pocket"), may).downloads == ()
    assert plan(PrepareRequest(model="far"), settings).tasks == ()
    [prepare] = plan(PrepareRequest(model="realistic-vision-v51", task=Task.LAYERS), settings).downloads
    assert prepare.methods == ("layer_sd15_joint",)


def test_a_model_that_nobody_can_fetch_is_not_prepared(settings: Settings) -> None:
    write(settings.models_dir / "models.toml", b'[[base]]\nname = "gone"\npath = "gone.safetensors"\nfamily = "sd15"\n')
    with pytest.raises(ModelNotFound, match="Correct its path"):
        plan(PrepareRequest(model="gone"), settings)


def test_what_a_base_does_not_know_of_a_set_is_said_once_for_all_subjects(settings: Settings):
    knights = [f"knight {number}" for number in range(50)]
    tasks = plan(set_of(["a red apple", *knights], "flat icon"), settings).tasks
    notes = [note for task in tasks if isinstance(task, DrawPlan) for note in task.notes]
    assert [getattr(task, "unknown_subject", None) for task in tasks] == [False, *[True] * 50]
    [said] = notes
    assert said.startswith("pocket knows no subject that 'knight 0', 'knight 1', ")
    assert "'knight 11' and 38 more name, so" in said
    assert "apple" not in said
    assert len(said) < 600
