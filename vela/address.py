"""Addresses, endpoints, remotes and interface names: the types, and text to them. Pure.

Every parser raises ValueError with what is wrong and, after a semicolon, what would be right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

MAX_PORT = 65535
MAX_INTERFACE_NAME = 15  # IFNAMSIZ is 16 with the final NUL (linux/if.h)
MAX_HOST_NAME = 253  # RFC 1035, section 2.3.4: 255 octets on the wire
SHOWN_LENGTH = 60  # characters of a wrong value that are shown in a message
ANY_HOST = "any"  # in place of a remote's host: whoever proves the key

# RFC 1123, section 2.1, and the underscore that real zones hold.
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# What inet_aton would take for an IPv4 address: "10.1", "0x7f000001".
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")
_DIGITS = re.compile(r"[0-9]{1,5}")
# Printable ASCII but "/", ":" (alias names) and "%" (the kernel's numbering), see
# dev_valid_name and __dev_alloc_name in net/core/dev.c.
_INTERFACE_NAME = re.compile(r"[!-$&-.0-9;-~]+")
# A set in a shell pattern: "[" without an end stands for itself, as does "]" at the beginning.
_SET = re.compile(r"\[!?+\]?+[^\]]*\]")
# sysctl's own directories beside the interfaces' (net/ipv4/devinet.c, devinet_sysctl_register).
_RESERVED_NAMES = frozenset({".", "..", "lo", "all", "default"})

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network


class Family(Enum):
    """The IP version of the underlay."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"


def family_of(address: IPAddress) -> Family:
    return Family.IPV4 if address.version == 4 else Family.IPV6


@lru_cache(maxsize=1024)
def _address_of(host: str) -> IPAddress | None:
    """What each circuit is compared with all others by; reading it takes 10 us."""
    try:
        return ip_address(host)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote as configured: host name or address, and listening port."""

    host: str
    port: int | None = None
    """None: the port of the local daemon."""
    standbys: tuple[Remote, ...] = ()
    """Those that carry the circuit in turn while this one, the primary, does not."""

    @property
    def all(self) -> tuple[Remote, ...]:
        """This one and its standbys, each by itself."""
        return (replace(self, standbys=()), *self.standbys)

    @property
    def identity(self) -> str:
        """The host in lower case, without the final dot."""
        return self.host.lower().removesuffix(".")

    @property
    def is_any(self) -> bool:
        """Whether it names no host: the other end calls, and shows where it is."""
        return self.host == ANY_HOST

    @property
    def address(self) -> IPAddress | None:
        """The address of the host; None: the host is a name, or any."""
        return _address_of(self.host)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host and self.port is not None else self.host
        return host if self.port is None else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a UDP or TCP port."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"

    @property
    def family(self) -> Family:
        return family_of(self.address)


def shown(text: str) -> str:
    """Return text in quotes, on one line, cut if it is long."""
    if len(text) > SHOWN_LENGTH:
        return repr(text[:SHOWN_LENGTH]) + "..."
    return repr(text)


def parse_interface_name(text: str) -> str:
    """Return text if Linux accepts it as an interface name."""
    if not 1 <= len(text) <= MAX_INTERFACE_NAME:
        raise ValueError(f"{shown(text)} has {len(text)} characters; 1..{MAX_INTERFACE_NAME} fit")
    if not _INTERFACE_NAME.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not an interface name; "
            'printable ASCII without spaces, "/", ":" and "%" would be right'
        )
    if text in _RESERVED_NAMES:
        raise ValueError(f"{shown(text)} is reserved by Linux; another name would be right")
    return text


def parse_interface_pattern(text: str) -> str:
    """Return text if it is a shell pattern that an interface's name can match."""
    if not _INTERFACE_NAME.fullmatch(text):
        raise ValueError(f"{shown(text)} matches no interface name; try 'vela*'")
    if not set(text) & set("*?["):
        return parse_interface_name(text)
    # In fnmatch "*" may match nothing; everything else matches one character each.
    least = len(_SET.sub("?", text).replace("*", ""))
    if least > MAX_INTERFACE_NAME:
        raise ValueError(
            f"{shown(text)} matches no interface name: it needs {least} characters or more, "
            f"and a name has at most {MAX_INTERFACE_NAME}; a shorter one would be right"
        )
    return text


def parse_port(text: str) -> int:
    """Return the number of a UDP or TCP port."""
    if not _DIGITS.fullmatch(text) or not 1 <= int(text) <= MAX_PORT:
        raise ValueError(f"port {shown(text)} is not one of 1..{MAX_PORT}")
    return int(text)


def parse_address(text: str) -> IPAddress:
    """Return the address of an IPv4 or IPv6 literal."""
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is not an address; "
            "one such as '192.0.2.1' or '2001:db8::1' would be right"
        ) from None
    _refuse_odd_notation(address)
    return address


def parse_host_address(text: str) -> IPAddress:
    """Return an address of one host that needs no zone."""
    address = parse_address(text)
    if address.is_unspecified:
        raise ValueError(f"{address} is not a host's address")
    _refuse_group(address)
    _refuse_link_local(address)
    return address


def parse_listen_address(text: str) -> IPAddress:
    """Return an address to receive on; "::" and "0.0.0.0" stand for all."""
    address = parse_address(text)
    _refuse_group(address)
    _refuse_link_local(address)
    return address


