"""Why a circuit is not up, or not as it should be: codes for programs, words for people. Pure.

One row for each reason: its code, when it is given, and its words. Codes stay as they are from
version to version; words may change. docs/reasons.md is made of this table.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from vela.errors import ConfigError, VelaError


class Reason(str):
    """A sentence for the operator, and the code of its row. Empty, without a code: no reason."""

    __slots__ = ("code",)

    code: str

    def __new__(cls, text: str = "", code: str = "") -> Reason:
        reason = super().__new__(cls, text)
        reason.code = code
        return reason


NO_REASON = Reason()


class Cause(Enum):
    """A row of the table. In its words, {name} stands for a value that say() is given."""

    def __init__(self, code: str, when: str, words: str) -> None:
        self.code = code
        self.when = when
        self.words = words

    def say(self, **values: object) -> Reason:
        """Return the reason with these values in its words."""
        return Reason(self.words.format(**values), self.code)

    # The search for the remote.
    NAME_UNRESOLVED = (
        "name_unresolved",
        "the remote's name has no address at present",
        "{error}",
    )
    NO_ROUTE = (
        "no_route",
        "this machine has no route to the remote",
        "no way to {remote}: {error}",
    )
    NOT_LISTENING = (
        "not_listening",
        "velad does not listen on an address from which the remote can be reached",
        "velad does not listen on {address}",
    )
    NOT_LISTENING_FAMILY = (
        "not_listening_family",
        "velad listens on no address of the remote's family",
        "velad listens on no {family} address",
    )
    ROUTE_LOOP = (
        "route_loop",
        "the route to the remote leads into the circuit itself",
        "the route {route} leads into the circuit itself",
    )
    ROUTE_CIRCLE = (
        "route_circle",
        "the route to the remote leads into another circuit, and from there back",
        "the route {route} leads into circuit {circuit}, and from there back",
    )
    DEVICE_MISSING = (
        "device_missing",
        "the circuit's `device` does not exist",
        "the interface {device} does not exist; waiting for it",
    )
    SOURCE_MISSING = (
        "source_missing",
        "the circuit's `bind` is not an address of this machine",
        "{address} is no address of this machine; waiting for it",
    )
    SOURCE_LOST = (
        "source_lost",
        "this machine has lost the address that the session was from",
        "this machine no longer has the address {address}",
    )
    SOURCE_FAMILY = (
        "source_family",
        "the circuit's `bind` and the remote are not of one address family",
        "{address} is to be sent from, which is no {family} address",
    )
    WAY_FORBIDDEN = (
        "way_forbidden",
        "velad may not use the circuit's `device`, `bind` or `mark`",
        "cannot choose the way: {error}",
    )
    OWN_ADDRESS = (
        "own_address",
        "the remote's address is an address of this machine",
        "{address} is this machine; the remote is another machine, or another port",
    )
    REMOTE_CHANGED = (
        "remote_changed",
        "the configuration names another remote",
        "the remote was changed",
    )

    # Signalling.
    AWAITING_CALL = (
        "awaiting_call",
        "the circuit's `remote` is any, and the other end has not called",
        "waiting for the other end to call",
    )
    NO_KEY = (
        "no_key",
        "the circuit's `remote` is any, and it has no key any more",
        "there is no key that the other end could call with; key_file would be right",
    )
    NO_ANSWER = (
        "no_answer",
        "the remote did not answer three requests or more",
        "no answer from {remote}: no velad there, a firewall between, "
        "or its autoconfigure does not list this machine or has another key",
    )
    ICMP_ERROR = (
        "icmp_error",
        "an ICMP error came back about a request to a remote that does not answer",
        "{kind} came back from {source}",
    )
    SEND_REFUSED = (
        "send_refused",
        "the kernel of this machine does not send requests to the remote",
        "the kernel does not send: {error}",
    )
    WRONG_KEY = (
        "wrong_key",
        "messages of the remote carry a wrong tag",
        "wrong key from {remote}: its messages carry a wrong tag, so the keys of both ends differ",
    )
    WRONG_HANDSHAKE = (
        "wrong_handshake",
        "the remote answers, but not the handshake of an encrypted circuit",
        "{remote} answers, but not the handshake: the keys of both ends do not fit, "
        "or its autoconfigure.peers does not list this machine",
    )
    NO_ENCRYPTION = (
        "no_encryption",
        "this end requires encryption, and the remote has none",
        "this end requires encryption, and the other end does not encrypt",
    )
    KEEPALIVES_MISSED = (
        "keepalives_missed",
        "nothing was heard of the remote for three keepalives",
        "three keepalives missed in a row, {interval_s:g} s apart or less",
    )
    NOT_HEARD = (
        "not_heard",
        "the remote says that it no longer hears this end",
        "the other end no longer hears this one",
    )
    NEW_SESSION = (
        "new_session",
        "the remote began a new session",
        "the other end began a new session",
    )
    NOT_FOLLOWED = (
        "not_followed",
        "the remote did not begin a session that it had asked for",
        "the other end did not begin the session that it asked for",
    )
    KEYS_NOT_FOLLOWED = (
        "keys_not_followed",
        "the remote did not use new keys in time",
        "the other end did not follow to new keys",
    )
    KEY_USED_UP = (
        "key_used_up",
        "too many frames were sent with one key, and no new key came",
        "{frames} frames were sent with one key, and no new one came",
    )
    KEY_TOO_OLD = (
        "key_too_old",
        "the keys are too old, and no new ones came",
        "the keys are {age_s:g} s old, and no new ones came",
    )
    SETTINGS_OUTDATED = (
        "settings_outdated",
        "the remote has outdated settings, and a new session brings the present ones",
        "the other end has outdated settings, and gets the present ones",
    )
    SETTINGS_CHANGED = (
        "settings_changed",
        "settings or key of this end changed, and a new session began",
        "this end has other settings, or another key",
    )
    SESSION_LOST = (
        "session_lost",
        "the remote restarted, and lost the session",
        "the other end lost the session",
    )
    KEY_HOLDER_LOST = (
        "key_holder_lost",
        "the process that holds keys was replaced, and a new session began",
        "the key holder was replaced, and new keys are made",
    )
    REMOTE_STOPPING = (
        "remote_stopping",
        "velad on the remote stops or restarts, or its operator took the circuit down",
        "the other end is stopping",
    )
    REMOTE_DELETED = (
        "remote_deleted",
        "the remote deleted its end",
        "the remote deleted it",
    )
    CLOSED = (
        "closed",
        "this end closed the session",
        "closed",
    )
    FRAMES_BLOCKED = (
        "frames_blocked",
        "control messages cross, and frames do not",
        "control messages cross, and frames do not: "
        "a firewall on the way, or the other end's worker",
    )
    FROM_LISTENING_PORT = (
        "from_listening_port",
        "frames do not cross from a port of their own, so that of control messages is used",
        "frames leave from the listening port: from one of their own they do not cross",
    )

    # Of a circuit whose `remote` is a list.
    STANDBY_USED = (
        "standby_used",
        "a standby remote carries the circuit, as the primary does not",
        "{used} stands in for {primary}: {why}",
    )
    STANDBY_LEAVES = (
        "standby_leaves",
        "a standby remote carries the circuit until the primary has answered for long enough",
        "{used} stands in for {primary}, which {answers}gets the circuit "
        "when it has answered for {seconds:g} s",
    )
    STANDBY_ORDERED = (
        "standby_ordered",
        "a standby remote carries the circuit, as a command says",
        "{used} carries the circuit, as a command says",
    )
    PRIMARY_SILENT = (
        "primary_silent",
        "the primary does not answer while a standby remote carries the circuit",
        "no answer",
    )
    NOT_UP_IN_TIME = (
        "not_up_in_time",
        "one of the remotes did not get the circuit up in its time",
        "not up after {seconds:g} s",
    )

    # What the remote refuses, one for each vela.signaling.messages.RejectCode, in its words.
    REFUSED_NOT_ACCEPTING = (
        "refused_not_accepting",
        "the remote lets no machine set up circuits",
        "{text}",
    )
    REFUSED_ADDRESS = (
        "refused_address",
        "the remote does not allow an address that it is to have",
        "{text}",
    )
    REFUSED_BRIDGE = (
        "refused_bridge",
        "the remote does not allow the bridge that it is to join",
        "{text}",
    )
    REFUSED_INTERFACE = (
        "refused_interface",
        "the remote does not allow the interface name that it is to use",
        "{text}",
    )
    REFUSED_TOO_MANY = (
        "refused_too_many",
        "the remote has as many circuits as it allows, or they change too often",
        "{text}",
    )
    REFUSED_MAC = (
        "refused_mac",
        "both ends would have one MAC address",
        "{text}",
    )
    REFUSED_CONFLICT = (
        "refused_conflict",
        "another circuit of the remote has the id, the name or an address",
        "{text}",
    )
    REFUSED_FAILED = (
        "refused_failed",
        "the remote could not set the circuit up",
        "{text}",
    )
    REFUSED_NO_SUCH_CIRCUIT = (
        "refused_no_such_circuit",
        "the remote, which set this circuit up, no longer has it",
        "{text}",
    )
    REFUSED_NO_SUCH_SESSION = (
        "refused_no_such_session",
        "the remote does not have the session",
        "{text}",
    )
    REFUSED_DISABLED = (
        "refused_disabled",
        "the circuit is taken down at the remote, or cannot be had there at present",
        "{text}",
    )
    REFUSED_OUTDATED = (
        "refused_outdated",
        "the remote, which set this circuit up, wants other settings, which this end refuses",
        "{text}",
    )
    REFUSED_ENCRYPTION = (
        "refused_encryption",
        "one end requires encryption and the other has none, or their keys differ",
        "{text}",
    )
    REFUSED_ID_TAKEN = (
        "refused_id_taken",
        "another machine at this address has the circuit id",
        "{text}",
    )
    REFUSED = (
        "refused",
        "the remote refuses for a reason that this version does not know",
        "{text}",
    )

    # This machine.
    DUPLICATE_MAC = (
        "duplicate_mac",
        "both ends have one MAC address",
        "both ends have the MAC address {mac}; one needs another `mac`",
    )
    ID_IN_USE = (
        "id_in_use",
        "another circuit of this machine has the id toward the same address",
        "{circuit} already uses circuit id {id} toward {address}",
    )
    NAME_IN_USE = (
        "name_in_use",
        "an interface that velad did not make has the circuit's name",
        "{name}: an interface of this name exists already",
    )
    PATH_TOO_NARROW = (
        "path_too_narrow",
        "the path's MTU is too small for the circuit's IPv6 addresses",
        "the way to the remote leaves an MTU of {mtu}, and IPv6 needs {needed}",
    )
    PORT_IN_USE = (
        "port_in_use",
        "another program has the UDP port that frames are to leave from",
        "the source port {port} is taken",
    )
    NO_DESCRIPTORS = (
        "no_descriptors",
        "the limit of open files leaves no room for the circuit",
        "the limit of open files, {limit}, leaves no room for another circuit; "
        "raise it (ulimit -n, or LimitNOFILE= of the unit)",
    )
    BRIDGE_MISSING = (
        "bridge_missing",
        "the circuit's bridge does not exist",
        "the bridge {bridge} does not exist; waiting for it",
    )
    INTERFACE_RENAMED = (
        "interface_renamed",
        "somebody renamed the circuit's interface",
        "its interface was renamed to {name}",
    )
    INTERFACE_DOWN = (
        "interface_down",
        "somebody set the circuit's interface down",
        "its interface was set down; ip link set {name} up",
    )
    INTERFACE_MTU = (
        "interface_mtu",
        "somebody gave the circuit's interface another MTU",
        "its interface was given an MTU of {mtu}{consequence}; the circuit's is {wanted}",
    )
    INTERFACE_OUT_OF_BRIDGE = (
        "interface_out_of_bridge",
        "somebody took the circuit's interface out of its bridge",
        "its interface was taken out of the bridge {bridge}",
    )
    INTERFACE_MOVED = (
        "interface_moved",
        "somebody made the circuit's interface a port of another bridge, bond or VRF",
        "its interface was moved to {master} from the bridge {bridge}",
    )
    INTERFACE_PORT = (
        "interface_port",
        "somebody made the circuit's interface, which has addresses, a port of a bridge or bond",
        "its interface was made a port of {master}, where its own addresses do not answer",
    )
    INTERFACE_QUEUE = (
        "interface_queue",
        "somebody took the queue from the circuit's interface",
        "its interface was left without a queue, so no frame leaves; ip link set {name} txqueuelen "
        "1000",
    )
    INTERFACE_ELSEWHERE = (
        "interface_elsewhere",
        "somebody moved the circuit's interface to another network namespace",
        "its interface is in another network namespace",
    )
    RATE_NOT_LIMITED = (
        "rate_not_limited",
        "the circuit's `rate` does not hold",
        "the rate is not limited: {error}",
    )
    ONE_QUEUE = (
        "one_queue",
        "the circuit's `cpu` names several CPUs, and it uses the first of them alone",
        "it uses CPU {cpu} alone: {why}",
    )
    HOOK_FAILED = (
        "hook_failed",
        "a hook of the circuit cannot be run, failed, or was killed",
        "the {hook} hook {path} {error}",
    )
    WORKER_FAILED = (
        "worker_failed",
        "the circuit's workers end again and again",
        "worker: {error}",
    )
    KERNEL = (
        "kernel",
        "the kernel refused something else",
        "{error}",
    )
    CONFIGURATION = (
        "configuration",
        "something else of the configuration cannot be done on this machine",
        "{error}",
    )


def joined(reasons: Iterable[Reason]) -> Reason:
    """Return several reasons as one, each text once, with the code of the first."""
    said = list(dict.fromkeys(filter(None, reasons)))
    return Reason("; ".join(said), said[0].code) if said else NO_REASON


def reason_of(err: VelaError) -> Reason:
    """Return the reason that an error was raised with; one that fits its kind, if there is none."""
    for said in err.args:
        if isinstance(said, Reason):
            return said
    cause = Cause.CONFIGURATION if isinstance(err, ConfigError) else Cause.KERNEL
    return cause.say(error="; ".join(str(err).splitlines()))
