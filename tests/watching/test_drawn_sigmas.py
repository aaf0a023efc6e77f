"""--show_timesteps: what is shown is what training draws."""

import math

import pytest
import torch
from PIL import Image

from library.training.flow_matching import Noising, SigmaSampling
from library.watching.drawn_sigmas import BINS, DRAWS, DrawnSigmas
from tests.helpers.running import config_files, make_trainer

EDGES = torch.arange(1, BINS) / BINS


def shares_below(drawn):
    return torch.tensor(drawn.shares).cumsum(0)[:-1]


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_the_shares_are_those_of_the_distribution(offset):
    """The logistic of a normal lies below s as often as the normal below logit s."""
    drawn = DrawnSigmas.of(Noising(), (128, 128), offset)
    expected = torch.special.ndtr(torch.logit(EDGES) - offset)
    torch.testing.assert_close(shares_below(drawn), expected, atol=3 / math.sqrt(DRAWS), rtol=0)
    assert sum(drawn.shares) == pytest.approx(1) and set(drawn.weights) == {1.0}


def test_the_weights_are_those_of_the_loss():
    sampling = SigmaSampling(method="uniform", weighting_scheme="cosmap", max_sigma=0.5)
    drawn = DrawnSigmas.of(Noising(sampling), (128, 128))
    middles = (torch.arange(BINS // 2) + 0.5) / BINS
    expected = 2 / (math.pi * (1 - 2 * middles + 2 * middles**2))
    torch.testing.assert_close(
        torch.tensor(drawn.weights[: BINS // 2]), expected, rtol=0.01, atol=0
    )
    assert set(drawn.weights[BINS // 2 :]) == {0.0}
    lines = drawn.text().splitlines()
    assert lines[-1].endswith("500-750 0.0%, 750-1000 0.0%") and lines[-2] == " 950-1000   0.00%       -"
    assert max(line.count("#") for line in lines) == 50


def test_the_trainer_shows_its_draw_and_trains_nothing(demo, run_folder, capsys):
    flux = {"timestep_sampling": "flux_shift", "show_timesteps": "console"}
    means = []
    for more in ({}, {"show_timesteps_resolution": "1024"}, {"show_timesteps_offset": -1.0}):
        make_trainer(config_files(demo, run_folder, {**flux, **more})).train()
        title, *_, last = capsys.readouterr().out.splitlines()
        means.append(int(last.split(";")[0].removeprefix("mean ")))
        assert "flux_shift" in title and ("1024 x 1024" in title) is ("show_timesteps_resolution" in more)
    assert means[2] < means[0] < means[1]
    assert not (run_folder / "out").exists()
    make_trainer(config_files(demo, run_folder, {"show_timesteps": "image"})).train()
    with Image.open(run_folder / "out" / "run_timesteps.png") as picture:
        assert picture.format == "PNG" and len(picture.getcolors(1000)) > 2
    assert [path.name for path in (run_folder / "out").iterdir()] == ["run_timesteps.png"]
