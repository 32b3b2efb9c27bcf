"""The denoiser: what the network is asked, and what is made of its answers."""

import pytest
import torch

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.engine.sampling.denoiser import Denoiser, Inpainting
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.prediction import EPSILON, FLOW, V_PREDICTION
from layerdiffuse_mcp.engine.sampling.samplers import sample
from layerdiffuse_mcp.engine.sampling.schedules import plan, sigma_table
from layerdiffuse_mcp.engine.types import Conditioning, Timed

TABLE = sigma_table()
SHAPE = (4, 6, 10)
SIGMA = torch.tensor(5.0)


class Spy:
    """A network that answers from its inputs, and keeps what it was asked."""

    def __init__(self, dtype=torch.float32):
        self.asked = []
        self.dtype = dtype

    def __call__(self, x, timestep, conditioning):
        self.asked.append((x, timestep, conditioning))
        word = conditioning.context.mean(dim=(1, 2))[:, None, None, None]
        return (x[:, :4] * 0.5 + word * x.mean(dim=1, keepdim=True)).to(self.dtype)


def conditioning(value, length=77, **fields):
    return Conditioning(torch.full((1, length, 8), float(value)), **fields)


def denoiser(network, positive=None, negative=None, guidance=7.0, **options):
    return Denoiser(network, TABLE, positive or conditioning(1), negative or conditioning(-1), guidance, **options)


@pytest.fixture
def x():
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_guidance_moves_the_estimate_from_the_negative_past_the_positive(x):
    alone = {value: denoiser(Spy(), conditioning(value), guidance=1.0)(x, SIGMA) for value in (1, -1)}
    guided = denoiser(Spy(), guidance=7.0)(x, SIGMA)
    assert torch.allclose(guided, alone[-1] + 7 * (alone[1] - alone[-1]), atol=1e-5)


def always(value, weight=1.0):
    return Timed(((0, conditioning(value)),), weight)


@pytest.mark.parametrize("guidance", [7.0, 1.0])
def test_prompts_together_pull_each_by_its_weight(x, guidance):
    alone = {value: denoiser(Spy(), conditioning(value), guidance=1.0)(x, SIGMA) for value in (2, 3, -1)}
    together = denoiser(Spy(), [always(2), always(3, 0.5)], guidance=guidance)(x, SIGMA)
    pull = (alone[2] - alone[-1]) + 0.5 * (alone[3] - alone[-1])
    assert torch.allclose(together, alone[-1] + guidance * pull, atol=1e-4)


@pytest.mark.parametrize("batch_cond", [True, False])
def test_each_call_reads_the_part_that_lasts_to_it_and_beyond_all_the_first(x, batch_cond):
    network = Spy()
    positive = [Timed(((1, conditioning(1)), (2, conditioning(2)), (3, conditioning(1))))]
    negative = Timed(((0, conditioning(-1)), (9, conditioning(-2))))
    run = denoiser(network, positive, negative, batch_cond=batch_cond)
    read = []
    for _ in range(6):
        network.asked.clear()
        run(x, SIGMA)
        said = torch.cat([given.context.mean(dim=(1, 2)) for _, _, given in network.asked])
        read.append((said[0].item(), said[-1].item()))
    assert read == [(-1, 1), (-2, 1), (-2, 2), (-2, 1), (-2, 1), (-2, 1)]


def test_what_is_read_again_is_prepared_once(x):
    network = Spy()
    one, other = conditioning(1), conditioning(2)
    run = denoiser(network, [Timed(tuple((call, (one, other)[call % 2]) for call in range(8)))])
    for _ in range(8):
        run(x, SIGMA)
    assert len({id(given.context) for _, _, given in network.asked}) == 2


def test_both_passes_in_one_call_are_marked_and_the_unconditional_comes_first(x):
    network = Spy()
    denoiser(network)(x, SIGMA)
    [(_, _, given)] = network.asked
    assert given.positive.tolist() == [False] * 3 + [True] * 3
    assert given.context.mean(dim=(1, 2)).tolist() == [-1.0] * 3 + [1.0] * 3


def test_both_passes_in_turn_give_the_same_with_half_the_rows(x):
    network = Spy()
    in_turn = denoiser(network, batch_cond=False)(x, SIGMA)
    assert [given.positive.tolist() for _, _, given in network.asked] == [[False] * 3, [True] * 3]
    assert torch.allclose(in_turn, denoiser(Spy())(x, SIGMA), atol=1e-6)


def test_guidance_one_asks_no_unconditional_pass(x):
    network = Spy()
    denoiser(network, guidance=1.0)(x, SIGMA)
    [(asked, _, given)] = network.asked
    assert len(asked) == 3
    assert bool(given.positive.all())


def test_the_network_sees_unit_variance_and_a_whole_timestep(x):
    network = Spy()
    denoiser(network)(x * 5, SIGMA)
    [(asked, timestep, _)] = network.asked
    assert torch.allclose(asked[:3], x * 5 / 26**0.5)
    assert timestep.dtype == torch.int64
    assert timestep.tolist() == [int(TABLE.sigma_to_t(SIGMA))] * 6


