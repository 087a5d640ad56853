"""vela.supervisor.export.exporter: asked over HTTP, in a real event loop."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from email import message_from_bytes
from email.message import Message

import pytest
from exhaustion import no_descriptors
from expositions import samples_of, value
from http_clients import PATIENCE_S, connect, free_endpoint, read_to_end
from status_records import CIRCUIT
from status_records import DAEMON as STATUS
from structlog.testing import capture_logs

from vela.errors import DeviceError
from vela.supervisor.export import exporter
from vela.supervisor.export.exporter import Exporter
from vela.supervisor.export.history import SAMPLES
from vela.supervisor.runtime import listener
from vela.supervisor.runtime.loop import EventLoop
from vela.supervisor.status import DaemonStatus, RateStatus


class Site:
    """An exporter and those who ask it; what it shows is counted and can be changed."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.endpoint = free_endpoint()
        self.shown = STATUS
        self.asked = 0
        self.sampled = self.sampled_before = 0
        """All, and those that there were when the status was taken."""
        self.wanted_samples = 0
        self.exporter = Exporter(self.loop, self.endpoint, self._status, self._rates)

    def _status(self) -> DaemonStatus:
        self.asked += 1
        self.sampled_before = self.sampled
        return self.shown

    def _rates(self) -> list[tuple[str, RateStatus]]:
        self.sampled += 1
        if self.sampled == self.wanted_samples:
            # Behind what is done with these.
            self.loop.call_soon(self.loop.stop)
        return [("vela0", RateStatus(1000 * self.sampled, 0, 1, 1))]

    def get(self, path: str) -> tuple[int, Message, str]:
        """Return status, header fields and body of an answer."""
        request = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        with connect(self.endpoint, request) as client:
            head, _, body = read_to_end(self.loop, client).partition(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        return int(line.split()[1]), message_from_bytes(fields), body.decode()

    def close(self) -> None:
        self.exporter.close()
        self.loop.close()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def test_metrics_are_those_of_the_status_at_the_time_of_the_request(site: Site) -> None:
    before_s = time.process_time()

    status, fields, body = site.get("/metrics")
    site.shown = replace(STATUS, rx_dropped={"unknown_circuit": 4})
    later = samples_of(site.get("/metrics?x=1")[2])

    assert status == 200
    assert fields["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert fields["Cache-Control"] == "no-store"
    first = samples_of(body)
    assert value(first, "vela_build_info", version="1.2.3") == 1
    assert value(first, "vela_dropped_datagrams_total", reason="unknown_circuit") == 3
    assert value(later, "vela_dropped_datagrams_total", reason="unknown_circuit") == 4
    assert site.asked == 2
    # Of this process.
    assert before_s <= value(first, "process_cpu_seconds_total") + 0.02  # in steps of 10 ms
    assert value(first, "process_open_fds") <= len(os.listdir("/proc/self/fd")) + 2


def test_exposition_says_what_the_one_before_took_and_how_many_answers_there_were(
    site: Site,
) -> None:
    first = samples_of(site.get("/metrics")[2])
    site.get("/nothing")
    second = samples_of(site.get("/metrics")[2])

    assert value(first, "vela_exposition_build_seconds") == 0
    assert 0 < value(second, "vela_exposition_build_seconds") < 20
    assert not [name for name, _ in first if name == "vela_http_answers_total"]
    assert value(second, "vela_http_answers_total", code="200") == 1
    assert value(second, "vela_http_answers_total", code="404") == 1


def test_page_shows_the_status_and_lets_a_browser_run_nothing(site: Site) -> None:
    status, fields, body = site.get("/")

    assert status == 200
    assert fields["Content-Type"] == "text/html; charset=utf-8"
    assert fields["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert fields["Referrer-Policy"] == "no-referrer"
    assert "<h1>no circuits</h1>" in body
    assert "velad 1.2.3, pid 4700, up for 2 h, on 192.0.2.1:48621, [2001:db8::1]:48621" in body


@pytest.mark.parametrize("path", ["/metrics/", "/status", "/%6detrics", "//"])
def test_other_paths_are_not_found_and_cost_no_status(site: Site, path: str) -> None:
    status, _, body = site.get(path)

    assert (status, body) == (404, "404 Not Found\n")
    assert site.asked == 0


def test_rates_are_sampled_all_the_time_and_drawn_on_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporter, "PERIOD_S", 0.01)
    site = Site()
    site.shown = replace(STATUS, circuits=(CIRCUIT,))
    site.wanted_samples = 3
    late = site.loop.call_later(PATIENCE_S, site.loop.stop)
    site.loop.run()
    late.cancel()
    assert site.sampled == 3

    _, _, page = site.get("/")

    site.close()
    # Number n is n kbit/s; the largest has the height 22, and the newest is at the right (120).
    drawn = re.search(r'<polyline class="tx" points="([^"]+)"/>', page)
    assert drawn is not None
    sampled = site.sampled_before
    kept = range(sampled, max(sampled - SAMPLES, 0), -1)
    heights = [23 - 22 * number / sampled for number in kept]
    assert drawn[1].split() == [
        f"{120 - 2 * age},{height:.1f}" for age, height in enumerate(heights)
    ]


def test_address_that_is_taken_is_a_device_error_that_names_it(site: Site) -> None:
    said = f"cannot listen on {site.endpoint}: Address already in use"

    with pytest.raises(DeviceError) as refused:
        Exporter(site.loop, site.endpoint, lambda: STATUS, list)

    assert str(refused.value) == said


def test_frozen_exporter_answers_when_it_is_thawed(site: Site) -> None:
    site.exporter.freeze()
    with connect(site.endpoint, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") as client:
        # A turn of the loop, in which whatever is ready is served.
        site.loop.call_later(0, site.loop.stop)
        site.loop.run()
        assert site.asked == 0

        site.exporter.thaw()

        assert read_to_end(site.loop, client).startswith(b"HTTP/1.1 200 OK\r\n")
    assert site.asked == 1


def test_next_velad_goes_on_with_the_socket_of_the_one_before(site: Site) -> None:
    site.exporter.freeze()
    with connect(site.endpoint, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") as client:
        adopted = os.dup(site.exporter.fileno())
        site.exporter.close()
        after = replace(STATUS, version="1.2.4")

        site.exporter = Exporter(site.loop, site.endpoint, lambda: after, list, adopted)

        body = read_to_end(site.loop, client).partition(b"\r\n\r\n")[2].decode()
    assert value(samples_of(body), "vela_build_info", version="1.2.4") == 1


def test_connection_for_which_there_is_no_descriptor_is_told_and_answered_later(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "EXHAUSTED_PAUSE_S", 0.05)
    with connect(site.endpoint, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n") as client:
        with capture_logs() as log, no_descriptors():
            site.loop.call_later(0, site.loop.stop)
            site.loop.run()

        assert read_to_end(site.loop, client).startswith(b"HTTP/1.1 200 OK\r\n")
    assert [(entry["event"], entry["reason"]) for entry in log] == [
        ("metrics_connection_refused", "Too many open files")
    ]


def test_closed_exporter_listens_no_more_and_samples_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporter, "PERIOD_S", 0.01)
    site = Site()

    site.exporter.close()

    site.loop.call_later(0.1, site.loop.stop)
    site.loop.run()
    assert site.sampled == 0
    with pytest.raises(ConnectionRefusedError):
        connect(site.endpoint)
    site.loop.close()
