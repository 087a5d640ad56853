"""Who may import whom: downward only, and each third-party package in one place."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the top; a module imports modules of lower lines only, those of its own line never.
LAYERS = """
    vela.supervisor.cli vela.supervisor.velactl
    vela.supervisor.daemon
    vela.supervisor.circuits
    vela.supervisor.kept vela.supervisor.occupancy vela.supervisor.unmade
    vela.supervisor.store
    vela.supervisor.static vela.supervisor.negotiated
    vela.supervisor.conversation vela.supervisor.circuit
    vela.supervisor.pseudowire
    vela.supervisor.negotiator
    vela.supervisor.keeper vela.supervisor.names vela.supervisor.reception
        vela.supervisor.control_socket
    vela.supervisor.burst
    vela.supervisor.loop vela.supervisor.process vela.supervisor.restart
        vela.supervisor.notify vela.supervisor.netlink vela.supervisor.status
        vela.supervisor.forwarding
    vela.worker vela.log vela.negotiation
    vela.engine
    vela._pydataplane vela._dataplane vela.session vela.responder
    vela.dataplane vela.config vela.agreement vela.policy vela.cookie vela.limiter
    vela.encapsulation vela.tables vela.control
    vela.tap vela.underlay vela.resolver vela.affinity vela.confinement vela.counters
        vela.exit_message
        vela.key
        vela.steering vela.address
    vela.checksum
    vela.circuit
    vela.datagram
    vela.mtu vela.mac vela.features
    vela.errors
    vela vela.supervisor
"""

OWNERS = {
    "toml": "vela.config",
    "pytun": "vela.tap",
    "psutil": "vela.affinity",
    "pyroute2": "vela.supervisor.netlink",
}
# Configured in one place, asked for a logger anywhere.
STRUCTLOG_OWNER = "vela.log"
STRUCTLOG_FREE = {"get_logger", "stdlib", "typing"}


def parse_layers(text: str) -> dict[str, int]:
    """Return the height of each module, 0 the lowest; a deeper indent continues a line."""
    lines: list[list[str]] = []
    for line in text.strip("\n").splitlines():
        if line.startswith(" " * 8):
            lines[-1] += line.split()
        elif line.strip():
            lines.append(line.split())
    return {name: height for height, line in enumerate(reversed(lines)) for name in line}


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Return the syntax trees of vela and vela.supervisor by module name."""
    found = {}
    for folder, package in (("vela", "vela"), ("supervisor", "vela.supervisor")):
        for path in sorted((root / folder).glob("*.py")):
            name = package if path.stem == "__init__" else f"{package}.{path.stem}"
            found[name] = ast.parse(path.read_text(), str(path))
    return found


def imports(module: str, tree: ast.Module, known: set[str]) -> set[str]:
    """Return the dotted names that a module imports, as far as they are modules.

    "from vela import mtu" is vela.mtu if known says so. TYPE_CHECKING blocks count.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import, line {node.lineno}"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
    return found


def violations(modules: dict[str, ast.Module]) -> list[str]:
    """Return what breaks the rules, one sentence each."""
    heights = parse_layers(LAYERS)
    # A stub-only C module is no .py file but may be imported.
    known = set(modules) | set(heights)
    said = []
    for module, tree in modules.items():
        if module not in heights:
            said.append(f"{module} is in no layer: add it to LAYERS in tests/test_layers.py")
            continue
        for name in sorted(imports(module, tree, known)):
            top = name.partition(".")[0]
            if top == "vela":
                if name not in heights:
                    said.append(f"{module} imports {name}, which is in no layer")
                elif heights[name] >= heights[module]:
                    said.append(f"{module} imports {name}, which is not below it")
            elif top == "structlog":
                said += _structlog_misuse(module, tree)
            elif top in OWNERS:
                if module != OWNERS[top]:
                    said.append(f"{module} imports {top}; only {OWNERS[top]} may")
            elif top not in sys.stdlib_module_names:
                said.append(f"{module} imports {top}, which has no owner in OWNERS")
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


def test_layers_of_the_source_tree_are_kept() -> None:
    modules = read_modules(ROOT)

    assert {"vela", "vela.mtu", "vela.supervisor"} <= set(modules)
    assert violations(modules) == []


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("vela.mtu", "from vela.supervisor import loop", "vela.supervisor.loop, which is not be"),
        ("vela.mtu", "import vela.supervisor.cli", "vela.supervisor.cli, which is not below it"),
        ("vela.mtu", "from vela.mac import parse_mac", "vela.mac, which is not below it"),
        ("vela.errors", "from vela import mtu", "vela.mtu, which is not below it"),
        ("vela.mtu", "def f():\n    import vela.circuit", "vela.circuit, which is not below it"),
        ("vela.mtu", "import vela.nowhere", "vela.nowhere, which is in no layer"),
        ("vela.newcomer", "", "vela.newcomer is in no layer: add it to LAYERS"),
        ("vela.mtu", "import toml", "vela.mtu imports toml; only vela.config may"),
        ("vela.supervisor.loop", "from pyroute2 import IPRoute", "only vela.supervisor.netlink"),
        ("vela.mtu", "import requests", "requests, which has no owner"),
        ("vela.worker", "import structlog\nstructlog.configure()", "structlog.configure; only"),
        ("vela.worker", "from structlog import configure", "structlog.configure; only vela.log"),
    ],
)
def test_layers_with_a_planted_import_are_broken(module: str, source: str, said: str) -> None:
    found = violations({module: ast.parse(source)})

    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vela.config", "import toml, json\nfrom vela.circuit import Config\nfrom vela import mtu"),
        ("vela.worker", "import structlog\nlog = structlog.get_logger()"),
        ("vela.log", "import structlog\nstructlog.configure()"),
        (
            "vela.supervisor.cli",
            "from vela.supervisor.loop import run\nfrom vela import __version__",
        ),
    ],
)
def test_layers_with_a_proper_import_are_kept(module: str, source: str) -> None:
    assert violations({module: ast.parse(source)}) == []
