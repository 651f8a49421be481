"""Targets without gradient: the emulator against the functions that it stands for, and fits against exact answers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from reference_elliptic import exact_elliptic
from torch import Tensor

from jkosampler import JKOSampler, _black_box_start, forward, laws, targets
from jkosampler._mixture_fit import Mixtures
from jkosampler.energies import KL, EnergyEvaluator
from jkosampler.engines.output_emulator import OutputEmulator, usable_power
from jkosampler.errors import ArgumentError, TargetShapeError
from jkosampler.targets import BlackBoxEvaluator

Y = [27.5, 79.7]


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def emulator(function: Any, x: Tensor, log_density: Tensor | None = None) -> OutputEmulator:
    generator = torch.Generator().manual_seed(1)
    return OutputEmulator(x, function(x), torch.zeros(len(x)).to(x) if log_density is None else log_density, generator)


def elliptic_black_box(**noise: float) -> targets.BayesianInverseProblem:
    """The elliptic problem, its solution a numpy function without derivatives."""
    x = np.array([0.25, 0.75])

    def solution(u: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return u[:, 1:] * x + np.exp(-u[:, :1]) * (x - x**2) / 2.0

    model = forward.BlackBox(solution, dim=2, output_dim=2, vectorized=True)
    return model.posterior(y=Y, prior_std=10.0, **({"noise_std": 0.1} | noise))


def fish() -> targets.Target:
    """A posterior in numpy, point by point, as users have it: growth of eighteen fish, all parameters positive."""
    age = np.repeat([1.0, 2.0, 3.0, 4.0, 6.0, 8.0], 3)
    noise = np.random.default_rng(2).normal(0.0, 3.0, age.size)
    length = 62.0 * (1.0 - np.exp(-0.28 * age)) + noise

    def log_density(p: np.ndarray) -> float:
        limit, rate, sd = p
        misfit = (length - limit * (1.0 - np.exp(-rate * age))) / sd
        log_prior = -0.5 * ((np.log(limit) - 4.0) / 0.5) ** 2 - 0.5 * ((np.log(rate) + 1.0) / 0.7) ** 2
        return -0.5 * misfit @ misfit - len(age) * np.log(sd) + log_prior - np.log(limit * rate) - 0.5 * (sd / 5.0) ** 2

    names = ["limit", "rate", "sd"]
    return targets.from_numpy(log_density, names=names, support=dict.fromkeys(names, "positive"))


def few_data() -> tuple[targets.Target, float]:
    """Mean and standard deviation of eight numbers, with the log evidence by quadrature."""
    y = np.array([2.1, 3.4, 1.8, 5.2, 2.9, 3.3, 4.1, 2.2])

    def log_density(p: np.ndarray) -> float:
        mean, sd = p
        return -0.5 * np.sum(((y - mean) / sd) ** 2) - len(y) * np.log(sd) - 0.5 * (mean / 10.0) ** 2 - sd / 5.0

    target = targets.from_numpy(log_density, names=["mean", "sd"], support={"sd": "positive"})
    mean, log_sd = np.linspace(-40.0, 40.0, 1601), np.linspace(-3.0, 5.0, 801)[:, None]
    sd, misfit = np.exp(log_sd), sum((value - mean) ** 2 for value in y)
    values = -0.5 * misfit / sd**2 - (len(y) - 1) * log_sd - 0.5 * (mean / 10.0) ** 2 - sd / 5.0
    return target, float(np.log(np.trapezoid(np.trapezoid(np.exp(values), mean), log_sd[:, 0])))


class TestEmulator:
    @pytest.mark.parametrize("d", [1, 2, 5])
    def test_quadratic_outputs_are_exact_everywhere(self, d: int) -> None:
        matrix, linear = points(d, d, 3), points(d, 2, 4)

        def quadratic(x: Tensor) -> Tensor:
            return 1e3 + x @ linear + ((x @ matrix) * x).sum(1, keepdim=True)

        x = 5.0 + 0.1 * points(300, d)
        far = 5.0 + 0.1 * points(50, d, 7) * 3.0
        torch.testing.assert_close(emulator(quadratic, x)(far), quadratic(far), rtol=1e-5, atol=1e-2)

    def test_ridges_follow_the_directions_that_matter(self) -> None:
        """Of 15 directions the output bends along one; ridges of all directions alike would hardly see it."""
        d, direction = 15, torch.nn.functional.normalize(points(1, 15, 9)[0], dim=0)

        def bent(x: Tensor) -> Tensor:
            return (1.3 * (x @ direction)).tanh().unsqueeze(1) + 0.1 * x[:, :1]

        x, fresh = points(2000, d), points(2000, d, 5)
        found = emulator(bent, x)
        along = found.directions @ direction / found.directions.norm(dim=1)
        assert float(along.square().mean()) > 3.0 / d
        error, before = (found(fresh) - bent(fresh)).std(), bent(fresh).std()
        assert float(error / before) < 0.1

    def test_few_points_have_a_plane_at_least(self) -> None:
        x = points(40, 20)
        found = emulator(lambda x: x[:, :3] + 2.0, x)
        torch.testing.assert_close(found(points(9, 20, 5)), points(9, 20, 5)[:, :3] + 2.0, rtol=1e-3, atol=1e-3)

    def test_curved_outputs_converge_with_points(self) -> None:
        def curved(x: Tensor) -> Tensor:
            return torch.stack([x[:, 0].exp(), torch.sin(2.0 * x[:, 1]) * x[:, 0]], dim=1)

        fresh = points(2000, 2, 9)
        errors = [float((emulator(curved, points(n, 2))(fresh) - curved(fresh)).abs().median()) for n in (200, 1000)]
        assert errors[1] < 0.4 * errors[0]
        assert errors[1] < 5e-4

    def test_points_of_high_density_decide(self) -> None:
        """Outputs that run away where nothing is: beside them the region that matters is met to its own scale."""

        def outputs(x: Tensor) -> Tensor:
            return (x[:, :1] + x[:, 1:]).exp()

        x = torch.cat([points(500, 2), 5.0 + points(500, 2, 2)])
        log_density = -0.5 * outputs(x)[:, 0].square()
        some = 0.5 * points(100, 2, 6)
        weighted, alike = (
            float((emulator(outputs, x, y)(some) - outputs(some)).abs().max()) for y in (log_density, None)
        )
        assert weighted < 0.05
        assert alike > 10.0 * weighted

    def test_gradient_is_that_of_the_emulator(self) -> None:
        found = emulator(lambda x: x.sin(), points(500, 2))
        x = points(5, 2, 8).requires_grad_(True)
        assert torch.autograd.gradcheck(lambda x: found(x), (x,), atol=1e-6)

    def test_a_promise_that_is_not_kept_mends_the_emulator(self) -> None:
        """A bump that few points have seen: what the emulator promises there is looked at, and counts."""
        problem = elliptic_black_box()
        black_box = BlackBoxEvaluator(problem)
        generator = torch.Generator().manual_seed(0)
        black_box.log_density(problem.prior.sample((500,), generator=generator))
        first = OutputEmulator(*black_box.data, torch.Generator().manual_seed(1))
        mended = OutputEmulator.of(black_box, torch.Generator().manual_seed(1))
        x, _, log_density = black_box.data

        def promises(found: OutputEmulator) -> int:
            return int((problem.log_density_from(x, found(x)) > log_density.max() + 1.0).sum())

        assert promises(mended) <= promises(first)

    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
    def test_the_power_at_which_enough_points_count(self, scale: float) -> None:
        black_box = BlackBoxEvaluator(targets.from_numpy(lambda x: -scale * (x**2).sum(1), dim=2))
        black_box.log_density(points(1000, 2))
        log_density = black_box.data[2]
        beta = usable_power(black_box, 300)
        weights = 1.0 / (1.0 + (beta * (log_density.max() - log_density) / 14.0).square()).square()
        effective = float(weights.sum().square() / weights.square().sum())
        if scale == 1e6:
            assert effective == pytest.approx(300, rel=0.01)
        else:
            assert beta == 1.0
            assert effective > 300


class Believed(forward.EllipticBVP):
    """The model itself in an emulator's place."""

    def believed(self, x: Tensor, log_density: Tensor) -> Tensor:
        return log_density


