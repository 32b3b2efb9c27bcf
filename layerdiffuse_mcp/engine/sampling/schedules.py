"""Noise levels: the table that a base model was trained with, and the levels that a run steps through.

    table = sigma_table()
    levels = sigmas("Karras", 20, table, SAMPLERS["DPM++ 2M SDE"])     # float32, (21,), from 14.6 to 0
    run = plan(SAMPLERS["UniPC"], "Automatic", 20, table)              # all that a sampler needs to know
    x = run.start(noise)                                               # or run.start(noise, latent) for img2img

Sigma is the standard deviation of the noise on a latent of unit scale ("variance exploding"); the same picture in the
network's "variance preserving" space is x / sqrt(sigma^2 + 1). Levels stay on the CPU, where a step reads them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from layerdiffuse_mcp.api.choices import SCHEDULES, Sampler, encoding_steps
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.sd15 import SD15

_ZERO_SNR_LAST_ALPHA = 4.8973451890853435e-08  # the reference's stand-in for 0, where sigma would be infinite


@dataclass(frozen=True)
class SigmaTable:
    """The noise levels of training timesteps, lowest first: float32 (T,), and their logarithm.

    The level at i is that of the timestep `stride * (i + 1) - 1`: of each one, or of every `stride`-th up to the last.
    `steps_table`: the ten-step levels of "Align Your Steps" for the family.
    """

    sigmas: Tensor
    log_sigmas: Tensor
    steps_table: tuple[float, ...] = ()
    stride: int = 1

    @property
    def lowest(self) -> float:
        return float(self.sigmas[0])

    @property
    def highest(self) -> float:
        return float(self.sigmas[-1])

    @property
    def first(self) -> int:
        """The timestep of the lowest level."""
        return self.stride - 1

    @property
    def last(self) -> int:
        """The timestep of the highest level."""
        return self.stride * len(self.sigmas) - 1

    def every(self, stride: int) -> "SigmaTable":
        """The table of each `stride`-th timestep up to the last, of one that has them all."""
        kept = slice(stride - 1, None, stride)
        return replace(self, sigmas=self.sigmas[kept], log_sigmas=self.log_sigmas[kept], stride=stride)

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The timestep, of those in the table, whose log sigma is nearest: int64, shaped as sigma."""
        distances = sigma.log().reshape(1, -1) - self.log_sigmas.reshape(-1, 1)
        return distances.abs().argmin(dim=0).reshape(sigma.shape) * self.stride + self.first

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """The sigma of a timestep, also of one between two: interpolated in log sigma, clamped to the table."""
        place = ((t.float() - self.first) / self.stride).clamp(0, len(self.sigmas) - 1)
        part = place.frac()
        low, high = self.log_sigmas[place.floor().long()], self.log_sigmas[place.ceil().long()]
        return ((1 - part) * low + part * high).exp()

    def percent_to_sigma(self, done: float) -> float:
        """The sigma at which the part `done` (0..1) of the timesteps lies behind: infinity at 0, 0 at 1."""
        if done <= 0:
            return math.inf
        if done >= 1:
            return 0.0
        return float(self.t_to_sigma(torch.tensor((1.0 - done) * 999.0)))


def sigma_table(zero_snr: bool = False, steps_table: tuple[float, ...] = SD15.steps_table) -> SigmaTable:
    """The table of Stable Diffusion 1.5 and SDXL: 1000 timesteps, betas whose roots are evenly spaced.

    `zero_snr`: rescaled so that the last timestep is pure noise (Lin et al., "Common diffusion noise schedules and
    sample steps are flawed", 2023, algorithm 1), for bases that were trained so.
    """
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, dim=0)
    if zero_snr:
        roots = alphas.sqrt()
        alphas = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
        alphas[-1] = _ZERO_SNR_LAST_ALPHA
    levels = ((1 - alphas) / alphas) ** 0.5
    return SigmaTable(levels.float(), levels.log().float(), steps_table)


def karras(steps: int, table: SigmaTable) -> Tensor:
    """Karras et al., "Elucidating the design space of diffusion-based generative models" (2022), rho = 7."""
    lowest, highest = table.lowest ** (1 / 7), table.highest ** (1 / 7)
    return _then_zero((highest + torch.linspace(0, 1, steps) * (lowest - highest)) ** 7)


def exponential(steps: int, table: SigmaTable) -> Tensor:
    """Evenly spaced in log sigma."""
    return _then_zero(torch.linspace(math.log(table.highest), math.log(table.lowest), steps).exp())


