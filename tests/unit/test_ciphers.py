"""vela.supervisor.registry.ciphers: with which keys, and for whom, circuits are encrypted."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from encrypted_machine import SECRET, SUITES, EncryptedMachine, write_key
from exhaustion import open_descriptors
from simulated_link import LOCAL1, OFFER
from simulation import ROUTER_A, ROUTER_B, Network, network
from structlog.testing import capture_logs
from users import child_user

from vela.address import Endpoint, Remote
from vela.errors import ConfigError
from vela.public_key import fingerprint
from vela.signaling.events import CircuitRequested
from vela.signaling.link import Link
from vela.signaling.messages import CipherOffer, HandshakePattern, Suites
from vela.supervisor.config import identity
from vela.supervisor.config.records import (
    AutoconfigureConfig,
    CircuitConfig,
    Config,
    DaemonConfig,
    Encryption,
)
from vela.supervisor.inheritance import Inheritance, keys_name
from vela.supervisor.keys import HeldKey, Keys
from vela.supervisor.registry.ciphers import Answered, Ciphers, contradiction
from vela.supervisor.runtime.loop import EventLoop

pytestmark = pytest.mark.forks

BOTH = Suites.AES_256_GCM | Suites.CHACHA20_POLY1305
ONE, OTHER = bytes([1]) * 32, bytes([2]) * 32
ENCRYPTED = CircuitConfig("vela0", 1, Remote("192.0.2.2"), encryption=Encryption.REQUIRED)
OPEN = AutoconfigureConfig(sources=(ip_network("192.0.2.0/24"),))
REQUIRED = replace(OPEN, encryption=Encryption.REQUIRED)


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    loop = EventLoop()
    made = Keys(loop, child_user(), tmp_path)
    yield made
    made.close()
    loop.close()


@pytest.fixture
def psk(keys: Keys, tmp_path: Path) -> HeldKey:
    return keys.load(write_key(tmp_path / "psk"))


@pytest.fixture
def daemon(tmp_path: Path) -> DaemonConfig:
    """With an identity."""
    identity.generate(tmp_path / "identity.key")
    return DaemonConfig(identity=tmp_path / "identity.key")


def test_handshakes_of_strangers_are_a_hundred_a_second_whoever_they_are(keys: Keys) -> None:
    # An engine that cannot encrypt, so that a handshake that is taken up fails in words.
    ciphers = Ciphers(keys, DaemonConfig(), ())

    def taken(count: int, now: float) -> int:
        found = 0
        for number in range(count):
            source = Endpoint(ip_address(f"192.0.2.{number % 200 + 1}"), 48621)
            confirm = Link(1, 0x11, 0x22, source, None).confirm(LOCAL1, OFFER, False)
            try:
                ciphers.answer(CircuitRequested(source, confirm), AutoconfigureConfig(), None, now)
            except ConfigError:
                found += 1
        return found

    assert taken(1000, 50.0) == 100
    assert taken(1000, 50.0) == 0
    assert taken(1000, 50.5) == 50


@pytest.mark.parametrize(
    ("autoconfigure", "offer"),
    [
        (None, None),
        (OPEN, None),
        (replace(OPEN, peers=(ONE,)), None),
        (REQUIRED, CipherOffer(HandshakePattern.NN_PSK0, BOTH)),
        (replace(REQUIRED, peers=(ONE,)), CipherOffer(HandshakePattern.IK_PSK2, BOTH)),
    ],
)
def test_offer_to_others_is_by_the_policy(
    keys: Keys, autoconfigure: AutoconfigureConfig | None, offer: CipherOffer | None
) -> None:
    assert Ciphers(keys, DaemonConfig(), SUITES).offer(autoconfigure) == offer


def test_offer_has_the_suites_of_the_engine(keys: Keys) -> None:
    offered = Ciphers(keys, DaemonConfig(), SUITES[1:]).offer(REQUIRED)

    assert offered == CipherOffer(HandshakePattern.NN_PSK0, Suites.CHACHA20_POLY1305)


def test_keys_of_a_circuit_are_by_its_configuration(
    keys: Keys, psk: HeldKey, daemon: DaemonConfig
) -> None:
    ciphers = Ciphers(keys, daemon, SUITES)

    by_psk = ciphers.keys_of(ENCRYPTED, psk)
    by_identity = ciphers.keys_of(replace(ENCRYPTED, peer_key=ONE), None)
    by_both = ciphers.keys_of(replace(ENCRYPTED, peer_key=ONE), psk)

    found = (by_psk, by_identity, by_both)
    assert [each.offer.pattern for each in found] == [
        HandshakePattern.NN_PSK0,
        HandshakePattern.IK_PSK2,
        HandshakePattern.IK_PSK2,
    ]
    assert [each.psk for each in found] == [psk, None, psk]
    assert [each.remote_static for each in found] == [None, ONE, ONE]
    for each in found:
        each.close()


@pytest.mark.parametrize(
    ("make", "config", "why"),
    [
        (
            lambda keys, daemon: Ciphers(keys, daemon, ()),
            ENCRYPTED,
            "vela0: the engine cannot encrypt, and encryption is required",
        ),
        (
            lambda keys, daemon: Ciphers(keys, daemon, SUITES),
            ENCRYPTED,
            "vela0: encryption is required, and there is no key",
        ),
        (
            lambda keys, daemon: Ciphers(keys, DaemonConfig(), SUITES),
            replace(ENCRYPTED, peer_key=ONE),
            "daemon.identity is absent, and public keys need it",
        ),
    ],
    ids=["engine", "key", "identity"],
)
def test_keys_that_cannot_be_had_are_refused_in_words(
    keys: Keys,
    daemon: DaemonConfig,
    make: Callable[[Keys, DaemonConfig], Ciphers],
    config: CircuitConfig,
    why: str,
) -> None:
    with pytest.raises(ConfigError) as refused:
        make(keys, daemon).keys_of(config, None)

    assert str(refused.value) == why


def test_key_page_of_another_velad_is_gone_on_with_by_the_circuit_of_its_name(
    keys: Keys, psk: HeldKey
) -> None:
    first = Ciphers(keys, DaemonConfig(), SUITES).keys_of(ENCRYPTED, psk)
    page = os.dup(first.page_fd)
    inheritance = Inheritance({keys_name("vela0"): page})
    ciphers = Ciphers(keys, DaemonConfig(), SUITES, inheritance)

    other = ciphers.keys_of(replace(ENCRYPTED, name="vela1"), psk)
    successor = ciphers.keys_of(ENCRYPTED, psk)

    assert other.page_fd != page
    assert successor.page_fd == page
    assert not inheritance.names()
    for each in (first, other, successor):
        each.close()


PEER_OF_ONE = replace(ENCRYPTED, peer_key=ONE)


@pytest.mark.parametrize(
    ("config", "autoconfigure", "why"),
    [
        (replace(ENCRYPTED, encryption=Encryption.NONE), OPEN, ""),
        (ENCRYPTED, OPEN, "autoconfigure.encryption is 'none'"),
        (
            replace(ENCRYPTED, encryption=Encryption.NONE),
            REQUIRED,
            "autoconfigure.encryption is 'required'",
        ),
        (ENCRYPTED, REQUIRED, ""),
        (PEER_OF_ONE, REQUIRED, "autoconfigure.peers is absent"),
        (PEER_OF_ONE, replace(REQUIRED, peers=(OTHER, ONE)), ""),
        (
            ENCRYPTED,
            replace(REQUIRED, peers=(ONE,)),
            "the machine that set it up has not proved a public key",
        ),
        (
            PEER_OF_ONE,
            replace(REQUIRED, peers=(OTHER,)),
            f"{fingerprint(ONE)} is not in autoconfigure.peers",
        ),
    ],
)
def test_circuit_that_another_machine_set_up_contradicts_the_policy_or_does_not(
    config: CircuitConfig, autoconfigure: AutoconfigureConfig, why: str
) -> None:
    assert contradiction(config, autoconfigure) == why


def test_circuit_that_is_not_encrypted_is_complete_as_it_is() -> None:
    config = replace(ENCRYPTED, encryption=Encryption.NONE)

    assert Answered().complete(config) == config
    Answered().close()


class Scene:
    """Machine a sets circuits up on machine b, which requires encryption of them."""

    def __init__(self, link: Network, folder: Path) -> None:
        self.link = link
        self.a = EncryptedMachine(link, ROUTER_A, folder / "a")
        self.b = EncryptedMachine(link, ROUTER_B, folder / "b")
        write_key(folder / "psk")
        self.psk = folder / "psk"

    def boot(self, **allowed: object) -> None:
        """allowed: of b's [autoconfigure] table."""
        self.b.config = replace(self.b.config, autoconfigure=replace(REQUIRED, **allowed))  # type: ignore[arg-type]
        for machine in (self.a, self.b):
            machine.boot()

    def ask(self, **settings: object) -> tuple[str, str]:
        """Let a have a circuit to b; return its state and reason."""
        config = replace(ENCRYPTED, **settings)  # type: ignore[arg-type]
        self.a.reload(Config(daemon=self.a.config.daemon, circuits=(config,)))
        self.link.run(5)
        return self.a.states()["vela0"]

    def ciphers(self) -> list[tuple[str, str | None]]:
        """Return handshake and remote of each end that is encrypted."""
        found = [each.cipher for machine in (self.a, self.b) for each in machine.statuses()]
        return [(each.pattern, each.peer_fingerprint) for each in found if each is not None]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with network(1) as link:
        made = Scene(link, tmp_path)
        yield made
        for machine in (made.a, made.b):
            machine.stop()
        assert link.loop.failures == []


