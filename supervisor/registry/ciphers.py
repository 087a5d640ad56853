"""Which keys a circuit is encrypted with, by the configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vela.errors import ConfigError
from vela.public_key import fingerprint
from vela.signaling.encryption import Encryption as SessionEncryption
from vela.signaling.events import CircuitRequested
from vela.signaling.limiter import TokenBucket
from vela.signaling.messages import CipherOffer, HandshakePattern, Suites
from vela.signaling.session_cipher import answer_handshake
from vela.signaling.signer import Key
from vela.signaling.suites import set_of
from vela.wire import Suite

from ..config.records import AutoconfigureConfig, CircuitConfig, DaemonConfig, Encryption
from ..frame_keys import CircuitKeys, Identity
from ..inheritance import Inheritance, keys_name
from ..keys import HeldKey, Keys

# Each takes two or four X25519: of strangers together, so many a second.
STRANGER_HANDSHAKE_RATE, STRANGER_HANDSHAKE_BURST = 100.0, 100.0


@dataclass(frozen=True, slots=True)
class Answered:
    """The handshake of a circuit that another machine asks for; empty: it is not encrypted."""

    keys: CircuitKeys | None = None
    encryption: SessionEncryption | None = None

    def complete(self, config: CircuitConfig) -> CircuitConfig:
        """Return the circuit's configuration with whom it is encrypted to."""
        if self.encryption is None:
            return config
        return replace(
            config,
            encryption=Encryption.REQUIRED,
            peer_key=self.encryption.remote_static,
        )

    def close(self) -> None:
        if self.keys is not None:
            self.keys.close()


class Ciphers:
    """Makes the keys of encrypted circuits."""

    def __init__(
        self,
        keys: Keys,
        daemon: DaemonConfig,
        suites: tuple[Suite, ...],
        inheritance: Inheritance | None = None,
    ) -> None:
        """suites: that the engine has; none: it cannot encrypt.

        inheritance: what another velad has left, to go on with.
        """
        self._inheritance = Inheritance() if inheritance is None else inheritance
        self._keys, self._daemon = keys, daemon
        self._suites = Suites(0)
        for suite in suites:
            self._suites |= set_of(suite)
        self._identity: Identity | None = None
        self._handshakes = TokenBucket(STRANGER_HANDSHAKE_RATE, STRANGER_HANDSHAKE_BURST)

    def offer(self, autoconfigure: AutoconfigureConfig | None) -> CipherOffer | None:
        """Return how circuits that others set up here are encrypted; None: they are not."""
        if autoconfigure is None or autoconfigure.encryption is not Encryption.REQUIRED:
            return None
        by_identity = bool(autoconfigure.peers)
        pattern = HandshakePattern.IK_PSK2 if by_identity else HandshakePattern.NN_PSK0
        return CipherOffer(pattern, self._suites)

    def keys_of(self, config: CircuitConfig, key: Key | None) -> CircuitKeys:
        """Return the keys of an encrypted circuit; key: the pre-shared one. Raises VelaError."""
        return self._make(config.name, key, config.peer_key, ())

    def answer(
        self,
        requested: CircuitRequested,
        autoconfigure: AutoconfigureConfig,
        key: Key | None,
        now: float,
    ) -> Answered | None:
        """Answer the handshake of a circuit that another machine asks for.

        None: handshakes come too fast, or the key holder is away; the machine asks again. Raises
        RemoteProtocolError if the handshake is wrong, and VelaError if this machine cannot do it.
        """
        if not self._handshakes.take(now):
            return None
        keys = self._make("autoconfigure", key, None, autoconfigure.peers)
        encryption = None
        try:
            encryption = answer_handshake(keys, requested.confirm, requested.transcript, None, now)
        finally:
            if encryption is None:
                keys.close()
        if encryption is None:
            return None
        keys.remote_static = encryption.remote_static
        return Answered(keys, encryption)

    def _make(
        self,
        what: str,
        key: Key | None,
        peer_key: bytes | None,
        allowed: tuple[bytes, ...],
    ) -> CircuitKeys:
        if not self._suites:
            raise ConfigError(f"{what}: the engine cannot encrypt, and encryption is required")
        psk = key if isinstance(key, HeldKey) else None
        by_identity = peer_key is not None or bool(allowed)
        if psk is None and not by_identity:
            raise ConfigError(f"{what}: encryption is required, and there is no key")
        return CircuitKeys(
            self._keys,
            self._suites,
            psk=psk,
            identity=self._own_identity() if by_identity else None,
            remote_static=peer_key,
            allowed=allowed,
            page_fd=self._inheritance.take(keys_name(what)),
        )

    def _own_identity(self) -> Identity:
        if self._identity is None:
            path = self._daemon.identity
            if path is None:
                raise ConfigError("daemon.identity is absent, and public keys need it")
            self._identity = Identity(self._keys, path)
        return self._identity


def contradiction(config: CircuitConfig, autoconfigure: AutoconfigureConfig) -> str:
    """Return why a circuit that another machine set up is no longer allowed; empty: it is."""
    if config.encryption is not autoconfigure.encryption:
        return f"autoconfigure.encryption is {autoconfigure.encryption.value!r}"
    if config.encryption is Encryption.NONE:
        return ""
    if not autoconfigure.peers:
        return "" if config.peer_key is None else "autoconfigure.peers is absent"
    if config.peer_key is None:
        return "the machine that set it up has not proved a public key"
    if config.peer_key not in autoconfigure.peers:
        return f"{fingerprint(config.peer_key)} is not in autoconfigure.peers"
    return ""
