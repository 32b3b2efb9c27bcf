"""Which models there are: published, in the user's folder, in models.toml."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerdiffuse_mcp.errors import InvalidRequest, ModelError, ModelNotFound
from layerdiffuse_mcp.families.registry import BASES, FAMILIES, METHODS
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.vocabulary import vocabulary_of
from layerdiffuse_mcp.settings import Settings
from tests.hub.files import FLUX_KEYS, LORA_KEYS, SD15_KEYS, SDXL_KEYS, tensors, weights, write

UNET = {"in_channels": 4, "block_out_channels": [320, 640, 1280], "sample_size": 96}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test looks into this machine's own cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def write_list(settings: Settings, text: str) -> None:
    write(settings.models_dir / "models.toml", text.encode())


def write_layer_files(folder: Path, family: str) -> None:
    files = [method.file for method in METHODS.values() if method.family == family]
    for name in [*files, *FAMILIES[family].codec.files]:
        write(folder / name, weights(10))


KNOWN = len(BASES) + 1
"""Bases that are listed wherever nothing is added: the published ones and the pocket model."""


def names(settings: Settings) -> list[str]:
    return [entry.name for entry in catalog.models(settings)]


def test_the_published_bases_are_listed_with_family_size_licence_and_use(settings: Settings):
    entries = catalog.models(settings)
    assert [entry.name for entry in entries] == [
        "pocket", "juggernaut-xl-v6", "realvisxl-v4", "realistic-vision-v51", "qwen-image-layered",
        "flux-1-dev", "qwen-image-2.1",
    ]  # fmt: skip
    assert all(entry.family and entry.licence and entry.description and entry.bytes for entry in entries)
    assert [entry.prepared for entry in entries] == [True, *[False] * 6]


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("sdxl", "juggernaut-xl-v6"),
        ("sd15", "realistic-vision-v51"),
        ("juggernautXL_version6Rundiffusion", "juggernaut-xl-v6"),
        ("juggernautxl_version6rundiffusion", "juggernaut-xl-v6"),
        ("1fe6c7ec54", "juggernaut-xl-v6"),
        ("realisticVisionV51_v51VAE", "realistic-vision-v51"),
        ("15012c538f", "realistic-vision-v51"),
        ("RealVisXL_V4.0", "realvisxl-v4"),
        ("Pocket", "pocket"),
    ],
)
def test_a_model_is_found_by_what_others_call_it(settings: Settings, alias: str, name: str):
    assert catalog.find(alias, settings).name == name


def test_an_unknown_model_is_answered_with_the_known_ones(settings: Settings):
    with pytest.raises(ModelNotFound, match=r"no model 'juggernaut'.*juggernaut-xl-v6"):
        catalog.find("juggernaut", settings)


def test_a_model_that_is_not_here_says_how_large_it_is_and_how_to_get_it(settings: Settings):
    with pytest.raises(
        ModelNotFound, match=r"layerdiffuse-mcp models prepare juggernaut-xl-v6.*prepare_model.*8\.06 GB"
    ):
        catalog.base_file(catalog.find("sdxl", settings), settings)
    with pytest.raises(ModelNotFound, match=r"Background to blended.*models prepare juggernaut-xl-v6.*8\.02 GB"):
        catalog.layer_file(catalog.find("sdxl", settings), "layer_xl_bg2ble.safetensors", settings)


def test_a_published_base_is_found_in_any_sub_folder(settings: Settings):
    path = write(settings.models_dir / "photo" / "RealVisXL_V4.0.safetensors", tensors(SDXL_KEYS))
    entry = catalog.find("realvisxl-v4", settings)
    assert entry.path == path
    assert names(settings).count("realvisxl-v4") == 1
    assert len(names(settings)) == KNOWN


def test_a_family_means_a_base_of_it_that_is_here(settings: Settings):
    write(settings.models_dir / "mine.safetensors", tensors(SDXL_KEYS))
    assert catalog.find("sdxl", settings).name == "mine"
    assert catalog.find("sd15", settings).name == "realistic-vision-v51"


def test_the_default_is_a_base_that_can_do_something_else_the_pocket_model(settings: Settings):
    write(settings.models_dir / "mine.safetensors", tensors(SD15_KEYS))
    assert catalog.find(None, settings).name == "pocket"
    write_layer_files(settings.models_dir / "layers", "sd15")
    assert catalog.find(None, settings).name == "mine"
    assert all(catalog.tasks(catalog.find("mine", settings), settings).values())


def test_dropped_files_are_told_apart_by_what_is_in_them(settings: Settings):
    write(settings.models_dir / "a.safetensors", tensors(SD15_KEYS))
    write(settings.models_dir / "b" / "c.safetensors", tensors(SDXL_KEYS))
    write(settings.models_dir / "flux.safetensors", tensors(FLUX_KEYS))
    write(settings.models_dir / "style.safetensors", tensors(LORA_KEYS))
    write(settings.models_dir / "Loras" / "odd.safetensors", tensors({"strange": (1,)}))
    write(settings.models_dir / "damaged.safetensors", tensors(SD15_KEYS)[:-10])
    write(settings.models_dir / "model.ckpt", b"PK\x03\x04")
    write(settings.models_dir / ".hidden" / "d.safetensors", tensors(SDXL_KEYS))
    own = {entry.name: (entry.family, entry.native_size) for entry in catalog.models(settings)[KNOWN:]}
    assert own == {"a": ("sd15", 512), "c": ("sdxl", 1024)}
    assert {entry.name for entry in catalog.loras(settings) if entry.path} == {"style", "odd"}


def test_a_file_that_is_replaced_is_looked_at_again(settings: Settings):
    path = write(settings.models_dir / "a.safetensors", tensors(SD15_KEYS))
    assert catalog.find("a", settings).family == "sd15"
    path.write_bytes(tensors(SDXL_KEYS))
    assert catalog.find("a", settings).family == "sdxl"


def test_models_are_listed_while_files_come_and_go(settings: Settings):
    folder, done = settings.models_dir, threading.Event()
    published = next(entry.remote for entry in catalog.models(settings) if entry.remote)

    def come_and_go() -> None:
        while not done.is_set():
            files = [
                write(folder / "a.safetensors", tensors(SD15_KEYS)),
                write(folder / published.name, tensors(SD15_KEYS)),
                write(folder / "mine" / "model_index.json", b'{"_class_name": "StableDiffusionPipeline"}'),
                write(folder / "mine" / "unet" / "config.json", json.dumps(UNET).encode()),
                write(folder / "mine" / "unet" / "model.safetensors", weights(10)),
                write(folder / "models.toml", b""),
            ]
            for file in files:
                file.unlink()

    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(come_and_go)
        try:
            seen = {name for _ in range(300) for name in names(settings)}
        finally:
            done.set()
        going.result()
    assert {"a", "mine"} <= seen


def test_two_files_of_one_name_are_told_apart_by_their_folders(settings: Settings):
    write(settings.models_dir / "a.safetensors", tensors(SD15_KEYS))
    write(settings.models_dir / "anime" / "a.safetensors", tensors(SDXL_KEYS))
    write(settings.models_dir / "pocket.safetensors", tensors(SD15_KEYS))
    assert sorted(names(settings)[KNOWN:]) == ["a", "anime/a", "own/pocket"]
    assert catalog.find("anime/a", settings).family == "sdxl"
    assert catalog.find("pocket", settings).native_size == 128


def test_a_folder_that_links_to_itself_is_walked_once(settings: Settings):
    write(settings.models_dir / "a.safetensors", tensors(SD15_KEYS))
    (settings.models_dir / "again").symlink_to(settings.models_dir, target_is_directory=True)
    assert names(settings)[KNOWN:] == ["a"]


def test_a_diffusers_folder_is_a_base(settings: Settings):
    folder = settings.models_dir / "my-xl-1.0"
    write(folder / "model_index.json", json.dumps({"_class_name": "StableDiffusionXLPipeline"}).encode())
    write(folder / "unet" / "config.json", json.dumps(UNET).encode())
    write(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", weights(1000))
    entry = catalog.find("my-xl-1.0", settings)
    assert (entry.family, entry.native_size, entry.path) == ("sdxl", 768, folder)
    assert entry.bytes > 1000
    write(folder / "model_index.json", json.dumps({"_class_name": "FluxPipeline"}).encode())
    assert names(settings)[KNOWN:] == []


def test_models_toml_names_describes_and_places_bases_and_loras(settings: Settings, tmp_path: Path):
    outside = write(tmp_path / "elsewhere" / "x.safetensors", tensors(SDXL_KEYS))
    write(settings.models_dir / "loras" / "wc_v2.safetensors", tensors(LORA_KEYS))
    write_list(
        settings,
        f"""
        [[base]]
        name = "mine"
        path = "{outside.as_posix()}"
        native_size = 768
        description = "For landscapes"
        licence = "mit"
        [[lora]]
        name = "watercolour"
        path = "loras/wc_v2.safetensors"
        trigger = "watercolour painting"
        """,
    )
    entry = catalog.find("mine", settings)
    assert (entry.family, entry.native_size, entry.licence, entry.path) == ("sdxl", 768, "mit", outside)
    assert catalog.find("x", settings).name == "mine"
    (lora,) = (lora for lora in catalog.loras(settings) if lora.path)
    assert (lora.name, lora.trigger) == ("watercolour", "watercolour painting")
    assert catalog.lora("watercolour", settings) == catalog.lora("WC_v2", settings)


def test_a_listed_base_whose_file_is_not_there_is_listed_and_explained(settings: Settings):
    write_list(settings, '[[base]]\nname = "gone"\npath = "gone.safetensors"\n')
    entry = catalog.find("gone", settings)
    assert not entry.prepared
    assert "there is no file gone.safetensors" in entry.description
    with pytest.raises(ModelNotFound, match="its file is not there"):
        catalog.base_file(entry, settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[base]", "cannot be read"),
        ("[[model]]\nname = 'a'", r"\[\[base\]\] and \[\[lora\]\] tables only"),
        ("[[base]]\nname = 'a'", "base 1: say where it is"),
        ("[[base]]\nname = 'a'\nrepo = 'x/y'\nfile = 'z.safetensors'", "family must be given with repo"),
        ("[[base]]\nname = 'a'\nrepo = 'x/y'\nfile = 'z.ckpt'\nfamily = 'sdxl'", "can run code"),
        ("[[base]]\nname = 'a'\npath = 'b'\nfamily = 'sd3'", "there is no family 'sd3'; use sdxl or sd15"),
        ("[[base]]\nname = 'a'\npath = 'b'\ncolour = 'red'", "colour is not known here"),
        ("[[base]]\nname = 'pocket'\npath = 'b'", "the name pocket is taken"),
        ("[[base]]\nname = 'a\\u0007'\npath = 'b'".replace("'a\\u0007'", '"a\\u0007"'), "name must be on one line"),
        ("x = " + "[" * 5000, "cannot be read"),
        ("# " + "x" * 2_000_000, "cannot be read: it is larger than 1000 kB"),
        ("[[base]]\nname = 'a'\npath = 'b'\ndescription = '" + "x" * 5000 + "'", "description .* at most 500"),
        *(
            (f"[[lora]]\nname = 'a'\nrepo = 'x/y'\nfile = '{file}'", "file must be a path inside the repository")
            for file in ("../../x.safetensors", "/x.safetensors", "a//x.safetensors", "a/. ./x.safetensors")
        ),
        *(
            (f"[[lora]]\nname = 'a'\nrepo = '{repo}'\nfile = 'x.safetensors'", "repo must be the name of a repository")
            for repo in ("../..", "x", "x/y/z", "a--b/c", "x/é")
        ),
        ("[[lora]]\nname = 'a'\npath = 'b'\n[[lora]]\nname = 'a'\npath = 'c'", "the name a is taken"),
    ],
)
def test_a_models_toml_that_cannot_be_used_says_which_entry_and_why(settings: Settings, text: str, said: str):
    write_list(settings, text)
    with pytest.raises(ModelError, match=said) as raised:
        catalog.models(settings)
    assert "models.toml" in str(raised.value)
    assert len(str(raised.value)) < 1500


def test_a_models_toml_that_is_no_utf8_says_so(settings: Settings):
    write(settings.models_dir / "models.toml", b"# caf\xe9")
    with pytest.raises(ModelError, match=r"models.toml cannot be read: 'utf-8' codec"):
        catalog.models(settings)


@pytest.mark.parametrize("path", ["a\\u0000b", "~nobody-has-this-name/x.safetensors", "x" * 5000, "/dev/zero"])
def test_a_path_in_models_toml_that_can_be_no_file_is_a_file_that_is_not_there(settings: Settings, path: str):
    write_list(settings, f'[[base]]\nname = "mine"\npath = "{path}"\nvae = "{path}"\n')
    with pytest.raises(ModelNotFound, match=r"its file is not there\. Correct its path there"):
        catalog.base_file(catalog.find("mine", settings), settings)


def test_an_unknown_name_of_any_length_is_quoted_in_part(settings: Settings):
    for search in (catalog.find, catalog.lora, catalog.find_any):
        with pytest.raises(ModelNotFound) as raised:
            search("x" * 100_000, settings)
        assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("folder", ["", "loras"])
def test_a_file_whose_name_is_no_text_is_listed_by_its_escape_and_found_by_it(settings: Settings, folder: str):
    name = os.fsdecode(b"caf\xe9\n.safetensors")
    path = write(settings.models_dir / folder / name, tensors(LORA_KEYS if folder else SD15_KEYS))
    write(settings.models_dir / folder / "link.safetensors", b"").unlink()
    (settings.models_dir / folder / "link.safetensors").symlink_to(path)
    loras = [entry for entry in catalog.loras(settings) if entry.path]
    entries = loras if folder else catalog.models(settings)[KNOWN:]
    for entry in entries:
        entry.model_dump_json(exclude={"path"})
        assert entry.name.isprintable()
    assert entries[0].name == "caf\\udce9\\n"
    found = catalog.find_any("caf\\udce9\\n", settings)
    assert found.path == path
    assert len(entries) == 1  # the link is the same file


def test_an_unknown_lora_is_answered_with_the_known_ones(settings: Settings):
    with pytest.raises(ModelNotFound, match=r"no LoRA 'ink'.*Allowed: .*lcm-lora-sdxl"):
        catalog.lora("ink", settings)
    write(settings.models_dir / "loras" / "inkpen.safetensors", tensors(LORA_KEYS))
    with pytest.raises(ModelNotFound, match=r"Did you mean inkpen.*Allowed: inkpen"):
        catalog.lora("ink", settings)


@pytest.mark.parametrize(
    ("official", "sibling"),
    [
        ("layer_xl_transparent_attn", "ld_diffusers_sdxl_attn"),
        ("layer_xl_transparent_conv", "ld_diffusers_sdxl_conv"),
        ("layer_xl_transparent_attn", "diffuser_layer_xl_transparent_attn"),
        ("layer_xl_bgble2fg", "diffuser_layer_xl_bgble2fg"),
        ("vae_transparent_decoder", "ld_diffusers_sdxl_vae_transparent_decoder"),
    ],
)
def test_a_sibling_serves_until_the_published_file_is_here(settings: Settings, official: str, sibling: str):
    entry = catalog.find("sdxl", settings)
    other = write(settings.models_dir / f"{sibling}.safetensors", weights(10))
    assert catalog.layer_file(entry, f"{official}.safetensors", settings) == other
    first = write(settings.models_dir / "layers" / f"{official}.safetensors", weights(10))
    assert catalog.layer_file(entry, f"{official}.safetensors", settings) == first


def test_a_task_that_a_family_has_no_files_for_is_refused(settings: Settings):
    with pytest.raises(
        InvalidRequest, match=r"layers \(generate_layers\): it is for .*\. Name a model of the family sd15"
    ):
        catalog.methods_for(catalog.find("sdxl", settings), Task.LAYERS)


PROGRAM = """
import sys, anyio
from mcp import Client
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings

