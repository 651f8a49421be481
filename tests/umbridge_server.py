"""An UM-Bridge server with the elliptic problem in several characters: `python umbridge_server.py PORT`."""

from __future__ import annotations

import os
import sys
import time

import numpy as np
import umbridge
from worker_functions import elliptic, elliptic_vjp


class Elliptic(umbridge.Model):
    """p at two points for (u1, u2); failing where u1 > 0, slow where u1 > 1, dead where u1 > 2, if it is so named."""

    def get_input_sizes(self, config: dict) -> list[int]:
        return [2]

    def get_output_sizes(self, config: dict) -> list[int]:
        return [2]

    def __call__(self, parameters: list, config: dict) -> list:
        u = np.array(parameters[0])
        if self.name == "failing" and u[0] > 0:
            raise ArithmeticError("the solver diverged")
        if self.name == "slow" and u[0] > 1:
            time.sleep(1.5)
        if self.name == "dying" and u[0] > 2:
            os._exit(1)
        if self.name == "nan":
            return [[float("nan"), -float("inf")]]
        return [(float(config.get("factor", 1.0)) * elliptic(u)).tolist()]

    def gradient(self, out_wrt: int, in_wrt: int, parameters: list, sens: list, config: dict) -> list:
        factor = float(config.get("factor", 1.0))
        return (factor * elliptic_vjp(np.array(parameters[0]), np.array(sens))).tolist()

    def supports_evaluate(self) -> bool:
        return True

    def supports_gradient(self) -> bool:
        return self.name not in ("plain", "nan")


class Parts(Elliptic):
    """The same with each number a vector of its own."""

    def get_input_sizes(self, config: dict) -> list[int]:
        return [1, 1]

    def get_output_sizes(self, config: dict) -> list[int]:
        return [1, 1]

    def __call__(self, parameters: list, config: dict) -> list:
        return [[value] for value in elliptic(np.concatenate(parameters)).tolist()]

    def gradient(self, out_wrt: int, in_wrt: int, parameters: list, sens: list, config: dict) -> list:
        sensitivities = np.zeros(2)
        sensitivities[out_wrt] = sens[0]
        return [float(elliptic_vjp(np.concatenate(parameters), sensitivities)[in_wrt])]


if __name__ == "__main__":
    models = [Elliptic(name) for name in ("forward", "plain", "failing", "slow", "dying", "nan")]
    umbridge.serve_models([*models, Parts("parts")], port=int(sys.argv[1]), max_workers=4)
