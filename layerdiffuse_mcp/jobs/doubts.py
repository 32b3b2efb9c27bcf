"""What has to be said of a drawing before it begins, for it may not be what was meant: a result's first warnings.

    doubts, no_subject = unknown(request, entry, methods)
    notes = (*opaque(request, methods, max_pixels), *doubts, *cropped(plan, sizes, seen, sized=True))
    notes += (resized(plan, "image", (400, 400), placement),)

The planner (`jobs/planner.py`) puts them into the plan.
"""

from collections.abc import Mapping, Sequence

from layerdiffuse_mcp.api.choices import RESIZE_MODES
from layerdiffuse_mcp.api.outcome import Placement
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.plan_checks import drawn_roles
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub.vocabulary import vocabulary_of
from layerdiffuse_mcp.images.files import name_of
from layerdiffuse_mcp.text.chunks import named_in

CROP, FILL, _ = RESIZE_MODES
MOST_CROPPED = 0.1
"""Of a given picture's width or height, beyond which it is said."""


def opaque(request: GenerateRequest, methods: Sequence[str], max_pixels: int) -> tuple[str, ...]:
    """What to say of a foreground that is opaque; raises InvalidRequest for such a picture to edit.

    What a recipe names is drawn again, whatever it is; and one that the model reads may be anything.
    """
    from layerdiffuse_mcp.images.read import is_opaque

    if request.stages:
        return ()
    redrawn = not any(METHODS[method].reads for method in methods)
    if request.image is not None and redrawn and is_opaque(request.image, max_pixels):
        raise InvalidRequest(
            f"{name_of(request.image)} has no transparency, and only pictures that have are redrawn: something else "
            "would be drawn in its place, and no background removed. Call cut_out on it first, which does that, and "
            "give what it returns."
        )
    foreground = request.inputs.get("foreground")
    if foreground is not None and is_opaque(foreground, max_pixels):
        return (f"{name_of(foreground)} has no transparency, so it hides all that is behind it: call cut_out first.",)
    return ()


def unknown(
    request: GenerateRequest, entry: ModelEntry, methods: Sequence[str], inversions: Mapping[str, int]
) -> tuple[tuple[str, ...], bool]:
    """What to say of prompts that a base with a small vocabulary knows nothing of, and whether the cut-out's is one.

    One that names a textual inversion has a word that the base has been taught.
    """
    known = vocabulary_of(entry)
    if known is None:
        return (), False
    scenes = "background" in drawn_roles([METHODS[method] for method in methods])
    texts = dict.fromkeys(
        text for text in (request.prompt, *request.layer_prompts.values()) if not named_in(text, inversions)
    )
    doubts = {text: doubt for text in texts if (doubt := known.doubt(text, scenes=scenes))}
    return tuple(doubts.values()), (request.layer_prompts.get("foreground") or request.prompt) in doubts


def unknown_of_set(subjects: Sequence[str], entry: ModelEntry) -> tuple[str, ...]:
    """The same of those of a set's subjects that the base has learnt no word of, at once."""
    known = vocabulary_of(entry)
    return (known.unlearnt(subjects),) if known and subjects else ()


def cropped(
    plan: DrawPlan, sizes: Mapping[str, tuple[int, int]], seen: tuple[int, int], *, sized: bool
) -> tuple[str, ...]:
    """What to say of given pictures of which the model does not see all; of one that is composed onto, that says it.

    sized: the request says how large the result is to be.
    """
    if plan.resize_mode != CROP or plan.task is Task.FOREGROUND_FROM_BACKGROUND:
        return ()
    instead = "Leave size out to draw in its shape, or set" if sized else "Give one of that shape, or set"
    doubts: list[str] = []
    for name, (width, height) in sizes.items():
        left = min(1.0, seen[0] / seen[1] * height / width), min(1.0, seen[1] / seen[0] * width / height)
        if min(left) < 1 - MOST_CROPPED:
            part = f"{round(left[0] * width)}x{round(left[1] * height)}"
            doubts.append(
                f"The model saw only the middle {part} of the {name} picture's {width}x{height}, for it draws "
                f"{seen[0]}x{seen[1]}. {instead} options.resize_mode: '{FILL}' shows all of it."
            )
    return tuple(doubts)


def resized(plan: DrawPlan, name: str, given: tuple[int, int], place: Placement) -> str:
    """What to say of a result of another size than the picture that it was drawn from, where no size was asked for."""
    what = "picture" if name == "image" else f"{name} picture"
    had, has = ("{}x{}".format(*size) for size in (given, plan.result))
    return (
        f"The {what} has {had} pixels, and the result {has}, near what {plan.model} draws best. To lay the two "
        f"together, give the result x={place.x}, y={place.y}, width={place.width}, height={place.height} in "
        "compose_layers."
    )
