"""Preparing a model: what is fetched, progress, disk space, and what is said when it fails."""

import errno
import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.errors import Cancelled, DownloadError, ModelError, ModelNotFound
from layerdiffuse_mcp.families.entries import HubFile
from layerdiffuse_mcp.families.registry import BASES, FAMILIES, LAYER_FILES, METHODS, ROUTES
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog, download
from layerdiffuse_mcp.hub.download import prepare
from layerdiffuse_mcp.hub.hashes import cache_file
from layerdiffuse_mcp.settings import Settings
from tests.hub.double import Break, Damage, Hub, Slow, sha256
from tests.hub.files import LORA_KEYS, SD15_KEYS, tensors, weights, write

JOINT = ("layer_sd15_joint",)
WITHOUT_KNOWN_CHECKSUM = [file for file in LAYER_FILES.values() if file.sha256 is None]


@pytest.fixture
def filled(hub: Hub) -> Hub:
    """A hub with the published bases and layer files, a few kB each."""
    for seed, file in enumerate([*(entry.remote for entry in BASES if entry.remote), *WITHOUT_KNOWN_CHECKSUM]):
        hub.add(file.repo, file.path, weights(50_000, seed))
    return hub


def ignore(_: Progress) -> None:
    pass


def names(prepared: download.Prepared) -> list[str]:
    return [one.file.name for one in prepared.fetched]


def test_a_family_brings_its_base_and_the_files_of_the_task(filled: Hub, settings: Settings):
    methods = catalog.methods_for(catalog.find("sd15", settings), Task.LAYERS)
    done = prepare("sd15", settings, ignore, methods=methods)
    assert done.name == "realistic-vision-v51"
    assert names(done) == [
        "realisticVisionV51_v51VAE.safetensors",
        "layer_sd15_vae_transparent_encoder.safetensors",
        "layer_sd15_vae_transparent_decoder.safetensors",
        "layer_sd15_joint.safetensors",
    ]
    entry = catalog.find("sd15", settings)
    assert entry.prepared
    assert entry.bytes == done.fetched[0].path.stat().st_size
    able = catalog.tasks(entry, settings)
    assert able[Task.LAYERS]
    assert not able[Task.TRANSPARENT]


def test_all_files_of_a_family_are_meant_when_no_task_is_named(settings: Settings):
    files = catalog.missing(catalog.find("sdxl", settings), settings)
    assert {file.name for file in files} == {
        "juggernautXL_version6Rundiffusion.safetensors",
        *FAMILIES["sdxl"].files,
    }


def test_a_second_preparation_asks_the_hub_for_nothing(filled: Hub, settings: Settings):
    prepare("sd15", settings, ignore, methods=JOINT)
    filled.requests.clear()
    assert prepare("sd15", settings, ignore, methods=JOINT).fetched == ()
    assert not filled.requests


def test_prepared_is_what_the_cache_holds_and_nothing_else(filled: Hub, settings: Settings):
    prepare("sd15", settings, ignore, methods=JOINT).fetched[0].path.unlink()
    assert not catalog.find("sd15", settings).prepared
    assert names(prepare("sd15", settings, ignore, methods=JOINT)) == ["realisticVisionV51_v51VAE.safetensors"]