def parse_listen_endpoint(text: str) -> Endpoint:
    """Return an address to receive on with its port, from "127.0.0.1:9486" or "[::1]:9486"."""
    host, port = _split_port(text)
    if port is None:
        raise ValueError(
            f"{shown(text)} has no port; "
            "one such as '127.0.0.1:9486' or '[::1]:9486' would be right"
        )
    return Endpoint(parse_listen_address(host), port)


def parse_interface(text: str) -> IPInterface:
    """Return an interface's address with its prefix length, from "172.16.16.1/30"."""
    host, slash, length = text.partition("/")
    address = parse_address(host)
    if not slash:
        raise ValueError(f"{shown(text)} has no prefix length; '{text}/NN' would be right")
    # ipaddress would also accept a netmask and a host mask.
    if not _DIGITS.fullmatch(length) or int(length) > address.max_prefixlen:
        raise ValueError(
            f"{shown(text)} has no valid prefix length; 1..{address.max_prefixlen} would be right"
        )
    return check_interface(ip_interface(f"{address}/{int(length)}"))


def check_interface(interface: IPInterface) -> IPInterface:
    """Return an address with its prefix length if an interface can have it."""
    address, network = interface.ip, interface.network
    _refuse_odd_notation(address)
    _refuse_group(address)
    if address.is_unspecified or address.is_loopback:
        raise ValueError(
            f"{interface} is not an interface address; a host's address would be right"
        )
    if network.prefixlen == 0:
        raise ValueError(f"{interface} covers every destination; a longer prefix would be right")
    # RFC 3021 and RFC 6164: in a subnet of two addresses both belong to hosts.
    if network.prefixlen < address.max_prefixlen - 1:
        if address == network.network_address:
            raise ValueError(
                f"{interface} is the address of the subnet; a host's address would be right"
            )
        if address.version == 4 and address == network.broadcast_address:
            raise ValueError(
                f"{interface} is the broadcast address of the subnet; "
                "a host's address would be right"
            )
    return interface


def parse_network(text: str) -> IPNetwork:
    """Return a network. An address without prefix length is the network of that host."""
    host, slash, length = text.partition("/")
    address = parse_address(host)
    if not slash:
        return ip_network(address)
    if not _DIGITS.fullmatch(length) or int(length) > address.max_prefixlen:
        raise ValueError(
            f"{shown(text)} has no valid prefix length; 0..{address.max_prefixlen} would be right"
        )
    network = ip_network(f"{address}/{int(length)}", strict=False)
    if network.network_address != address:
        raise ValueError(f"{text} has bits set after its prefix; {network} would be right")
    return network


def parse_source(text: str) -> IPNetwork | str:
    """Return a network or a host name of machines that may ask."""
    if "/" in text or ":" in text or _ends_in_number(text):
        return parse_network(text)
    return parse_host_name(text)


def parse_host_name(text: str) -> str:
    """Return text if it is a host name in ASCII. A final dot is allowed."""
    name = text.removesuffix(".")
    if not name.isascii():
        raise ValueError(f"{shown(text)} is not ASCII; the name's 'xn--' form would be right")
    if len(name) > MAX_HOST_NAME:
        raise ValueError(f"{shown(text)} has {len(name)} characters; {MAX_HOST_NAME} at most fit")
    if not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(
            f"{shown(text)} is neither an address nor a host's name; "
            "labels of letters, digits and inner hyphens, 1..63 each, would be right"
        )
    return text


def parse_remote(text: str) -> Remote:
    """Return a remote from a name or address, with or without ":port"; IPv6 as "[v6]:port".

    "any" is one that names no host.
    """
    if not text:
        raise ValueError("is empty; a host's name or address would be right")
    host, port = _split_port(text)
    if host.lower() == ANY_HOST:
        if port is not None:
            raise ValueError(
                f"{shown(text)} has a port, and 'any' takes whichever the other end calls from; "
                f"'{ANY_HOST}' would be right"
            )
        return Remote(ANY_HOST)
    if ":" in host or _ends_in_number(host):
        return Remote(str(parse_host_address(host)), port)
    return Remote(parse_host_name(host), port)


def _split_port(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        try:
            IPv6Address(host)
        except AddressValueError:
            bracket = ""
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(
                f"{shown(text)} is malformed; one such as '[2001:db8::1]:48621' would be right"
            )
        return host, parse_port(rest[1:]) if rest else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, parse_port(port)
    return text, None


def _ends_in_number(host: str) -> bool:
    """Tell whether host can only be an address: no top-level domain is a number."""
    return _NUMERIC_LABEL.fullmatch(host.removesuffix(".").rpartition(".")[2]) is not None


def _refuse_odd_notation(address: IPAddress) -> None:
    if address.version == 6:
        if address.scope_id is not None:
            raise ValueError(
                f"{shown(str(address))} has a zone, which VELA does not carry; "
                "a global or unique local address would be right"
            )
        if address.ipv4_mapped is not None:
            raise ValueError(f"{address} is an IPv4-mapped address; write {address.ipv4_mapped}")


def _refuse_group(address: IPAddress) -> None:
    if address.is_multicast:
        raise ValueError(f"{address} is a multicast address; a host's address would be right")
    if address == IPv4Address("255.255.255.255"):
        raise ValueError(f"{address} is the broadcast address; a host's address would be right")


def _refuse_link_local(address: IPAddress) -> None:
    # Sending to 169.254.0.0/16 needs no zone.
    if address.version == 6 and address.is_link_local:
        raise ValueError(
            f"{address} is link-local and needs a zone, which VELA does not carry; "
            "a global or unique local address would be right"
        )
