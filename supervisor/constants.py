"""Constants that velad and velactl share. Imports nothing, as velactl must start fast."""

CONTROL_SOCKET = "/run/vela/velad.sock"

MIN_KEEPALIVE_S, MAX_KEEPALIVE_S = 0.1, 3600.0

# Of a circuit's description. The kernel takes 255 bytes for an interface's alias (IFALIASZ).
MAX_DESCRIPTION = 255

LOG_LEVELS = ("debug", "info", "warning", "error")

# How long a configuration can be on trial: a day.
MAX_TRIAL_S = 86400

# How far back velad remembers what circuits did: a day.
MAX_HISTORY_MINUTES = 1440

# Bytes of an echo request behind the circuit id. A datagram has 65507 at most.
MIN_PING, DEFAULT_PING, MAX_PING = 18, 64, 65506