def test_a_prepared_model_needs_no_network_in_offline_mode(
    filled: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    prepare("sd15", settings, ignore, methods=JOINT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert prepare("sd15", settings, ignore, methods=JOINT).fetched == ()
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids it"):
        prepare("sd15", settings, ignore, methods=("layer_sd15_bg2fg",))


def test_progress_rises_over_the_bytes_of_all_files_and_tells_speed_and_time_left(
    filled: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download, "REPORT_EVERY", 0.01)
    filled.faults += [Slow(10_000, 0.03), Break(20_000), Slow(10_000, 0.03)]
    steps: list[Progress] = []
    prepare("sd15", settings, steps.append, methods=JOINT)
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len({fraction for fraction in fractions if 0 < fraction < 1}) > 5
    told = [step.message for step in steps if "left" in step.message]
    assert any(" of 200 kB" in text and "/s, about" in text and "(1 of 4)" in text for text in told)


def test_raising_from_the_report_stops_the_download_and_the_next_goes_on(filled: Hub, settings: Settings):
    filled.faults.append(Slow(5_000, 0.1))

    def stop(progress: Progress) -> None:
        if "downloading" in progress.message and progress.fraction > 0.05:
            raise Cancelled("The job was cancelled.")

    with pytest.raises(Cancelled):
        prepare("sd15", settings, stop, methods=JOINT)
    assert not catalog.find("sd15", settings).prepared
    prepare("sd15", settings, ignore, methods=JOINT)
    assert any(asked.range and asked.range != "bytes=0-" for asked in filled.asked("store"))


def test_a_damaged_download_is_noted_and_put_right(filled: Hub, settings: Settings):
    filled.faults.append(Damage())
    done = prepare("sd15", settings, ignore, methods=JOINT)
    assert any("realisticVisionV51_v51VAE.safetensors was damaged" in note for note in done.notes)
    assert catalog.find("sd15", settings).prepared


def test_a_truncated_file_in_the_cache_is_named_removed_and_fetched_again(filled: Hub, settings: Settings):
    path = prepare("sd15", settings, ignore, methods=JOINT).fetched[-1].path
    path.resolve().write_bytes(path.read_bytes()[:1000])
    done = prepare("sd15", settings, ignore, methods=JOINT)
    assert names(done) == ["layer_sd15_joint.safetensors"]
    assert any("layer_sd15_joint.safetensors was damaged" in note for note in done.notes)
    assert path.stat().st_size > 50_000


def test_verifying_finds_a_changed_byte_in_the_cache(filled: Hub, settings: Settings):
    path = prepare("sd15", settings, ignore, methods=JOINT).fetched[0].path
    content = path.read_bytes()
    path.resolve().write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert prepare("sd15", settings, ignore, methods=JOINT).fetched == ()
    assert names(prepare("sd15", settings, ignore, methods=JOINT, verify=True)) == [path.name]
    assert path.read_bytes() == content


def test_a_damaged_file_of_the_users_own_folder_is_named_and_left_alone(filled: Hub, settings: Settings):
    own = write(settings.models_dir / "layer_sd15_joint.safetensors", weights(1000)[:500])
    with pytest.raises(DownloadError, match=r"layer_sd15_joint.safetensors is damaged.*Remove it"):
        prepare("sd15", settings, ignore, methods=JOINT)
    assert own.exists()


def test_the_disk_is_asked_before_anything_is_fetched(filled: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=download.MARGIN + 100_000))
    with pytest.raises(DownloadError, match=r"4 files need 200 kB and 500 MB to spare.*has 500 MB free"):
        prepare("sd15", settings, ignore, methods=JOINT)
    assert not filled.asked("store")


def test_a_disk_that_fills_up_is_told_and_what_is_here_stays(filled: Hub, settings: Settings):
    def full(progress: Progress) -> None:
        if "downloading" in progress.message:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DownloadError, match=r"the disk is full\. Free some space.* of 50 kB are here and stay"):
        prepare("sd15", settings, full, methods=JOINT)


