"""L2 flows through the estimator: the equations of the papers, domains, and what a fitted sampler of fields answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference_fields as ref
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from jkosampler import JKOSampler, domains, energies, engines, laws
from jkosampler.errors import ArgumentError, NotFittedError, TargetShapeError, UnavailableError

F64 = torch.float64
LINE = domains.Box(-1.0, 1.0)
QUARTER = math.pi / 4


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def as_torch(field: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensor], Tensor]:
    """A field in numpy as an initial field; its gradient will be that of differences."""
    return lambda x: torch.from_numpy(field(x.detach().numpy()))


def implicit(rate: float) -> float:
    """What a step leaves of a mode, tau times whose rate of decay is `rate`."""
    return 1.0 / (1.0 + rate)


def mode(x: Tensor) -> Tensor:
    """`-e'' = pi^2 e` on LINE."""
    return (math.pi * (x[:, 0] + 1.0)).cos()


def on_line(**changes: Any) -> JKOSampler:
    parameters: dict[str, Any] = {
        "energy": energies.Dirichlet(0.3),
        "domain": LINE,
        "initial": mode,
        "step_size": 0.05,
        "n_steps": 2,
        "random_state": 0,
        "progress": False,
    }
    return JKOSampler(**(parameters | changes))


class TestEquations:
    @pytest.mark.parametrize(
        ("order", "n_steps", "error"),
        [(1, 40, 1.3e-3), (2, 5, 1.5e-4), pytest.param(2, 40, 1.5e-4, marks=pytest.mark.slow)],
    )
    def test_heat_of_the_paper(self, order: int, n_steps: int, error: float) -> None:
        """Against the scheme at all times, and against the equation, from which the scheme itself is 1.125e-3 away."""
        sampler = JKOSampler(
            energy=energies.Dirichlet(ref.HEAT_2D.kappa), metric="l2", domain=domains.Box(-QUARTER, QUARTER, dim=2),
            initial=as_torch(ref.HEAT_2D), step_size=0.005, n_steps=n_steps, order=order, random_state=0,
            progress=False,
        ).fit()  # fmt: skip
        x = np.random.default_rng(1).uniform(-QUARTER, QUARTER, (4000, 2))
        for k in (1, 5, n_steps):
            exact = ref.HEAT_2D.after_steps(x, 0.005, k, order)
            assert relative(sampler.field(x, t=0.005 * k), exact) < 1e-5
        assert relative(sampler.field(x), ref.HEAT_2D.at(x, 0.005 * n_steps)) < error
        assert sampler.history_[-1].width == 600
        assert all(record.descends and record.unresolved < 1e-5 for record in sampler.history_)

    def test_allen_cahn_on_the_torus(self) -> None:
        """600 units leave 1e-3 of interfaces that are this thin."""
        sampler = JKOSampler(
            energy=energies.AllenCahn(ref.EPSILON), metric="l2", domain=domains.Box(-2, 2, dim=2),
            initial=as_torch(ref.torus), step_size=0.005, n_steps=2, random_state=0, progress=False,
        ).fit()  # fmt: skip
        exact = ref.allen_cahn_steps(ref.torus(ref.grid(128)), 0.005, 2)
        assert relative(sampler.field(ref.grid(128).reshape(-1, 2)), exact.reshape(-1)) < 2e-3
        assert sampler.history_[-1].energy == pytest.approx(ref.allen_cahn_energy(exact), rel=1e-3)

    def test_disc(self) -> None:
        """Cells that the boundary cuts leave some 1e-5 in a step."""
        sampler = JKOSampler(
            energy=energies.Dirichlet(0.5), domain=domains.Ball([0.0, 0.0], 1.0), step_size=0.02, n_steps=3,
            initial=as_torch(lambda x: 1.0 + ref.disc_mode(x)),
            engine=engines.MinimizingMovement(width=300), random_state=0, progress=False,
        ).fit()  # fmt: skip
        x = sampler.domain.sample(1000, torch.Generator().manual_seed(1)).numpy()
        exact = 1.0 + implicit(0.01 * ref.DISC_RATE**2) ** 3 * ref.disc_mode(x)
        assert np.abs(sampler.field(x) - exact).max() < 1e-3
        assert relative(sampler.field(x), exact) < 1e-4

    def test_l_shape_keeps_its_mass(self) -> None:
        """No flux: the integral stays; cos(pi x_1) cos(pi x_2) has none through any side, and is a mode."""

        def start(x: Tensor) -> Tensor:
            return (math.pi * x[:, 0]).cos() * (math.pi * x[:, 1]).cos() + 0.3

        for initial, exact in ((start, True), (lambda x: (2.0 * x[:, 0] - x[:, 1]).sin() + x[:, 0], False)):
            sampler = JKOSampler(
                energy=energies.Dirichlet(), domain=domains.LShape(), initial=initial, step_size=0.01, n_steps=3,
                engine=engines.MinimizingMovement(width=300), random_state=0, progress=False,
            ).fit()  # fmt: skip
            points = sampler.domain.quadrature(5000, torch.Generator(), "gauss")
            masses = [float(points.weights @ sampler.field(points.x, t=t)) for t in sampler.times_]
            np.testing.assert_allclose(masses, masses[0], atol=1e-5)
            assert sum(record.slack > 0.0 for record in sampler.history_) == 3
            if exact:
                found, factor = sampler.field(points.x).numpy(), implicit(0.01 * 2.0 * math.pi**2) ** 3
                assert relative(found - 0.3, factor * (start(points.x).numpy() - 0.3)) < 1e-4

    def test_motivating_example(self) -> None:
        """The paper's first: u_t = -u from sin x, and its picture of `(u_{k+1} - u_k) / tau` against -u_{k+1}."""
        sampler = JKOSampler(
            energy=energies.L2Functional(lambda x, u, grad_u: 0.5 * u**2), metric="l2",
            domain=domains.Box(-math.pi, math.pi), initial=lambda x: x[:, 0].sin(),
            step_size=0.01, n_steps=40, random_state=0, progress=False,
        ).fit()  # fmt: skip
        x = np.linspace(-math.pi, math.pi, 101)[:, None]
        fields = np.stack([sampler.field(x, t=t) for t in sampler.times_])
        np.testing.assert_allclose(np.diff(fields, axis=0) / 0.01, -fields[1:], atol=1e-4)
        np.testing.assert_allclose(fields[-1], np.sin(x[:, 0]) / 1.01**40, atol=1e-6)
        np.testing.assert_allclose(fields[-1], np.sin(x[:, 0]) * math.exp(-0.4), atol=2e-3)

    def test_a_sum_of_energies(self) -> None:
        """Heat and decay together: each mode by `kappa mu^2 + c`."""
        decay = energies.L2Functional(lambda x, u, grad_u: 0.5 * u**2)
        sampler = on_line(energy=0.5 * energies.Dirichlet(0.6) + 2.0 * decay).fit()
        x = np.linspace(-1.0, 1.0, 41)[:, None]
        exact = implicit(0.05 * (0.3 * math.pi**2 + 2.0)) ** 2 * np.cos(math.pi * (x[:, 0] + 1.0))
        np.testing.assert_allclose(sampler.field(x), exact, atol=1e-5)


