"""Fits that go on from a file, bit for bit, and fitted samplers that come back from one."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from jkosampler import JKOSampler, checkpoint, domains, energies, engines, forward, laws
from jkosampler.errors import ArgumentError, CheckpointError, UnavailableError
from jkosampler.targets import Target

LINUX = sys.platform.startswith("linux")

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def bent(x: Tensor) -> Tensor:
    return -0.125 * x[:, 0].square() - 0.5 * (x[:, 1:] - 0.3 * x[:, :1].square()).square().sum(1)


def two_modes(x: Tensor) -> Tensor:
    return torch.logsumexp(torch.stack([-0.5 * (x - 5.0).square().sum(1), -0.5 * (x + 5.0).square().sum(1)]), 0)


def half_wave(x: Tensor) -> Tensor:
    return 0.5 * torch.cos(x[:, 0])


def black_box() -> Target:
    model = forward.EllipticBVP()
    box = forward.BlackBox(lambda x: model(torch.from_numpy(x)).numpy(), 2, 2, vectorized=True)
    return box.posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)


def sampler(log_target: Any = None, **options: Any) -> JKOSampler:
    return JKOSampler(log_target, **{"random_state": 0, "progress": False, "n_steps": 3} | options)


SMALL = {"n_particles": 1000}
FITS: dict[str, Callable[..., JKOSampler]] = {
    "adaptive": lambda **more: sampler(bent, dim=3, **more),
    "one dimension": lambda **more: sampler(lambda x: -x[:, 0].abs() ** 3, dim=1, **more),
    "networks": lambda **more: sampler(
        bent, dim=3, engine=engines.Lagrangian(n_ridges=0, n_iterations=30, affine=False), **SMALL | more
    ),
    "fixed steps": lambda **more: sampler(bent, **{"dim": 2, "step_size": 0.2} | SMALL | more),
    "second order": lambda **more: sampler(bent, dim=2, step_size=0.2, order=2, **SMALL | more),
    "neural ODE": lambda **more: sampler(
        bent, dim=2, step_size=0.2, engine=engines.Lagrangian(map="ode", n_iterations=10), **SMALL | more
    ),
    "explicit": lambda **more: sampler(bent, dim=2, engine=engines.Lagrangian(potential="explicit"), **more),
    "two modes": lambda **more: sampler(two_modes, dim=2, **more),
    "black box": lambda **more: sampler(
        black_box(), initial=laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)]), **more
    ),
    "porous medium": lambda **more: sampler(
        energy=energies.Power(m=2), initial=laws.Barenblatt(dim=2, m=2, age=1e-3), step_size=1e-3, **SMALL | more
    ),
    "mobility": lambda **more: sampler(
        energy=energies.Interaction(lambda z: 0.5 * z.square().sum(-1)), mobility="exclusion",
        initial=laws.Normal(0.0, 1.0), step_size=0.05, **SMALL | more,
    ),
    "push-forward": lambda **more: sampler(
        energy=energies.Entropy() + energies.Potential(lambda x: 0.5 * x.square().sum(1)),
        initial=laws.Gaussian(torch.ones(2), 0.5 * torch.eye(2)), engine="minimizing-movement", step_size=0.1,
        **SMALL | more,
    ),
    "between walls": lambda **more: sampler(
        energy=energies.Entropy(), initial=lambda x: 1.0 + 0.5 * torch.cos(torch.pi * x[:, 0]),
        domain=domains.Box(0, 1, dim=1), step_size=0.01, **SMALL | more,
    ),
    "field": lambda **more: sampler(
        energy=energies.AllenCahn(epsilon=0.25), metric="l2", domain=domains.Box(-1, 1, dim=1), initial=half_wave,
        step_size=0.01, **more,
    ),
    "field by Adam": lambda **more: sampler(
        energy=energies.Dirichlet(), metric="l2", domain=domains.Box(-1, 1, dim=1), initial=half_wave, step_size=0.01,
        engine=engines.MinimizingMovement.as_in_the_paper(n_iterations=5, n_quadrature=200), **more,
    ),
}  # fmt: skip


def bits(fitted: JKOSampler) -> str:
    """A digest of what a sampler answers and remembers."""
    digest = hashlib.sha256(fitted.times_.tobytes())
    x = np.linspace(-0.9, 0.9, 20)[:, None].repeat(fitted.n_features_in_, 1)
    if hasattr(fitted._fitted.state, "pool"):
        for part in (fitted.particles_, fitted.sample(50), fitted.sample(50, random_state=1)):
            digest.update(np.ascontiguousarray(part).tobytes())
    else:
        digest.update(fitted.field(x).tobytes())
    kept = ("time", "step_size", "energy", "transport_cost", "loss", "n_iterations", "target_evaluations")
    digest.update(json.dumps([[float(record[name]) for name in kept] for record in fitted.history_]).encode())
    digest.update(f"{fitted.n_target_evaluations_} {fitted.n_target_calls_} {fitted.converged_}".encode())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", FITS)
def test_a_resumed_fit_has_the_bits_of_one_without_a_break(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "fit.safetensors"
    steps = FITS[kind](checkpoint=path).steps()
    next(steps)
    steps.close()
    resumed, whole = FITS[kind](checkpoint=path).fit(), FITS[kind]().fit()
    assert resumed.stop_reason_ == whole.stop_reason_
    assert bits(resumed) == bits(whole)
    finished = FITS[kind](checkpoint=path).fit()  # nothing is left to do
    assert finished.n_steps_ == whole.n_steps_
    assert finished.stop_reason_ == whole.stop_reason_
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.suffix != ".lock") == [path.name]


class TestResume:
    def test_other_parameters_are_refused_by_name(self, tmp_path: Path) -> None:
        path = tmp_path / "fit.safetensors"
        FITS["fixed steps"](checkpoint=path, n_steps=1).fit()
        before = path.read_bytes()
        changes = {"step_size": 0.1, "n_particles": 900, "random_state": 1, "metric": "wasserstein"}
        for name, value in changes.items():
            with pytest.raises(CheckpointError, match=f"other parameters: {name} is .* here and was .* there"):
                FITS["fixed steps"](checkpoint=path, **{name: value}).fit()
        with pytest.raises(CheckpointError, match=r"engine is Lagrangian\(width=8\) here and was None there"):
            FITS["fixed steps"](checkpoint=path, engine=engines.Lagrangian(width=8)).fit()
        start, x = laws.Gaussian(torch.zeros(2), torch.eye(2)), np.random.default_rng(0).normal(size=(1000, 2))
        FITS["fixed steps"](checkpoint=tmp_path / "x", initial=start, n_steps=1).fit(x)
        with pytest.raises(CheckpointError, match="starting particles X"):
            FITS["fixed steps"](checkpoint=tmp_path / "x", initial=start).fit(x[::-1])
        assert path.read_bytes() == before

    def test_another_target_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "fit.safetensors"
        options = {"dim": 2, "checkpoint": path, **SMALL}
        sampler(lambda x: -x.square().sum(1), n_steps=1, **options).fit()
        with pytest.raises(CheckpointError, match="belongs to another target"):
            sampler(lambda x: -2.0 * x.square().sum(1), **options).fit()

    def test_begin_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "fit.safetensors"
        FITS["fixed steps"](checkpoint=path, n_steps=2).fit()
        fitted = FITS["fixed steps"](checkpoint=path, n_steps=1, random_state=3, resume=False).fit()
        assert fitted.n_steps_ == JKOSampler.load(path, bent).n_steps_ == 1

    def test_more_steps_and_more_budget_go_on(self, tmp_path: Path) -> None:
        path = tmp_path / "fit.safetensors"
        FITS["fixed steps"](checkpoint=path, max_target_evaluations=1).fit()
        spent = JKOSampler.load(path, bent).n_steps_
        assert FITS["fixed steps"](checkpoint=path, max_target_evaluations=1).fit().n_steps_ == spent
        more = FITS["fixed steps"](checkpoint=path, n_steps=2).fit()
        assert bits(more) == bits(FITS["fixed steps"](n_steps=2).fit())

    def test_extend_writes_too(self, tmp_path: Path) -> None:
        path = tmp_path / "fit.safetensors"
        fitted = FITS["fixed steps"](checkpoint=path, n_steps=1).fit().extend(1)
        assert JKOSampler.load(path, bent).n_steps_ == fitted.n_steps_ == 2

    def test_two_fits_do_not_share_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "fit.safetensors"
        steps = FITS["fixed steps"](checkpoint=path).steps()
        next(steps)
        with pytest.raises(CheckpointError, match="another fit is writing"):
            FITS["fixed steps"](checkpoint=path).fit()
        steps.close()
        assert FITS["fixed steps"](checkpoint=path).fit().n_steps_ == 3

    def test_a_failing_target_leaves_the_last_step(self, tmp_path: Path) -> None:
        path, steps_made = tmp_path / "fit.safetensors", [0]

        def failing(x: Tensor) -> Tensor:
            if steps_made[0] > 0:
                raise OSError("the licence server is gone")
            return bent(x)

        def fit(target: Callable[[Tensor], Tensor]) -> JKOSampler:
            one = sampler(target, dim=2, step_size=0.2, checkpoint=path, **SMALL)
            for _ in one.steps():
                steps_made[0] += 1
            return one

        with pytest.raises(OSError, match="licence"):
            fit(failing)
        steps_made[0] = -10
        assert bits(fit(failing)) == bits(FITS["fixed steps"]().fit())

    def test_a_path_that_can_not_be_is_refused_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match=r"checkpoint=.* is a folder"):
            FITS["adaptive"](checkpoint=tmp_path).fit()

    @pytest.mark.slow
    def test_kill_9_at_any_moment(self, tmp_path: Path) -> None:
        script = Path(__file__).with_name("killed_fits.py")
        done = subprocess.run(
            [sys.executable, script, str(tmp_path / "fit.safetensors"), "50"],
            capture_output=True,
            text=True,
            timeout=3000,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "50 of 50 resumed with the same bits" in done.stdout


class TestLoad:
    def test_without_the_target(self, tmp_path: Path) -> None:
        fitted, path = FITS["adaptive"](initial=laws.Gaussian(torch.ones(3), torch.eye(3))).fit(), tmp_path / "fit"
        fitted.save(path)
        loaded = JKOSampler.load(path)
        x = fitted.sample(20, random_state=1)
        assert np.array_equal(loaded.sample(20, random_state=1), x)
        assert np.array_equal(loaded.log_density(x), fitted.log_density(x))
        assert np.array_equal(loaded.log_density(x, t=fitted.times_[1]), fitted.log_density(x, t=fitted.times_[1]))
        assert repr(loaded.history_) == repr(fitted.history_)
        assert loaded.get_params()["n_steps"] == 3
        known = fitted.log_evidence_
        fitted.save(path)
        assert JKOSampler.load(path).log_evidence_ == known
        for question in (loaded.diagnose, loaded.extend, loaded.to_arviz, lambda: loaded.sample(5, method="snis")):
            with pytest.raises(UnavailableError, match=r"needs log_target .* give it to JKOSampler\.load"):
                question()

    def test_names_stay_without_the_target(self, tmp_path: Path) -> None:
        problem = forward.EllipticBVP().posterior(y=[27.5, 79.7], noise_std=0.1, prior_std=10.0)
        fitted = JKOSampler(problem, random_state=0, n_steps=1, progress=False)
        fitted.fit().save(tmp_path / "fit")
        assert JKOSampler.load(tmp_path / "fit")._fitted.names == ["u1", "u2"]

    def test_with_the_target(self, tmp_path: Path) -> None:
        fitted, path = FITS["adaptive"]().fit(), tmp_path / "fit"
        fitted.sample(10)  # the stream goes on
        fitted.save(path)
        loaded = JKOSampler.load(path, bent)
        assert loaded.log_evidence_ == fitted.log_evidence_
        assert str(loaded.diagnose()) == str(fitted.diagnose())
        assert bits(loaded.extend(1)) == bits(fitted.extend(1))
        with pytest.raises(CheckpointError, match="another target"):
            JKOSampler.load(path, two_modes)
        with pytest.raises(ArgumentError, match="'stepsize' is no parameter"):
            JKOSampler.load(path, stepsize=1)

    def test_laws_of_others_are_given_again(self, tmp_path: Path) -> None:
        law = torch.distributions.Laplace(torch.zeros(2), torch.ones(2))
        fitted, path = sampler(bent, dim=2, initial=law).fit(), tmp_path / "fit"
        fitted.save(path)
        with pytest.raises(UnavailableError, match="needs initial"):
            JKOSampler.load(path).sample(3)
        loaded = JKOSampler.load(path, initial=law)
        assert np.array_equal(loaded.sample(9, random_state=2), fitted.sample(9, random_state=2))

    def test_constrained_parameters(self, tmp_path: Path) -> None:
        def log_density(x: Tensor) -> Tensor:
            return -x[:, 0] - 0.5 * x[:, 1].square()

        target = Target(log_density, support={"sigma": "positive"}, names=["sigma", "mu"])
        fitted, path = sampler(target).fit(), tmp_path / "fit"
        fitted.save(path)
        loaded, x = JKOSampler.load(path), fitted.sample(9, random_state=2)
        assert np.array_equal(loaded.sample(9, random_state=2), x)
        assert np.array_equal(loaded.log_density(x), fitted.log_density(x))
        again = JKOSampler.load(path, target)
        assert again.log_evidence_ == fitted.log_evidence_

    def test_a_pde_goes_on(self, tmp_path: Path) -> None:
        fitted, path = FITS["porous medium"]().fit(), tmp_path / "fit"
        fitted.save(path)
        assert bits(JKOSampler.load(path).extend(1)) == bits(fitted.extend(1))

    def test_a_field_but_for_the_given_one(self, tmp_path: Path) -> None:
        fitted, path = FITS["field"]().fit(), tmp_path / "fit"
        fitted.save(path)
        x = np.linspace(-1, 1, 5)[:, None]
        assert np.array_equal(JKOSampler.load(path).field(x), fitted.field(x))
        again = JKOSampler.load(path, initial=half_wave)
        assert np.array_equal(again.field(x, t=0.0), fitted.field(x, t=0.0))

    def test_before_the_fit(self, tmp_path: Path) -> None:
        with pytest.raises(Exception, match="not fitted"):
            sampler(bent, dim=2).save(tmp_path / "fit")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fit") / "fit.safetensors"
    start = laws.Gaussian(torch.ones(2), torch.eye(2))
    sampler(bent, dim=2, n_steps=2, n_particles=100, initial=start).fit().save(path)
    return path


class TestHostileFiles:
    def test_nothing_that_a_file_names_is_called(self, saved: Path, tmp_path: Path) -> None:
        content, tensors = checkpoint.read(saved)
        names = ("os:system", "builtins:eval", "cli:main", "__main__:main", "targets.hosts:HostTarget", "laws..:x", 3)
        for name in names:
            content["state"]["object"] = name
            checkpoint.write(tmp_path / "bad", content, tensors)
            with pytest.raises(CheckpointError, match="make no sense"):
                JKOSampler.load(tmp_path / "bad", bent)

    @pytest.mark.parametrize("n", [40, pytest.param(1000, marks=pytest.mark.slow)])
    def test_any_damage_is_a_checkpoint_error(self, saved: Path, tmp_path: Path, n: int) -> None:
        rng, good = random.Random(1), saved.read_bytes()
        with safe_open(saved, framework="pt") as file:
            text = file.metadata()["content"]
        tensors = checkpoint.read(saved)[1]
        path, refused, before = tmp_path / "bad", 0, 0
        for i in range(n):
            _spoil(rng, path, good, text, tensors)
            try:
                JKOSampler.load(path, bent)
            except CheckpointError:
                refused += 1
            if i == 0 and LINUX:
                Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of what ran before
                before = peak()
        assert refused > 0.5 * n  # the others were harmless: a number of the history, say
        if LINUX:
            assert peak() - before < 100 * 2**10


def peak() -> int:
    """Peak memory of this process, in kibibytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def _spoil(rng: random.Random, path: Path, good: bytes, text: str, tensors: dict[str, Tensor]) -> None:
    """Write a damaged file: cut off, with flipped bits, or with sound digests around changed contents."""
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(good[: rng.randrange(len(good))])
    elif kind == 1:
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 20)):
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
    else:
        content, tensors = json.loads(text), dict(tensors)
        for _ in range(rng.randrange(1, 4)):
            if kind == 2:
                _change_somewhere(rng, content)
            else:
                name = rng.choice(list(tensors))
                tensors[name] = rng.choice(
                    [torch.zeros(0), torch.zeros(3, 5, 7), torch.tensor(1), tensors[name].clone()]
                )
        checkpoint.write(path, content, tensors)


def _change_somewhere(rng: random.Random, node: Any) -> None:
    """Replace, drop or double a part of nested lists and dicts."""
    while isinstance(node, dict | list) and node:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.1:
            new = rng.choice([None, -1, 2**70, "x", [], {}, {"same": 10**6}, {"given": "y"}, [[[]]], True, 1e308])
            if rng.random() < 0.3:
                del node[key]
            else:
                node[key] = new
            return
        node = node[key]
