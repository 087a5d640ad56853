"""Interpreters of BPF programs, classic and extended, as the kernel documents them."""

from __future__ import annotations

import struct


def run(program: bytes, header: bytes, payload: bytes) -> int:
    """Interpret as linux/Documentation/networking/filter.rst says; reject what the kernel would."""
    steps = list(struct.iter_unpack("HBBI", program))
    accumulator = index = 0
    memory: dict[int, int] = {}
    position = 0
    while True:
        code, if_true, if_false, k = steps[position]
        position += 1
        match code:
            case 0x20 | 0x28 | 0x30 | 0x48:  # ld [k], ldh [k], ldb [k], ldh [x + k]
                size = {0x20: 4, 0x30: 1}.get(code, 2)
                k += index if code == 0x48 else 0
                data, offset = (header, k - 0xFFF00000) if k >= 0xFFF00000 else (payload, k)
                if offset + size > len(data):
                    return 0
                accumulator = int.from_bytes(data[offset : offset + size], "big")
            case 0xB1:  # ldx 4 * ([k] & 0xf)
                data, offset = (header, k - 0xFFF00000) if k >= 0xFFF00000 else (payload, k)
                if offset >= len(data):
                    return 0
                index = 4 * (data[offset] & 0xF)
            case 0x60:  # ld M[k]
                accumulator = memory[k]
            case 0x02:  # st M[k]
                memory[k] = accumulator
            case 0x94:  # mod #k
                accumulator %= k
            case 0x24:  # mul #k
                accumulator = accumulator * k & 0xFFFFFFFF
            case 0xAC:  # xor x
                accumulator ^= index
            case 0x07:  # tax
                index = accumulator
            case 0x61:  # ldx M[k]
                index = memory[k]
            case 0x16:  # ret a
                return accumulator
            case 0x74:  # rsh #k
                accumulator >>= k
            case 0x05:  # ja
                position += k
            case 0x15:  # jeq #k
                position += if_true if accumulator == k else if_false
            case 0x35:  # jge #k
                position += if_true if accumulator >= k else if_false
            case 0x45:  # jset #k
                position += if_true if accumulator & k else if_false
            case 0x06:  # ret #k
                return int(k)
            case _:
                raise AssertionError(f"unexpected instruction {code:#x}")


def run_extended(program: bytes, header: bytes, payload: bytes) -> int:
    """Interpret as Documentation/bpf/standardization/instruction-set.rst says."""
    steps = list(struct.iter_unpack("=BBhI", program))
    registers: dict[int, int] = {1: -1}  # the context, which only loads look at
    memory: dict[int, int] = {}
    position = 0
    while True:
        code, pair, offset, k = steps[position]
        target, source = pair & 0xF, pair >> 4
        position += 1
        match code:
            case 0x20 | 0x28 | 0x30 | 0x48:
                assert registers[6] == -1
                size = {0x20: 4, 0x30: 1}.get(code, 2)
                k += registers[source] if code == 0x48 else 0
                data, at = (header, k - 0xFFF00000) if k >= 0xFFF00000 else (payload, k)
                if at + size > len(data):
                    return 0
                registers = {each: registers[each] for each in registers if each >= 6}
                registers[0] = int.from_bytes(data[at : at + size], "big")
            case 0xBF:
                registers[target] = registers[source]
            case 0xB4:
                registers[target] = k
            case 0x54:
                registers[target] &= k
            case 0x64:
                registers[target] = registers[target] << k & 0xFFFFFFFF
            case 0x74:
                registers[target] >>= k
            case 0x63:
                assert (target, offset % 4) == (10, 0)
                memory[offset] = registers[source]
            case 0x61:
                registers[target] = memory[offset]
            case 0x05:
                position += offset
            case 0x16:
                position += offset if registers[target] == k else 0
            case 0x56:
                position += offset if registers[target] != k else 0
            case 0x36:
                position += offset if registers[target] >= k else 0
            case 0xA6:
                position += offset if registers[target] < k else 0
            case 0x46:
                position += offset if registers[target] & k else 0
            case 0x94:
                registers[target] %= k
            case 0x24:
                registers[target] = registers[target] * k & 0xFFFFFFFF
            case 0xAC:
                registers[target] ^= registers[source]
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"unexpected instruction {code:#x}")
