"""Tiles laid together: exact where they agree, without a border where they do not, and cut as the picture is."""

import torch
from torch import Tensor

from layerdiffuse_mcp.api.detail import Tiling
from layerdiffuse_mcp.engine.sampling.tiles import Tiles, crop, tiled
from layerdiffuse_mcp.engine.types import Conditioning

SIZE = (320, 192)
TILES = Tiles.of(SIZE, Tiling(width=128, height=96, overlap=32))


def test_what_is_local_is_laid_together_as_it_was() -> None:
    picture = torch.rand(2, 3, SIZE[1], SIZE[0])
    torch.testing.assert_close(TILES.blend(lambda box: crop(picture, box)), picture)


def test_from_a_tile_to_one_that_says_something_else_it_goes_in_small_steps() -> None:
    numbers = {box: float(number) for number, box in enumerate(TILES.boxes)}
    whole = TILES.blend(lambda box: torch.full((1, 12, 16), numbers[box]), cell=8)
    across = whole.diff(dim=-1).abs().max()
    assert 0 < across < 0.26  # four cells of overlap or more
    assert whole[0, 0, 0] == 0
    assert whole[0, -1, -1] == len(numbers) - 1


def test_a_network_sees_each_tile_with_its_place_and_one_that_sees_all_is_the_network_itself() -> None:
    seen: list[tuple[tuple[int, ...], object]] = []

    def network(x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append((tuple(x.shape), conditioning.box))
        return 2 * x[:, :4]

    x, texts = torch.rand(2, 8, 24, 40), Conditioning(torch.zeros(2, 77, 8))
    done: list[int] = []
    ask = tiled(network, TILES, TILES.holding(None, 8), 8, lambda: done.append(1))
    torch.testing.assert_close(ask(x, torch.zeros(2), texts), 2 * x[:, :4])
    assert seen == [((2, 8, 12, 16), box) for box in TILES.boxes]
    assert len(done) == len(seen)
    whole = Tiles.of(SIZE, None)
    assert tiled(network, whole, whole.holding(None, 8), 8, lambda: None) is network


def test_only_tiles_in_which_something_is_drawn_are_asked() -> None:
    mask = torch.zeros(1, 1, 24, 40)
    mask[..., 0, 0] = 1
    assert TILES.holding(mask, 8) == {TILES.boxes[0]}
    assert TILES.holding(mask * 0, 8) == {*TILES.boxes}
    ask = tiled(lambda x, _t, _c: x + 1, TILES, TILES.holding(mask, 8), 8, lambda: None)
    made = ask(torch.zeros(1, 4, 24, 40), torch.zeros(1), Conditioning(torch.zeros(1, 77, 8)))
    assert made[..., 0, 0].eq(1).all()
    assert made[..., -1, -1].eq(0).all()
