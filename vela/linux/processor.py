"""What the machine's processors can do."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# By the line's name, as x86 and arm64 have it: AES and carry-less multiplication.
_AES_GCM = {"flags": {"aes", "pclmulqdq"}, "Features": {"aes", "pmull"}}


def has_aes_instructions(cpuinfo: str | None = None) -> bool:
    """Tell whether every processor has what makes AES-GCM fast; where that cannot be read: no.

    cpuinfo is the text of /proc/cpuinfo; this machine's, if None.
    """
    if cpuinfo is None:
        try:
            cpuinfo = _CPUINFO.read_text(errors="replace")
        except OSError:
            return False
    seen = False
    for line in cpuinfo.splitlines():
        name, _, values = line.partition(":")
        needed = _AES_GCM.get(name.strip())
        if needed is not None:
            if not needed <= set(values.split()):
                return False
            seen = True
    return seen
