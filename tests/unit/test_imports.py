"""Who may import whom: rooms import lower rooms only, no import runs in a circle, and each
third-party package has one owner."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the top. A module belongs to the longest name here that it begins with. It imports
# from lower lines, and from its own room.
ROOMS = """
    vela.supervisor.entry
    vela.supervisor.cli
    vela.supervisor.daemon vela.supervisor.lacking
    vela.supervisor.reloads
    vela.supervisor.predecessor
    vela.supervisor.intermission
    vela.supervisor.succession
    vela.supervisor.trial
    vela.supervisor.registry
    vela.supervisor.circuit
    vela.supervisor.control_channel
    vela.supervisor.demux
    vela.supervisor.wrong_keys vela.supervisor.undelivered
    vela.supervisor.export
    vela.supervisor.listening
    vela.supervisor.fd_store
    vela.supervisor.inheritance
    vela.supervisor.status vela.supervisor.control_socket
    vela.supervisor.notify vela.supervisor.jobs
    vela.supervisor.frame_keys
    vela.supervisor.keys
    vela.supervisor.key_holder
    vela.supervisor.frame_key_holder
    vela.supervisor.key_requests
    vela.supervisor.frame_ports
    vela.supervisor.runtime vela.supervisor.config
    vela.worker
    vela.dataplane vela.signaling
    vela.linux
    vela.supervisor.velactl
    vela.wire vela.log
    vela.address vela.mac vela.rate vela.deferred vela.public_key vela.backoff vela.percentile
    vela.reasons
    vela.errors
    vela.supervisor.constants vela.supervisor.nearest vela.supervisor.states
    vela vela.supervisor
"""


OWNERS = {
    "cryptography": ("vela.dataplane.aead", "vela.signaling.noise"),
    "toml": ("vela.supervisor.config.syntax",),
    "pytun": ("vela.linux.tap",),
    "psutil": ("vela.linux.usage",),
}
# Configured in one place, asked for a logger anywhere.
STRUCTLOG_OWNER = "vela.log"
STRUCTLOG_FREE = {"get_logger", "stdlib", "typing"}

HEIGHTS = {
    room: height
    for height, line in enumerate(reversed(ROOMS.strip().splitlines()))
    for room in line.split()
}


def room_of(module: str) -> str | None:
    """Return the room that a module belongs to; the two packages themselves are rooms."""
    if module in ("vela", "vela.supervisor"):
        return module
    name = module
    while name not in ("vela", "vela.supervisor"):
        if name in HEIGHTS:
            return name
        name = name.rpartition(".")[0]
    return None


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Return the syntax trees of vela and vela.supervisor by module name."""
    found = {}
    for folder, package in (("vela", "vela"), ("supervisor", "vela.supervisor")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[0] == "supervisor":  # the link
                continue
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            found[name] = ast.parse(path.read_text(), str(path))
    return found


def imports(module: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Return the dotted names that a module imports, as far as they are modules.

    "from vela import wire" is vela.wire if known says so. TYPE_CHECKING blocks count.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = module.split(".")[: -node.level]
                source = ".".join([*package, *([source] if source else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if inner in known or inner in HEIGHTS else source)
    return found


def violations(modules: dict[str, ast.Module]) -> list[str]:
    """Return what breaks the rules, one sentence each."""
    known = set(modules)
    said = []
    graph: dict[str, set[str]] = {}
    for module, tree in modules.items():
        room = room_of(module)
        if room is None:
            said.append(f"{module} is in no room: add it to ROOMS in tests/unit/test_imports.py")
            continue
        graph[module] = set()
        for name in sorted(imports(module, tree, known)):
            top = name.partition(".")[0]
            if top == "vela":
                graph[module].add(name)
                target = room_of(name)
                if target is None:
                    said.append(f"{module} imports {name}, which is in no room")
                elif target != room and HEIGHTS[target] >= HEIGHTS[room]:
                    said.append(f"{module} imports {name}, which is not below it")
            elif top == "structlog":
                said += _structlog_misuse(module, tree)
            elif top in OWNERS:
                owners = OWNERS[top]
                if module not in owners:
                    said.append(f"{module} imports {top}; only {' and '.join(owners)} may")
            elif top not in sys.stdlib_module_names:
                said.append(f"{module} imports {top}, which has no owner in OWNERS")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as err:
        said.append("imports run in a circle: " + " -> ".join(err.args[1]))
    return said


def _structlog_misuse(module: str, tree: ast.Module) -> list[str]:
    if module == STRUCTLOG_OWNER:
        return []
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "structlog":
                used.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "structlog":
            used |= {alias.name for alias in node.names}
    return [
        f"{module} uses structlog.{name}; only {STRUCTLOG_OWNER} may"
        for name in sorted(used - STRUCTLOG_FREE)
    ]


def test_imports_of_the_source_tree_go_downward_and_in_no_circle() -> None:
    modules = read_modules(ROOT)

    assert {"vela", "vela.wire", "vela.supervisor"} <= set(modules)
    assert violations(modules) == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("vela.wire", "from vela.supervisor import cli", "vela.supervisor.cli, which is not"),
        ("vela.wire", "import vela.supervisor.cli", "vela.supervisor.cli, which is not below it"),
        ("vela.wire", "from vela.linux.tap import Tap", "vela.linux.tap, which is not below it"),
        ("vela.errors", "def f():\n    import vela.wire", "vela.wire, which is not below it"),
        ("vela.dataplane.frame", "import vela.signaling.link", "vela.signaling.link, which is not"),
        ("vela.supervisor.demux", "from .circuit.circuit import Circuit", "which is not below it"),
        ("vela.wire", "import vela.nowhere", "vela.nowhere, which is in no room"),
        ("vela.newcomer", "", "vela.newcomer is in no room: add it to ROOMS"),
        ("vela.wire", "import toml", "vela.wire imports toml; only vela."),
        ("vela.supervisor.demux", "from pytun import TunTapDevice", "only vela.linux.tap"),
        ("vela.wire", "import requests", "requests, which has no owner"),
        ("vela.worker", "import structlog\nstructlog.configure()", "structlog.configure; only"),
        ("vela.worker", "from structlog import configure", "structlog.configure; only vela.log"),
    ],
)
def test_imports_with_a_planted_one_are_reported(module: str, source: str, said: str) -> None:
    found = violations({module: ast.parse(source)})

    assert len(found) == 1
    assert said in found[0]


def test_imports_in_a_circle_inside_a_room_are_reported() -> None:
    found = violations(
        {
            "vela.linux.tap": ast.parse("from vela.linux.underlay import Route"),
            "vela.linux.underlay": ast.parse("from vela.linux.tap import Tap"),
        }
    )

    assert len(found) == 1
    assert "circle" in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vela.worker", "import structlog\nlog = structlog.get_logger()"),
        ("vela.log", "import structlog\nstructlog.configure()"),
        ("vela.supervisor.cli", "from .runtime.loop import EventLoop\nfrom vela import wire"),
    ],
)
def test_imports_that_go_downward_are_accepted(module: str, source: str) -> None:
    assert violations({module: ast.parse(source)}) == []
