"""Figures of a flow beside its exact solution: what is drawn where, and which numbers it shows."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from jkosampler import plotting
from jkosampler.errors import ArgumentError

RNG = np.random.default_rng(0)

# -------------------------------------------------------------------------------- energy


def test_energy_is_drawn_as_it_is():
    ax = plotting.plot_energy([0.0, 0.5, 1.5], [3.0, 1.0, -0.5])
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[0.0, 3.0], [0.5, 1.0], [1.5, -0.5]])
    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == ("linear", "flow time", "energy")
    assert plotting.plot_energy(np.arange(3), [3.0, 1.0, 0.5], ax=ax) is ax
    assert ax.get_xlabel() == "step"


def test_energy_above_its_minimum_marks_what_has_no_logarithm():
    ax = plotting.plot_energy(np.arange(4), [12.0, 10.5, 9.9, 10.1], reference=10.0)
    assert ax.get_yscale() == "log"
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [2.0, 0.5, np.nan, 0.1])
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[2.0, 0.1]])
    assert len(plotting.plot_energy([0, 1], [3.0, 2.0], reference=1.0).lines) == 1


def test_energy_names_the_wrong_argument():
    with pytest.raises(ArgumentError, match="energy"):
        plotting.plot_energy([0, 1], [1.0])
    with pytest.raises(ArgumentError, match="reference"):
        plotting.plot_energy([0, 1], [1.0, 0.5], reference=2.0)


def test_energy_beside_the_exact_one():
    ax = plotting.plot_energy([0.0, 1.0, 2.0], [3.0, 1.0, 0.5], exact=[3.0, 0.9, 0.4], reference=0.1)
    curve, exact = ax.lines
    np.testing.assert_allclose(curve.get_ydata(), [2.9, 0.9, 0.4])
    np.testing.assert_allclose(exact.get_xydata(), [[0.0, 2.9], [1.0, 0.8], [2.0, 0.3]])
    assert exact.get_linestyle() == "--"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["exact"]
    plain = plotting.plot_energy([0, 1], [3.0, 1.0], exact=[3.0, 0.9])
    np.testing.assert_allclose(plain.lines[1].get_ydata(), [3.0, 0.9])
    assert plotting.plot_energy([0, 1], [3.0, 1.0]).get_legend() is None
    with pytest.raises(ArgumentError, match="exact"):
        plotting.plot_energy([0, 1], [3.0, 1.0], exact=[3.0])


# -------------------------------------------------------------------------------- paths


def test_paths_go_up_in_time_in_the_colours_of_their_values():
    paths, times = RNG.standard_normal((4, 6, 3)), [0.0, 0.1, 0.3, 0.7]
    ax = plotting.plot_paths(paths, times, values=np.arange(6.0), dims=(2, 0), names=["a", "b", "c"])
    assert len(ax.lines) == 6
    for i, line in enumerate(ax.lines):
        np.testing.assert_array_equal(np.stack(line.get_data_3d()), [paths[:, i, 2], paths[:, i, 0], times])
    assert len({to_rgba(line.get_color()) for line in ax.lines}) == 6
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == ("c", "a", "flow time")
    assert ax.get_zlim() == (0.0, 0.7)
    ends = np.stack(ax.collections[0]._offsets3d)
    np.testing.assert_array_equal(ends, [paths[-1, :, 2], paths[-1, :, 0], [0.7] * 6])


def test_paths_thin_and_draw_on_the_axes_given():
    given = Figure().add_subplot(projection="3d")
    ax = plotting.plot_paths(RNG.standard_normal((2, 50, 2)), [0, 1], ax=given, max_paths=7)
    assert ax is given
    assert len(ax.lines) == 7
    assert len({to_rgba(line.get_color()) for line in ax.lines}) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"paths": np.zeros((5, 2))}, "paths"),
        ({"paths": np.zeros((1, 5, 2)), "times": [0.0]}, "paths"),
        ({"paths": np.full((3, 5, 2), np.nan)}, "paths"),
        ({"times": [0.0, 1.0]}, "times"),
        ({"values": np.zeros(3)}, "values"),
        ({"dims": (0, 2)}, "dims"),
        ({"names": ["a"]}, "names"),
        ({"ax": Figure().subplots()}, "3-D"),
    ],
)
def test_paths_name_the_wrong_argument(change, word):
    arguments = {"paths": np.zeros((3, 5, 2)), "times": [0.0, 1.0, 2.0]} | change
    with pytest.raises(ArgumentError, match=word):
        plotting.plot_paths(**arguments)


# -------------------------------------------------------------------------------- profiles and rings


def test_profile_shows_particles_and_the_exact_curve():
    x, line = RNG.standard_normal(30), np.linspace(-2.0, 2.0, 9)
    ax = plotting.plot_profile(x, np.exp(-(x**2)), exact=(line, np.exp(-(line**2))), name="|x|")
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), np.stack([x, np.exp(-(x**2))], axis=1))
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), np.stack([line, np.exp(-(line**2))], axis=1))
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_ylim()[0]) == ("|x|", "density", 0.0)
    few = plotting.plot_profile(x, x**2, ax=Figure().subplots(), max_points=5)
    assert len(few.lines) == 1
    assert len(few.lines[0].get_xdata()) == 5


def test_profiles_that_share_an_axis_all_fit():
    axes = Figure().subplots(1, 3, sharey=True)
    for ax, height in zip(axes, (1.0, 3.0, 2.0), strict=True):
        plotting.plot_profile([0.0, 1.0], [0.0, height], ax=ax)
    plotting.plot_profile([0.0, 1.0], [0.0, 0.5], exact=([0.0, 1.0], [0.0, 4.0]), ax=axes[0])
    assert [ax.get_ylim() for ax in axes] == [(0.0, pytest.approx(4.2))] * 3


def test_profile_names_the_wrong_argument():
    with pytest.raises(ArgumentError, match="density"):
        plotting.plot_profile(np.zeros(3), np.zeros(4))
    with pytest.raises(ArgumentError, match="density"):
        plotting.plot_profile(np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(ArgumentError, match="exact"):
        plotting.plot_profile(np.zeros(3), np.zeros(3), exact=([0.0, 1.0], [0.0]))


def test_ring_is_a_circle_inside_its_window():
    given = Figure().subplots()
    given.set(xlim=(-5.0, 0.5), ylim=(-0.1, 0.1))
    ax = plotting.plot_ring(2.0, center=(1.0, -1.0), ax=given)
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose(np.hypot(x - 1.0, y + 1.0), 2.0)
    np.testing.assert_allclose([x.min(), x.max(), y.min(), y.max()], [-1.0, 3.0, -3.0, 1.0])
    np.testing.assert_allclose(ax.get_xlim(), (-5.0, 3.1))
    np.testing.assert_allclose(ax.get_ylim(), (-3.1, 1.1))
    assert ax.get_aspect() == 1.0


@pytest.mark.parametrize("radius", [0.0, -1.0, np.nan, np.inf])
def test_ring_names_a_wrong_radius(radius):
    with pytest.raises(ArgumentError, match="radius"):
        plotting.plot_ring(radius)


# -------------------------------------------------------------------------------- fields


def test_fields_share_their_colours_and_stand_upright():
    first, second = np.arange(6.0).reshape(3, 2), np.full((3, 2), np.nan)
    second[0, 0] = 11.0
    panels = plotting.plot_fields([first, second], (0.0, 3.0, 0.0, 2.0), ["a", "b"])
    images = [ax.images[0] for ax in panels]
    assert [ax.get_title() for ax in panels] == ["a", "b"]
    assert {image.get_clim() for image in images} == {(0.0, 11.0)}
    np.testing.assert_array_equal(images[0].get_array(), first.T)  # the first index goes to the right
    assert images[0].origin == "lower"
    assert images[1].get_array().mask.sum() == 5  # outside the domain


@pytest.mark.parametrize(
    ("fields", "titles", "name"),
    [([], [], "fields"), ([np.ones(3)], ["a"], "fields"), ([np.full((2, 2), np.nan)], ["a"], "fields"),
     ([np.ones((2, 2))], [], "titles")],
)  # fmt: skip
def test_fields_name_the_wrong_argument(fields, titles, name):
    with pytest.raises(ArgumentError, match=name):
        plotting.plot_fields(fields, (0.0, 1.0, 0.0, 1.0), titles)
    with pytest.raises(ArgumentError, match="axes: 1 are needed"):
        plotting.plot_fields([np.ones((2, 2))], (0.0, 1.0, 0.0, 1.0), ["a"], axes=Figure().subplots(2))
