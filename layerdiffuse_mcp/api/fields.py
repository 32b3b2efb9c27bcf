"""The types of what can be asked for: bounds, tables of names, descriptions; and errors in words.

A request's fields and the tools' parameters are made of these, so each has one description.

    steps: Steps                      # a field of a request
    steps: Omittable[Steps] = None    # a parameter of a tool; its schema is that of Steps
"""

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, core_schema

from layerdiffuse_mcp.api.choices import EMPHASIS, FITS, NOISE_SOURCES, RESIZE_MODES, SAMPLERS, SCHEDULES, SPEEDS
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import ROLES, Role
from layerdiffuse_mcp.wording import QUOTED, quoted, short, spelled

MIN_SIZE, MAX_SIZE = 16, 2048
MIN_DRAWN = 64
"""Pixels of the sides that are drawn, at least; smaller results are fitted."""
MAX_STEPS = 150
MAX_COUNT = 8
MAX_SEED = 2**32 - 1
MAX_PROMPT_CHARACTERS = 20_000
DRAW_SEED = -1
STRENGTH = 0.6
RESIZE_MODE = "Crop and Resize"
PICTURE_FORMATS = ("png", "webp")
METADATA = ("full", "none")
FEW = 6
"""Names that are read at a glance."""
MOST_ERRORS = 8
"""Wrong parameters that one message names."""

T = TypeVar("T")


def _without_null(schema: dict[str, Any]) -> None:
    """Show the one form that is not null: what may be null may as well be left out."""
    [form] = [form for form in schema.pop("anyOf") if form != {"type": "null"}]
    schema |= form | schema
    if schema.get("default", ...) is None:
        del schema["default"]


Omittable = Annotated[T | None, Field(json_schema_extra=_without_null)]
"""A value that may be left out."""


MEANT = {
    "colour": "tint", "color": "tint", "path": "image", "file": "image", "picture": "image", "src": "image",
    "jpeg": "jpg", "centre": "center",
}  # fmt: skip
"""What a name may stand for that is not spelled alike."""


def near(name: str, names: Collection[str]) -> str:
    """A sentence that lists `names`, first those nearest to `name`, which have to be nearer where there are few."""
    if not names:
        return "It takes none: leave it out."
    few = len(names) <= FEW
    spelled = MEANT[name] if MEANT.get(name) in names else name[:QUOTED]
    most = 1 if few or spelled in names else 3
    close = difflib.get_close_matches(spelled, names, n=most, cutoff=0.7 if few else 0.4)
    close = close or [known for known in names if spelled and known.casefold().startswith(spelled.casefold())][:most]
    meant = f"Did you mean {', '.join(close)}? " if close else ""
    return f"{meant}Allowed: {', '.join(names)}."


@dataclass(frozen=True)
class OneOf:
    """Annotation: a string that is one of a table's names, in any case and with any separators between its words.

    Its schema is an enum, its error lists them.
    """

    names: tuple[str, ...]
    what: str

    def check(self, value: str) -> str:
        """The name that is meant; ValueError when it is none."""
        if value in self.names:
            return value
        wanted = spelled(MEANT.get(value.casefold(), value))
        for name in self.names:
            if spelled(name) == wanted:
                return name
        raise ValueError(f"unknown {self.what} {quoted(value)}. {near(value, self.names)}")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names)}


def bounded(low: float, high: float, description: str) -> Any:
    """The bounds and the description of a finite number."""
    return Field(ge=low, le=high, allow_inf_nan=False, description=description)


SamplerName = Annotated[
    str,
    OneOf(tuple(SAMPLERS), "sampler"),
    Field(description="Sampling method; default: what the layer method's authors advise"),
]
ScheduleName = Annotated[
    str,
    OneOf(tuple(SCHEDULES), "schedule"),
    Field(description="Noise schedule; Automatic is the sampler's own; default: as advised"),
]
MethodName = Annotated[
    str, OneOf(tuple(METHODS), "method"), Field(description="Layer method, where a task has more than one")
]
ResizeMode = Annotated[
    str,
    OneOf(RESIZE_MODES, "resize mode"),
    Field(description="How given pictures are fitted to width and height"),
]
Size = Annotated[int, bounded(MIN_SIZE, MAX_SIZE, "Pixels; default: the model's native size")]
Fit = Annotated[
    str,
    OneOf(tuple(FITS), "fit"),
    Field(
        description="For a size whose area is not 0.5 to 1.5 times the model's own: contain, cover and stretch fit a "
        "drawing near that to it; as_is draws the very size, slowly, and subjects may repeat; default: contain, or "
        "cover where there is an opaque layer; without a GPU a much larger size needs it given"
    ),
]
Drawn = Annotated[int, Field(ge=MIN_DRAWN, le=MAX_SIZE)]
DrawnSize = Annotated[
    tuple[Drawn, Drawn], Field(description="Width and height that are drawn, where they are fitted to another size")
]
NoiseSource = Annotated[
    str,
    OneOf(NOISE_SOURCES, "noise source"),
    Field(description="nvidia draws on any device what CUDA draws; cpu is torch's own generator"),
]
Emphasis = Annotated[
    str, OneOf(EMPHASIS, "emphasis"), Field(description="Whether (word:1.2) keeps the mean of the embeddings")
]

