"""HTTP to UM-Bridge servers: time-outs, second attempts, several servers that share the load, their errors in words.

The package `umbridge` has a client too, but one that waits for ever, drops what a server says when that is not the JSON
it expects, and opens a connection for each call; so this one speaks the protocol itself, by the standard library.
"""

from __future__ import annotations

import http.client
import json
import logging
import random
import re
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from jkosampler.errors import ArgumentError, ResourceError

__all__ = ["RunError", "Servers"]

logger = logging.getLogger(__name__)

_CONNECT_S = 10.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_OVERLOADED = (502, 503, 504)  # what a balancer in front of the servers answers when it finds none
_BARE_NUMBERS = {"nan": "NaN", "inf": "Infinity"}


class RunError(Exception):
    """A server answered that it could not evaluate the model, or in words that mean this, or not in time."""


class Servers:
    """Servers of one and the same model, which take requests in turn; safe in threads.

    Parameters
    ----------
    urls : sequence of str
    timeout : float
        Seconds that a request may take.
    retries : int
        Further attempts of a request that finds no server; one that did not answer is left alone for .1, .2, .4 .. 5 s.

    Raises
    ------
    ArgumentError
        A URL is none.
    """

    def __init__(self, urls: Sequence[str], timeout: float, retries: int) -> None:
        self.urls = [_checked_url(url) for url in urls]
        self.timeout, self.retries = timeout, retries
        self._fresh_start()

    def _fresh_start(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[str, list[http.client.HTTPConnection]] = {url: [] for url in self.urls}
        weakref.finalize(self, _close, self._idle)
        self._load = dict.fromkeys(self.urls, 0)
        self._failures = dict.fromkeys(self.urls, 0)
        self._rests_until = dict.fromkeys(self.urls, 0.0)

    def __getstate__(self) -> dict[str, Any]:
        return {"urls": self.urls, "timeout": self.timeout, "retries": self.retries}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh_start()

    def ask(self, path: str, body: dict[str, Any] | None = None, url: str | None = None) -> dict[str, Any]:
        """What a server answers to a POST of `body`, or a GET without; `url`: that server.

        Raises
        ------
        RunError
            It answers with an error, with something that is no JSON object, or not in time.
        ResourceError
            No server answers, at any attempt.
        """
        reason: Exception | None = None
        for _ in range(self.retries + 1):
            taken = self._take(url)
            answered = False
            try:
                status, text = self._exchange(taken, path, body)
                answered = status not in _OVERLOADED
                if answered:
                    return _understood(status, text)
                reason = RunError(f"HTTP {status}: {_both_ends(text)}")
            except _TimedOut as error:
                raise RunError(
                    f"{taken} did not answer within {self.timeout:g} s; a larger timeout= waits longer."
                ) from error
            except (OSError, http.client.HTTPException) as error:
                reason = error
            finally:
                self._give_back(taken, answered)
            logger.info("%s: %r", taken, reason)
        raise ResourceError(
            f"url: no answer from {url or ', '.join(self.urls)} at {self.retries + 1} attempts "
            f"({type(reason).__name__}: {reason}). Is the UM-Bridge server running there? It may have died at the last "
            "request: see its log. A larger retries= waits longer for it to come back."
        ) from reason

    def _take(self, url: str | None) -> str:
        """The server with the least to do, not counting those that did not answer just now unless all did not."""
        with self._lock:
            now = time.monotonic()
            candidates = [url] if url else self.urls
            awake = [one for one in candidates if self._rests_until[one] <= now]
            if awake:
                # pickled copies know nothing of each other's load: drawing lots spreads theirs
                taken = min(awake, key=lambda one: (self._load[one], random.random()))
            else:
                taken = min(candidates, key=lambda one: self._rests_until[one])
            pause = self._rests_until[taken] - now
            self._load[taken] += 1
        if pause > 0:
            time.sleep(pause)
        return taken

    def _give_back(self, url: str, answered: bool) -> None:
        with self._lock:
            self._load[url] -= 1
            self._failures[url] = 0 if answered else self._failures[url] + 1
            if not answered:
                pause = min(_PAUSE_S * 2.0 ** (self._failures[url] - 1), _LONGEST_PAUSE_S)
                self._rests_until[url] = time.monotonic() + pause

    def _exchange(self, url: str, path: str, body: dict[str, Any] | None) -> tuple[int, str]:
        with self._lock:
            connection = self._idle[url].pop() if self._idle[url] else None
        if connection is not None:
            try:
                return self._exchange_on(connection, url, path, body)
            except (ConnectionError, http.client.BadStatusLine):
                # closed by the server while idle, which says nothing about the server; or it died: the next one tells
                pass
        return self._exchange_on(self._connected(url), url, path, body)

    def _exchange_on(
        self, connection: http.client.HTTPConnection, url: str, path: str, body: dict[str, Any] | None
    ) -> tuple[int, str]:
        try:
            where = urlsplit(url).path.rstrip("/") + path
            if body is None:
                connection.request("GET", where)
            else:
                connection.request("POST", where, json.dumps(body).encode(), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.status, response.read().decode("utf-8", "replace")
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                raise _TimedOut from error
            raise
        with self._lock:
            self._idle[url].append(connection)
        return answer

    def _connected(self, url: str) -> http.client.HTTPConnection:
        parts = urlsplit(url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=min(_CONNECT_S, self.timeout))
        connection.connect()
        connection.sock.settimeout(self.timeout)
        return connection


class _TimedOut(Exception):  # noqa: N818 - it never leaves this file
    """A connected server did not answer in time; one that can't be connected to in time is like one that is away."""


def _close(idle: dict[str, list[http.client.HTTPConnection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()


def _understood(status: int, text: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        # servers that print their numbers write nan and inf, which JSON in Python spells otherwise
        spelled = re.sub(r"\b(nan|inf)\b", lambda match: _BARE_NUMBERS[match.group()], text)
        try:
            answer = json.loads(spelled)
        except ValueError:
            what = f"HTTP {status}, " if status >= 400 else ""
            raise RunError(f"the server's answer is no JSON: {what}{_both_ends(text) or 'empty'}") from None
    if isinstance(answer, dict) and "error" in answer:
        error = answer["error"]
        if isinstance(error, dict):
            error = f"{error.get('type', 'error')}: {error.get('message', '')}"
        raise RunError(f"the server says: {_both_ends(str(error))}")
    if status >= 400 or not isinstance(answer, dict):
        raise RunError(f"the server's answer can't be used: HTTP {status}: {_both_ends(text)}")
    return answer


def _both_ends(text: str, most: int = 240) -> str:
    """A text in one line: of a long one the ends, since a traceback says at the end what went wrong."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 3]} .. {text[-2 * most // 3 :]}"


def _checked_url(url: Any) -> str:
    try:
        parts = urlsplit(url)
        usable = isinstance(url, str) and parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port
    except (ValueError, AttributeError, TypeError):
        usable = False
    if not usable:
        raise ArgumentError(f'url must look like "http://127.0.0.1:4242", or be a list of such, got {url!r}.')
    return str(url).rstrip("/")
