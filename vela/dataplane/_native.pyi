import mmap
from typing import final

def encryption_obstacle() -> str | None: ...

@final
class DataPlane:
    def __init__(
        self,
        *,
        circuit_id: int,
        tap_fd: int,
        receive_fd: int,
        send_fd: int,
        divert_fd: int,
        destination: tuple[str, int] | None,
        source_address: tuple[int, int, bytes] | None,
        local_mac: bytes,
        remote_mac: bytes,
        elision: int,
        frame_limit: int,
        datagram_limit: int,
        virtio_header: bool,
        partial_checksums: bool,
        nowait: bool,
        segment: bool,
        gro: bool,
        coalesce_tcp: bool,
        coalesce_udp: bool,
        clamp_datagram_limit: int,
        clamp_mss: int,
        fragmentation: int,
        packet_too_big: bool,
        dscp: int,
        carry_ecn: bool,
        outer_ipv4: bool,
        counters: memoryview,
        key_page: mmap.mmap | None,
        sequences: int,
        bundle_limit: int,
        queue: int,
        queues: int,
    ) -> None: ...
    def egress(self) -> None: ...
    def ingress(self) -> None: ...
    def egress_until(self, stop: memoryview, states: memoryview, /) -> None: ...
    def ingress_until(self, stop: memoryview, states: memoryview, /) -> None: ...
    def poll_until(self, stop: memoryview, states: memoryview, /) -> None: ...
