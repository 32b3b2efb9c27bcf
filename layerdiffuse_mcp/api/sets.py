"""A set in words: subjects, a style that is said once, and one rule for the seeds.

request = set_of(["a sword", "a shield"], "flat", seed=7, seeds="same")
"""

from collections.abc import Mapping, Sequence
from typing import Any

from layerdiffuse_mcp.api.cells import AS_DRAWN, Cell
from layerdiffuse_mcp.api.fields import DRAW_SEED, MAX_SEED
from layerdiffuse_mcp.api.plan import draw_seed
from layerdiffuse_mcp.api.requests import MAX_SUBJECTS, GenerateRequest, SetRequest, validated
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.wording import counted, quoted

SEEDS = {"same": "every picture has the one seed", "counted": "seed, seed + 1, ... in the order of the subjects"}


def set_of(
    subjects: Sequence[str],
    style: str = "",
    *,
    seed: int = DRAW_SEED,
    seeds: str = "same",
    cell: Cell = AS_DRAWN,
    sheet: bool = True,
    fields: Mapping[str, Any] | None = None,
) -> SetRequest:
    """The request for a set. `fields` are those that all its drawings have in common, `name` that of the files,
    and `poses` pictures, one a subject, that the first of its controls follows. Equal subjects are numbered where poses
    or `seeds` make their pictures differ.

    Raises:
        InvalidRequest: a subject is empty, or two would get the same picture; there are too many, a seed passes the
            largest, or there is not one pose a subject.
    """
    said = [" ".join(subject.split()) for subject in subjects]
    common = dict(fields or {})
    name, poses = common.pop("name", ""), common.pop("poses", None)
    named = _numbered(said) if poses is not None or seeds == "counted" else said
    _check(named)
    first = min(draw_seed(), MAX_SEED - MAX_SUBJECTS) if seed == DRAW_SEED else seed
    step = 1 if seeds == "counted" else 0
    if (last := first + step * (len(said) - 1)) > MAX_SEED:
        raise InvalidRequest(
            f"The last of {len(said)} pictures would have the seed {last}, and the largest is {MAX_SEED}: choose a "
            "smaller seed."
        )
    controls = _posed(common.pop("control", []), poses, len(said))
    drawings = tuple(
        validated(
            GenerateRequest,
            common
            | ({"control": controls[number]} if controls[number] else {})
            | {"prompt": ", ".join(filter(None, (subject, style.strip()))), "seed": first + step * number},
        )
        for number, subject in enumerate(said)
    )
    return SetRequest(subjects=tuple(named), pictures=drawings, cell=cell, sheet=sheet, name=name)


def _posed(
    control: Sequence[Mapping[str, Any]], poses: Sequence[Any] | None, count: int
) -> list[list[Mapping[str, Any]]]:
    """The controls of each picture: those of all, where there are poses the first with the picture's own."""
    if poses is None:
        return [[*control]] * count
    if not control:
        raise InvalidRequest(
            "poses are followed by a ControlNet: name one that list_models lists in options.control, without an image, "
            "and a base that it fits. Without poses, seeds counted make equal subjects differ."
        )
    if len(poses) != count:
        given = f"{counted(len(poses), 'pose')} and {counted(count, 'subject')}"
        raise InvalidRequest(f"{given}: give one pose a subject, in their order.")
    if "image" in control[0]:
        raise InvalidRequest(
            "poses would take the place of the image of options.control.0, which all pictures follow without them: "
            "leave one of the two out."
        )
    return [[{**control[0], "image": pose}, *control[1:]] for pose in poses]


def _numbered(subjects: Sequence[str]) -> list[str]:
    """Those that are said several times with their number behind them."""
    folded = [subject.casefold() for subject in subjects]
    places = [folded[: number + 1].count(subject) for number, subject in enumerate(folded)]
    several = [folded.count(subject) > 1 for subject in folded]
    return [f"{one} {place}" if more else one for one, place, more in zip(subjects, places, several, strict=True)]


def _check(subjects: Sequence[str]) -> None:
    if not 1 <= len(subjects) <= MAX_SUBJECTS:
        advice = "make several sets" if subjects else "say what to draw, as in ['a red apple', 'a pear']"
        raise InvalidRequest(f"A set has 1 to {MAX_SUBJECTS} subjects, and {len(subjects)} are given: {advice}.")
    if "" in subjects:
        raise InvalidRequest(f"subjects.{subjects.index('')} is empty: say what to draw, for example 'a red apple'.")
    folded = [subject.casefold() for subject in subjects]
    for number, subject in enumerate(folded):
        if (before := folded.index(subject)) != number:
            raise InvalidRequest(
                f"subjects.{before} and subjects.{number} are equal ({quoted(subjects[number])}) and would get the "
                "same picture: let seeds be counted, say how they differ, or leave one out."
            )
