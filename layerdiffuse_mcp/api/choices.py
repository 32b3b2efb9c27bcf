"""The choices a request can make, as tables: samplers, schedules, noise sources, resize modes, emphasis.

The server's enums, the command line, the documentation and the tests are made from these rows, so this module
imports no torch. What a row names by `function` is a function of `engine/sampling/samplers.py` or `schedules.py`.

    SAMPLERS["DPM++ 2M SDE"].noise        # "brownian"
    find_sampler("dpm++ 2m sde karras")   # (that row, "Karras"): the older way to write both in one name
"""

from dataclasses import dataclass
from typing import Literal

from layerdiffuse_mcp.wording import spelled

NoiseKind = Literal["none", "ancestral", "brownian"]
NoiseSource = Literal["nvidia", "cpu"]


@dataclass(frozen=True)
class Sampler:
    """A sampling algorithm.

    `automatic_schedule` is what the schedule "Automatic" means; None if the sampler has timesteps of its own and heeds
    no schedule. `noise` is what it draws after the start: nothing, one draw a step, or a Brownian tree.
    `discard_penultimate`: one more step is asked of the schedule and the last sigma but one is dropped.
    `timestep_stride`: its schedules know every so-many-th training timestep, as its bases were distilled on those.
    `second_order`: two network passes a step, so a step takes twice as long. `aliases` are the reference's ids.
    """

    name: str
    function: str
    description: str
    automatic_schedule: str | None
    noise: NoiseKind = "none"
    discard_penultimate: bool = False
    timestep_stride: int = 1
    second_order: bool = False
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """A rule for the noise levels of a run; `function` is None for "Automatic", which asks the sampler."""

    name: str
    function: str | None
    description: str


SAMPLERS: dict[str, Sampler] = {
    row.name: row
    for row in (
        Sampler(
            "DPM++ 2M",
            "sample_dpmpp_2m",
            "Fast, sharp, without added noise; the usual choice for SD 1.5 layer methods.",
            "Karras",
            aliases=("k_dpmpp_2m",),
        ),
        Sampler(
            "DPM++ 2M SDE",
            "sample_dpmpp_2m_sde",
            "Rich detail from added noise; the authors' choice for most SDXL layer methods.",
            "Exponential",
            noise="brownian",
            aliases=("k_dpmpp_2m_sde",),
        ),
        Sampler(
            "DPM++ 2M SDE Heun",
            "sample_dpmpp_2m_sde_heun",
            "DPM++ 2M SDE with Heun's correction.",
            "Exponential",
            noise="brownian",
            aliases=("k_dpmpp_2m_sde_heun",),
        ),
        Sampler(
            "DPM++ SDE",
            "sample_dpmpp_sde",
            "Two network passes a step; good with few steps.",
            "Karras",
            noise="brownian",
            second_order=True,
            aliases=("k_dpmpp_sde",),
        ),
        Sampler(
            "DPM++ 3M SDE",
            "sample_dpmpp_3m_sde",
            "Third order with added noise; wants 30 steps or more.",
            "Exponential",
            noise="brownian",
            discard_penultimate=True,
            aliases=("k_dpmpp_3m_sde",),
        ),
        Sampler(
            "DPM++ 2S a",
            "sample_dpmpp_2s_ancestral",
            "Two network passes a step, with fresh noise each step.",
            "Karras",
            noise="ancestral",
            second_order=True,
            aliases=("k_dpmpp_2s_a",),
        ),
        Sampler("Euler", "sample_euler", "The simplest and most predictable.", "Uniform", aliases=("k_euler",)),
        Sampler(
            "Euler a",
            "sample_euler_ancestral",
            "Euler with fresh noise each step; advised for making a layer from a blended picture.",
            "Uniform",
            noise="ancestral",
            aliases=("k_euler_a", "k_euler_ancestral"),
        ),
        Sampler(
            "Heun",
            "sample_heun",
            "Euler with a correction; two network passes a step.",
            "Uniform",
            second_order=True,
            aliases=("k_heun",),
        ),
        Sampler(
            "DPM2",
            "sample_dpm_2",
            "A midpoint method; two network passes a step.",
            "Karras",
            discard_penultimate=True,
            second_order=True,
            aliases=("k_dpm_2",),
        ),
        Sampler(
            "DPM2 a",
            "sample_dpm_2_ancestral",
            "DPM2 with fresh noise each step.",
            "Karras",
            noise="ancestral",
            discard_penultimate=True,
            second_order=True,
            aliases=("k_dpm_2_a",),
        ),
        Sampler("LMS", "sample_lms", "A linear multistep method.", "Uniform", aliases=("k_lms",)),
        Sampler(
            "UniPC",
            "sample_unipc",
            "Predictor-corrector with timesteps of its own; advised for making a layer from a blended picture.",
            None,
            aliases=("unipc",),
        ),
        Sampler("DDIM", "sample_ddim", "The classic, with timesteps of its own.", None, aliases=("ddim",)),
        Sampler(
            "LCM",
            "sample_lcm",
            "For distilled (LCM) bases: 4 to 8 steps at guidance 1 to 2.",
            "Uniform",
            noise="ancestral",
            timestep_stride=20,
            aliases=("k_lcm",),
        ),
    )
}