async def main():
    settings = Settings(warm_up=False)
    async with Client(create_server(settings)) as client:
        await client.list_tools()
        print((await client.call_tool("list_models", {})).content[0].text)
    print("heavy:", sorted({"torch", "diffusers", "transformers"} & sys.modules.keys()))

anyio.run(main)
"""


def test_listing_models_with_own_files_imports_no_torch(settings: Settings, tmp_path: Path):
    write(settings.models_dir / "mine.safetensors", tensors(SDXL_KEYS))
    write(settings.models_dir / "loras" / "ink.safetensors", tensors(LORA_KEYS))
    write_layer_files(settings.models_dir, "sdxl")
    environment = {"LAYERDIFFUSE_MODELS_DIR": str(settings.models_dir), "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    assert "mine (default): ready, sdxl" in result.stdout
    assert "heavy: []" in result.stdout


def test_the_pocket_model_says_what_it_can_draw(settings: Settings):
    known = vocabulary_of(catalog.find("pocket", settings))
    assert known is not None
    assert {"red apple", "rocket", "guitar"} <= set(known.subjects)
    assert len(known.subjects) >= 300
    assert (known.styles, known.materials) == (("3d", "flat"), ("glass", "glowing"))
    assert {"meadow", "wooden table", "night with stars"} <= set(known.scenes)