SpeedName = Annotated[
    str,
    OneOf(tuple(SPEEDS), "speed"),
    Field(description="; ".join(f"{name}: {what}" for name, what in SPEEDS.items())),
]
Steps = Annotated[int, bounded(1, MAX_STEPS, "Denoising steps; default: as advised, usually 20")]
Guidance = Annotated[
    float, bounded(1, 30, "How strictly to follow the prompt; 1 ignores negative_prompt; default: as advised")
]
StopAt = Annotated[
    float, bounded(0, 1, "Share of the sampling in which the layer file acts; then the plain base goes on")
]
LayerWeight = Annotated[float, bounded(0, 2, "Strength of the layer file, 1 as released (SDXL and FLUX.1-dev)")]
Seed = Annotated[int, bounded(DRAW_SEED, MAX_SEED, "Same seed, same picture; -1 (default) draws one and reports it")]
Count = Annotated[int, bounded(1, MAX_COUNT, "Results to draw, with seeds seed, seed + 1, ...; default 1")]
ClipSkip = Annotated[int, bounded(1, 12, "Text encoder layers to stop before the end (SD1.5 only)")]
LayerCount = Annotated[int, bounded(2, 10, "Layers to take the picture apart into")]
Depth = Annotated[int, bounded(1, 3, "How often: 2 takes each layer apart again; layers^depth is 64 at most")]
DocumentFormat = Annotated[
    str, OneOf(("ora", "psd"), "document"), Field(description="File that holds all layers, for other programs")
]
Denoising = Annotated[
    float,
    Field(
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="How much of the picture to redraw: 0.2 keeps its shape, 1 redraws all",
    ),
]
Redrawing = Annotated[
    float,
    bounded(
        0, 1, "How much of image to redraw: 0.2 keeps its shape, 1 redraws all; 0, with detail, enlarges it as it is"
    ),
]
Prompt = Annotated[
    str,
    Field(
        max_length=MAX_PROMPT_CHARACTERS,
        description="What to draw; (word:1.2) stresses, [word] weakens, [cat:dog:0.5] changes halfway, AND joins",
    ),
]
NegativePrompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS, description="What to keep out of the picture")]
ModelName = Annotated[
    str, Field(max_length=200, description="Name of a base model, as list_models says it; default: the best prepared")
]
FileWords = Annotated[
    str,
    Field(max_length=100, description="Words that the files are named by; default: the first words of the prompt"),
]
PictureFormat = Annotated[
    str,
    OneOf(PICTURE_FORMATS, "format"),
    Field(description="Kind of the picture files; webp is lossless too, and smaller"),
]
Metadata = Annotated[
    str,
    OneOf(METADATA, "metadata"),
    Field(description="What the files say of themselves: full is the recipe that draws them again, none only their id"),
]
Want = Annotated[
    tuple[Role, ...],
    Field(
        max_length=len(ROLES),
        description="Which of the layers that are drawn to keep, as in background,blended; none named: all",
    ),
]
SaveLatent = Annotated[bool, Field(description="Also save the latent, for decode_transparent_latent")]
DrawnWith = Annotated[
    dict[Annotated[str, Field(max_length=255)], Annotated[str, Field(pattern=r"^[0-9a-f]{10,64}$")] | None],
    Field(max_length=64, description="What a recipe says of its files: the beginnings of their SHA-256, by name"),
]


MISTAKES: Mapping[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_unicode": "must be text that UTF-8 can say",
    "string_too_long": "may have at most {max_length} characters",
    "string_too_short": "is empty: it needs {min_length} character or more",
    "string_pattern_mismatch": "does not have the form {pattern}",
    "path_type": "must be a path",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": 'must be an object of names and values, as in {{"name": value}}',
    "model_type": 'must be an object of names and values, as in {{"name": value}}',
    "model_attributes_type": 'must be an object of names and values, as in {{"name": value}}',
    "too_long": "may have at most {max_length} items",
    "too_short": "needs at least {min_length} item",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
}
"""What a value is told that does not fit: by pydantic's kinds of errors, whose own words nobody sees."""


def explain(error: ValidationError) -> str:
    """One line for an agent: each wrong parameter, what was given and what is allowed; of alike items the first."""
    said: dict[Any, list[str]] = {}
    for item in error.errors():
        where = ".".join(short(step) for step in item["loc"])
        given = item["input"]
        if item["type"] == "value_error":  # our own words, which quote what was given
            text = item["msg"].removeprefix("Value error, ")
            text = f"{where}{' ' if text.startswith('must ') else ': '}{text}" if where else text
        else:
            text = MISTAKES.get(item["type"], "cannot be used as it is").format(**item.get("ctx", {}))
            got = f" (got {quoted(given)})" if isinstance(given, str | int | float) else ""
            text = f"{where or 'what was given'} {text}{got}"
        field = tuple(step for step in item["loc"] if not isinstance(step, int))
        alike = field != item["loc"] and (field, item["type"], type(given))
        said.setdefault(alike or item["loc"], []).append(text)
    parts: list[str] = []
    for text, *others in [*said.values()][:MOST_ERRORS]:
        alike = f"; the same is wrong in {len(others)} more" if others else ""
        parts.append(f"{text.removesuffix('.')}{alike}." if alike else text)
    line = " ".join(part if part.endswith((".", "?")) else f"{part};" for part in parts)
    return f"{line[:-1]}." if line.endswith(";") else line
