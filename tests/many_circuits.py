"""The configurations of two hosts that have all circuits that two hosts can have."""

from __future__ import annotations

COUNT = 255

CONFIG_A = "".join(
    f"""
[circuits.vela{number}]
id = {number}
remote = "10.201.0.2"
addresses = ["172.16.{number}.1/30"]
[circuits.vela{number}.peer]
addresses = ["172.16.{number}.2/30"]
"""
    for number in range(1, COUNT + 1)
)
CONFIG_B = """
[autoconfigure]
from = ["10.201.0.0/24"]
networks = ["172.16.0.0/16"]
max_circuits = 255
"""
