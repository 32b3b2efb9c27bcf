"""What becomes of a job's pictures before its files are written: `Planned.finish`, done in a picture process.

    outcome = await finished(planned.finish, outcome, planned.inputs, room, report)

Whoever cancels it has the process killed; no file is on disk yet.
"""

from datetime import datetime

from layerdiffuse_mcp.api.finish import Finish, IntoCells, IntoDocument, OntoBackground, OverGiven
from layerdiffuse_mcp.api.outcome import EncodedFile, Outcome, PictureFacts, Placement, SheetLayout, Timings
from layerdiffuse_mcp.api.plan import Inputs
from layerdiffuse_mcp.backends.backend import Report
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.images.tasks import BESIDE, COMPOSED, DocumentLayer, DocumentTask, OnPictureTask, SetTask
from layerdiffuse_mcp.images.verdict import TOGETHER, Asked, judge
from layerdiffuse_mcp.outputs.names import dated, file_name, slug
from layerdiffuse_mcp.outputs.writer import with_ids
from layerdiffuse_mcp.wording import printable

SKETCH = "the model's own sketch of both together, redrawn by it; composed is the given picture itself"


def together(outcomes: list[Outcome]) -> Outcome:
    """What a job's tasks made, as one; what it was made with is the last one's, and each file has its own recipe."""
    first, *others = outcomes
    for other in others:
        times = {name: seconds + getattr(first.timings, name) for name, seconds in other.timings}
        first = other.model_copy(
            update={
                "encoded": (*first.encoded, *other.encoded),
                "warnings": tuple(dict.fromkeys((*first.warnings, *other.warnings))),
                "licences": {**first.licences, **other.licences},
                "recipe": None,
                "timings": Timings(**times),
            }
        )
    return first


async def finished(
    finish: Finish, outcome: Outcome, inputs: Inputs, room: PictureRoom, report: Report, job: str | None = None
) -> Outcome:
    """The outcome with what its pictures became, whose files say which of a `job` they are.

    Raises:
        LayerDiffuseError: they could not be put into cells.
    """
    match finish:
        case IntoCells():
            return await _into_cells(finish, outcome, room, report)
        case OntoBackground():
            return await _onto_background(finish, outcome, inputs, room, report)
        case OverGiven():
            return _over_given(finish, outcome)
        case IntoDocument():
            return await _into_document(finish, outcome, inputs, room, report, job)


async def _into_cells(finish: IntoCells, outcome: Outcome, room: PictureRoom, report: Report) -> Outcome:
    """Every picture in its cell; its edges are those that it touched as it was drawn, where it may be cut off."""
    from layerdiffuse_mcp.outputs.sheets import own_stem, sheet_files

    drawn = [(file, file.picture) for file in outcome.encoded if file.picture]
    if len(drawn) != len(finish.subjects):
        raise LayerDiffuseError(
            f"The model made {len(drawn)} pictures of {len(finish.subjects)} subjects, and a set needs one of each. "
            "Draw them one by one with generate_transparent."
        )
    task = SetTask(tuple(file.data for file, _ in drawn), finish.subjects, finish.cell, finish.sheet, finish.format)
    made = await room.run(task, report)
    stem, now = own_stem(finish.name or "set"), datetime.now().astimezone()
    files: list[EncodedFile] = []
    subjects = iter(zip(finish.subjects, made.files, made.alphas, strict=True))
    name = ""
    for file in outcome.encoded:  # each picture, and behind it its latent, if that is saved
        if file.picture is None:
            files.append(file.model_copy(update={"name": f"{name}.safetensors"}))
            continue
        subject, data, alpha = next(subjects)
        before = file.picture.alpha
        alpha = alpha.model_copy(update={"edges_touched": before.edges_touched}) if before else alpha
        size = {"width": made.cell[0], "height": made.cell[1]}
        picture = file.picture.model_copy(update={**size, "alpha": alpha, "subject": printable(subject, 200)})
        name = f"{stem}-{slug(subject)}-{picture.seed}"
        files.append(EncodedFile(name=f"{name}.{finish.format}", data=data, picture=picture))
    layout = None
    if sheet := made.sheet:
        files += sheet_files(sheet, stem, finish.format, now)
        layout = SheetLayout(cell=sheet.cell, columns=sheet.columns, spacing=sheet.spacing, margin=sheet.margin)
    return outcome.model_copy(update={"encoded": tuple(files), "sheet": layout, "dated": now})


