"""The table of tools; one module a subject."""

from layerdiffuse_mcp.server.tool import FETCHES, FREES, READS, STOPS, WRITES, Row
from layerdiffuse_mcp.server.tools import (
    apart,
    cutouts,
    drawing,
    history,
    jobs,
    latents,
    models,
    pictures,
    redraw,
    sets,
    sheets,
    upscale,
)

TOOLS = (
    Row(drawing.generate_transparent, "Draw a transparent picture", WRITES, shown=True),
    Row(drawing.edit_transparent, "Change a transparent picture", WRITES, shown=True),
    Row(upscale.upscale_transparent, "Enlarge a transparent picture", WRITES, shown=True),
    Row(drawing.generate_layers, "Draw foreground, background and both together", WRITES, shown=True),
    Row(drawing.generate_background_from_foreground, "Draw a background for a foreground", WRITES, shown=True),
    Row(drawing.generate_foreground_from_background, "Draw a foreground for a background", WRITES, shown=True),
    Row(drawing.extract_layer, "Take a layer out of a finished picture", WRITES, shown=True),
    Row(apart.decompose_image, "Take a picture apart into layers", WRITES, shown=True),
    Row(sets.generate_set, "Draw a set of pictures in one style", WRITES, shown=True),
    Row(redraw.redraw_image, "Draw a picture again", WRITES, shown=True),
    Row(latents.decode_transparent_latent, "Decode a transparent latent", WRITES, shown=True),
    Row(latents.encode_transparent_image, "Encode a picture into a transparent latent", WRITES),
    Row(pictures.compose_layers, "Put layers together", WRITES, shown=True),
    Row(cutouts.cut_out, "Cut a subject out of a picture", WRITES, shown=True),
    Row(sheets.make_sheet, "Make a sprite sheet with its atlas", WRITES, shown=True),
    Row(pictures.inspect_image, "Look at a picture", READS),
    Row(history.find_images, "Find pictures made before", READS, shown=True),
    Row(history.delete_images, "Delete pictures made here", STOPS),
    Row(jobs.get_job, "Wait for jobs", READS, shown=True),
    Row(jobs.cancel_job, "Cancel a job", STOPS),
    Row(jobs.list_jobs, "List jobs", READS),
    Row(models.list_models, "List models", READS),
    Row(models.prepare_model, "Prepare a model", FETCHES),
    Row(models.unload_models, "Unload models", FREES),
    Row(models.server_status, "Server status", READS),
)
"""Every tool, in the order in which clients list them."""
