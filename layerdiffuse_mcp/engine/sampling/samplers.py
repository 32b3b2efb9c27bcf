"""The samplers: each a pure function from noise to a latent, which reads like its algorithm.

    run = plan(SAMPLERS["DPM++ 2M SDE"], "Karras", 20, table)
    latent = sample(SAMPLERS["DPM++ 2M SDE"], denoiser, run, BatchNoise(seeds, (4, 64, 64)))

All take `denoise(x, sigma) -> denoised`, the start x (B, C, h, w) float32 at `sigmas[0]`, the levels `sigmas` (n + 1,)
float32 on the CPU, the noise to add at a step and `on_step`, the one hook for progress, previews and cancellation; they
return the latent (B, C, h, w). They know no network, no prompt and no schedule. Source of all but UniPC and DDIM: the
papers they cite, with the conventions of k-diffusion (Katherine Crowson), on which the reference stands.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from layerdiffuse_mcp.api.choices import Sampler
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise, StepNoise
from layerdiffuse_mcp.engine.sampling.schedules import Plan
from layerdiffuse_mcp.engine.sampling.unipc import sample_unipc

Denoise = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, int, Tensor, Tensor], None]
"""`on_step(step, total, x, denoised)` after each step, counted from 0: the new x and the network's denoised estimate at
the step's beginning, (B, C, h, w) both. It may raise, which stops the run."""


def sample(
    sampler: Sampler,
    denoise: Denoise,
    plan: Plan,
    noise: BatchNoise,
    on_step: OnStep | None = None,
    latent: Tensor | None = None,
) -> Tensor:
    """Run a sampler along its plan: the one door to this room.

    noise: of the batch, with nothing drawn yet; latent: (B or 1, C, h, w) for img2img, if the plan has a strength.
    Returns the latent (B, C, h, w), float32. Whatever `denoise` or `on_step` raises passes through.
    """
    x = plan.start(noise.initial(), latent)
    step_noise = noise.brownian(plan.lowest, plan.highest) if sampler.noise == "brownian" else noise
    on_step = on_step or _nothing
    if plan.asked is not None:
        return sample_unipc(denoise, x, plan.sigmas, step_noise, on_step, plan.asked)
    return FUNCTIONS[sampler.function](denoise, x, plan.sigmas, step_noise, on_step)


def sample_euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Karras et al., "Elucidating the design space of diffusion-based generative models" (2022): Euler steps."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        x = x + (x - denoised) / sigma * (sigma_next - sigma)
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Euler steps to below the next level, and fresh noise up to it."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        down, up = _ancestral(sigma, sigma_next)
        x = x + (x - denoised) / sigma * (down - sigma)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * up
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Karras et al. (2022), algorithm 2 without churn: Heun steps, and an Euler step to zero."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        slope = (x - denoised) / sigma
        if sigma_next > 0:
            ahead = x + slope * (sigma_next - sigma)
            slope = (slope + (ahead - denoise(ahead, sigma_next)) / sigma_next) / 2
        x = x + slope * (sigma_next - sigma)
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_dpm_2(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Lu et al., "DPM-Solver" (2022): second order, midpoint in log sigma; an Euler step to zero."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x, denoised = _midpoint_step(denoise, x, sigma, sigma_next)
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_dpm_2_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """DPM-Solver-2 steps to below the next level, and fresh noise up to it."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        down, up = _ancestral(sigma, sigma_next)
        x, denoised = _midpoint_step(denoise, x, sigma, down)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * up
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_lms(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Linear multistep (Adams-Bashforth on uneven levels) of order four, after Katherine Crowson's k-diffusion."""
    levels = sigmas.double().numpy()
    slopes: list[Tensor] = []
    for step, sigma in enumerate(sigmas[:-1]):
        denoised = denoise(x, sigma)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        seen = levels[step - np.arange(len(slopes))]
        for slope, weight in zip(slopes, _lagrange_integrals(seen, levels[step], levels[step + 1]), strict=True):
            x = x + slope * weight
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_dpmpp_2s_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Lu et al., "DPM-Solver++" (2022): 2S, to below the next level, and fresh noise up to it."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = better = denoise(x, sigma)
        down, up = _ancestral(sigma, sigma_next)
        if down > 0:
            middle = (sigma.log() + (down.log() - sigma.log()) / 2).exp()
            better = denoise(_towards(denoised, x, sigma, middle), middle)
        x = _towards(better, x, sigma, down)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * up
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Lu et al., "DPM-Solver++" (2022): the SDE single step of second order, noise at the midpoint and at the end."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if sigma_next > 0:
            # there and back through the logarithm, as the reference goes: a Brownian tree sees the last bit
            start, end = sigma.log(), sigma_next.log()
            sigma, middle, after = start.exp(), (start + (end - start) / 2).exp(), end.exp()
            down, up = _ancestral(sigma, middle)
            ahead = _towards(denoised, x, sigma, down) + noise(sigma, middle) * up
            better = denoise(ahead, middle)
            down, up = _ancestral(sigma, after)
            x = _towards(better, x, sigma, down) + noise(sigma, after) * up
        else:
            x = denoised
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Lu et al., "DPM-Solver++" (2022): 2M, the multistep of second order."""
    before: tuple[Tensor, Tensor] | None = None
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = better = denoise(x, sigma)
        h = sigma.log() - sigma_next.log()
        if before and sigma_next > 0:
            old, h_old = before
            better = denoised + (denoised - old) * (h / h_old / 2)
        x = _towards(better, x, sigma, sigma_next)
        before = denoised, h
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Lu et al., "DPM-Solver++" (2022): the SDE multistep of second order, midpoint form."""
    return _dpmpp_2m_sde(denoise, x, sigmas, noise, on_step, lambda h: -torch.expm1(-2 * h) / 2)


def sample_dpmpp_2m_sde_heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Lu et al., "DPM-Solver++" (2022): the SDE multistep of second order, Heun's form."""
    return _dpmpp_2m_sde(denoise, x, sigmas, noise, on_step, lambda h: torch.expm1(-2 * h) / (2 * h) + 1)


def sample_dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Lu et al., "DPM-Solver++" (2022), taken to the SDE multistep of third order by Katherine Crowson."""
    before: list[tuple[Tensor, Tensor]] = []
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if sigma_next > 0:
            h = sigma.log() - sigma_next.log()
            phi_1 = -torch.expm1(-2 * h)
            phi_2 = 1 - phi_1 / (2 * h)
            phi_3 = phi_2 / (2 * h) - 0.5
            x = torch.exp(-2 * h) * x + phi_1 * denoised
            if before:
                r, slope = before[0][1] / h, (denoised - before[0][0]) / (before[0][1] / h)
                if len(before) > 1:
                    r_old, slope_old = before[1][1] / h, (before[0][0] - before[1][0]) / (before[1][1] / h)
                    curve = (slope - slope_old) / (r + r_old)
                    x = x + phi_2 * (slope + curve * r) - phi_3 * curve
                else:
                    x = x + phi_2 * slope
            x = x + noise(sigma, sigma_next) * (sigma_next * phi_1.sqrt())
            before = [(denoised, h), *before[:1]]
        else:
            x = denoised
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def sample_ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Song et al., "Denoising diffusion implicit models" (2020), eta 0: Euler steps; the end is variance preserving."""
    return sample_euler(denoise, x, sigmas, noise, on_step) / (sigmas[-1] ** 2 + 1).sqrt()


def sample_lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: StepNoise, on_step: OnStep) -> Tensor:
    """Luo et al., "Latent consistency models" (2023): the denoised picture, noised again to the next level."""
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x = denoised = denoise(x, sigma)
        if sigma_next > 0:
            x = x + noise(sigma, sigma_next) * sigma_next
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


