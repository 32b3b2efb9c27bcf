"""Changes to a recipe that name a part of an object: the rest of it stays as the recipe says.

    whole({"control": [{"model": "canny", "end": 0.5}]}, {"control": [{"strength": 1}]})
    # {"control": [{"model": "canny", "end": 0.5, "strength": 1}]}

Entries of `control` are matched by their places, so `{}` keeps one. One that names another model starts anew.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from layerdiffuse_mcp.api.control import CONTROL_PICTURE, REFERENCE, REFERENCE_MASK, control_names

OBJECTS = ("reference", "detail")
_DECIDED = ("tiling",)
"""Fields of objects that follow from the others."""


def whole(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes to a recipe's fields, with what it says beside of the objects among them."""
    made = {name: _whole(old.get(name), value) if name in OBJECTS else value for name, value in changes.items()}
    if isinstance(changes.get("control"), list | tuple):
        made["control"] = [_whole(was, now) for was, now in _controls(old, changes) if now is not None]
    return made


def replaced(old: Mapping[str, Any], changes: Mapping[str, Any]) -> set[str]:
    """Which of a recipe's pictures, by name, are not looked at any more; `api/control.py` has the names."""
    pairs = _controls(old, changes) if "control" in changes else []
    names = {
        name
        for name, (was, now) in zip(control_names(len(pairs)), pairs, strict=True)
        if not _goes_on(was, now) or "image" in now
    }
    if "reference" in changes:
        goes_on = _goes_on(old.get("reference"), now := changes["reference"])
        parts = {"image": REFERENCE, "mask": REFERENCE_MASK}
        names |= {name for part, name in parts.items() if not goes_on or part in now}
    return names


def place_of(picture: str) -> str:
    """Where changes name another picture in the place of a recipe's."""
    if picture.startswith(CONTROL_PICTURE):
        before = int(picture.removeprefix(CONTROL_PICTURE)) - 1
        return f'changes.options.control: [{"{}, " * before}{{"image": "new.png"}}]'
    parts = {REFERENCE: "image", REFERENCE_MASK: "mask"}
    if picture in parts:
        return f'changes.options.reference: {{"{parts[picture]}": "new.png"}}'
    return f"pictures.{picture}"


def dropped(old: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[str, ...]:
    """What to say of controls behind those that the changes name; none named are meant to be none."""
    pairs = _controls(old, changes) if changes.get("control") else []
    gone = [f"control.{number}" for number, (_, now) in enumerate(pairs) if now is None]
    if not gone:
        return ()
    return (f"Of the recipe, {' and '.join(gone)} was dropped, as the changes end before: {{}} in its place keeps it.",)


def _controls(old: Mapping[str, Any], changes: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The recipe's entries and those of the changes in the same places, None where there is none."""
    was, now = old.get("control"), changes["control"]
    return [*zip_longest(_listed(was), _listed(now))]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _goes_on(was: Any, now: Any) -> bool:
    """Whether a change is one of what was, and no other thing in its place."""
    if not isinstance(was, Mapping) or not isinstance(now, Mapping):
        return False
    return str(now.get("model", was.get("model"))).casefold() == str(was.get("model")).casefold()


def _whole(was: Any, now: Any) -> Any:
    if not _goes_on(was, now):
        return now
    return {name: value for name, value in was.items() if name not in _DECIDED} | dict(now)