SCHEDULES: dict[str, Schedule] = {
    row.name: row
    for row in (
        Schedule("Automatic", None, "What suits the sampler best."),
        Schedule("Karras", "karras", "More steps at low noise; the usual choice for DPM++ samplers."),
        Schedule("Exponential", "exponential", "Evenly spaced in the logarithm of the noise level."),
        Schedule("Uniform", "uniform", "Evenly spaced timesteps, from the first to the last."),
        Schedule("SGM Uniform", "sgm_uniform", "Evenly spaced timesteps without the last; for distilled bases."),
        Schedule("Simple", "simple", "Every so-many-th noise level of the training table."),
        Schedule("Normal", "uniform", "The same as Uniform on these models; here for recipes that name it."),
        Schedule("DDIM", "ddim", "The timesteps of DDIM; may make a step more than asked."),
        Schedule("Beta", "beta", "Steps crowded at both ends of the noise range."),
        Schedule("KL Optimal", "kl_optimal", "Minimises the divergence between steps; ends just above zero noise."),
        Schedule("Align Your Steps", "align_your_steps", "Levels optimised for few steps, for SD 1.5 and SDXL each."),
    )
}

NOISE_SOURCES: tuple[NoiseSource, ...] = ("nvidia", "cpu")
RESIZE_MODES = ("Crop and Resize", "Resize and Fill", "Just Resize")
FITS: dict[str, str] = {
    "as_is": "that very size is drawn, however far from the model's own",
    "contain": "all of it is shown, and the rest left empty",
    "cover": "the size is filled, and what stands over cut off",
    "stretch": "the size is filled, and proportions change",
}
"""How a drawing comes to the size asked for, where that is far from the model's own."""
SPEEDS: dict[str, str] = {
    "draft": "about 4 steps, by a few-step LoRA that list_models names",
    "normal": "about 8 steps, likewise",
    "fine": "as the base and the layer method advise, the default",
}
"""How much time a drawing may take."""
MOST_STRENGTH = 0.999
"""Of img2img as A1111 counts: at 1 it makes all steps, and not one more."""
EMPHASIS = ("Original", "No norm")
PREPROCESS: dict[str, str] = {
    "none": "the picture is a map already",
    "canny": "its edges are found",
    "alpha_edge": "the outline of what is not transparent is found",
}
"""What is made of a picture before a ControlNet sees it; `images/control_maps.py` computes it."""
LINE_KINDS = frozenset({"canny", "lineart", "scribble", "softedge", "mlsd"})
"""Kinds of ControlNets whose maps are light lines on black."""


def encoding_steps(steps: int, strength: float) -> int:
    """How many steps before the end of so many a picture is noised to for img2img, by A1111's meaning of strength."""
    return int(min(strength, MOST_STRENGTH) * steps)


def find_sampler(name: str) -> tuple[Sampler, str | None]:
    """The row that a name means, and the schedule if the name carries one ("DPM++ 2M SDE Karras", as A1111 once wrote).

    Neither case nor separators matter, and the reference's ids ("k_euler_a") are understood, also without their "k_".
    KeyError if there is no such sampler.
    """
    wanted = spelled(name)
    known = ((name, row) for row in SAMPLERS.values() for name in (row.name, *row.aliases))
    rows = {spelling: row for name, row in known for spelling in (spelled(name), spelled(name.removeprefix("k_")))}
    if wanted in rows:
        return rows[wanted], None
    for schedule in SCHEDULES:
        head = wanted.removesuffix(spelled(schedule))
        if head != wanted and head in rows:
            return rows[head], schedule
    raise KeyError(name)
