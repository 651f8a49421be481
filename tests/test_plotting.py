"""Figures: what is drawn where, which numbers it shows, and that nothing of pyplot is left behind."""

from __future__ import annotations

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from scipy import stats

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from jkosampler import plotting
from jkosampler.errors import (
    ArgumentError,
    MissingDependencyError,
    TargetShapeError,
    TargetValueError,
)

COVARIANCE = np.array([[1.0, 0.6], [0.6, 2.0]])


@pytest.fixture(autouse=True)
def _no_figure_left_in_pyplot():
    before = plt.get_fignums()
    yield
    after = plt.get_fignums()
    plt.close("all")
    assert after == before


@pytest.fixture
def draws():
    return np.random.default_rng(0).multivariate_normal([1.0, -2.0], COVARIANCE, size=3000)


def log_gaussian(x):
    return stats.multivariate_normal([1.0, -2.0], COVARIANCE).logpdf(x)


def flow(scales, n=500):
    """Isotropic Gaussians of these widths: positions and densities."""
    z = np.random.default_rng(1).standard_normal((n, 2))
    return [s * z for s in scales], [stats.norm.pdf(z).prod(axis=1) / s**2 for s in scales]


def in_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


# -------------------------------------------------------------------------------- density evolution


def test_density_evolution_shows_every_particle_in_its_density_colour():
    particles, densities = flow([1.0, 1.5, 2.0])
    axes = plotting.plot_density_evolution(particles, densities, [0.0, 0.25, 1.0], names=["a", "b"])
    assert axes.shape == (3,)
    assert all(isinstance(ax, Axes) for ax in axes)
    assert [ax.get_title() for ax in axes] == ["t = 0", "t = 0.25", "t = 1"]
    assert [ax.get_xlabel() for ax in axes] == ["a"] * 3
    assert axes[0].get_ylabel() == "b"
    for ax, x, rho in zip(axes, particles, densities, strict=True):
        dots = ax.collections[0]
        order = np.argsort(rho)  # the densest is drawn last
        np.testing.assert_array_equal(dots.get_offsets(), x[order])
        np.testing.assert_array_equal(dots.get_array(), rho[order])
    assert len({id(ax.collections[0].norm) for ax in axes}) == 1


def test_density_evolution_shares_a_window_only_if_that_stays_legible():
    similar = plotting.plot_density_evolution(*flow([1.0, 2.0]), [0.0, 1.0])
    assert similar[0].get_xlim() == similar[1].get_xlim()
    assert not isinstance(similar[0].collections[0].norm, LogNorm)
    shrinking = plotting.plot_density_evolution(*flow([10.0, 0.1]), [0.0, 1.0])
    left, right = (np.ptp(ax.get_xlim()) for ax in shrinking)
    assert left / right == pytest.approx(100.0)
    assert isinstance(shrinking[0].collections[0].norm, LogNorm)


def test_density_evolution_draws_on_the_axes_given_and_chooses_dimensions():
    rng = np.random.default_rng(2)
    x, rho = rng.standard_normal((40, 4)), rng.random(40)
    figure = Figure()
    given = figure.subplots(2, 1)
    axes = plotting.plot_density_evolution([x, x], [rho, rho], [0, 1], dims=(3, 1), axes=given)
    assert list(axes) == list(given)
    np.testing.assert_array_equal(axes[0].collections[0].get_offsets(), x[np.argsort(rho)][:, [3, 1]])
    assert (axes[1].get_xlabel(), axes[0].get_ylabel()) == ("x4", "x2")
    single = plotting.plot_density_evolution([x], [rho], [0.0], axes=Figure().subplots())
    assert single.shape == (1,)


def test_density_evolution_thins_and_draws_zero_density():
    particles, densities = flow([100.0, 1.0], n=900)
    densities[0][:10] = 0.0
    axes = plotting.plot_density_evolution(particles, densities, [0.0, 1.0], max_points=300)
    for ax in axes:
        assert len(ax.collections[0].get_offsets()) == 300
        assert not np.ma.is_masked(ax.collections[0].norm(ax.collections[0].get_array()))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"times": [0.0]}, "times"),
        ({"densities": [np.ones(3), np.ones(500)]}, r"densities\[0\]"),
        ({"densities": [np.zeros(500), -np.ones(500)]}, "log densities"),
        ({"dims": (0, 2)}, "dims"),
        ({"names": ["a"]}, "names"),
        ({"axes": [None]}, "axes"),
    ],
)
def test_density_evolution_names_the_wrong_argument(change, word):
    particles, densities = flow([1.0, 2.0])
    arguments = {"particles": particles, "densities": densities, "times": [0.0, 1.0]} | change
    with pytest.raises(ArgumentError, match=word):
        plotting.plot_density_evolution(**arguments)


# -------------------------------------------------------------------------------- contours


def test_contours_enclose_the_mass_that_they_say(draws):
    ax = plotting.plot_posterior_contours(log_gaussian, draws, names=["u1", "u2"], levels=(0.9, 0.5))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("u1", "u2")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["90 %", "50 %"]
    # Of a Gaussian, the region of mass p is the ellipse of squared Mahalanobis radius -2 log(1 - p).
    lines = ax.collections[-1]
    for path, mass in zip(lines.get_paths(), [0.9, 0.5], strict=True):
        z = path.vertices - [1.0, -2.0]
        radius2 = np.einsum("ni,ij,nj->n", z, np.linalg.inv(COVARIANCE), z)
        np.testing.assert_allclose(radius2, -2.0 * np.log(1.0 - mass), rtol=0.01)


