"""UM-Bridge: real servers on loopback that serve, fail, die and dawdle; and a stand-in that answers nonsense."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pickle import dumps, loads
from urllib.request import urlopen

import numpy as np
import pytest
import torch

from jkosampler import JKOSampler, engines, laws
from jkosampler.errors import ArgumentError, ResourceError, TargetCallError
from jkosampler.forward import EllipticBVP, UMBridge
from jkosampler.targets import TargetEvaluator

DATA = {"y": [27.5, 79.7], "noise_std": 0.1, "prior_std": 10.0}
X = torch.tensor([[-2.7, 104.0], [-2.5, 103.0], [-2.9, 105.0]], dtype=torch.float64)
HERE = Path(__file__).parent.parent
QUICK = {"retries": 2, "timeout": 20.0}


@contextmanager
def serving() -> Iterator[tuple[str, subprocess.Popen]]:
    """A server process of its own, on a free port."""
    pytest.importorskip("umbridge")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, str(HERE / "umbridge_server.py"), str(port)], **silent)
    try:
        for _ in range(300):
            assert process.poll() is None, "the server ended at its start"
            try:
                with urlopen(f"{url}/Info", timeout=1.0) as answer:
                    assert answer.status == 200
                break
            except OSError:
                time.sleep(0.1)
        yield url, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as (url, _):
        yield url


@pytest.mark.parametrize("name", ["forward", "parts"])
def test_values_and_gradients_are_those_of_the_closed_form(url: str, name: str) -> None:
    model = UMBridge(url, name, names=["u1", "u2"], **QUICK)
    assert (model.dim, model.output_dim, model.names, model.differentiable) == (2, 2, ["u1", "u2"], True)
    ours, exact = model.posterior(**DATA), EllipticBVP().posterior(**DATA)
    expected = TargetEvaluator(exact).value_and_grad(X)
    torch.testing.assert_close(TargetEvaluator(ours).value_and_grad(X), expected, rtol=1e-11, atol=1e-9)
    for copy in (deepcopy(ours), loads(dumps(ours))):
        torch.testing.assert_close(TargetEvaluator(copy).value_and_grad(X), expected, rtol=1e-11, atol=1e-9)
    with ThreadPoolExecutor(4) as executor:
        many = UMBridge(url, name, executor=executor, **QUICK)
        torch.testing.assert_close(many(X.repeat(20, 1)), EllipticBVP()(X).repeat(20, 1))


def test_the_configuration_goes_with_every_request(url: str) -> None:
    model = UMBridge(url, config={"factor": 3.0}, **QUICK)
    x = X.clone().requires_grad_(True)
    (ours,) = torch.autograd.grad(model(x).sum(), x)
    (exact,) = torch.autograd.grad(EllipticBVP()(x).sum(), x)
    torch.testing.assert_close(model(X), 3 * EllipticBVP()(X))
    torch.testing.assert_close(ours, 3 * exact)


def test_a_server_without_gradient_is_a_black_box(url: str) -> None:
    model = UMBridge(url, "plain", **QUICK)
    posterior = model.posterior(**DATA)
    assert (model.differentiable, posterior.differentiable) == (False, False)
    torch.testing.assert_close(posterior(X), EllipticBVP().posterior(**DATA)(X))


def test_a_failing_model_is_an_error_or_rejected(url: str) -> None:
    x = torch.cat([X, torch.tensor([[0.5, 100.0]], dtype=X.dtype)])
    with pytest.raises(TargetCallError, match=r"x\[3\] = \(0.5, 100\): RunError: .*HTTP 500") as caught:
        UMBridge(url, "failing", **QUICK).posterior(**DATA)(x)
    assert caught.value.indices.tolist() == [3]
    posterior = UMBridge(url, "failing", on_failure="reject", **QUICK).posterior(**DATA)
    value, gradient = TargetEvaluator(posterior).value_and_grad(x)
    torch.testing.assert_close(value[:3], EllipticBVP().posterior(**DATA)(X))
    assert value[3] == -math.inf
    assert (gradient[3] == 0).all()
    assert posterior.n_failed == 1


def test_a_dead_server_is_an_error_and_another_takes_over(url: str) -> None:
    """A server dies of one point: what else was asked of it is asked of the other; alone it is missed."""
    x = X.repeat(10, 1)
    deadly = torch.tensor([[3.0, 100.0]], dtype=X.dtype)
    exact = EllipticBVP()(x)
    with serving() as (other, process):
        both, alone = UMBridge([url, other], "dying", **QUICK), UMBridge(other, "dying", **QUICK)
        torch.testing.assert_close(both(x), exact)
        with pytest.raises(ResourceError, match=r"no answer from .* at 3 attempts.*Is the UM-Bridge server running"):
            alone(torch.cat([x, deadly, x]))
        assert process.wait(10) == 1
        started = time.monotonic()
        torch.testing.assert_close(both(x), exact)
        assert time.monotonic() - started < 2.5  # nobody waits for the dead one, at which pauses grow to 5 s
        rejecting = UMBridge(url, "dying", on_failure="reject", **QUICK)
        torch.testing.assert_close(rejecting(x), exact)
        with pytest.raises(ResourceError):  # no run failed: there is nobody to run it
            alone(x)


def test_a_slow_run_is_not_waited_for(url: str) -> None:
    x = torch.cat([X, torch.tensor([[1.5, 100.0]], dtype=X.dtype)])
    started = time.monotonic()
    with pytest.raises(TargetCallError, match=r"x\[3\] .*did not answer within 0.3 s.*timeout="):
        UMBridge(url, "slow", timeout=0.3)(x)
    rejecting = UMBridge(url, "slow", timeout=0.3, on_failure="reject")
    assert rejecting(x).isnan().any(dim=1).tolist() == [False, False, False, True]
    assert rejecting.n_failed == 1
    assert time.monotonic() - started < 1.4
    torch.testing.assert_close(UMBridge(url, "slow", timeout=10.0)(x), EllipticBVP()(x))


def test_numbers_that_are_no_json_are_understood(url: str) -> None:
    """The Python server prints its numbers: nan and -inf."""
    found = UMBridge(url, "nan", **QUICK)(X[:1])
    assert found[0].isnan()[0]
    assert found[0, 1] == -math.inf


def test_wrong_names_and_urls_are_named(url: str) -> None:
    with pytest.raises(ArgumentError, match=r"no model 'backward'.*'forward'"):
        UMBridge(url, "backward", **QUICK)
    with pytest.raises(ArgumentError, match=r"no model 'parts' at .*, but 'forward'"), stand_in({}) as other:
        UMBridge([url, other], "parts", **QUICK)


@contextmanager
def stand_in(answers: dict[str, object], always: list[object] | None = None) -> Iterator[str]:
    """A server that answers what it is told: text, or (status, text); `always` is a list to be answered in turn."""
    sizes = {"inputSizes": [2], "outputSizes": [2]}
    usual = {
        "/Info": {"protocolVersion": 1.0, "models": ["forward"]},
        "/ModelInfo": {"support": {"Evaluate": True}},
        "/InputSizes": sizes,
        "/OutputSizes": sizes,
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = answers.get(self.path, usual.get(self.path, ""))
            if self.path == "/Evaluate" and always:
                answer = always.pop(0)
            status, text = answer if isinstance(answer, tuple) else (200, answer)
            body = (text if isinstance(text, str) else json.dumps(text)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


TRACEBACK = "Traceback (most recent call last):\n" + '  File "model.py", line 3\n' * 40 + "MemoryError: mesh too fine\n"


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (TRACEBACK, "is no JSON: Traceback.* .. .*MemoryError: mesh too fine"),
        ((500, TRACEBACK), "is no JSON: HTTP 500, Traceback.*MemoryError: mesh too fine"),
        ('{"output": [[1.0, 2.', "is no JSON: .*output"),
        ("", "is no JSON: empty"),
        ((400, {"error": {"type": "InvalidInput", "message": "too short"}}), "says: InvalidInput: too short"),
        ({"error": "out of licences"}, "says: out of licences"),
        ((404, "[]"), "can't be used: HTTP 404"),
        ({"output": [[1.0]]}, r"vector of 2 numbers, not \[1.0\]"),
        ({"output": [1.0, 2.0]}, r"1 vectors, not \[1.0, 2.0\]"),
        ({"output": [[1.0, "a"]]}, "vector of 2 numbers"),
        ({"result": 3}, "1 vectors, not None"),
    ],
)
def test_nonsense_is_a_failed_run_with_the_servers_words(answer: object, match: str) -> None:
    with stand_in({"/Evaluate": answer}) as url:
        with pytest.raises(TargetCallError, match=match) as caught:
            UMBridge(url, **QUICK)(X)
        assert caught.value.indices.tolist() == [0]
        rejecting = UMBridge(url, on_failure="reject", **QUICK)
        assert rejecting(X).isnan().all()
        assert rejecting.n_failed == 3


def test_null_is_nan() -> None:
    with stand_in({"/Evaluate": {"output": [[None, 2.0]]}}) as url:
        assert UMBridge(url, **QUICK)(X).isnan().tolist() == [[True, False]] * 3


def test_an_overloaded_balancer_is_asked_again() -> None:
    good = {"output": [[1.0, 2.0]]}
    with stand_in({}, [(503, "no server"), (502, ""), good, (504, ""), good, good]) as url:
        assert UMBridge(url, **QUICK)(X).tolist() == [[1.0, 2.0]] * 3
    overloaded = {"/Evaluate": (503, "no server")}
    with stand_in(overloaded) as url, pytest.raises(ResourceError, match="HTTP 503: no server"):
        UMBridge(url, **QUICK)(X)


@pytest.mark.parametrize(
    ("answers", "match"),
    [
        ({"/Info": "hello"}, "does not answer like an UM-Bridge server.*hello"),
        ({"/ModelInfo": {"support": {}}}, "can't be evaluated"),
        ({"/InputSizes": {"inputSizes": None}}, "sizes of the model"),
    ],
)
def test_other_servers_are_recognised(answers: dict[str, object], match: str) -> None:
    with stand_in(answers) as url, pytest.raises(ArgumentError, match=match):
        UMBridge(url, **QUICK)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"url": "127.0.0.1:4242"}, "url must look like"),
        ({"url": []}, "url must be one URL"),
        ({"url": [3]}, "url must look like"),
        ({"url": "http://127.0.0.1:port"}, "url must look like"),
        ({"url": "http://127.0.0.1:1", "timeout": 0.0}, "timeout"),
        ({"url": "http://127.0.0.1:1", "retries": -1}, "retries"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        UMBridge(**arguments)


def test_nobody_at_home_is_an_error_after_some_pauses() -> None:
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r"at 3 attempts \(ConnectionRefusedError"):
        UMBridge("http://127.0.0.1:1", retries=2)
    assert 0.3 <= time.monotonic() - started < 2.0  # .1 and .2 s
    with pytest.raises(ResourceError, match=r"http://127.0.0.1:1 at 1 attempts \(ConnectionRefusedError"):
        UMBridge("http://127.0.0.1:1", retries=0)


@pytest.mark.slow
def test_the_elliptic_posterior_over_http(url: str) -> None:
    """Explicit steps evaluate each particle once a step; evidence and median of u1 are those of a quadrature.

    The fit's own standard error of the evidence is 2e-5; that of the median of 2000 draws is 0.0033.
    """
    problem = UMBridge(url, names=["u1", "u2"]).posterior(**DATA)
    start = laws.Product([laws.Normal(0.0, 1.0), laws.Uniform(90.0, 110.0)])
    engine = engines.Lagrangian(potential="explicit")
    sampler = JKOSampler(
        problem,
        initial=start,
        engine=engine,
        n_particles=1000,
        max_target_evaluations=60_000,
        random_state=0,
        progress=False,
    ).fit()
    report = sampler.diagnose(2000)
    assert report.log_evidence == pytest.approx(-60.593868, abs=1e-3)
    assert report.converged
    assert sampler.n_target_evaluations_ < 60_000
    assert np.median(sampler.sample(2000)[:, 0]) == pytest.approx(-2.7203, abs=0.015)