def test_circuit_is_set_up_by_a_pre_shared_key(scene: Scene) -> None:
    scene.boot(key_file=scene.psk)

    assert scene.ask(key_file=scene.psk) == ("up", "")

    assert scene.ciphers() == [("NNpsk0", None)] * 2
    config = scene.b.data_paths["vela0"].config
    assert (config.encryption, config.peer_key) == (Encryption.REQUIRED, None)


def test_circuit_is_set_up_by_public_keys_and_stays_with_the_one_that_was_proved(
    scene: Scene,
) -> None:
    scene.boot(peers=(OTHER, scene.a.public))

    assert scene.ask(peer_key=scene.b.public) == ("up", "")

    assert scene.ciphers() == [
        ("IKpsk2", fingerprint(scene.b.public)),
        ("IKpsk2", fingerprint(scene.a.public)),
    ]
    assert scene.b.data_paths["vela0"].config.peer_key == scene.a.public
    # Also where this end asks.
    assert scene.b.registry is not None
    scene.b.registry.restart("vela0")
    scene.link.run(40)
    assert scene.a.states()["vela0"] == ("up", "")
    # After a restart it asks nobody else.
    scene.b.stop()
    scene.b.boot()
    scene.link.run(40)
    assert scene.a.states()["vela0"] == ("up", "")
    assert scene.b.data_paths["vela0"].config.peer_key == scene.a.public


