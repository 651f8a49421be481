"""The optimisation loop: it lowers the objective, stops when told, sees every particle, and fails quietly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles import WORKED
from small_problems import double_well, draw, evaluator, exact_frame, gaussian_law, random_map, seeded
from torch import Tensor

from jkosampler.energies import KL
from jkosampler.engines.objectives import GRADIENTS, ControlVariate, Objective, PathGradient, Plain, StepProblem
from jkosampler.engines.training import TrainingResult, TrainingSettings, train
from jkosampler.errors import ArgumentError
from jkosampler.maps import Map
from jkosampler.particles import Particles

SETTINGS = TrainingSettings(n_iterations=60, batch_size=100, learning_rate=0.02)


@pytest.fixture
def problem() -> StepProblem:
    return StepProblem(evaluator(KL(double_well), 2), exact_frame(WORKED, "kalman"), 0.5)


def pool(problem: StepProblem, n: int = 500, seed: int = 0) -> Particles:
    return problem.frame.to_inner(draw(gaussian_law(WORKED), n, seed))


class Recorder(Objective):
    """Plain, and the batches it was shown."""

    def __init__(self, problem: StepProblem) -> None:
        super().__init__(problem)
        self.batches: list[Tensor] = []

    def __call__(self, step: Map, batch: Particles) -> tuple[Tensor, Tensor]:
        self.batches.append(batch.x)
        return Plain(self.problem)(step, batch)


def weights(step: Map) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in step.parameters()])


@pytest.mark.parametrize("kind", ["gradient", "ode"])
@pytest.mark.parametrize("estimate", sorted(GRADIENTS))
def test_adam_lowers_the_objective(problem: StepProblem, kind: str, estimate: str) -> None:
    step, particles = random_map(kind, 2, size=0.0, width=16), pool(problem)
    before = float(Plain(problem)(step, particles)[1])
    result = train(step, GRADIENTS[estimate](problem), particles, SETTINGS, seeded(1))
    fresh = pool(problem, 5000, seed=2)
    identity = random_map(kind, 2, size=0.0)
    gained = Plain(problem)(identity, fresh)[1] - Plain(problem)(step, fresh)[1]
    assert result.n_iterations == 60
    assert result.loss < before - 0.2
    assert float(gained) > 0.2  # and for particles that took no part


def test_the_loss_is_that_of_the_end(problem: StepProblem) -> None:
    step, particles = random_map("gradient", 2, size=0.0, width=16), pool(problem, 100)
    result = train(step, Plain(problem), particles, SETTINGS, seeded(1))
    # Batches are the whole pool, and the learning rate has decayed to nothing.
    assert result.loss == pytest.approx(float(Plain(problem)(step, particles)[1]), abs=1e-3)


@pytest.mark.parametrize("n_iterations", [1, 2, 9, 10, 11])
def test_any_number_of_iterations_is_made(problem: StepProblem, n_iterations: int) -> None:
    step = random_map("gradient", 2)
    settings = replace(SETTINGS, n_iterations=n_iterations)
    recorder = Recorder(problem)
    assert train(step, recorder, pool(problem), settings, seeded(0)).n_iterations == n_iterations
    assert len(recorder.batches) == n_iterations


def test_a_budget_ends_the_training_with_the_learning_rate(problem: StepProblem) -> None:
    """It is used up after 40 of 1000 looks at it: the last steps are as short as those of a whole training."""
    looks = 0

    def used() -> float:
        nonlocal looks
        looks += 1
        return 0.2 + 0.8 * looks / 40.0

    step, particles = random_map("gradient", 2), pool(problem)
    rates: list[float] = []
    original = torch.optim.Adam.step

    def seen(self: torch.optim.Adam, *arguments: object) -> object:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", seen)
        patch.setattr(problem.energy, "budget_used", used)
        result = train(step, Plain(problem), particles, replace(SETTINGS, n_iterations=1000), seeded(0))
    assert 5 < result.n_iterations < 40
    assert max(rates) > 0.5 * SETTINGS.learning_rate
    assert rates[-1] < 0.05 * SETTINGS.learning_rate


def test_tolerance_ends_the_training_where_the_loss_stands_still(problem: StepProblem) -> None:
    settings = replace(SETTINGS, n_iterations=250, batch_size=500, tolerance=0.02)
    result = train(random_map("gradient", 2, size=0.0), Plain(problem), pool(problem), settings, seeded(0))
    assert 50 <= result.n_iterations < 250
    assert result.n_iterations % 50 == 0
    strict = train(
        random_map("gradient", 2, size=0.0), Plain(problem), pool(problem), replace(settings, tolerance=0.0), seeded(0)
    )
    assert strict.n_iterations == 250


def test_tolerance_compares_the_same_particles(problem: StepProblem) -> None:
    recorder = Recorder(problem)
    settings = replace(SETTINGS, n_iterations=100, tolerance=1e-12)
    train(random_map("gradient", 2), recorder, pool(problem), settings, seeded(0))
    looks = [recorder.batches[i] for i in (0, 51, 52, 103)]  # before and after each block of 50
    for look in looks[1:]:
        torch.testing.assert_close(look, looks[0])


def test_particles_are_drawn_anew_between_blocks(problem: StepProblem) -> None:
    pools = [pool(problem, 100, seed=seed) for seed in range(4)]
    remaining = list(pools[1:])
    recorder = Recorder(problem)
    settings = replace(SETTINGS, n_iterations=50, batch_size=20, resample_every=15)
    train(random_map("gradient", 2), recorder, pools[0], settings, seeded(0), lambda: remaining.pop(0))
    assert not remaining  # three times, not after the last block
    for i, batch in enumerate(recorder.batches):
        owner = pools[i // 15].x
        assert bool((batch.unsqueeze(1) == owner.unsqueeze(0)).all(-1).any(1).all())


def test_resample_alone_does_nothing(problem: StepProblem) -> None:
    def never() -> Particles:
        raise AssertionError

    train(random_map("gradient", 2), Plain(problem), pool(problem), SETTINGS, seeded(0), never)


@pytest.mark.parametrize(("size", "per_pass"), [(25, 4), (30, 3), (100, 1), (1000, 1)])
def test_each_pass_is_a_permutation(problem: StepProblem, size: int, per_pass: int) -> None:
    particles, recorder = pool(problem, 100), Recorder(problem)
    settings = replace(SETTINGS, n_iterations=3 * per_pass, batch_size=size)
    train(random_map("gradient", 2), recorder, particles, settings, seeded(0))
    passes = [torch.cat(recorder.batches[i : i + per_pass]) for i in range(0, 3 * per_pass, per_pass)]
    for seen in passes:
        assert len(seen) == per_pass * min(size, 100)
        assert len(torch.unique(seen, dim=0)) == len(seen)  # nobody twice
        assert bool((seen.unsqueeze(1) == particles.x.unsqueeze(0)).all(-1).any(1).all())
    assert not torch.equal(passes[0], passes[1])


def test_lbfgs_lowers_the_objective_with_a_fixed_sample_mean(problem: StepProblem) -> None:
    step, particles = random_map("gradient", 2, size=0.0, width=16), pool(problem, 1000)
    settings = replace(SETTINGS, optimizer="lbfgs", batch_size=1000)
    result = train(step, ControlVariate(problem), particles, settings, seeded(1))
    fresh = pool(problem, 5000, seed=2)
    gained = Plain(problem)(random_map("gradient", 2, size=0.0), fresh)[1] - Plain(problem)(step, fresh)[1]
    assert float(gained) > 0.3
    assert result.n_iterations >= 60
    assert result.loss == pytest.approx(float(ControlVariate(problem)(step, particles)[1]))


def test_lbfgs_backs_off_from_maps_that_fold() -> None:
    # The target is a hundred times narrower than the start: the first quasi-Newton steps go beyond the fold.
    narrow = StepProblem(evaluator(KL(lambda x: -5e3 * x.square().sum(-1)), 2), exact_frame(WORKED, "kalman"), 10.0)
    step, particles = random_map("gradient", 2, size=0.0, depth=0), pool(narrow, 300)
    folded = 0

    class Counting(Plain):
        def __call__(self, step: Map, batch: Particles) -> tuple[Tensor, Tensor]:
            nonlocal folded
            loss, value = super().__call__(step, batch)
            folded += int(not loss.isfinite())
            return loss, value

    before = float(Plain(narrow)(step, particles)[1])
    settings = replace(SETTINGS, optimizer="lbfgs", batch_size=300, n_iterations=100)
    result = train(step, Counting(narrow), particles, settings, seeded(0))
    assert folded > 0
    assert result.loss < 0.01 * before


def test_lbfgs_refuses_the_path_gradient(problem: StepProblem) -> None:
    settings = replace(SETTINGS, optimizer="lbfgs")
    with pytest.raises(ArgumentError, match="gradient='control-variate'"):
        train(random_map("gradient", 2), PathGradient(problem), pool(problem), settings, seeded(0))


def test_unknown_optimizer(problem: StepProblem) -> None:
    settings = replace(SETTINGS, optimizer="sgd")
    with pytest.raises(ArgumentError, match=r"optimizer must be one of .*'adam'.*'sgd'"):
        train(random_map("gradient", 2), Plain(problem), pool(problem), settings, seeded(0))


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_map_that_folds_ends_the_training_with_nan(problem: StepProblem, optimizer: str) -> None:
    step = random_map("gradient", 2)
    with torch.no_grad():
        step.potential.quadratic.copy_(-2.0 * torch.eye(2))
    result = train(step, Plain(problem), pool(problem), replace(SETTINGS, optimizer=optimizer), seeded(0))
    assert isinstance(result, TrainingResult)
    assert result.loss != result.loss
    assert result.n_iterations == 0
    assert bool(weights(step).isfinite().all())


@pytest.mark.parametrize("estimate", sorted(GRADIENTS))
def test_a_training_that_diverges_does_not_blame_the_target(estimate: str) -> None:
    seen = []

    def log_target(x: Tensor) -> Tensor:
        seen.append(bool(x.isfinite().all()))
        return double_well(x)

    problem = StepProblem(evaluator(KL(log_target), 2), exact_frame(WORKED, "kalman"), 0.5)
    step = random_map("gradient", 2, width=16).float()
    settings = replace(SETTINGS, learning_rate=1e20)
    result = train(step, GRADIENTS[estimate](problem), pool(problem).to(torch.float32), settings, seeded(0))
    assert result.loss != result.loss
    assert all(seen)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_the_generator_decides_everything(problem: StepProblem, optimizer: str) -> None:
    def trained(seed: int) -> Tensor:
        step = random_map("gradient", 2)
        settings = replace(SETTINGS, n_iterations=20, optimizer=optimizer)
        train(step, Plain(problem), pool(problem), settings, seeded(seed))
        return weights(step)

    torch.manual_seed(0)
    first, state = trained(3), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(trained(3), first)
    assert torch.equal(trained(4), first) == (optimizer == "lbfgs")  # on a fixed batch nothing is random
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)  # the global one is not touched
