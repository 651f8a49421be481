"""The policies for steps, as pure functions of what held-out particles say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from jkosampler.engines.step_size import AdaptiveSteps, Control, FixedSteps, Judgement

NAN = math.nan
GOOD = Judgement(energy_change=-1.0, standard_error=0.01, transport_cost=0.1, discrepancy=0.5)


def seen(change: float, discrepancy: float = 0.5, cost: float = 0.0, error: float = 0.01) -> Judgement:
    return Judgement(change, error, cost, discrepancy)


@pytest.mark.parametrize(
    ("change", "discrepancy", "sound"),
    [(-1.0, 0.1, True), (NAN, 0.1, False), (-1.0, NAN, False), (math.inf, 0.1, False), (-1.0, math.inf, False)],
)
def test_sound(change: float, discrepancy: float, sound: bool) -> None:
    assert seen(change, discrepancy).sound is sound


@pytest.mark.parametrize("spoilt", [{"integration_error": -0.02}, {"integration_error": NAN}, {"left_support": True}])
@pytest.mark.parametrize("policy", [FixedSteps(0.1, 1e-3), AdaptiveSteps(1e-3)])
def test_unsound_steps_are_refused(policy: FixedSteps | AdaptiveSteps, spoilt: dict[str, Any]) -> None:
    assert policy.accepts(policy.first(), GOOD)
    assert not policy.accepts(policy.first(), GOOD._replace(**spoilt))


class TestFixedSteps:
    policy = FixedSteps(tau=0.1, threshold=1e-3)

    def test_every_step_has_the_size_of_the_user(self) -> None:
        control = self.policy.first()
        assert (control.tau, control.method, control.exact, control.effort) == (0.1, "network", True, 1)
        retried = self.policy.after_reject(control, 0.5)
        assert retried is not None
        assert self.policy.after_accept(retried, GOOD) == control
        assert retried.tau == 0.1

    @pytest.mark.parametrize(
        ("change", "cost", "accepted"),
        [
            (-0.5, 0.0999, True),  # E falls by what the movement costs: 0.0999 / (2 * 0.1) = 0.4995
            (-0.5, 0.105, True),  # within three standard errors of it
            (-0.5, 0.107, False),  # not any more
            (0.02, 0.0, True),
            (0.04, 0.0, False),
            (NAN, 0.0, False),
        ],
    )
    def test_the_inequality_of_the_step_decides(self, change: float, cost: float, accepted: bool) -> None:
        assert self.policy.accepts(self.policy.first(), seen(change, cost=cost)) is accepted

    def test_the_energy_may_rise_by_what_a_barrier_fell(self) -> None:
        step = seen(0.05)
        assert not self.policy.accepts(self.policy.first(), step)
        assert self.policy.accepts(self.policy.first(), step._replace(relief=0.03))
        assert not self.policy.accepts(self.policy.first(), step._replace(relief=-0.03, energy_change=0.02))

    def test_to_second_order_the_energy_must_not_rise(self) -> None:
        policy = FixedSteps(tau=0.1, threshold=1e-3, order=2)
        for change, accepted in ((-0.001, True), (0.02, True), (0.04, False), (NAN, False)):
            assert policy.accepts(policy.first(), seen(change, cost=5.0)) is accepted  # whatever the movement costs

    def test_to_second_order_a_rejected_step_is_made_in_twice_the_pieces(self) -> None:
        policy = FixedSteps(tau=0.1, threshold=1e-3, order=2)
        control: Control | None = policy.first()
        tried = []
        while control is not None:
            tried.append((control.pieces, control.effort, control.tau))
            last, control = control, policy.after_reject(control, 0.5)
        assert tried == [(2**k, 1, 0.1) for k in range(6)]
        assert policy.after_accept(last, GOOD) == policy.first()

    def test_a_step_that_stays_is_accepted(self) -> None:
        assert self.policy.accepts(self.policy.first(), seen(0.0, error=0.0))

    def test_rejected_steps_are_trained_twice_as_long_until_it_gives_up(self) -> None:
        control: Control | None = self.policy.first()
        efforts = []
        while control is not None:
            efforts.append(control.effort)
            control = self.policy.after_reject(control, 0.5)
        assert efforts == [1, 2, 4]

    def test_convergence(self) -> None:
        control = self.policy.first()
        assert self.policy.converged(control, seen(-1.0, discrepancy=1e-3))
        assert not self.policy.converged(control, seen(-1.0, discrepancy=1.1e-3))
        assert not self.policy.converged(control, seen(-1.0, discrepancy=NAN))
        assert self.policy.good_enough(0.9e-2)
        assert not self.policy.good_enough(1.1e-2)
        assert not self.policy.stalled(replace(control, stalled=100))


class TestAdaptiveSteps:
    policy = AdaptiveSteps(threshold=1e-3, collocation_below=0.1)
    affine = Control(tau=0.1, method="affine", collocation_below=0.1)
    collocation = Control(tau=1.0, method="collocation", best=0.5)
    network = Control(tau=1.0, method="network", best=0.5, collocation_below=0.01)

    def test_begins_with_a_short_affine_step(self) -> None:
        assert self.policy.first() == self.affine

    @pytest.mark.parametrize(
        ("change", "discrepancy", "accepted"),
        [
            (-0.03, 0.9, True),  # the energy falls beyond its error
            (-0.01, 0.4, True),  # it falls within the error, but the discrepancy is smaller
            (0.01, 0.4, True),
            (-0.01, 0.9, False),  # no progress in either
            (0.03, 0.4, False),  # the energy rises beyond its error, whatever the discrepancy says
            (NAN, 0.4, False),
            (-0.03, NAN, False),
        ],
    )
    @pytest.mark.parametrize("control", [collocation, network])
    def test_accepts_only_progress(self, control: Control, change: float, discrepancy: float, accepted: bool) -> None:
        assert self.policy.accepts(control, seen(change, discrepancy)) is accepted

    def test_affine_steps_must_not_lose_mass(self) -> None:
        losing = GOOD._replace(lost_mass=True)
        assert not self.policy.accepts(self.affine, losing)
        assert self.policy.accepts(self.network, losing)

    def test_affine_steps_grow_while_they_pay(self) -> None:
        control, sizes = self.affine, []
        for _ in range(7):
            sizes.append(control.tau)
            control = self.policy.after_accept(control, seen(-1.0))
            assert control.method == "affine"
        assert sizes == pytest.approx([0.1, 0.3, 0.9, 2.7, 8.1, 10.0, 10.0])

    def test_short_affine_steps_go_on_even_if_they_bring_little(self) -> None:
        after = self.policy.after_accept(self.affine, seen(-0.001))
        assert (after.method, after.tau) == ("affine", pytest.approx(0.3))

    def test_long_affine_steps_that_bring_nothing_end_the_stage(self) -> None:
        last = replace(self.affine, tau=2.7, best=0.9)
        near = self.policy.after_accept(last, seen(-0.03, discrepancy=0.07))
        settings = {"collocation_below": 0.1, "n_affine": 1}
        assert near == Control(self.policy.second_tau, "collocation", best=0.07, tails=True, **settings)
        far = self.policy.after_accept(last, seen(-0.03, discrepancy=0.7))
        assert far == Control(self.policy.largest_tau, "network", best=0.7, **settings)

    def test_affine_steps_do_not_go_on_for_ever(self) -> None:
        control = replace(self.affine, tau=10.0, best=0.9)
        for _ in range(self.policy.most_affine):
            assert control.method == "affine"
            control = self.policy.after_accept(control, seen(-5.0, discrepancy=0.8))
        assert control.method == "network"

    def test_rejected_affine_steps_are_shortened_and_then_left_to_other_maps(self) -> None:
        control: Control | None = replace(self.affine, tau=6.4, best=0.7)
        tried = []
        while control is not None and control.method == "affine":
            tried.append(control.tau)
            control = self.policy.after_reject(control, 0.5)
        assert tried == pytest.approx([6.4, 1.6, 0.4, 0.1])
        assert control == Control(self.policy.largest_tau, "network", best=0.7, collocation_below=0.1)

    def test_collocation_grows_tenfold_while_it_halves_the_discrepancy(self) -> None:
        after = self.policy.after_accept(self.collocation, seen(-1.0, discrepancy=0.2))
        assert (after.method, after.tau, after.best) == ("collocation", pytest.approx(10.0), 0.2)
        again = self.policy.after_accept(replace(after, tau=5e5), seen(-1.0, discrepancy=0.05))
        assert again.tau == self.policy.largest_tau

    def test_collocation_at_its_limit_gives_way_to_networks_until_they_came_nearer(self) -> None:
        after = self.policy.after_accept(replace(self.collocation, tau=10.0), seen(-1.0, discrepancy=0.4))
        assert (after.method, after.collocation_below) == ("network", pytest.approx(0.1))
        assert after.tau == pytest.approx(100.0)
        assert self.policy.after_accept(after, seen(-1.0, discrepancy=0.2)).method == "network"
        assert self.policy.after_accept(after, seen(-1.0, discrepancy=0.09)).method == "collocation"

    def test_failed_collocation_is_followed_by_a_long_step_of_a_network(self) -> None:
        after = self.policy.after_reject(replace(self.collocation, tau=3.0), 0.5)
        assert after == replace(
            self.collocation, tau=self.policy.largest_tau, method="network", collocation_below=0.125
        )

    def test_network_steps_grow_and_forget_failures_while_the_discrepancy_falls(self) -> None:
        before = replace(self.network, failures=1, stalled=1, effort=2)
        after = self.policy.after_accept(before, seen(-0.01, discrepancy=0.44))
        assert (after.tau, after.failures, after.stalled, after.best) == (pytest.approx(10.0), 0, 0, 0.44)
        assert self.policy.after_accept(replace(after, tau=5e5), seen(-1.0, 0.1)).tau == self.policy.largest_tau

    def test_a_falling_energy_is_progress_whatever_the_discrepancy_does(self) -> None:
        after = self.policy.after_accept(replace(self.network, stalled=1), seen(-0.1, discrepancy=0.9))
        assert (after.stalled, after.best) == (0, 0.5)

    def test_network_steps_without_progress_stall(self) -> None:
        once = self.policy.after_accept(self.network, seen(-0.01, discrepancy=0.46))
        assert (once.stalled, once.best) == (1, 0.46)
        assert not self.policy.stalled(once)
        twice = self.policy.after_accept(once, seen(-0.01, discrepancy=0.6))
        assert (twice.stalled, twice.best) == (2, 0.46)  # the best is kept
        assert self.policy.stalled(twice)

    def test_rejected_network_steps_are_shortened_until_nothing_is_left_to_try(self) -> None:
        control: Control | None = self.network
        sizes = []
        while control is not None:
            sizes.append(control.tau)
            control = self.policy.after_reject(control, 0.5)
        assert sizes == pytest.approx([1.0, 1e-3, 1e-6])
        assert self.policy.after_reject(self.network, 0.9e-2) is None  # within the resolution of the maps

    def test_tails_have_their_points_near_the_target(self) -> None:
        assert not self.policy.first().tails
        far = self.policy.after_accept(self.network, seen(-1.0, discrepancy=0.4))
        assert not far.tails
        near = self.policy.after_accept(self.network, seen(-1.0, discrepancy=0.02))
        assert near.tails

    def test_a_rejection_within_the_threshold_is_the_end(self) -> None:
        assert self.policy.after_reject(self.network, 1e-3) is None
        assert self.policy.after_reject(self.collocation, 1e-3) is None
        assert self.policy.after_reject(self.network, NAN) is not None
        assert self.policy.after_reject(self.affine, 1e-4) is not None  # a short affine step proves nothing

    def test_steps_by_an_emulator_that_learns_are_shorter_and_tried_again(self) -> None:
        policy = replace(self.policy, collocation_retries=2, shorter_network=1e-6, shortest_network=1.0)
        control: Control | None = replace(self.collocation, tau=1e6)
        tried = []
        while control is not None:
            tried.append((control.method, control.tau))
            control = policy.after_reject(control, 0.5)
        assert tried == [("collocation", tau) for tau in (1e6, 5.0, 1.0)] + [
            ("network", tau) for tau in (1e6, 1.0, 1.0)
        ]
        again = policy.after_reject(self.collocation, 1e-4)
        assert again == replace(self.collocation, failures=1)
        assert policy.after_reject(again, 1e-4) is None

    def test_every_run_of_failures_ends(self) -> None:
        control: Control | None = self.policy.first()
        tries = 0
        while control is not None:
            control, tries = self.policy.after_reject(control, 0.5), tries + 1
        assert tries == 7  # four affine steps, three with a network

    def test_every_run_without_progress_ends(self) -> None:
        control, steps = self.policy.first(), 0
        while not self.policy.stalled(control):
            control, steps = self.policy.after_accept(control, seen(-0.001, discrepancy=0.5)), steps + 1
            assert steps < 20
        assert control.method == "network"

    def test_only_a_long_step_proves_convergence(self) -> None:
        long = replace(self.network, tau=self.policy.largest_tau)
        assert self.policy.converged(long, seen(-1.0, discrepancy=1e-3))
        assert not self.policy.converged(long, seen(-1.0, discrepancy=1.1e-3))
        assert not self.policy.converged(long, seen(-1.0, discrepancy=NAN))
        assert not self.policy.converged(self.affine, seen(-1.0, discrepancy=1e-6))
        long_affine = replace(self.affine, tau=self.policy.largest_affine_tau)
        assert self.policy.converged(long_affine, seen(-1.0, discrepancy=1e-6))  # a Gaussian
        assert not self.policy.converged(long_affine, seen(-1.0, discrepancy=1e-4))
        assert self.policy.good_enough(0.9e-2)
        assert not self.policy.good_enough(1.1e-2)

    def test_collocation_goes_on_within_the_threshold_while_it_halves_the_discrepancy(self) -> None:
        long = replace(self.collocation, tau=self.policy.largest_tau, best=1e-4)
        assert not self.policy.converged(long, seen(0.0, discrepancy=4e-5))
        assert self.policy.converged(long, seen(0.0, discrepancy=6e-5))
        assert self.policy.converged(long, seen(0.0, discrepancy=0.9e-7))  # nothing left that matters
