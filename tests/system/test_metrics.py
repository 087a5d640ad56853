"""What velad shows over HTTP: parsed by Prometheus's own parser, and compared with the status."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from expositions import Samples, samples_of, value

from lab.autoconfigured import asking, ends, policy, wait_until_up
from lab.circuit import NAME
from lab.daemon import ROOT, Velad
from lab.errors import LabError
from lab.load import ping
from lab.namespace import Namespace
from lab.topology import TwoRouters
from lab.waiting import eventually

pytestmark = pytest.mark.needs_net_admin

METRICS = '[daemon]\nmetrics = "127.0.0.1:9486"\n'
FETCH = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", 9486, timeout=20)
connection.request(sys.argv[1], sys.argv[2])
answer = connection.getresponse()
print(json.dumps([answer.status, dict(answer.getheaders()), answer.read().decode()]))
"""
HOSTILE = """to "the" <b>centre</b> \\\\ & more"""


def fetch(
    namespace: Namespace, path: str, method: str = "GET"
) -> tuple[int, Mapping[str, str], str]:
    done = namespace.run(sys.executable, "-c", FETCH, method, path)
    status, fields, body = json.loads(done.stdout)
    return status, fields, body


def scrape(namespace: Namespace) -> Samples:
    status, fields, body = fetch(namespace, "/metrics")
    assert status == 200
    assert fields["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples_of(body)


def with_cpu_use(namespace: Namespace) -> Samples:
    found = scrape(namespace)
    return found if any(name == "vela_worker_cpu_ratio" for name, _ in found) else {}


def test_metrics_are_those_of_the_status(routers: TwoRouters) -> None:
    config = asking(routers.b.ipv4, description="to the data centre") + METRICS
    with ends(routers, config, policy()) as both:
        wait_until_up(both)
        assert ping(routers.a.namespace, "172.16.16.2", count=5).received == 5
        before: Any = both.a.circuit(NAME)
        samples = scrape(routers.a.namespace)
        after: Any = both.a.circuit(NAME)

    assert value(samples, "vela_circuit_up", circuit=NAME) == 1
    states = {
        dict(labels)["state"]: number
        for (name, labels), number in samples.items()
        if name == "vela_circuit_state"
    }
    assert [state for state, number in states.items() if number] == ["up"]
    for direction in ("tx", "rx"):
        for what in ("frames", "bytes"):
            name = f"vela_circuit_{what}_total"
            found = value(samples, name, circuit=NAME, direction=direction)
            counter = f"{direction}_{what}"
            assert before["counters"][counter] <= found <= after["counters"][counter]
        for reason in before["counters"][f"{direction}_dropped"]:
            labels = {"circuit": NAME, "direction": direction, "reason": reason}
            assert value(samples, "vela_circuit_dropped_total", **labels) >= 0
    assert value(samples, "vela_circuit_frames_total", circuit=NAME, direction="tx") >= 5
    assert value(samples, "vela_circuit_mtu_bytes", circuit=NAME) == 1471
    assert 0 < value(samples, "vela_circuit_round_trip_seconds", circuit=NAME) < 5
    assert value(samples, "vela_worker_restarts_total", circuit=NAME) == 0
    (described,) = (dict(labels) for name, labels in samples if name == "vela_circuit_info")
    assert described["description"] == "to the data centre"
    assert described["remote_address"] == routers.b.ipv4
    assert value(samples, "vela_circuits", state="up") == 1
    assert value(samples, "process_open_fds") > 5


def test_names_of_operators_are_shown_as_they_are_and_run_nowhere(routers: TwoRouters) -> None:
    config = f"""
[circuits.vela0]
id = 1
remote = "{routers.b.ipv4}"
autoconfigure = false
description = {json.dumps(HOSTILE)}
"""
    with Velad(routers.a.namespace, config + METRICS) as velad:
        velad.wait_for_state(NAME, "unmonitored")
        samples = scrape(routers.a.namespace)
        status, fields, page = fetch(routers.a.namespace, "/")

    (described,) = (dict(labels) for name, labels in samples if name == "vela_circuit_info")
    assert described["description"] == HOSTILE
    assert status == 200
    assert fields["Content-Type"] == "text/html; charset=utf-8"
    assert fields["Content-Security-Policy"].startswith("default-src 'none'")
    assert "<b>" not in page
    assert "to &quot;the&quot; &lt;b&gt;centre&lt;/b&gt;" in page
    assert '<td class="state good">unmonitored</td>' in page
    assert "<script" not in page
    assert '<meta http-equiv="refresh"' in page


def test_what_is_not_shown_is_refused(routers: TwoRouters) -> None:
    with Velad(routers.a.namespace, METRICS) as velad:
        assert fetch(routers.a.namespace, "/metrics/")[0] == 404
        status, fields, _ = fetch(routers.a.namespace, "/metrics", "POST")
        assert (status, fields["Allow"]) == (405, "GET, HEAD")
        samples = scrape(routers.a.namespace)
        assert velad.status()["circuits"] == []

    answers = {
        dict(labels)["code"]: number
        for (name, labels), number in samples.items()
        if name == "vela_http_answers_total"
    }
    assert answers == {"404": 1, "405": 1}


def test_address_that_is_taken_is_named_at_the_start(routers: TwoRouters) -> None:
    with Velad(routers.a.namespace, METRICS):
        second = Velad(routers.a.namespace, METRICS.replace("[daemon]", "[daemon]\nport = 4000"))
        with pytest.raises(LabError, match=r"listen on 127\.0\.0\.1:9486: Address already in"):
            second.start()
        # It has ended, and there is nothing to stop.
        second.process = None


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_browser_shows_the_page_without_a_word_in_its_console(
    routers: TwoRouters, tmp_path: Path
) -> None:
    config = f'[circuits.vela0]\nid = 1\nremote = "{routers.b.ipv4}"\nautoconfigure = false\n'
    picture = tmp_path / "page.png"
    with Velad(routers.a.namespace, config + METRICS) as velad:
        velad.wait_for_state(NAME, "unmonitored")
        done = routers.a.namespace.run(
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path}", f"--screenshot={picture}", "--window-size=1280,400"),
            *("--virtual-time-budget=1000", "http://127.0.0.1:9486/"),
            timeout_s=90,
        )

    assert "CONSOLE" not in done.stderr
    # An empty page of this size takes 2 kB.
    assert picture.stat().st_size > 10_000