def test_machine_whose_public_key_is_not_listed_gets_no_answer_and_is_counted(
    scene: Scene,
) -> None:
    scene.boot(peers=(OTHER,))

    state, _ = scene.ask(peer_key=scene.b.public)

    assert state == "connecting"
    assert scene.b.states() == {}
    assert scene.b.channel.dropped()["control_handshake"] > 0
    # Each attempt is wiped.
    before, asked = open_descriptors(), scene.b.channel.dropped()["control_handshake"]
    scene.link.run(30)
    assert scene.b.channel.dropped()["control_handshake"] > asked
    gc.collect()
    assert open_descriptors() == before


def test_machine_with_another_pre_shared_key_gets_nothing(scene: Scene, tmp_path: Path) -> None:
    scene.boot(key_file=scene.psk)

    state, _ = scene.ask(key_file=write_key(tmp_path / "other", SECRET[::-1]))

    assert state == "connecting"
    assert scene.b.states() == {}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"encryption": Encryption.NONE}, "this end does not encrypt"),
        ({"peer_key": ONE}, "this end encrypts by public keys"),
    ],
)
def test_machine_that_encrypts_otherwise_is_refused_in_words(
    scene: Scene, settings: dict[str, object], why: str
) -> None:
    scene.boot(key_file=scene.psk)

    state, reason = scene.ask(key_file=scene.psk, **settings)

    assert state == "rejected"
    assert why in reason
    assert scene.b.states() == {}