async def _onto_background(
    finish: OntoBackground, outcome: Outcome, inputs: Inputs, room: PictureRoom, report: Report
) -> Outcome:
    """Behind every foreground the given picture with it; where that cannot be, a warning, and the drawn ones stay."""
    files: list[EncodedFile] = []
    warnings: list[str] = []
    for file in outcome.encoded:
        picture = file.picture
        if picture and picture.role == "blended":
            file = file.model_copy(update={"picture": picture.model_copy(update={"note": SKETCH})})
        files.append(file)
        if picture is None or picture.role != "foreground":
            continue
        task = OnPictureTask(file.data, inputs[finish.sha256], finish.field, finish.format)
        try:
            made = await room.run(task, report)
        except LayerDiffuseError as error:
            warnings.append(f"The foreground could not be put onto {printable(finish.name, 80)}: {error}")
            continue
        facts = PictureFacts(
            role=None,
            name=COMPOSED,
            width=made.width,
            height=made.height,
            seed=picture.seed,
            alpha=made.alpha,
            placement=made.placement,
            note=_where(made.placement, (made.width, made.height), finish.name),
        )
        name = file_name(_words(file.name, picture), picture.seed, COMPOSED, f".{finish.format}")
        files.append(EncodedFile(name=name, data=made.data, picture=facts))
    return outcome.model_copy(
        update={"encoded": tuple(files), "warnings": (*outcome.warnings, *dict.fromkeys(warnings))}
    )


def _over_given(finish: OverGiven, outcome: Outcome) -> Outcome:
    """Of every picture where it lies on the given one."""
    place, name = finish.placement, printable(finish.name, 80)
    note = f"it lies on {name} at {place.x},{place.y}, {place.scale:.3g} times as wide as its own file"
    files = (
        file.model_copy(update={"picture": file.picture.model_copy(update={"placement": place, "note": note})})
        if file.picture
        else file
        for file in outcome.encoded
    )
    return outcome.model_copy(update={"encoded": tuple(files)})


async def _into_document(
    finish: IntoDocument, outcome: Outcome, inputs: Inputs, room: PictureRoom, report: Report, job: str | None
) -> Outcome:
    """Behind all layers what those of each result make together, and one file that holds them.

    The files have their names and ids before they are written: a composition names its layers by their content.
    """
    now = datetime.now().astimezone()
    files, documents, warnings = with_ids(outcome.encoded, job), list[EncodedFile](), list[str]()
    _, time_of_day = dated(now)
    for seed in dict.fromkeys(file.picture.seed for file in files if file.picture):
        layers = [file for file in files if file.picture and file.picture.seed == seed]
        task = DocumentTask(
            tuple(
                DocumentLayer(f"{time_of_day}-{file.name}", file.data, file.picture.label, file.picture.box)
                for file in layers
                if file.picture
            ),
            finish.size,
            inputs[finish.sha256],
            finish.format,
            finish.keep,
        )
        made = await room.run(task, report)
        if len(layers) < finish.planned:
            warnings.append(f"{finish.planned - len(layers)} of {finish.planned} layers are empty and were left out.")
        differ = f"which differ from {printable(finish.name, 80)} by {made.difference:.2f} of 255 on average"
        verdict, reason = judge(made.alpha, Asked(difference=made.difference), TOGETHER)
        facts = PictureFacts(
            role=None, name=COMPOSED, width=finish.size[0], height=finish.size[1], seed=seed, alpha=made.alpha,
            note=f"the layers put together, {differ}", verdict=verdict, reason=reason,
        )  # fmt: skip
        words = _words(layers[0].name, facts)
        files.append(EncodedFile(name=file_name(words, seed, COMPOSED, ".png"), data=made.data, picture=facts))
        documents.append(EncodedFile(name=file_name(words, seed, COMPOSED, f".{finish.format}"), data=made.document))
        if finish.format == "psd" and made.record:
            documents.append(EncodedFile(name=file_name(words, seed, COMPOSED, BESIDE), data=made.record.encode()))
    return outcome.model_copy(
        update={
            "encoded": (*files, *documents),
            "warnings": (*outcome.warnings, *dict.fromkeys(warnings)),
            "dated": now,
        }
    )


def _where(place: Placement, size: tuple[int, int], name: str) -> str:
    """In words where the foreground lies, and what of the picture the model did not see."""
    lies = f"the foreground on {printable(name, 80)} itself, at {place.x},{place.y}, {place.scale:.3g} times as wide"
    if place.crop == (0, 0, *size):
        return f"{lies} as its own file"
    left, top, right, bottom = place.crop
    return (
        f"{lies} as its own file; the model saw only the part from {left},{top} to {right},{bottom} of its "
        f"{size[0]}x{size[1]} pixels, and nothing was drawn outside of it"
    )


def _words(name: str, picture: PictureFacts) -> str:
    """What the files of a result are named by: the beginning of one's name, before its seed and role."""
    return name.rsplit(f"-{picture.seed}-", 1)[0]
