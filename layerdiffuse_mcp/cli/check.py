"""The command `models check`: draws with a base and looks whether its background is the mid-grey that layers need.

layerdiffuse-mcp models check NAME
"""

import argparse
import contextlib
import hashlib
import io
import tempfile
from pathlib import Path

from layerdiffuse_mcp.api.plan import DecodePlan, GivenPicture, Planned
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.cli.flags import Commands, settings_of
from layerdiffuse_mcp.errors import LayerDiffuseError, ModelNotFound
from layerdiffuse_mcp.installed import program
from layerdiffuse_mcp.settings import Settings

PROMPT, SEED = "an apple", 12345
"""What every base can draw: the published sanity check's subject and seed."""


def add(behind: Commands) -> None:
    """Add `check` to the commands behind `models`."""
    check = behind.add_parser("check", help="draw with a base and say whether layer files work with it")
    check.add_argument("name", metavar="NAME", help="a base that is on this machine")
    check.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    """Test a base and print what came out; returns 0 where it passed."""
    from layerdiffuse_mcp.cli.terminal import say

    said, passed = tested(options.name, settings_of(options))
    say("check", said)
    return 0 if passed else 1


def tested(name: str, settings: Settings) -> tuple[str, bool]:
    """Test a base and remember the answer; what there is to say, and whether it passed.

    Raises:
        LayerDiffuseError: it is not here, or draws no transparent pictures that it could fail with.
    """
    from layerdiffuse_mcp.hub import catalog
    from layerdiffuse_mcp.images.read import read_picture
    from layerdiffuse_mcp.jobs import checks
    from layerdiffuse_mcp.jobs.planner import plan

    entry = catalog.find(name, settings)
    catalog.base_file(entry, settings)
    planned = plan(GenerateRequest(prompt=PROMPT, seed=SEED, model=entry.name, save_latent=True), settings)
    if planned.downloads:
        raise ModelNotFound(f"{entry.name} lacks files: fetch them with `{program()} models prepare {entry.name}`.")
    with io.BytesIO(_plain(planned, entry.name, settings)) as seen:
        seen.name = "drawn.png"
        background = checks.background_in(read_picture(seen).rgba)
    checks.remembered(entry, background)
    colour, passed = checks.in_hex(background), checks.passes(background)
    if passed:
        return f"{entry.name} passed: it draws its background {colour}, and {checks.needed()} is needed", True
    return f"{entry.name} failed. {' '.join(checks.doubts(entry))}", False


def _plain(planned: Planned, model: str, settings: Settings) -> bytes:
    """A drawing as the autoencoder sees it, with the background that its alpha hides: a PNG."""
    from layerdiffuse_mcp.cli.terminal import progress_bar
    from layerdiffuse_mcp.engine.startup import load_engine

    engine = load_engine()(settings)
    with contextlib.closing(engine), tempfile.TemporaryDirectory() as folder, progress_bar() as on_step:
        drawn = engine.run(planned.tasks[0], planned.inputs, on_step)
        latent = next((file.data for file in drawn.encoded if file.picture is None), None)
        if latent is None:
            raise LayerDiffuseError(f"{model} saves no latents of what it draws, so that there is nothing to look at.")
        path, digest = Path(folder) / "drawn.safetensors", hashlib.sha256(latent).hexdigest()
        path.write_bytes(latent)
        given = GivenPicture(name=path.name, sha256=digest, bytes=len(latent))
        seen = engine.run(DecodePlan(model=model, latent=given, plain=True), {digest: path}, on_step)
    return seen.encoded[0].data