@pytest.mark.alone
def test_scrape_of_255_circuits_takes_less_than_50_ms(
    routers: TwoRouters, figure: Callable[[str], None]
) -> None:
    many = "".join(
        f'[circuits.vela{number}]\nid = {number}\nremote = "{routers.b.ipv4}"\n'
        "autoconfigure = false\n"
        for number in range(1, 256)
    )
    with Velad(routers.a.namespace, many + METRICS) as velad:
        velad.wait_for(
            lambda status: {each["state"] for each in status["circuits"]} == {"unmonitored"},
            60,
            "255 circuits",
        )
        # Each tells what CPU time the one before took. The best counts: the machine has other work.
        took_s = [
            value(scrape(routers.a.namespace), "vela_exposition_build_seconds") for _ in range(8)
        ][1:]

    figure(f"scrape of 255 circuits: {min(took_s) * 1e3:.1f} to {max(took_s) * 1e3:.1f} ms")
    assert min(took_s) < 0.05


def test_each_expression_of_the_alert_rules_and_the_dashboard_has_its_metrics(
    routers: TwoRouters,
) -> None:
    expressions = [
        line.split("expr:", 1)[1]
        for line in (ROOT / "config" / "vela.rules.yml").read_text().splitlines()
        if "expr:" in line
    ]
    dashboard = json.loads((ROOT / "config" / "grafana-vela.json").read_text())
    expressions += [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    with ends(routers, asking(routers.b.ipv4, keepalive=1) + METRICS, policy()) as both:
        wait_until_up(both)
        both.a.wait_for(
            lambda status: status["circuits"][0]["loss"]["tx_percent"] is not None, 30, "probes"
        )
        # Measured since a second before, at least.
        samples = eventually(partial(with_cpu_use, routers.a.namespace), 20, "a worker's CPU use")
        measured: Any = both.a.circuit(NAME)
    for direction in ("tx", "rx"):
        lost = value(samples, "vela_circuit_loss_ratio", circuit=NAME, direction=direction)
        assert lost == measured["loss"][f"{direction}_percent"] == 0
    assert value(samples, "vela_circuit_round_trip_loss_ratio", circuit=NAME) == 0
    labels_of: dict[str, set[str]] = {}
    for name, labels in samples:
        labels_of.setdefault(name, set()).update(label for label, _ in labels)

    assert len(expressions) > 10
    for expression in expressions:
        used = re.findall(r"\b((?:vela|process)_\w+)(?:\{([^}]*)\})?", expression)
        assert used, expression
        for name, selected in used:
            assert name in labels_of, expression
            wanted = set(re.findall(r"(\w+)\s*[=!]", selected)) - {"instance", "job"}
            assert wanted <= labels_of[name], expression
