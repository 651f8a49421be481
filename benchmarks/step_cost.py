"""What a training step of `ODEMap` costs, as a multiple of the matrix products that it cannot avoid.

    python benchmarks/step_cost.py [--cases 1000,2,64,3 ...] [--repetitions 20] [--naive 3] [--json FILE]
                                   [--markdown FILE]

One step is forward and backward of `mean(action/2 + log_rho - log_det + |z|^2/2)` in all parameters, by RK4 in one
inner step with time input and the exact trace, in float32 and on one thread, for n particles in d dimensions and a
potential of L layers of m units. Three implementations:

* fused: `ODEMap(fused=True)`;
* plain: `ODEMap(fused=False)`, the explicit formulas of the potential, differentiated by torch;
* naive: the potential as textbooks write it, of `torch.nn.Linear` layers and `|a| + log(1 + e^-2|a|)`, its gradient and
  trace by `autograd.grad` (1 + d calls), differentiated by torch.

The yardstick, timed in the same run: for each of the four stages, with (rows, inner) x (inner, columns),

* the arguments of the L layers: (n, d+1) x (d+1, m) and L-1 times (n, m) x (m, m);
* the sweep back to the gradient: L-1 times (n, m) x (m, m), then (n, m) x (m, d), and (n, d+1) x (d+1, d) of the
  quadratic term;
* the Jacobian's rows: L-1 times (n d, m) x (m, m). (Those of layer 0 are the same for all particles.)

and for each of them two more of the same size backward: one to its factor on the left, one to its weights. (Only
the derivatives in the particles at the first stage, which nobody wants, are left out.) They are bare calls with
`out=`, each on tensors of its own, and those with a short side are written so that it comes first, which is faster.
The fused step makes exactly these products, those of layer 1's rows as (n, m) x (m, d m).

All are timed in turns, each right after an untimed run of its own, by the CPU time of the process; medians. It fails
where a ratio is not as required.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common.harness import write
from torch import Tensor, nn

from jkosampler.maps import INTEGRATORS, ODEMap
from jkosampler.potentials import ResNetPotential

REQUIRED = {
    "1000,2,64,3": (2.0, 0.0),
    "1000,10,128,3": (1.4, 8.0),
    "2000,32,128,2": (1.3, 0.0),
}  # of fused, naive/fused
CASES = list(REQUIRED)
Call = Callable[[], object]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--cases", nargs="+", default=CASES, metavar="n,d,m,L")
    arguments.add_argument("--repetitions", type=int, default=20)
    arguments.add_argument("--naive", type=int, default=3, help="repetitions of the naive step, 0 to leave it out")
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--markdown", type=Path)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    rows = [run(*map(int, case.split(",")), chosen.repetitions, chosen.naive) for case in chosen.cases]
    print(markdown(rows), end="")
    if chosen.markdown:
        write(chosen.markdown, markdown(rows))
    if chosen.json:
        write(chosen.json, json.dumps(rows, indent=1) + "\n")
    missed = 0
    for row in rows:
        at_most, at_least = required(row)
        missed += int(row["fused"] > at_most) + int(row["naive / fused"] < at_least)
    sys.exit(f"{missed} requirements were missed" if missed else 0)


def markdown(rows: list[dict[str, float]]) -> str:
    """The table."""
    lines = ["| n | d | m | L | products, ms | fused | required | plain | naive | naive / fused | required |"]
    lines.append("|---" * 11 + "|")
    for row in rows:
        at_most, at_least = required(row)
        bounds = [f"<= {at_most}" if at_most < math.inf else "", f">= {at_least}" if at_least else ""]
        fused, plain, naive, ratio = (f"{row[name]:.2f}" for name in ("fused", "plain", "naive", "naive / fused"))
        cells = [*sizes(row), f"{row['products_ms']:.1f}", fused, bounds[0], plain, naive, ratio, bounds[1]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def required(row: dict[str, float]) -> tuple[float, float]:
    """The largest that `fused` may be, and the smallest that `naive / fused` may be."""
    return REQUIRED.get(",".join(sizes(row)), (math.inf, 0.0))


def sizes(row: dict[str, float]) -> list[str]:
    return [str(row[name]) for name in ("n", "d", "m", "L")]


def run(n: int, d: int, m: int, depth: int, repetitions: int, naive_repetitions: int) -> dict[str, float]:
    """Medians, and their multiples of the products' median."""
    products = irreducible_products(n, d, m, depth)
    potential, naive = random_potential(d, m, depth), NaivePotential(d, m, depth)
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    steps: dict[str, Call] = {
        "products": lambda: [product() for product in products],
        "fused": lambda: training_step(potential, ODEMap(potential).transport, x),
        "plain": lambda: training_step(potential, ODEMap(potential, fused=False).transport, x),
        "naive": lambda: training_step(naive, lambda z: naive_transport(naive, z), x),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions):
        for name, step in steps.items():
            if name == "naive" and repetition >= naive_repetitions:
                continue
            step()  # so that the timed one finds its own data in the caches
            began = time.process_time()
            step()
            times[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) if values else float("nan") for name, values in times.items()}
    ratios = {name: medians[name] / medians["products"] for name in ("fused", "plain", "naive")}
    minima = {f"{name}, of minima": min(times[name]) / min(times["products"]) for name in ("fused", "plain")}
    return {
        **{"n": n, "d": d, "m": m, "L": depth},
        **{f"{name}_ms": 1e3 * median for name, median in medians.items()},
        **ratios,
        **minima,
        "naive / fused": medians["naive"] / medians["fused"],
    }