def test_condition_latents_go_behind_the_noisy_one_unscaled_in_both_passes(x):
    network, behind = Spy(), torch.randn(1, 8, *SHAPE[1:])
    denoiser(network, conditioning(1, concat=behind), conditioning(-1, concat=behind))(x, SIGMA)
    [(asked, _, given)] = network.asked
    assert torch.equal(asked[:, 4:], behind.expand(6, -1, -1, -1))
    assert given.concat is None


def test_vectors_follow_their_pass(x):
    network = Spy()
    denoiser(network, conditioning(1, vector=torch.ones(1, 5)), conditioning(-1, vector=torch.zeros(3, 5)))(x, SIGMA)
    assert network.asked[0][2].vector.mean(dim=1).tolist() == [0.0] * 3 + [1.0] * 3


def test_contexts_of_different_length_are_repeated_to_a_common_one(x):
    network = Spy()
    negative = Conditioning(torch.arange(154.0).reshape(1, 154, 1))
    denoiser(network, Conditioning(torch.arange(77.0).reshape(1, 77, 1)), negative)(x, SIGMA)
    context = network.asked[0][2].context
    assert context.shape == (6, 154, 1)
    assert context[3, :, 0].tolist() == [*range(77), *range(77)]


def test_contexts_that_would_be_repeated_too_often_are_asked_in_turn(x):
    network = Spy()
    denoiser(network, conditioning(1, 77 * 5), conditioning(-1, 77))(x, SIGMA)
    assert [given.context.shape[1] for _, _, given in network.asked] == [77, 77 * 5]


def test_below_the_stopping_sigma_the_base_is_asked_without_the_condition(x):
    network, base = Spy(), Spy()
    concat = torch.zeros(1, 4, *SHAPE[1:])
    stopping = denoiser(network, conditioning(1, concat=concat), conditioning(-1, concat=concat),
                        base_network=base, stop_sigma=1.6)  # fmt: skip
    for sigma in (5.0, 1.6, 1.5, 0.1):
        stopping(x, torch.tensor(sigma))
    assert [asked.shape[1] for asked, _, _ in network.asked] == [8, 8]
    assert [asked.shape[1] for asked, _, _ in base.asked] == [4, 4]


@pytest.mark.parametrize("sigma", [0.05, 1.0, 14.0, 4000.0])
def test_a_perfect_network_of_any_prediction_finds_the_picture(sigma):
    sigma = torch.tensor(sigma)
    picture, noise = torch.randn(2, 2, *SHAPE)
    alpha, std = 1 / (sigma**2 + 1).sqrt(), sigma / (sigma**2 + 1).sqrt()
    answers = {EPSILON: noise, V_PREDICTION: alpha * noise - std * picture, FLOW: noise - picture}
    for prediction, answer in answers.items():
        perfect = denoiser(lambda *_, answer=answer: answer, guidance=1.0, prediction=prediction)
        if prediction is V_PREDICTION or sigma < 100:
            noisy = prediction.add_noise(picture, noise, sigma)
            assert torch.allclose(perfect(noisy, sigma), picture, atol=1e-3)


def test_arithmetic_is_float32_whatever_the_network_answers(x):
    assert denoiser(Spy(torch.float16))(x, SIGMA).dtype == torch.float32


def test_a_batch_of_another_size_is_prepared_anew(x):
    one = denoiser(Spy())
    assert torch.allclose(one(x, SIGMA)[:1], one(x[:1], SIGMA), atol=1e-6)


def inpaint(seeds, sampler="Euler a"):
    latent = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 1, *SHAPE[1:])
    mask[..., :5] = 1
    noise = BatchNoise(seeds, SHAPE)
    inpainting = Inpainting.of(latent, mask, noise)
    row = SAMPLERS[sampler]
    guided = denoiser(Spy(), guidance=2.0, inpainting=inpainting)
    out = sample(row, guided, plan(row, "Automatic", 5, TABLE, 0.8), noise, latent=latent)
    return inpainting.keep(out), latent, mask


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_inpainting_changes_only_what_the_mask_shows(sampler):
    out, latent, mask = inpaint((1, 2), sampler)
    kept = mask.expand_as(out) == 0
    assert torch.equal(out[kept], latent.expand_as(out)[kept])
    assert bool((out != latent)[~kept].all())


def test_an_inpainted_picture_is_the_same_alone_and_in_a_batch():
    batch, *_ = inpaint((1, 2))
    alone, *_ = inpaint((2,))
    assert torch.allclose(batch[1], alone[0], atol=1e-6)


def test_what_the_mask_protects_is_seen_at_the_noise_level_of_the_step():
    latent, mask = torch.randn(1, 4, 64, 64), torch.zeros(1, 1, 64, 64)
    inpainting = Inpainting.of(latent, mask, BatchNoise((3,), (4, 64, 64)))
    seen = inpainting.noised(torch.zeros(1, 4, 64, 64), SIGMA)
    assert float((seen - latent).std()) == pytest.approx(5.0, rel=0.05)