def uniform(steps: int, table: SigmaTable) -> Tensor:
    """Evenly spaced timesteps, both ends included."""
    return _then_zero(table.t_to_sigma(torch.linspace(table.last, table.first, steps)))


def sgm_uniform(steps: int, table: SigmaTable) -> Tensor:
    """Evenly spaced timesteps without the last, as Stability's generative-models has them."""
    return _then_zero(table.t_to_sigma(torch.linspace(table.last, table.first, steps + 1)[:-1]))


def simple(steps: int, table: SigmaTable) -> Tensor:
    """Every (T / steps)-th level of the table, from the highest."""
    stride = len(table.sigmas) / steps
    return _then_zero(table.sigmas[[-1 - int(step * stride) for step in range(steps)]])


def ddim(steps: int, table: SigmaTable) -> Tensor:
    """Every (T // steps)-th level of the table, from the second; may make a step more than asked."""
    return _then_zero(table.sigmas[1 :: max(len(table.sigmas) // steps, 1)].flip(0))


def beta(steps: int, table: SigmaTable) -> Tensor:
    """Lee et al., "Beta sampling is all you need" (2024), with alpha = beta = 0.6, over sigma as A1111 applies it."""
    from scipy.stats import beta as beta_distribution  # takes half a second to import, for one schedule of many

    quantiles = np.asarray(beta_distribution.ppf(1 - np.linspace(0, 1, steps), 0.6, 0.6), dtype=np.float64)
    return _then_zero(torch.from_numpy(table.lowest + quantiles * (table.highest - table.lowest)).float())


def kl_optimal(steps: int, table: SigmaTable) -> Tensor:
    """Sabour et al., "Align your steps" (2024), theorem 3.1; ends at the table's lowest level, not at zero."""
    part = torch.arange(steps + 1) / steps
    lowest, highest = torch.tensor(table.lowest).arctan(), torch.tensor(table.highest).arctan()
    return (part * lowest + (1 - part) * highest).tan()


def align_your_steps(steps: int, table: SigmaTable) -> Tensor:
    """Sabour et al., "Align your steps" (2024): the published ten-step levels, interpolated in log sigma."""
    levels = table.steps_table
    if steps == 1:
        return torch.tensor([levels[0], 0.0])
    where = np.linspace(0, 1, steps)
    return _then_zero(
        torch.from_numpy(np.exp(np.interp(where, np.linspace(0, 1, len(levels)), np.log(levels)))).float()
    )


FUNCTIONS: dict[str, Callable[[int, SigmaTable], Tensor]] = {
    function.__name__: function
    for function in (
        karras,
        exponential,
        uniform,
        sgm_uniform,
        simple,
        ddim,
        beta,
        kl_optimal,
        align_your_steps,
    )
}


def sigmas(schedule: str, steps: int, table: SigmaTable, sampler: Sampler) -> Tensor:
    """The levels of a whole run: float32 (n + 1,), decreasing, of which the sampler makes n steps.

    n is `steps`, or what the schedule's docstring says. The sampler settles "Automatic", which timesteps of the table
    there are, and whether the last level but one goes. Raises InvalidRequest for a schedule that is not in `SCHEDULES`
    or fewer steps than one.
    """
    if schedule not in SCHEDULES:
        raise InvalidRequest(f"There is no schedule {schedule!r}. Known are: {', '.join(SCHEDULES)}.")
    if steps < 1:
        raise InvalidRequest(f"steps is {steps}, but a run has at least 1 step.")
    name = SCHEDULES[schedule].function or SCHEDULES[sampler.automatic_schedule or "Uniform"].function
    levels = FUNCTIONS[str(name)](steps + sampler.discard_penultimate, table.every(sampler.timestep_stride))
    return torch.cat([levels[:-2], levels[-1:]]) if sampler.discard_penultimate else levels


def img2img_sigmas(levels: Tensor, steps: int, strength: float) -> Tensor:
    """The end of a whole run's levels that img2img at `strength` (0..1) goes through: at least one step.

    Counted from the start in the `steps` that were asked for, as in the reference, unless there are fewer levels.
    """
    steps = min(steps, len(levels) - 1)
    return levels[steps - encoding_steps(steps, strength) - 1 :]


@dataclass(frozen=True)
class Plan:
    """The noise levels of one run.

    sigmas: what the sampler steps through, float32 (n + 1,). asked: the sigma at which the network is asked at each of
    them, where that is another one (UniPC rounds to whole timesteps), else None. lowest, highest: the range of the full
    schedule above 0, for Brownian noise. latent_scale, noise_scale: how much of a given latent (0 if none is given) and
    of unit noise a run starts from.
    """

    sigmas: Tensor
    asked: Tensor | None
    lowest: float
    highest: float
    latent_scale: float
    noise_scale: float

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    def start(self, noise: Tensor, latent: Tensor | None = None) -> Tensor:
        """What the sampler starts from, at sigma `sigmas[0]`: float32 (B, C, h, w), from unit noise (B, C, h, w).

        latent: (B or 1, C, h, w), if and only if the plan was made with a strength; ValueError otherwise.
        """
        if (latent is None) != (self.latent_scale == 0):
            raise ValueError("A latent and a strength go together.")
        x = noise.float() * self.noise_scale
        return x if latent is None else latent.to(x) * self.latent_scale + x


def plan(sampler: Sampler, schedule: str, steps: int, table: SigmaTable, strength: float | None = None) -> Plan:
    """The levels for a picture from noise (`strength` None) or from a latent (img2img: 0..1, A1111's meaning).

    Raises InvalidRequest as `sigmas` does, and for a strength outside 0..1.
    """
    if strength is not None and not 0 <= strength <= 1:
        raise InvalidRequest(f"strength is {strength}, but it lies between 0 (the picture as it is) and 1.")
    if sampler.automatic_schedule is None:
        if steps < 1:
            raise InvalidRequest(f"steps is {steps}, but a run has at least 1 step.")
        make = _unipc_plan if sampler.name == "UniPC" else _ddim_plan
        return make(steps, table, strength)
    full = sigmas(schedule, steps, table, sampler)
    levels = full if strength is None else img2img_sigmas(full, steps, strength)
    above = full[full > 0]
    latent_scale = 0.0 if strength is None else 1.0
    return Plan(levels, None, float(above.min()), float(above.max()), latent_scale, float(levels[0]))


def _unipc_plan(steps: int, table: SigmaTable, strength: float | None) -> Plan:
    """Times evenly spaced from 1 (or img2img's start) down to 1 / T, as A1111 runs UniPC."""
    times = _compvis_timesteps(steps)
    kept = len(times) if strength is None else min(max(encoding_steps(steps, strength), 1), len(times))
    total = len(table.sigmas)
    first = 1.0 if strength is None else float(times[kept - 1] / total + 1 / total)
    t = torch.linspace(first, 1 / total, kept + 1)
    indices = (t - 1 / total) * float(total)
    # between two timesteps log alpha is linear, not log sigma
    log_alphas = -0.5 * torch.log1p(table.sigmas.double() ** 2)
    where = indices.double().clamp(0, total - 1)
    low, part = where.floor().long(), where.frac()
    log_alpha = log_alphas[low].lerp(log_alphas[(low + 1).clamp(max=total - 1)], part)
    levels = torch.expm1(-2 * log_alpha).sqrt().float()
    asked = table.sigmas[indices.round().long().clamp(0, total - 1)]
    begun = None if strength is None else int(times[min(kept, len(times) - 1)])
    return _preserving_plan(levels, asked, table, begun)


def _ddim_plan(steps: int, table: SigmaTable, strength: float | None) -> Plan:
    """A1111's DDIM timesteps, highest first; there is no step from the last one to zero noise."""
    times = _compvis_timesteps(steps)
    # one step at least, where the reference would make none
    times = times if len(times) > 1 else torch.tensor([1, 999])
    kept = len(times) if strength is None else max(encoding_steps(steps, strength), 2)
    used = times[:kept]
    begun = None if strength is None else int(times[min(kept, len(times) - 1)])
    return _preserving_plan(table.sigmas[used.flip(0)], None, table, begun)


def _preserving_plan(levels: Tensor, asked: Tensor | None, table: SigmaTable, begun: int | None) -> Plan:
    """A plan for a sampler that starts in variance preserving space; `begun`: the timestep of img2img's noise."""
    scale = math.sqrt(float(levels[0]) ** 2 + 1)
    if begun is None:
        return Plan(levels, asked, table.lowest, table.highest, 0.0, scale)
    sigma = float(table.sigmas[begun])
    signal = scale / math.sqrt(sigma**2 + 1)
    return Plan(levels, asked, table.lowest, table.highest, signal, signal * sigma)


def _compvis_timesteps(steps: int) -> Tensor:
    """A1111's timesteps for UniPC and DDIM, lowest first; may be more than `steps`."""
    return (torch.arange(0, 1000, max(1000 // steps, 1)) + 1).clamp(max=999)


def _then_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])