def random_potential(d: int, m: int, depth: int) -> ResNetPotential:
    generator = torch.Generator().manual_seed(0)
    potential = ResNetPotential(d, width=m, depth=depth, time_input=True, generator=generator, dtype=torch.float32)
    with torch.no_grad():
        for parameter in (potential.output, potential.quadratic, potential.linear):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return potential


class NaivePotential(nn.Module):
    """`w'u_L + s'A'A s / 2 + b's` of `s = (x, t)`."""

    def __init__(self, d: int, m: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d + 1 if layer == 0 else m, m) for layer in range(depth)])
        self.output, self.linear = nn.Linear(m, 1, bias=False), nn.Linear(d + 1, 1)
        self.root = nn.Parameter(0.1 * torch.ones(d + 1, d + 1))

    def forward(self, x: Tensor, t: float) -> Tensor:
        s = torch.cat([x, torch.full_like(x[:, :1], t)], dim=1)
        u = _activation(self.layers[0](s))
        for layer in self.layers[1:]:
            u = u + _activation(layer(u))
        return (self.output(u) + self.linear(s)).squeeze(1) + 0.5 * (s @ self.root.mT).square().sum(1)


def _activation(a: Tensor) -> Tensor:
    return a.abs() + torch.log(1.0 + torch.exp(-2.0 * a.abs()))


def training_step(
    potential: nn.Module, transport: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], x: Tensor
) -> None:
    potential.zero_grad()
    log_rho = -0.5 * x.square().sum(1)
    z, log_det, action = transport(x)
    loss = (0.5 * action + log_rho - log_det + 0.5 * z.square().sum(1)).mean()
    loss.backward()


def naive_transport(potential: NaivePotential, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, weights = INTEGRATORS["rk4"]
    velocities: list[Tensor] = []
    x = x.detach().requires_grad_(True)
    end, log_det, action = x, torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
    for row, weight in zip(rows, weights, strict=True):
        z = x + sum((a * v for a, v in zip(row, velocities, strict=True) if a), torch.zeros_like(x))
        (v,) = torch.autograd.grad(potential(z, sum(row)).sum(), z, create_graph=True)
        divergence = sum(torch.autograd.grad(v[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(x.shape[1]))
        velocities.append(v)
        end, log_det = end + weight * v, log_det + weight * divergence
        action = action + weight * v.square().sum(-1)
    return end, log_det, action


def irreducible_products(n: int, d: int, m: int, depth: int) -> list[Call]:
    """The products of one step: see above."""
    by_layer = [*square_products(n, m, 2 * (depth - 1)), *square_products(n * d, m, depth - 1)]
    stages = [[*by_layer, *thin_products(n, d, m, wants_x=stage > 0)] for stage in range(4)]
    return [product for stage in stages for product in stage]


def square_products(rows: int, m: int, count: int) -> list[Call]:
    """`count` times (rows, m) x (m, m), with the two of its backward."""
    calls: list[Call] = []
    for _ in range(count):
        left, weights, transposed, d_weights = (
            torch.randn(rows, m),
            torch.randn(m, m),
            torch.randn(m, m),
            torch.zeros(m, m),
        )
        out, d_out, d_left = torch.empty(rows, m), torch.randn(rows, m), torch.empty(rows, m)
        calls += [
            partial(torch.mm, left, weights, out=out),
            partial(torch.mm, d_out, transposed, out=d_left),
            partial(d_weights.addmm_, left.mT, d_out),
        ]
    return calls


def thin_products(n: int, d: int, m: int, wants_x: bool) -> list[Call]:
    """Those of layer 0, of the gradient and of the quadratic term; positions are (d, n)."""
    inputs, x = torch.randn(d + 1, n), torch.randn(d, n)
    first, inner, affine = torch.randn(d + 1, m), torch.randn(d, m), torch.randn(d, d + 1)
    d_first, d_inner, d_affine = torch.zeros(d + 1, m), torch.zeros(d, m), torch.zeros(d, d + 1)
    a, y, v, dx = torch.empty(n, m), torch.randn(n, m), torch.empty(d, n), torch.empty(d, n)
    calls: list[Call] = [
        partial(torch.mm, inputs.mT, first, out=a),
        partial(d_first.addmm_, inputs, y),
        partial(torch.mm, inner, y.mT, out=v),
        partial(torch.mm, x.mT, inner, out=a),
        partial(d_inner.addmm_, x, y),
        partial(torch.mm, affine, inputs, out=v),
        partial(d_affine.addmm_, x, inputs.mT),
    ]
    if wants_x:
        calls += [partial(torch.mm, inner, y.mT, out=dx), partial(torch.mm, affine[:, :d], x, out=dx)]
    return calls


if __name__ == "__main__":
    main()