def test_machine_that_cannot_read_its_identity_refuses_nobody_and_says_why(
    scene: Scene,
) -> None:
    scene.boot(peers=(scene.a.public,))
    assert scene.b.daemon.identity is not None
    scene.b.daemon.identity.unlink()

    with capture_logs() as lines:
        state, _ = scene.ask(peer_key=scene.b.public)

    assert state == "connecting"
    assert any(
        line["event"] == "circuit_not_set_up" and "identity.key cannot be read" in line["error"]
        for line in lines
    )
    assert scene.b.states() == {}


def test_circuit_of_a_machine_that_is_no_longer_listed_goes(scene: Scene) -> None:
    scene.boot(peers=(scene.a.public,))
    assert scene.ask(peer_key=scene.b.public) == ("up", "")

    assert scene.b.config.autoconfigure is not None
    fewer = replace(scene.b.config.autoconfigure, peers=(OTHER,))
    with capture_logs() as lines:
        scene.b.reload(replace(scene.b.config, autoconfigure=fewer))
    scene.link.run(5)

    assert scene.b.states() == {}
    assert "circuit_no_longer_allowed" in {line["event"] for line in lines}
    assert scene.a.states()["vela0"][0] != "up"


def test_stored_circuit_whose_machine_is_no_longer_listed_is_not_started(scene: Scene) -> None:
    scene.boot(peers=(scene.a.public,))
    assert scene.ask(peer_key=scene.b.public) == ("up", "")
    scene.b.crash()
    scene.a.crash()

    assert scene.b.config.autoconfigure is not None
    fewer = replace(scene.b.config.autoconfigure, peers=(OTHER,))
    scene.b.config = replace(scene.b.config, autoconfigure=fewer)
    scene.b.boot()

    state, reason = scene.b.states()["vela0"]
    assert state == "failed"
    assert reason.endswith(f"{fingerprint(scene.a.public)} is not in autoconfigure.peers")


def test_settings_of_an_encrypted_circuit_change_with_other_keys(scene: Scene) -> None:
    scene.boot(peers=(scene.a.public,))
    assert scene.ask(peer_key=scene.b.public) == ("up", "")
    before = scene.b.data_paths["vela0"]

    assert scene.ask(peer_key=scene.b.public, mtu=1300) == ("up", "")

    assert scene.b.data_paths["vela0"].mtu == 1300
    assert scene.b.data_paths["vela0"].config.peer_key == scene.a.public
    assert before.closed == (scene.b.data_paths["vela0"] is not before)


def test_handshakes_that_come_too_fast_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.boot(key_file=scene.psk)
    assert scene.b.ciphers is not None
    answer = scene.b.ciphers.answer
    refused = iter([True, True])
    monkeypatch.setattr(
        scene.b.ciphers, "answer", lambda *args: None if next(refused, False) else answer(*args)
    )

    assert scene.ask(key_file=scene.psk) == ("up", "")
    assert next(refused, None) is None