class TestAnswers:
    def test_numpy_in_numpy_out_torch_in_torch_out(self) -> None:
        sampler = on_line().fit()
        x = np.linspace(-1.0, 1.0, 7)[:, None]
        values = sampler.field(x)
        assert values.shape == (7,)
        assert values.dtype == np.float64
        tensor = sampler.field(torch.from_numpy(x))
        assert tensor.dtype == F64
        assert not tensor.requires_grad
        np.testing.assert_array_equal(tensor.numpy(), values)
        assert sampler.field(torch.from_numpy(x).float()).dtype == torch.float32
        np.testing.assert_array_equal(sampler.field(x.tolist()), values)

    def test_times(self) -> None:
        sampler = on_line().fit()
        x = np.linspace(-1.0, 1.0, 7)[:, None]
        np.testing.assert_allclose(sampler.times_, [0.0, 0.05, 0.1])
        np.testing.assert_array_equal(sampler.field(x, 0), mode(torch.from_numpy(x)).numpy())
        np.testing.assert_array_equal(sampler.field(x), sampler.field(x, t=0.1))
        between = 0.4 * sampler.field(x, t=0.0) + 0.6 * sampler.field(x, t=0.05)
        np.testing.assert_allclose(sampler.field(x, t=0.03), between, atol=1e-14)

    def test_attributes(self) -> None:
        sampler = on_line().fit()
        assert (sampler.n_steps_, sampler.n_features_in_, len(sampler.history_)) == (2, 1, 2)
        assert sampler.stop_reason_ == "all 2 steps were made"
        assert not sampler.converged_
        spent = sum(record.target_evaluations for record in sampler.history_)
        assert 0 < spent < sampler.n_target_evaluations_
        assert math.isnan(sampler.log_evidence_)

    @pytest.mark.parametrize("order", [1, 2])
    def test_extend_goes_on(self, order: int) -> None:
        x = np.linspace(-1.0, 1.0, 7)[:, None]
        whole, parts = on_line(n_steps=4, order=order).fit(), on_line(n_steps=1, order=order).fit().extend(3)
        assert parts.n_steps_ == 4
        np.testing.assert_array_equal(parts.field(x), whole.field(x))

    def test_steps_can_be_watched(self) -> None:
        sampler = on_line(n_steps=3)
        seen = [(record.time, float(sampler.field([[0.0]])[0])) for record in sampler.steps()]
        m = implicit(0.05 * 0.3 * math.pi**2)
        np.testing.assert_allclose(seen, [(0.05 * k, -(m**k)) for k in (1, 2, 3)], atol=1e-6)

    def test_it_is_a_scikit_learn_estimator(self) -> None:
        sampler = on_line(engine=engines.MinimizingMovement(width=40))
        copy = clone(sampler)
        assert copy.get_params()["engine__width"] == 40
        assert copy.set_params(engine__width=50, n_steps=1).fit().history_[0].width == 50
        assert sampler.get_params()["initial"] is mode

    @pytest.mark.parametrize("metric", [None, "l2", "L2"])
    @pytest.mark.parametrize("engine", [None, "minimizing-movement"])
    def test_the_metric_goes_without_saying(self, metric: str | None, engine: str | None) -> None:
        sampler = on_line(energy=energies.AllenCahn(0.5) + energies.Dirichlet(), metric=metric, engine=engine).fit()
        assert isinstance(sampler.field(np.zeros((1, 1))), np.ndarray)

    def test_a_budget_ends_it(self) -> None:
        sampler = on_line(n_steps=None, max_target_evaluations=20_000)
        with pytest.warns(ConvergenceWarning, match="max_target_evaluations=20000 was used up"):
            sampler.fit()
        assert sampler.n_steps_ >= 1

    @pytest.mark.parametrize(
        ("question", "error", "message"),
        [
            (lambda s: s.sample(5), UnavailableError, r"no density and has no draws: field\(x, t\) is u"),
            (lambda s: s.sample_with_log_density(5), UnavailableError, r"field\(x, t\) is u"),
            (lambda s: s.density([[0.0]]), UnavailableError, r"field\(x, t\) is u"),
            (lambda s: s.log_density([[0.0]]), UnavailableError, r"field\(x, t\) is u"),
            (lambda s: s.score_samples([[0.0]]), UnavailableError, r"field\(x, t\) is u"),
            (lambda s: s.to_arviz(), UnavailableError, r"field\(x, t\) is u"),
            (lambda s: s.particles_, UnavailableError, r"no particles: field\(x, t\) is u"),
            (lambda s: s.diagnose(), ArgumentError, "log_target; this sampler has none, look at history_"),
            (lambda s: s.field([[1.5]]), ArgumentError, r"x: 1 points lie outside the domain"),
            (lambda s: s.field([0.5]), ArgumentError, r"x must have shape \(n, 1\)"),
            (lambda s: s.field([[0.5]], t=0.2), ArgumentError, r"t must lie in \[0, 0.05\]"),
            (lambda s: s.field([[0.5]], t="last"), ArgumentError, "t must be one number"),
        ],
    )
    def test_what_it_has_no_answer_to(self, question: Callable[..., object], error: type, message: str) -> None:
        sampler = on_line(n_steps=1, engine=engines.MinimizingMovement(width=16)).fit()
        with pytest.raises(error, match=message):
            question(sampler)

    def test_a_density_is_no_field(self) -> None:
        sampler = JKOSampler(
            energy=energies.Entropy(), initial=laws.Gaussian([0.0], 1.0), step_size=0.01, n_steps=1,
            n_particles=300, random_state=0, progress=False,
        ).fit()  # fmt: skip
        with pytest.raises(UnavailableError, match=r"one of densities, not of a field: density\(x, t\) is u"):
            sampler.field([[0.0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_target": lambda x: -(x[:, 0] ** 2), "energy": None, "metric": "l2"}, "log_target is for densities"),
        ({"energy": energies.Entropy(), "metric": "l2"}, r"energy: the term Entropy\(\) is one of densities"),
        ({"energy": "heat", "metric": "l2"}, "energy must be an Energy, got str"),
        ({"domain": None}, "domain must be a Domain for metric='l2', such as domains.Box"),
        ({"domain": (-1, 1)}, "domain must be"),
        ({"dim": 2}, "dim=2 is not that of the domain, 1"),
        ({"initial": None}, "initial must be the field u at t = 0 .* got NoneType"),
        ({"initial": laws.Gaussian([0.0], 1.0)}, "initial must be the field u at t = 0 .* got Gaussian"),
        ({"initial": 3.0}, "initial must be the field u at t = 0 .* got float"),
        ({"initial": np.zeros(3)}, "initial must be"),
        ({"step_size": None}, "step_size: flows with metric='l2' need fixed steps"),
        ({"step_size": -0.1}, "step_size must be positive"),
        ({"n_steps": None}, "n_steps: an L2 flow has no end of its own"),
        ({"n_steps": -1}, "n_steps must be a whole number"),
        ({"dtype": "float32"}, "dtype='float32': fields are computed in float64"),
        ({"engine": "lagrangian"}, "engine must be None, 'minimizing-movement' or .* got 'lagrangian'"),
        ({"engine": engines.Lagrangian(), "metric": "l2"}, "engine must be None, 'minimizing-movement'"),
        ({"engine": engines.MinimizingMovement(width=1)}, "width must be a whole number of at least 2"),
        ({"engine": engines.MinimizingMovement(optimizer="adam"), "order": 2}, "order=2 is not for optimizer='adam'"),
        ({"order": 3}, "order must be 1 or 2"),
        ({"mobility": "exclusion"}, "mobility is for flows of densities"),
        ({"n_particles": 100}, r"n_particles is for flows of densities.*MinimizingMovement\(n_quadrature=\)"),
    ],
)
def test_bad_parameters_are_named(changes: dict[str, Any], message: str) -> None:
    sampler = on_line(**changes)
    with pytest.raises(ArgumentError, match=message):
        sampler.fit()
    with pytest.raises(NotFittedError, match="fit"):
        sampler.field([[0.0]])


def test_fields_have_no_starting_particles() -> None:
    with pytest.raises(ArgumentError, match="X: the flow of a field has no particles; give initial="):
        on_line().fit(np.zeros((10, 1)))


def test_an_initial_field_that_misbehaves_is_named() -> None:
    with pytest.raises(TargetShapeError, match=r"initial must return a tensor of shape \(2048,\), got \(2048, 1\)"):
        on_line(initial=lambda x: x).fit()
