"""What is measured of drawn pictures."""

import torch

from training import drawn
from training.materials import COLOURS


def test_the_subjects_to_be_named_are_drawn_once_and_for_all():
    asked = [words[0] for words in drawn.subjects()]
    assert asked[:8] == ["kite", "sun", "train", "ice cube", "popcorn", "rabbit face", "snake", "polar bear"]
    assert len({*asked}) == len(asked) == 100
    prompts = drawn.colour_prompts()
    assert len(prompts) == 20 * len(COLOURS)
    assert prompts[0] == ("a red kite", "red")


def test_a_majority_of_the_onlookers_names_a_subject():
    asked = [["red apple", "apple"], ["hot dog"], ["key"], ["cherries"]]
    answers = [
        ["Apple", "dog", "a key", "cherry"],
        ["tomato", "hot dog", "lock", "cherries"],
        ["apple", "hotdog", "keys", "berry"],
    ]
    assert drawn.named(answers, asked) == [True, False, True, True]


def test_blur_lowers_sharpness_and_the_same_pictures_have_all_of_it():
    sharp = torch.rand(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    assert drawn.sharpness(sharp, sharp) == 1
    assert drawn.sharpness(blurred, sharp) < 0.5


def test_the_main_colour_is_that_of_most_visible_pixels():
    picture = torch.zeros(4, 8, 8)
    assert drawn.main_colour(picture) is None
    for name, colour in COLOURS.items():
        picture[:3, :5] = torch.tensor(colour).view(3, 1, 1)
        picture[:3, 5:] = 0.5
        picture[3, :7] = 1  # more of it is visible
        assert drawn.main_colour(picture) == name
    assert drawn.colours_right(torch.stack([picture, picture]), [name, "red" if name != "red" else "blue"]) == 0.5


def test_sheets_show_every_picture_under_its_number():
    found = drawn.sheets(torch.rand(23, 4, 32, 32))
    assert [image.size for image in found] == [(5 * 32, 4 * (32 + drawn.LABEL)), (5 * 32, 32 + drawn.LABEL)]
    above = found[1].crop((0, 0, 5 * 32, drawn.LABEL)).convert("L")
    written = [above.crop((32 * place, 0, 32 * place + 32, drawn.LABEL)).getextrema()[0] < 128 for place in range(5)]
    assert written == [True, True, True, False, False]