class TestEvaluator:
    def test_gradient_with_the_true_outputs_in_the_emulators_place(self) -> None:
        """With an emulator that is the model itself, the gradient is that of the target."""
        problem, same = elliptic_black_box(), Believed().posterior(y=Y, noise_std=0.1, prior_std=10.0)
        black_box = BlackBoxEvaluator(problem)
        black_box.emulator = Believed()
        x = torch.tensor([[-2.7, 104.0], [-2.0, 100.0], [0.0, 90.0]], dtype=torch.float64, requires_grad=True)
        value, gradient = black_box.value_and_grad(x)
        torch.testing.assert_close(value, same(x).detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(same(x).sum(), x)[0])
        assert (black_box.n_evaluations, black_box.n_calls) == (3, 1)

    def test_everything_finite_is_kept_in_order(self) -> None:
        target = targets.Target(lambda x: torch.where(x[:, 0] > 0.0, -x[:, 1], -math.inf), 2, differentiable=False)
        black_box, x = BlackBoxEvaluator(target), points(6, 2)
        for some in x.split(2):
            black_box.log_density(some)
        kept, outputs, log_density = black_box.data
        inside = x[:, 0] > 0.0
        assert torch.equal(kept, x[inside])
        assert torch.equal(outputs[:, 0], -x[inside][:, 1])
        assert torch.equal(log_density, outputs[:, 0])

    def test_wrong_shapes_are_named(self) -> None:
        with pytest.raises(TargetShapeError, match=r"one|a number for each"):
            BlackBoxEvaluator(targets.Target(lambda x: x.sum(), 2, differentiable=False)).log_density(points(3, 2))

    def test_only_one_target_may_be_without_gradient(self) -> None:
        from jkosampler import energies

        dark = targets.Target(lambda x: -x.square().sum(1), 2, differentiable=False)
        energy = energies.KL(dark) + energies.KL(dark)
        with pytest.raises(ArgumentError, match="only one"):
            JKOSampler(energy=energy, dim=2, progress=False, n_steps=1, step_size=0.1).fit()