def test_contours_show_the_draws_in_a_window_around_them(draws):
    ax = plotting.plot_posterior_contours(log_gaussian, draws, ax=Figure().subplots(), max_points=500)
    dots = ax.lines[0].get_xydata()
    assert len(dots) == 500
    assert {tuple(row) for row in dots} <= {tuple(row) for row in draws}
    for limits, column in zip((ax.get_xlim(), ax.get_ylim()), draws.T, strict=True):
        low, high = np.quantile(column, [0.001, 0.999])
        assert limits[0] < low
        assert high < limits[1]
        assert np.ptp(limits) < 2.0 * (high - low)


def test_contours_call_a_numpy_target_once_and_with_numpy(draws):
    seen = []

    def log_target(x):
        seen.append(type(x))
        return log_gaussian(x)

    plotting.plot_posterior_contours(log_target, draws)
    assert seen == [np.ndarray]


def test_contours_take_minus_infinity_as_no_mass(draws):
    half = draws[draws[:, 0] > 1.0]
    ax = plotting.plot_posterior_contours(
        lambda x: np.where(x[:, 0] > 1.0, log_gaussian(x), -np.inf), half, levels=(0.5,), resolution=400
    )
    vertices = np.concatenate([path.vertices for path in ax.collections[-1].get_paths()])
    cell = np.ptp(ax.get_xlim()) / 400
    assert vertices[:, 0].min() > 1.0 - cell


@pytest.mark.parametrize(
    ("target", "error", "word"),
    [
        (lambda x: np.zeros((len(x), 1)), TargetShapeError, "one number"),
        (lambda x: np.where(x[:, 0] > 2, np.nan, 0.0), TargetValueError, "NaN"),
        (lambda x: np.where(x[:, 0] > 2, np.inf, 0.0), TargetValueError, r"\+inf"),
        (lambda x: np.full(len(x), -np.inf), TargetValueError, "everywhere"),
    ],
)
def test_contours_say_what_is_wrong_with_the_target(draws, target, error, word):
    with pytest.raises(error, match=word) as caught:
        plotting.plot_posterior_contours(target, draws)
    if word in ("NaN", r"\+inf"):
        assert (caught.value.points[:, 0] > 2).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"draws": np.zeros((5, 3))}, "draws"),
        ({"draws": np.full((5, 2), np.nan)}, "draws: row 0"),
        ({"levels": (0.5, 1.0)}, "levels"),
        ({"levels": ()}, "levels"),
        ({"levels": (0.01,), "resolution": 4}, "resolution"),
    ],
)
def test_contours_name_the_wrong_argument(draws, change, word):
    arguments = {"draws": draws} | change
    with pytest.raises(ArgumentError, match=word):
        plotting.plot_posterior_contours(log_gaussian, **arguments)


# -------------------------------------------------------------------------------- pairs


def test_pairs_has_histograms_on_the_diagonal_and_dots_below(draws):
    x = np.column_stack([draws, draws[:, 0] ** 2])
    axes = plotting.plot_pairs(x, names=["a", "b", "c"], max_points=700)
    assert axes.shape == (3, 3)
    for (i, j), ax in np.ndenumerate(axes):
        assert ax.axison == (j <= i)
        if i == j:
            assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(1.0)
        elif j < i:
            offsets = ax.collections[0].get_offsets()
            assert len(offsets) == 700
            assert {tuple(row) for row in offsets} <= {tuple(row) for row in x[:, [j, i]]}
    assert [ax.get_xlabel() for ax in axes[-1]] == ["a", "b", "c"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["", "b", "c"]


def test_pairs_weights_give_the_weighted_histogram(draws):
    # Weights exp(x1) turn N(m, s^2) into N(m + s^2, s^2).
    axes = plotting.plot_pairs(draws, weights=np.exp(draws[:, 0]))
    heights = np.array([bar.get_height() for bar in axes[0, 0].patches])
    centres = np.array([bar.get_x() + bar.get_width() / 2 for bar in axes[0, 0].patches])
    # Standard error of the weighted mean: sqrt(E[w^2 (x - mean)^2] / n) with w = exp(z - 1/2), about 0.06.
    assert heights @ centres == pytest.approx(2.0, abs=0.25)
    sizes = axes[1, 0].collections[0].get_sizes()
    assert sizes.max() / sizes.min() > 10


def test_pairs_shows_the_first_dimensions_and_says_so():
    x = np.random.default_rng(3).standard_normal((50, 5))
    given = Figure().subplots(2, 2)
    axes = plotting.plot_pairs(x, max_dims=2, axes=given)
    assert list(axes.flat) == list(given.flat)
    assert axes[0, 1].get_title(loc="right") == "first 2 of 5 coordinates"
    assert plotting.plot_pairs(x[:, :1]).shape == (1, 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"draws": np.zeros(7)}, "draws"),
        ({"weights": np.ones(3)}, "weights"),
        ({"weights": -np.ones(3000)}, "weights"),
        ({"names": ["a"]}, "names"),
        ({"axes": [[None]]}, "axes"),
    ],
)
def test_pairs_names_the_wrong_argument(draws, change, word):
    arguments = {"draws": draws} | change
    with pytest.raises(ArgumentError, match=word):
        plotting.plot_pairs(**arguments)


# -------------------------------------------------------------------------------- imports


def test_import_does_not_load_matplotlib_or_torch():
    result = in_python(
        "import sys, jkosampler.plotting; print([m for m in ('matplotlib', 'torch') if m in sys.modules])"
    )
    assert result.stdout.strip() == "[]", result.stderr


def test_missing_matplotlib_is_said_clearly(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="pip install matplotlib"):
        plotting.plot_energy([0, 1], [2.0, 1.0])
