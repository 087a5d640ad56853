"""`velactl`, `velactl status`: the health of all circuits, a table of them, one in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from vela.errors import VelaError

from ..nearest import nearest
from ..states import STATES, WELL, total
from . import output
from .client import Document, ask
from .text import (
    Row,
    counts,
    cut,
    duration,
    milliseconds,
    natural,
    octets,
    plural,
    rate,
    short_duration,
    table,
)

_REASONS_SHOWN = 20
_PATTERN = frozenset("*?[")
# With this many columns there is room for more of them.
_WIDE = 120
_SHOWN_IN_HEALTH = 10


def is_trouble(circuit: Document) -> bool:
    """Tell whether a circuit does not do what it is to do."""
    return circuit["state"] not in (*WELL, "disabled")


def by_trouble(circuits: Iterable[Document]) -> list[Document]:
    """Return circuits in the order in which an operator wants to see them."""
    order = {state: rank for rank, state in enumerate(STATES)}
    return sorted(circuits, key=lambda each: (order.get(each["state"], -1), natural(each["name"])))


def health(path: str, *, as_json: bool) -> bool:
    """Show whether all circuits are up. Return it."""
    status = ask(path, {"command": "status"})
    circuits = status["circuits"]
    trouble = [each for each in by_trouble(circuits) if is_trouble(each)]
    if as_json:
        kept = ("name", "state", "reason", "reason_code", "since_seconds")
        output.write_json(
            {
                "healthy": not trouble,
                "circuits": len(circuits),
                "states": dict(Counter(each["state"] for each in circuits)),
                "trouble": [{key: each.get(key) for key in kept} for each in trouble],
            }
        )
        return not trouble
    output.write(health_lines(status, output.width()))
    return not trouble


def health_lines(status: Document, width: int) -> list[str]:
    """Return how many circuits are up, and which are not, and why."""
    circuits = status["circuits"]
    trouble = [each for each in by_trouble(circuits) if is_trouble(each)]
    uptime = duration(status["uptime_seconds"])
    lines = [
        f"velad {status['version']}, pid {status['pid']}, up {uptime}: {circuit_total(circuits)}"
    ]
    for each in trouble[:_SHOWN_IN_HEALTH]:
        since = short_duration(each.get("since_seconds"))
        why = each["reason"] or f"toward {each['remote']}"
        lines.append(f"{each['name']}: {each['state']} for {since}: {why}")
    if len(trouble) > _SHOWN_IN_HEALTH:
        lines.append(f"and {len(trouble) - _SHOWN_IN_HEALTH} more: velactl status --down")
    return [cut(line, width) for line in lines]


def show(path: str, patterns: Sequence[str], *, down: bool, as_json: bool) -> None:
    """Show the circuits that fit a pattern; none: all. down: only those in trouble.

    Raises VelaError if a pattern fits no circuit.
    """
    status: dict[str, Any] = dict(ask(path, {"command": "status"}))
    circuits = fitting(status["circuits"], patterns)
    if down:
        circuits = [each for each in circuits if is_trouble(each)]
    if as_json:
        output.write_json(status | {"circuits": circuits})
    elif len(patterns) == 1 and not _PATTERN & set(patterns[0]) and circuits:
        output.write(details(circuits[0]))
    else:
        output.write(summary(status, circuits, output.width()))


def fitting(circuits: Sequence[Document], patterns: Sequence[str]) -> list[Document]:
    """Return the circuits that fit one of the patterns; no pattern: all.

    Raises VelaError if a pattern fits none.
    """
    if not patterns:
        return list(circuits)
    names = [each["name"] for each in circuits]
    wanted = set().union(*(_matching(pattern, names) for pattern in patterns))
    return [each for each in circuits if each["name"] in wanted]


def _matching(pattern: str, names: Sequence[str]) -> set[str]:
    """Return the names that fit a pattern; one is a pattern of its own. Raises VelaError."""
    if pattern in names:  # it may have the characters of a pattern
        return {pattern}
    found = {name for name in names if fnmatchcase(name, pattern)}
    if found:
        return found
    if _PATTERN & set(pattern):
        raise VelaError(f"no circuit fits {pattern}")
    raise VelaError(f"there is no circuit {pattern}{nearest(pattern, names)}")


def summary(status: Document, circuits: Sequence[Document], width: int) -> list[str]:
    """Return lines about the daemon, and a table of circuits."""
    uptime, listen = duration(status["uptime_seconds"]), ", ".join(status["listen"])
    lines = [f"velad {status['version']}, pid {status['pid']}, up {uptime}, listening on {listen}"]
    unused = status.get("unused_features", ())
    if unused:
        lines.append(f"kernel features not in use: {', '.join(unused)}")
    dropped = counts(status["rx_dropped"])
    if dropped:
        lines.append(f"dropped: {dropped}")
    # A velad from before an update does not say it.
    lines += [
        f"wrong key from {each['address']}: {plural(each['messages'], 'message')}, "
        f"the last {duration(each['last_seconds'])} ago"
        for each in status.get("wrong_keys", ())
    ]
    lines.append(circuit_total(circuits))
    if not circuits:
        return lines
    ordered = by_trouble(circuits)
    lines += ["", *circuit_table(ordered, width)]
    # Whole, as the table may cut them.
    reasons = [f"{each['name']}: {each['reason']}" for each in ordered if each["reason"]]
    if reasons:
        lines += ["", *reasons[:_REASONS_SHOWN]]
    return lines


def circuit_table(circuits: Sequence[Document], width: int) -> list[str]:
    """Return a header and a line for each circuit, in this order."""
    wide = width >= _WIDE
    # Where no remote answers echo requests, there is nothing to show.
    lossy = any(_loss(each) is not None for each in circuits)
    header = ["CIRCUIT", ">ID", "STATE", ">FOR", ">FLAPS", ">TX", ">RX", ">RTT"]
    header += [">LOSS"] if lossy else []
    header += [">MTU", ">CPU", ">DROPS", ">RESTARTS"] if wide else []
    rows = []
    for each in circuits:
        transitions = each.get("transitions")
        cells = [
            each["name"],
            str(each["id"]),
            each["state"],
            short_duration(each.get("since_seconds")),
            "-" if transitions is None else str(transitions),
        ]
        if each["reason"] and each["state"] not in WELL:
            rows.append(Row(cells, each["reason"]))
            continue
        rates = each.get("rates") or {}
        cells += [rate(rates.get("tx_bps")), rate(rates.get("rx_bps"))]
        cells.append(milliseconds(each["rtt_ms"]))
        if lossy:
            loss = _loss(each)
            cells.append("-" if loss is None else f"{loss:.1f}%")
        if wide:
            worker = each["worker"]
            cells += [str(each["mtu"]), str(worker["cpu"]) if worker else "-"]
            cells += [str(drops(each)), str(worker["restarts"]) if worker else "-"]
        # A circuit can be up, and still wait for something.
        remote = each["remote_address"] or each["remote"]
        rows.append(Row(cells, f"{remote}; {each['reason']}" if each["reason"] else remote))
    lines = table(header, rows, width)
    lines[0] = cut(f"{lines[0]} REMOTE, OR WHY NOT", width)
    return lines


def asked(asking: Document) -> str:
    """Return what was sent to a remote that does not answer, when, and what came back."""
    remotes = asking["remotes"]
    others = f" and {len(remotes) - 1} more" if len(remotes) > 1 else ""
    said = (
        f"{plural(asking['requests'], 'request')} to {remotes[0]}{others} "
        f"in {duration(asking['since_seconds'])}, the last {asking['last_seconds']:.1f} s ago; "
    )
    back = asking["undelivered"]
    if back is None:
        return said + "nothing came back"
    when = f"{back['last_seconds']:.1f} s ago"
    if back["source"] is None:
        return said + f"this machine did not send: {back['what']}, {when}"
    return said + f"{back['what']} came back from {back['source']}, {when}"


def circuit_total(circuits: Iterable[Document]) -> str:
    return total(each["state"] for each in circuits)


def drops(circuit: Document) -> int:
    counters = circuit["counters"]
    dropped = sum(counters["rx_dropped"].values()) + sum(counters["tx_dropped"].values())
    return int(dropped + counters["tx_errors"])


def _loss(circuit: Document) -> float | None:
    """Return the loss of the worse direction, in percent, or that of both; None: unknown."""
    loss = circuit.get("loss") or {}
    known = [loss[way] for way in ("tx_percent", "rx_percent") if loss.get(way) is not None]
    return max(known, default=loss.get("round_trip_percent"))


def _loss_by_direction(loss: Document) -> str:
    both = f"round trips {_percent(loss.get('round_trip_percent'))}"
    if loss["tx_percent"] is None and loss["rx_percent"] is None:
        return f"{both}; the other end does not say which way"
    return f"sent {_percent(loss['tx_percent'])}, received {_percent(loss['rx_percent'])}; {both}"


def details(circuit: Document) -> list[str]:
    """Return all fields of one circuit, one line each."""
    return [f"{name:<14}{value}" for name, value in _facts(circuit)]


def _facts(circuit: Document) -> Iterator[tuple[str, str]]:
    """Yield name and value of what is to be shown. A velad from before an update says less."""
    counters, worker = circuit["counters"], circuit["worker"]
    yield "circuit", f"{circuit['name']}, id {circuit['id']}, from {circuit['origin']}"
    if circuit.get("description"):
        yield "description", circuit["description"]
    yield "state", circuit["state"] + (f": {circuit['reason']}" if circuit["reason"] else "")
    if circuit.get("since_seconds") is not None:
        flaps = plural(circuit["transitions"], "time")
        yield (
            "since",
            f"{duration(circuit['since_seconds'])}; up or down {flaps} in the last hour",
        )
    if circuit.get("asking"):
        yield "asked", asked(circuit["asking"])
    remote = circuit["remote"]
    if circuit["remote_address"]:
        remote += f", {circuit['remote_address']} port {circuit['remote_port']}"
    yield "remote", remote
    for each in circuit.get("remotes", ()):
        if not each["current"]:
            why = f": {each['reason']}" if each["reason"] else ""
            yield "", f"{each['name']}, {each['state']}{why}"
    yield "heard", _heard(circuit)
    path_mtu = circuit.get("path_mtu")
    on_the_way = "" if path_mtu is None else f"; the path's is {path_mtu}"
    yield "mtu", f"{circuit['mtu']} bytes{on_the_way}"
    sending = f"{circuit['encapsulation']}, headers {'elided' if circuit['elision'] else 'sent'}"
    yield "encapsulation", sending
    yield "encryption", _encryption(circuit)
    yield "worker", _worker(worker)
    if circuit.get("rates"):
        rates = circuit["rates"]
        yield (
            "rates",
            "; ".join(_rate(rates, *each) for each in (("tx", "sent"), ("rx", "received"))),
        )
    if _loss(circuit) is not None:
        yield "loss", _loss_by_direction(circuit["loss"])
    delay = circuit.get("delay_ms") or {}
    if delay.get("p50") is not None:
        yield (
            "delay",
            f"p50 {delay['p50']} ms, p99 {delay['p99']} ms, jitter {delay['jitter']} ms",
        )
    yield "sent", _traffic(counters, "tx")
    yield "received", _traffic(counters, "rx")
    yield "fragmented", _fragmented(counters)
    yield "errors", f"{counters['tx_errors']} frames not sent"
    yield "dropped", counts({**counters["tx_dropped"], **counters["rx_dropped"]}) or "nothing"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} %"


def _rate(rates: Document, way: str, word: str) -> str:
    if rates[f"{way}_bps"] is None:
        return f"{word} unknown"
    return f"{word} {rate(rates[f'{way}_bps'])}bit/s, {rate(rates[f'{way}_pps'])} frames/s"


def _worker(worker: Document | None) -> str:
    if worker is None:
        return "none"
    process = "no process" if worker["pid"] is None else f"pid {worker['pid']}"
    queues = worker.get("queues", 1)
    more = "" if queues == 1 else f" and {queues - 1} more"
    if worker.get("ingress_cpu") is not None:
        more = f" and {worker['ingress_cpu']}"
    text = f"{process}, CPU {worker['cpu']}{more}"
    text += f", {worker['engine']}, {worker['restarts']} restarts"
    if worker.get("latency") == "low":
        text += ", latency low"
    if worker.get("cpu_percent") is not None:
        text += f", {worker['cpu_percent']:.1f} % of a CPU"
    if worker.get("memory_bytes") is not None:
        text += f", {octets(worker['memory_bytes'])}"
    return text


def _encryption(circuit: Document) -> str:
    text, cipher = str(circuit.get("encryption", "none")), circuit.get("cipher")
    if cipher is None:
        return text if text == "none" else f"{text}, and not encrypted at present: no frame passes"
    peer = cipher["peer_fingerprint"]
    return (
        f"{text}; {cipher['suite']}, {cipher['pattern']}, "
        f"{f'peer {peer}' if peer else 'pre-shared key alone'}, "
        f"generation {cipher['generation']}, {duration(cipher['age_seconds'])} old, "
        f"{cipher['frames_left']} frames left"
    )


def _heard(circuit: Document) -> str:
    if circuit["last_heard_seconds"] is None:
        return "no control messages"
    text = f"{circuit['last_heard_seconds']:.1f} s ago"
    return text + (f", round trip {circuit['rtt_ms']:.3f} ms" if circuit["rtt_ms"] else "")


def _traffic(counters: Document, way: str) -> str:
    return (
        f"{counters[f'{way}_frames']} frames, {octets(counters[f'{way}_bytes'])}, "
        f"{counters[f'{way}_elided']} elided"
    )


def _fragmented(counters: Document) -> str:
    # A velad that is older does not say it.
    sent, received = counters.get("tx_pieced", 0), counters.get("rx_joined", 0)
    text = f"{counters['tx_fragmented']} datagrams"
    if sent or received:
        text += f"; in pieces {sent} frames sent, {received} received"
    return text