class TestStart:
    def test_modes_have_the_shares_of_the_target(self) -> None:
        """Not those of a mixture that is wrong by as much as emulator and target may differ."""

        def log_density(x: np.ndarray) -> np.ndarray:
            left, right = (-0.5 * ((x - m) ** 2).sum(1) / 0.1 for m in (-2.0, 2.0))
            return np.logaddexp(math.log(0.3) + left, math.log(0.7) + right)

        energy = EnergyEvaluator(KL(targets.from_numpy(log_density, dim=2)), dim=2, dtype=torch.float64, device="cpu")
        modes = [laws.Gaussian([m, m], 0.1) for m in (-2.0, 2.0)]
        wrong = Mixtures((laws.Mixture([0.6, 0.4], modes),))
        mended = _black_box_start._with_true_shares(energy, wrong, torch.Generator().manual_seed(0))
        # the weights of either mode are constant, so that no chance is left
        torch.testing.assert_close(mended.blocks[0].weights, torch.tensor([0.3, 0.7], dtype=torch.float64))

    def test_posterior_of_other_scales_than_the_start(self) -> None:
        """Growth of eighteen fish: over N(0, I) of logarithms the log density varies by more than a million."""
        energy = EnergyEvaluator(KL(fish().unconstrained), dim=3, dtype=torch.float64, device="cpu")
        found = _black_box_start.black_box_start(
            energy, laws.Gaussian([0.0] * 3, 1.0), torch.Generator().manual_seed(0)
        )
        assert found is not None
        near = torch.tensor([60.0, 0.28, 3.0], dtype=torch.float64).log()  # the truth; the start's mean is 4 away
        assert float((found[0].mean - near).abs().max()) < 1.0

    @pytest.mark.parametrize(("bound", "found"), [(10.0, True), (0.0, False)])
    def test_the_nearest_population_counts_where_none_agrees(
        self, monkeypatch: pytest.MonkeyPatch, bound: float, found: bool
    ) -> None:
        for name, value in (
            ("_AGREED", -1.0),
            ("_AGREED_PER_DIMENSION", -1.0),
            ("_ROUNDS", 3),
            ("_NEARLY_AGREED", bound),
        ):
            monkeypatch.setattr(_black_box_start, name, value)
        energy = EnergyEvaluator(KL(elliptic_black_box()), dim=2, dtype=torch.float64, device="cpu")
        start = laws.Product([laws.Normal(0.0, 1.0), laws.Normal(100.0, 5.0)])
        law = _black_box_start.black_box_start(energy, start, torch.Generator().manual_seed(0))
        assert (law is not None) == found


