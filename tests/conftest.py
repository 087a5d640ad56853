"""What tests share: the network lab, and what a failed or a silently skipped test must show."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache, partial

import pytest
from _pytest.runner import runtestprotocol
from distribution import Distribution
from heap import own_heap
from hypothesis import settings

from lab import daemon, namespace
from lab.link import Regime
from lab.starvation import StarvationWatch
from lab.topology import TwoRouters, two_routers
from lab.waiting import EMULATED
from vela.linux.features import ALL_FEATURES, words

MARKER = "needs_net_admin"
FIGURE = "figure"

# A loaded machine is no mistake; and what a failure was found with is shown, to find it again.
settings.register_profile("vela", deadline=None, print_blob=True)
settings.load_profile("vela")


@cache
def _unavailable() -> str | None:
    return namespace.unavailable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--copy-bytes",
        type=int,
        default=4_000_000,
        metavar="BYTES",
        help="how much each test of tests/system/test_copying.py copies at a time (%(default)s)",
    )
    parser.addoption(
        "--thorough",
        action="store_true",
        help="also run the tests marked thorough, such as more seeds, as scripts/test does",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # of pytest-xdist, whose controller sees all reports
        config.pluginmanager.register(RootOnly())
        config.pluginmanager.register(FiguresShown())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--thorough"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Distribution:
    return Distribution(config, log)


class FiguresShown:
    """Shows at the end what tests have measured."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._lines += [str(text) for kind, text in report.user_properties if kind == FIGURE]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._lines:
            terminalreporter.section("figures")
        for line in self._lines:
            terminalreporter.line(line)


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """What a test says with it is shown at the end, also where it passes."""
    return partial(record_property, FIGURE)


class RootOnly:
    """Fails a session in which not one of the tests that need root ran where they could have."""

    def __init__(self) -> None:
        self._selected: set[str] = set()
        self._ran: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if MARKER in report.keywords:
            self._selected.add(report.nodeid)
            if report.when == "call" and not report.skipped:
                self._ran.add(report.nodeid)

    def _all_skipped(self) -> bool:
        required = os.geteuid() == 0 or os.environ.get("CI") == "true"
        return required and bool(self._selected) and not self._ran

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus == 0 and self._all_skipped():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._all_skipped():
            count = len(self._selected)
            terminalreporter.section(f"all {count} {MARKER} tests were skipped", red=True)
            terminalreporter.line("as root, or where CI=true, that is a failure")


# A thread that was ready to run, and was left without a CPU for so long, shows a machine on which
# no time and no queue means anything.
STARVED_S = 0.4
# An emulated machine always is one: its tests wait for events, and a wait in vain takes minutes.
STARVED_ATTEMPTS = 1 if EMULATED else 4


_WATCH = pytest.StashKey[StarvationWatch]()


def _starvation_watch(config: pytest.Config) -> StarvationWatch:
    if _WATCH not in config.stash:
        config.stash[_WATCH] = StarvationWatch()
        config.add_cleanup(config.stash[_WATCH].close)
    return config.stash[_WATCH]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run what fails on a machine that starves its processes again, and say so."""
    if not item.get_closest_marker(MARKER):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    watch = _starvation_watch(item.config)
    for left in reversed(range(STARVED_ATTEMPTS)):
        watch.longest_s()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if not any(report.failed for report in reports):
            break
        longest_s = watch.longest_s()
        starved = f"a thread was left without a CPU for {longest_s:.1f} s"
        if not left or longest_s < STARVED_S:
            reports[-1].sections.append(("starvation", starved))
            break
        item.user_properties.clear()
        item.user_properties.append((FIGURE, f"{item.nodeid}: once more, as {starved}"))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    daemon.recent.clear()
    # It would wait for a child that never begins.
    if item.get_closest_marker("forks") and hasattr(item.config, "workerinput"):
        pytest.fail('marked "forks": not with pytest-xdist (-n), whose processes have threads')
    if item.get_closest_marker(MARKER) and (reason := _unavailable()):
        pytest.skip(f"{item.name} needs network namespaces: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for velad in daemon.recent:
            report.sections.append((f"log of velad {velad.name}", velad.log()))
    return report


# velad, but that it looks at names and routes twice a second.
_EAGER = """
import sys
from vela.supervisor.runtime import refresh
refresh.INTERVAL_S = 0.5
from vela.supervisor.cli import main
sys.exit(main())
"""


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every velad of the test look at names and routes twice a second."""
    installed = daemon.entry_point

    def entry_point(script: str, module: str) -> tuple[list[str], dict[str, str]]:
        if script != "velad":
            return installed(script, module)
        environment = {**os.environ, "PYTHONPATH": str(daemon.ROOT)}
        return [sys.executable, "-c", _EAGER], environment

    monkeypatch.setattr(daemon, "entry_point", entry_point)


FEATURES_OFF = {
    "all features": (),
    "no rwf_nowait": ("rwf_nowait",),
    "no features": words(ALL_FEATURES),
}


@pytest.fixture(params=FEATURES_OFF)
def features(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let every velad of the test do without some of the kernel's features, or without any."""
    name: str = request.param
    monkeypatch.setattr(daemon, "disabled_features", FEATURES_OFF[name])
    return name


@pytest.fixture(autouse=True)
def own_garbage(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a test without root collect its own garbage alone: all that there is takes a second."""
    if request.path.parent.name != "unit":
        yield
        return
    with own_heap():
        yield
        gc.collect()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left at the end of the test."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def routers() -> Iterator[TwoRouters]:
    """Two routers joined by a cable of MTU 1500."""
    with two_routers() as both:
        yield both


@pytest.fixture
def framed(routers: TwoRouters) -> TwoRouters:
    """The same, with a cable that carries frame by frame: what a capture of it shows."""
    routers.set_regime(Regime.FRAMES)
    return routers
