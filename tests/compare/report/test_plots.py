"""The pictures: every arm can be told from the others, and nothing flattens the differences."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from latentpt.compare.planning.folder import write_plan
from latentpt.compare.planning.plan import make_plan
from latentpt.compare.report import plots
from latentpt.compare.report.plots import draw_finals, looks_of, loss_range, side_by_side
from latentpt.compare.report.results import read_results
from latentpt.compare.running.execute import execute
from tests.compare.conftest import LATENT


@pytest.fixture
def results(comparison, trainer, measured):
    def run(**changes):
        plan = make_plan(comparison(**changes))
        write_plan(plan)
        execute(plan, trainer[0], measured[0])
        return read_results(plan)

    return run


def test_no_two_of_many_arms_look_alike(results):
    found = results(arms={"vanilla": {}, "latent": LATENT})
    many = [found.plan.arms[0].model_copy(update={"arm": f"arm{number}"}) for number in range(28)]
    plan = found.plan.model_copy(update={"arms": [found.plan.arms[0], *many]})
    looks = looks_of(found.__class__(plan, found.arms))
    assert len({(look.colour, str(look.dash)) for look in looks.values()}) == 29
    assert len({(look.colour, look.marker) for look in looks.values()}) == 29


def test_loss_axes_leave_out_the_first_quarter_of_training(results):
    found = results()
    low, high = loss_range(found)
    curves = np.array([run.curve["loss"] for arm in found.arms for run in arm.runs])
    assert low < curves.min() and curves[:, 8].max() <= high < curves[:, 6].max()


def test_arms_of_like_cost_stand_side_by_side_and_the_others_where_they_are():
    places = side_by_side([100.0, 50.0, 100.2, 20.0])
    assert places[1] == 50 and places[3] == 20
    assert places[2] - places[0] > 0.5 and places[0] + places[2] == pytest.approx(200.2)


def test_the_arms_are_ranked_and_their_differences_are_of_the_same_seed(results, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "png", lambda figure: figures.append(figure) or b"")
    found = results(seeds=[0, 1])
    draw_finals(found, "title")
    (axes,) = figures[0].axes
    assert isinstance(figures[0], Figure)
    assert [label.get_text().split()[0] for label in axes.get_yticklabels()] == [
        "vanilla",
        "stages",
        "latent",
    ]
    seeds = [line.get_xdata() for line in axes.lines if line.get_marker() == "|"]
    expected = found.arms[1].runs[1].measured.exact_loss - found.arms[0].runs[1].measured.exact_loss
    assert seeds[0] == pytest.approx([0, 0]) and seeds[2][1] == pytest.approx(expected)