def test_a_gated_repository_says_how_to_get_in(filled: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch):
    filled.repos["lllyasviel/fav_models"].gated = True
    for token in (None, "hf_valid"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(DownloadError, match=rf"agree to conditions first. Open {filled.url}/lllyasviel/fav_models"):
            prepare("sd15", settings, ignore, methods=JOINT)


def test_a_private_or_absent_repository_says_so(filled: Hub, settings: Settings):
    del filled.repos["lllyasviel/fav_models"]
    with pytest.raises(DownloadError, match=r"no such repository, or it is private.*HF_TOKEN"):
        prepare("sd15", settings, ignore, methods=JOINT)


def test_a_token_that_is_not_valid_is_told(filled: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(DownloadError, match="does not accept your token"):
        prepare("sd15", settings, ignore, methods=JOINT)


def test_a_file_that_is_gone_from_its_repository_is_named(filled: Hub, settings: Settings):
    del filled.repos["lllyasviel/fav_models"].files["fav/realisticVisionV51_v51VAE.safetensors"]
    with pytest.raises(DownloadError, match=r"has no file fav/realisticVisionV51_v51VAE.safetensors"):
        prepare("sd15", settings, ignore, methods=JOINT)
    assert not filled.asked("store")


@pytest.mark.parametrize(
    ("status", "said"),
    [(403, "refuses it to you"), (404, "does not know it"), (429, "too many requests"), (500, "status 500")],
)
def test_every_status_of_the_hub_is_put_into_words(filled: Hub, settings: Settings, status: int, said: str):
    filled.status = status
    with pytest.raises(DownloadError, match=said) as raised:
        prepare("sd15", settings, ignore, methods=JOINT)
    assert str(settings.models_dir) in str(raised.value)


def test_no_network_is_told_as_such(filled: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch):
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")
    with pytest.raises(DownloadError, match=rf"the hub {nowhere} cannot be reached. Check the network"):
        prepare("sd15", settings, ignore, methods=JOINT)


def test_a_hub_that_stops_answering_leaves_what_is_here(filled: Hub, settings: Settings):
    filled.faults += [Break(20_000)] + [Break(0)] * 5
    with pytest.raises(DownloadError, match="20 kB of 50 kB are here and stay"):
        prepare("sd15", settings, ignore, methods=JOINT)
    assert len(names(prepare("sd15", settings, ignore, methods=JOINT))) == 4
    assert filled.asked("store")[6].range == "bytes=20000-"


def test_something_else_at_the_endpoint_is_told_apart_from_a_hub(hub: Hub, settings: Settings):
    hub.status = 200
    with pytest.raises(DownloadError, match="does not answer like a model hub"):
        prepare("sd15", settings, ignore, methods=JOINT)


def test_own_bases_and_loras_of_a_repository_are_fetched_by_name(hub: Hub, settings: Settings):
    hub.add("me/mine", "model.safetensors", tensors(SD15_KEYS))
    hub.add("me/mine", "wc.safetensors", tensors(LORA_KEYS))
    for file in (LAYER_FILES[f"layer_sd15_vae_transparent_{part}.safetensors"] for part in ("encoder", "decoder")):
        hub.add(file.repo, file.path, weights(1000))
    write(
        settings.models_dir / "models.toml",
        b'[[base]]\nname = "mine"\nrepo = "me/mine"\nfile = "model.safetensors"\nfamily = "sd15"\n'
        b'[[lora]]\nname = "watercolour"\nrepo = "me/mine"\nfile = "wc.safetensors"\n',
    )
    with pytest.raises(ModelNotFound, match=r"layerdiffuse-mcp models prepare watercolour"):
        catalog.lora("watercolour", settings)
    assert not catalog.find("mine", settings).prepared
    prepare("mine", settings, ignore, methods=())
    assert catalog.find("mine", settings).prepared
    assert names(prepare("watercolour", settings, ignore)) == ["wc.safetensors"]
    assert catalog.lora("watercolour", settings).read_bytes() == tensors(LORA_KEYS)
    assert prepare("watercolour", settings, ignore).fetched == ()


def test_the_pocket_model_has_nothing_to_fetch(hub: Hub, settings: Settings):
    assert prepare("pocket", settings, ignore).fetched == ()
    assert not hub.requests


def test_a_sibling_on_disk_is_not_fetched_again(filled: Hub, settings: Settings):
    sibling = write(settings.models_dir / "xl" / "ld_diffusers_sdxl_vae_transparent_encoder.safetensors", weights(100))
    missing = [file.name for file in catalog.missing(catalog.find("sdxl", settings), settings)]
    assert "vae_transparent_encoder.safetensors" not in missing
    assert "vae_transparent_decoder.safetensors" in missing
    found = catalog.layer_file(catalog.find("sdxl", settings), "vae_transparent_encoder.safetensors", settings)
    assert found == sibling


def test_a_sibling_in_the_cache_serves_too(hub: Hub, settings: Settings):
    repo, name = "rootonchair/diffuser_layerdiffuse", "diffuser_layer_xl_fg2ble.safetensors"
    hub.add(repo, name, weights(100))
    pace = download._Pace(ignore)
    path = download.fetch(download.look_up(HubFile(repo=repo, path=name), pace), pace)
    entry = catalog.find("sdxl", settings)
    assert catalog.layer_file(entry, "layer_xl_fg2ble.safetensors", settings) == path
    assert Path(path).name == name


def in_cache(path: Path, content: bytes) -> Path:
    """Put other content in the place of a cached file's."""
    path.resolve().write_bytes(content)
    return path


def test_a_damaged_file_stays_until_its_replacement_is_here(
    filled: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    path = in_cache(prepare("sd15", settings, ignore, methods=JOINT).fetched[-1].path, weights(1000)[:500])
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE forbids it.*damaged and was left as it is"):
            prepare("sd15", settings, ignore, methods=JOINT)
    assert path.stat().st_size == 500
    filled.faults += [Damage(), Damage()]
    with pytest.raises(DownloadError, match="twice in a row"):
        prepare("sd15", settings, ignore, methods=JOINT)
    assert path.stat().st_size == 500
    assert names(prepare("sd15", settings, ignore, methods=JOINT)) == [path.name]
    assert path.stat().st_size > 50_000


def test_a_whole_file_of_a_number_format_that_is_not_read_stays(filled: Hub, settings: Settings):
    odd = weights(50_000).replace(b'"U8"', b'"F4"')
    filled.add("lllyasviel/fav_models", "fav/realisticVisionV51_v51VAE.safetensors", odd)
    source = download.look_up(BASES[2].remote, download._Pace(ignore))
    path = write(source.folder / "snapshots" / source.commit / source.remote.path, odd)
    with pytest.raises(DownloadError, match="stores its weights as F4, which is not supported"):
        prepare("sd15", settings, ignore, methods=JOINT, verify=True)
    assert path.read_bytes() == odd
    assert not filled.asked("store")


def test_a_file_that_is_as_it_was_published_is_not_fetched_again(filled: Hub, settings: Settings):
    path = prepare("sd15", settings, ignore, methods=JOINT).fetched[-1].path
    odd = b"PK\x03\x04" + bytes(1000)
    blob = path.parent.parent.parent / "blobs" / sha256(odd)
    blob.write_bytes(odd)
    path.unlink()
    path.symlink_to(blob)
    with pytest.raises(DownloadError, match=r"is a pickle file under another name.*as it was published"):
        prepare("sd15", settings, ignore, methods=JOINT)
    assert path.read_bytes() == odd


def test_a_users_file_that_the_cache_links_to_is_named_and_left_alone(filled: Hub, settings: Settings, tmp_path: Path):
    path = prepare("sd15", settings, ignore, methods=JOINT).fetched[-1].path
    own = write(tmp_path / "mine.safetensors", weights(1000)[:500])
    path.unlink()
    path.symlink_to(own)
    with pytest.raises(DownloadError, match=r"is damaged.*Remove it"):
        prepare("sd15", settings, ignore, methods=JOINT)
    assert own.stat().st_size == 500
    assert path.is_symlink()


def test_files_of_an_earlier_commit_are_still_here(filled: Hub, settings: Settings):
    prepare("sd15", settings, ignore, methods=JOINT)
    repo = LAYER_FILES["layer_sd15_joint.safetensors"].repo
    filled.move(repo, "README.md", b"new")
    prepare("sd15", settings, ignore, methods=("layer_sd15_bg2fg",))
    filled.requests.clear()
    assert prepare("sd15", settings, ignore, methods=JOINT).fetched == ()
    assert not filled.requests


def test_checking_what_is_here_tells_how_far_it_is_and_can_be_cancelled(
    filled: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(download, "REPORT_EVERY", 0)
    prepare("sd15", settings, ignore, methods=JOINT)

    def stop(progress: Progress) -> None:
        if progress.message.startswith("checking realisticVisionV51_v51VAE.safetensors: 50 kB of 50 kB"):
            raise Cancelled("The job was cancelled.")

    with pytest.raises(Cancelled):
        prepare("sd15", settings, stop, methods=JOINT, verify=True)


def test_a_fetched_file_is_not_read_again_for_its_checksum(filled: Hub, settings: Settings):
    path = prepare("sd15", settings, ignore, methods=JOINT).fetched[0].path
    listed = json.loads(cache_file().read_text())
    assert listed[str(path.resolve())][2] == sha256(path.read_bytes())


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_what_is_advised_where_a_layer_file_is_missing_fetches_it(settings: Settings, family: str):
    entry = catalog.find(family, settings)
    for method in (method for method in METHODS.values() if method.family == family):
        with pytest.raises(ModelNotFound) as raised:
            catalog.layer_file(entry, method.file, settings)
        said = str(raised.value)
        assert f"put {method.file} into" in said
        task = re.search("task='(.*?)'", said)
        assert f"models prepare {entry.name}{f' --task {task[1]}' if task else ''}`" in said
        if "prepare_model" in said:
            assert task
            files = catalog.missing(entry, settings, catalog.methods_for(entry, Task(task[1])))
            assert method.file in [file.name for file in files]
        else:
            assert not any(method.id in route for route in ROUTES.values())


def test_what_is_advised_where_an_own_base_is_missing_works(hub: Hub, settings: Settings):
    rows = '[[base]]\nname = "my base"\nrepo = "me/mine"\nfile = "model.safetensors"\nfamily = "sd15"\n'
    write(settings.models_dir / "models.toml", rows.encode())
    for say in (
        lambda: catalog.base_file(catalog.find("my base", settings), settings),
        lambda: prepare("my base", settings, ignore, methods=()),
    ):
        with pytest.raises(ModelError, match=r"give its path in .*models.toml") as raised:
            say()
        assert "put model.safetensors into" not in str(raised.value)
    with pytest.raises(ModelNotFound, match=r"models prepare 'my base'"):
        catalog.base_file(catalog.find("my base", settings), settings)