FUNCTIONS: dict[str, Callable[[Denoise, Tensor, Tensor, StepNoise, OnStep], Tensor]] = {
    function.__name__: function
    for function in (
        sample_euler,
        sample_euler_ancestral,
        sample_heun,
        sample_dpm_2,
        sample_dpm_2_ancestral,
        sample_lms,
        sample_dpmpp_2s_ancestral,
        sample_dpmpp_sde,
        sample_dpmpp_2m,
        sample_dpmpp_2m_sde,
        sample_dpmpp_2m_sde_heun,
        sample_dpmpp_3m_sde,
        sample_unipc,
        sample_ddim,
        sample_lcm,
    )
}


def _ancestral(sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
    """The level to step down to and the noise to add then, so that sigma_next is reached: down^2 + up^2 = next^2."""
    up = torch.minimum(sigma_next, (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt())
    return (sigma_next**2 - up**2).sqrt(), up


def _towards(denoised: Tensor, x: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The exact way from sigma to sigma_next if the denoised picture stayed the same."""
    ratio = sigma_next / sigma
    return ratio * x + (1 - ratio) * denoised


def _midpoint_step(denoise: Denoise, x: Tensor, sigma: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One step of DPM-Solver-2 from sigma to target; also the denoised picture at its beginning."""
    denoised = denoise(x, sigma)
    slope = (x - denoised) / sigma
    if target > 0:
        middle = sigma.log().lerp(target.log(), 0.5).exp()
        ahead = x + slope * (middle - sigma)
        slope = (ahead - denoise(ahead, middle)) / middle
    return x + slope * (target - sigma), denoised


def _dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    noise: StepNoise,
    on_step: OnStep,
    correction: Callable[[Tensor], Tensor],
) -> Tensor:
    """The two forms of DPM++ 2M SDE, which differ in how much of the last change they carry on, by the step h."""
    before: tuple[Tensor, Tensor] | None = None
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if sigma_next > 0:
            h = sigma.log() - sigma_next.log()
            fresh = -torch.expm1(-2 * h)
            x = sigma_next / sigma * torch.exp(-h) * x + fresh * denoised
            if before:
                old, h_old = before
                x = x + (denoised - old) * (correction(h) * h / h_old)
            x = x + noise(sigma, sigma_next) * (sigma_next * fresh.sqrt())
            before = denoised, h
        else:
            x = denoised
        on_step(step, len(sigmas) - 1, x, denoised)
    return x


def _lagrange_integrals(points: np.ndarray, start: float, end: float) -> list[float]:
    """The integral from start to end of each Lagrange basis polynomial over the points."""
    integrals: list[float] = []
    for j, point in enumerate(points):
        basis = np.polynomial.Polynomial([1.0])
        for other in np.delete(points, j):
            basis = basis * np.polynomial.Polynomial([-other, 1.0]) / (point - other)
        antiderivative = basis.integ()
        integrals.append(float(antiderivative(end) - antiderivative(start)))
    return integrals


def _nothing(step: int, total: int, x: Tensor, denoised: Tensor) -> None:
    pass
