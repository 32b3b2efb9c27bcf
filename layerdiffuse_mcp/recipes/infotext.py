"""The A1111 parameter text: what Stable Diffusion users paste to each other to repeat a picture.

    an apple, high quality
    Negative prompt: bad, ugly
    Steps: 20, Sampler: DPM++ 2M SDE Karras, CFG scale: 5, Seed: 12345, Size: 1024x1024, layerdiffusion_enabled: True

    info = parse(text)
    info.steps, info.sampler, info.schedule         # 20, "DPM++ 2M SDE", "Karras"
    format(replace(info, seed=7))                   # the same text but for the seed

A text that was read is written back word for word where nothing was changed: its order, its way to write a number, its
old or new way to name sampler and schedule, the fields that are unknown here. The format has no escapes in prompts:
white space at the ends of their lines is lost, and a line of a prompt that begins with "Negative prompt:" ends it.

The rules are those of A1111 and Forge (`modules/infotext_utils.py`), the `layerdiffusion_` fields those of
`sd-forge-layerdiffuse`. This module knows neither the table of methods nor requests.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from layerdiffuse_mcp.api.choices import SCHEDULES, NoiseSource
from layerdiffuse_mcp.errors import InvalidRequest

__all__ = ["Infotext", "format", "parse"]


@dataclass(frozen=True)
class Infotext:
    """What a parameter text says; None for what it does not say.

    size: (width, height) in pixels. clip_skip: 1 is the last layer. strength: "Denoising strength", 0..1.
    stop_at: share of the steps with the layer model, 0..1. `..._given`: whether a picture was conditioned on (the text
    does not hold it). layer_method: the extension's name of the method. other: all further fields, by label.
    written: the fields as they stood in the text that was read, which `format` follows; no part of the meaning.
    """

    prompt: str = ""
    negative_prompt: str = ""
    steps: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    size: tuple[int, int] | None = None
    model_hash: str | None = None
    model: str | None = None
    strength: float | None = None
    clip_skip: int | None = None
    noise_source: NoiseSource | None = None
    layer_enabled: bool | None = None
    layer_method: str | None = None
    layer_weight: float | None = None
    stop_at: float | None = None
    foreground_given: bool | None = None
    background_given: bool | None = None
    blended_given: bool | None = None
    resize_mode: str | None = None
    foreground_prompt: str | None = None
    background_prompt: str | None = None
    blended_prompt: str | None = None
    emphasis: str | None = None
    version: str | None = None
    other: Mapping[str, str] = field(default_factory=dict[str, str])
    written: Mapping[str, str] = field(default_factory=dict[str, str], compare=False, repr=False)


def parse(text: str) -> Infotext:
    """Read a parameter text. One without a last line of parameters is a prompt, with a negative one perhaps.

    Raises InvalidRequest if a known field holds what it cannot, such as "Steps: many".
    """
    head, last = _split_off_parameters(text.replace("\r\n", "\n").replace("\r", "\n").strip())
    prompt, negative_prompt = _split_prompts(head)
    written = dict(_scan(last))
    values: dict[str, Any] = {}
    other: dict[str, str] = {}
    for label, raw in written.items():
        known = _BY_LABEL.get(label)
        if known is None:
            other[label] = _unquoted(raw)
        else:
            values[known.name] = known.read(raw)
    if "sampler" in values:
        values["sampler"], carried = _split_sampler(values["sampler"])
        if carried is not None:
            values["schedule"] = carried
    return Infotext(prompt, negative_prompt, **values, other=other, written=written)


def format(info: Infotext) -> str:
    """Write a parameter text: `parse` reads it back, and so do A1111 and Forge.

    They take the last line for parameters if it begins with "Steps" or has three fields, so `steps` should be there.
    Raises InvalidRequest for a label in `other` that the format cannot hold (it takes words, blanks, - and /).
    """
    values = _values(info)
    fields: dict[str, str] = {}
    for label, value in values.items():
        known = _BY_LABEL.get(label, _Field(label, "", _text, _as_text))
        if _LABEL.fullmatch(label) is None:
            raise InvalidRequest(f"{label!r} cannot be the label of a field: letters, digits, blanks, - and / can.")
        raw = info.written.get(label)
        fields[label] = raw if raw is not None and known.read(raw) == value else _quoted(known.write(value))
    line = ", ".join(f"{label}: {fields[label]}" for label in _in_order(list(fields), info.written))
    negative = f"Negative prompt: {info.negative_prompt}" if info.negative_prompt else ""
    return "\n".join(part for part in (info.prompt, negative, line) if part).strip()


# --- the fields ---


@dataclass(frozen=True)
class _Field:
    """How a field's text becomes the value of `Infotext.<name>`, and back."""

    label: str
    name: str
    parse: Callable[[str], Any]
    write: Callable[[Any], str]
    expected: str = ""

    def read(self, raw: str) -> Any:
        text = _unquoted(raw)
        try:
            return self.parse(text)
        except (ValueError, KeyError):
            raise InvalidRequest(f"The parameter text says '{self.label}: {text[:40]}'; {self.expected}.") from None


def _text(text: str) -> str:
    return text


def _whole(text: str) -> int:
    return int(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.casefold()]


def _size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


def _noise(text: str) -> NoiseSource:
    # what A1111 draws on the GPU is what our nvidia source draws on any device; NV is A1111's own such source
    sources: dict[str, NoiseSource] = {"GPU": "nvidia", "NV": "nvidia", "CPU": "cpu"}
    return sources[text]


def _as_text(value: object) -> str:
    return str(value)


def _as_number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _as_size(value: tuple[int, int]) -> str:
    return f"{value[0]}x{value[1]}"