class TestFits:
    def test_elliptic_black_box(self) -> None:
        """Exact answers are quadratures; the bounds are ten Monte Carlo errors of 50 000 draws, and for sds 5 %."""
        start = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)])
        sampler = JKOSampler(elliptic_black_box(), initial=start, random_state=0, progress=False).fit()
        exact = exact_elliptic(noise_std=0.1, prior_std=10.0)
        assert sampler.log_evidence_ == pytest.approx(exact["log_evidence"], abs=0.01)
        assert sampler.n_target_evaluations_ <= 30_000
        assert sampler.n_target_calls_ <= 300
        assert "no gradient" in sampler.start_note_
        x = sampler.sample(50_000, random_state=1)
        assert np.max(np.abs(x.mean(0) - exact["mean"]) / exact["sd"]) < 0.045
        assert np.max(np.abs(x.std(0) / exact["sd"] - 1.0)) < 0.05
        weighted = sampler.sample(5_000, method="snis", random_state=2)
        assert np.max(np.abs(weighted.mean(0) - exact["mean"]) / exact["sd"]) < 0.1

    @pytest.mark.parametrize("d", [1, pytest.param(2, marks=pytest.mark.slow)])
    def test_plain_log_density_without_gradient(self, d: int) -> None:
        """A skewed density, log Gamma(2) variables; its integral is one."""

        def log_density(x: np.ndarray) -> np.ndarray:
            return (2.0 * x - np.exp(x)).sum(1)

        sampler = JKOSampler(targets.from_numpy(log_density, dim=d), random_state=0, progress=False).fit()
        assert abs(sampler.log_evidence_) < 0.01
        assert sampler.ess_ > 3_600

    @pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
    def test_few_data_in_numpy(self, seed: int) -> None:
        target, log_evidence = few_data()
        sampler = JKOSampler(target, random_state=seed, progress=False).fit()
        report = sampler.diagnose()
        assert report.trustworthy, report
        assert report.log_evidence == pytest.approx(log_evidence, abs=0.005)  # four errors of 4000 such weights
        assert report.ess_fraction > 0.99

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_fish_in_numpy(self, seed: int) -> None:
        sampler = JKOSampler(fish(), random_state=seed, progress=False).fit()
        assert sampler.diagnose().trustworthy
        assert sampler.ess_ > 3_900
        assert sampler.n_target_evaluations_ < 60_000

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    def test_two_modes(self) -> None:
        """Far apart and of unequal weight: .3 and .7."""

        def log_density(x: np.ndarray) -> np.ndarray:
            left, right = (-0.5 * ((x - m) ** 2).sum(1) / 0.1 for m in (-2.0, 2.0))
            return np.logaddexp(math.log(0.3) + left, math.log(0.7) + right) - math.log(2.0 * math.pi * 0.1)

        sampler = JKOSampler(targets.from_numpy(log_density, dim=2), random_state=0, progress=False).fit()
        share = float((sampler.sample(20_000, random_state=0)[:, 0] < 0.0).mean())
        assert abs(sampler.log_evidence_) < 0.05
        assert share == pytest.approx(0.3, abs=0.02)

    def test_constrained_black_box(self) -> None:
        """Gamma(3) of a positive variable without gradient, in the user's space."""
        target = targets.Target(
            lambda x: torch.from_numpy(2.0 * np.log(x.detach().numpy()[:, 0]) - x.detach().numpy()[:, 0]),
            support={"s": "positive"}, names=["s"], differentiable=False,
        )  # fmt: skip
        sampler = JKOSampler(target, random_state=0, progress=False).fit()
        assert sampler.log_evidence_ == pytest.approx(math.log(2.0), abs=0.01)
        draws = sampler.sample(20_000, random_state=0)[:, 0]
        assert draws.min() > 0.0
        assert draws.mean() == pytest.approx(3.0, abs=5 * 3**0.5 / 20_000**0.5)

    def test_fixed_steps(self) -> None:
        """Of an Ornstein-Uhlenbeck flow: after one step of size 1 from N(2, 1) the mean is 2 / (1 + 1)."""
        target = targets.from_numpy(lambda x: -0.5 * (x**2).sum(1), dim=1)
        start = laws.Gaussian([2.0], [[1.0]])
        sampler = JKOSampler(
            target, metric="wasserstein", initial=start, step_size=1.0, n_steps=1, random_state=0, progress=False
        ).fit()
        assert float(sampler.sample(20_000, random_state=0).mean()) == pytest.approx(1.0, abs=0.05)

    def test_budget_ends_it(self) -> None:
        sampler = JKOSampler(elliptic_black_box(), random_state=0, progress=False, max_target_evaluations=3_000)
        with pytest.warns(Warning, match="max_target_evaluations"):
            sampler.fit()
        assert sampler.n_target_evaluations_ < 6_000
