"""Prompts: task-shaped beginnings that a user picks in a client."""

import json
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from pydantic import Field

from layerdiffuse_mcp.server.icons import LAYERS, PICTURE
from layerdiffuse_mcp.server.services import Services

Model = Annotated[str, Field(description="Name of a base model, as list_models says it; empty: the default")]


def add_prompts(server: MCPServer[Services]) -> None:
    """Add every prompt."""
    server.prompt(title="A set of game sprites", icons=[PICTURE])(game_sprites)
    server.prompt(title="A product cut-out", icons=[PICTURE])(product_cutout)
    server.prompt(title="A layered poster", icons=[LAYERS])(layered_poster)


def game_sprites(
    subjects: Annotated[str, Field(description="What to draw, separated by commas")],
    style: Annotated[str, Field(description="Common style of all sprites")] = "flat game icon",
    model: Model = "",
    sampler: Annotated[str, Field(description="Sampler for all of them; empty: as advised")] = "",
    schedule: Annotated[str, Field(description="Noise schedule for all of them; empty: as advised")] = "",
) -> str:
    """A matching set of transparent sprites in cells of one size, on one sheet with its atlas."""
    options = _options(model=model, sampler=sampler, schedule=schedule)
    return f"""Draw a set of transparent game sprites, one for each of: {subjects}.

1. Call generate_set once, with subjects as a list, style={json.dumps(style, ensure_ascii=False)}, and \
cell={{"size": "128x128", "anchor": "bottom"}}{options}. Name each subject alone, no background.
2. Look at each picture's verdict and at the preview, numbered in the order of the subjects. Where one is not good, or \
cut off at an edge, call redraw_image on it with changes={{"seed": ..., "count": 4}}: four at once, the best first.
3. If any was drawn again, call make_sheet with the chosen pictures, each with its subject as name, and the same cell \
and anchor: the first sheet shows the old ones.
4. Give me the paths of the pictures, the sheet and its atlas files."""


def product_cutout(
    product: Annotated[str, Field(description="The product, as one would describe a photograph of it")],
    backgrounds: Annotated[str, Field(description="Colours to show it on, separated by commas")] = "white, #202020",
    model: Model = "",
) -> str:
    """A product cut out cleanly, with its soft shadow kept as partial alpha, checked on several backgrounds."""
    return f"""Make a clean cut-out of this product: {product}.

1. Call generate_transparent with the product and a soft contact shadow in the prompt, count=4{_options(model=model)}. \
If I gave you a picture of it, call cut_out on that instead.
2. The best come first. Choose the one whose subject touches no edge. To change a thing about it, call redraw_image.
3. Call inspect_image on it, once for each background of: {backgrounds}. A halo means a fringe of the wrong colour: \
choose another if it is strong.
4. Call compose_layers with canvas={{"trim": true, "pad": 32}} to export it as PNG and WebP \
(output={{"format": "webp"}}), and once on each background, with shadow={{}} on the layer if it has none of its own.
5. Give me the paths, and say in a sentence how clean the edges are."""


def layered_poster(
    subject: Annotated[str, Field(description="What stands in front")],
    scene: Annotated[str, Field(description="What lies behind it")],
    model: Model = "",
) -> str:
    """A poster in layers: subject and scene drawn to match, exported with named layers."""
    layers = {"foreground": subject, "background": scene}
    return f"""Make a layered poster: {subject}, in front of {scene}.

1. Call list_models. If a model can do "layers", call generate_layers with the prompt "{subject}, {scene}"\
{_options(model=model, layer_prompts=layers)}. If one can do "background_from_foreground" instead, call \
generate_transparent for the subject and then generate_background_from_foreground. If neither, draw the subject with \
generate_transparent and put it on a colour that fits the scene.
2. Call compose_layers with the background lowest and the foreground above it, named "scene" and "subject", once as \
PSD and once as PNG.
3. Give me the paths of the layers and of both exports."""


def _options(**given: Any) -> str:
    """What to say of options that were given."""
    said = {name: value for name, value in given.items() if value}
    return f", and options={json.dumps(said, ensure_ascii=False)}" if said else ""