def _as_noise(value: NoiseSource) -> str:
    return {"nvidia": "NV", "cpu": "CPU"}[value]


def _string(label: str, name: str) -> _Field:
    return _Field(label, name, _text, _as_text)


def _integer(label: str, name: str) -> _Field:
    return _Field(label, name, _whole, _as_text, "a whole number belongs there")


def _real(label: str, name: str) -> _Field:
    return _Field(label, name, _number, _as_number, "a number belongs there")


def _boolean(label: str, name: str) -> _Field:
    return _Field(label, name, _flag, _as_text, "True or False belongs there")


_VERSION = _string("Version", "version")

# in the order in which A1111 writes them
_FIELDS = (
    _integer("Steps", "steps"),
    _string("Sampler", "sampler"),
    _string("Schedule type", "schedule"),
    _real("CFG scale", "guidance_scale"),
    _integer("Seed", "seed"),
    _Field("Size", "size", _size, _as_size, "width x height as in 1024x1024 belongs there"),
    _string("Model hash", "model_hash"),
    _string("Model", "model"),
    _real("Denoising strength", "strength"),
    _integer("Clip skip", "clip_skip"),
    _Field("RNG", "noise_source", _noise, _as_noise, "GPU, NV or CPU belongs there"),
    _boolean("layerdiffusion_enabled", "layer_enabled"),
    _string("layerdiffusion_method", "layer_method"),
    _real("layerdiffusion_weight", "layer_weight"),
    _real("layerdiffusion_ending_step", "stop_at"),
    _boolean("layerdiffusion_fg_image", "foreground_given"),
    _boolean("layerdiffusion_bg_image", "background_given"),
    _boolean("layerdiffusion_blend_image", "blended_given"),
    _string("layerdiffusion_resize_mode", "resize_mode"),
    _string("layerdiffusion_fg_additional_prompt", "foreground_prompt"),
    _string("layerdiffusion_bg_additional_prompt", "background_prompt"),
    _string("layerdiffusion_blend_additional_prompt", "blended_prompt"),
    _string("Emphasis", "emphasis"),
)
_BY_LABEL = {row.label: row for row in (*_FIELDS, _VERSION)}


def _values(info: Infotext) -> dict[str, Any]:
    """What is to be written, by label, in A1111's order; None is left out."""
    known: dict[str, Any] = {row.label: getattr(info, row.name) for row in _FIELDS}
    if info.schedule is not None and info.sampler is not None and _joins_schedule(info.written):
        known["Sampler"] = f"{info.sampler} {info.schedule}"
        known["Schedule type"] = None
    values = {**known, **info.other, _VERSION.label: info.version}
    return {label: value for label, value in values.items() if value is not None}


def _in_order(labels: list[str], written: Mapping[str, str]) -> list[str]:
    """The labels as they were written; a new one after the one that A1111 writes before it."""
    order = [label for label in written if label in labels]
    for before, label in zip([None, *labels], labels, strict=False):
        if label not in order:
            order.insert(0 if before is None else order.index(before) + 1, label)
    return order


def _split_sampler(name: str) -> tuple[str, str | None]:
    """ "DPM++ 2M SDE Karras" -> sampler and schedule: before version 1.9 A1111 wrote both in one name."""
    for schedule in sorted(SCHEDULES, key=len, reverse=True):  # SGM Uniform before Uniform
        if name.endswith(f" {schedule}"):
            return name.removesuffix(f" {schedule}"), schedule
    return name, None


def _joins_schedule(written: Mapping[str, str]) -> bool:
    return "Schedule type" not in written and _split_sampler(_unquoted(written.get("Sampler", "")))[1] is not None


# --- the text ---

_LABEL = re.compile(r"\w[\w \-/]*\w")
_PARAMETER = re.compile(
    rf"""
      \s* (?P<label> {_LABEL.pattern} ) [ ]* : \s*
      (?P<value> "(?:\\.|[^\\"])+" | \{{[^{{}}]*\}} | [^,]* )   # text in quotes, an object of hashes, anything else
      (?: , | $ )
    """,
    re.VERBOSE,
)
_NEGATIVE = "Negative prompt:"
_FEWEST = 3  # parameters that make a last line more than a piece of prompt


def _scan(line: str) -> Iterator[tuple[str, str]]:
    """The label and the raw value of each parameter in a line; what is none is passed over."""
    at = 0
    while at < len(line):
        found = _PARAMETER.match(line, at)
        if found is not None:
            yield found["label"], found["value"].rstrip()
        comma = line.find(",", at)
        at = found.end() if found is not None else comma + 1 if comma >= 0 else len(line)


def _split_off_parameters(text: str) -> tuple[str, str]:
    head, _, last = text.rpartition("\n")
    is_parameters = last.startswith("Steps:") or sum(1 for _ in _scan(last)) >= _FEWEST
    return (head, last) if is_parameters else (text, "")


def _split_prompts(head: str) -> tuple[str, str]:
    lines = [line.strip() for line in head.split("\n")]
    start = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = [line.removeprefix(_NEGATIVE).strip() for line in lines[start:]]
    return "\n".join(lines[:start]).strip(), "\n".join(negative).strip()


def _quoted(text: str) -> str:
    """A value as JSON if the line would be misread otherwise."""
    plain = text == text.strip() and not text.startswith(('"', "{")) and not any(mark in text for mark in ",:\n\r")
    return text if plain else json.dumps(text, ensure_ascii=False)


def _unquoted(raw: str) -> str:
    if not (raw.startswith('"') and raw.endswith('"')):
        return raw
    try:
        value: object = json.loads(raw)
    except ValueError:
        return raw
    return value if isinstance(value, str) else raw
