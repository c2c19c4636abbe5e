"""Which packets hold a picture that no other picture is built on: they need not be decoded unless they are wanted."""

from __future__ import annotations

from collections.abc import Callable

IsUnreferenced = Callable[[memoryview], bool]


def unreferenced_test(codec: str, extradata: bytes | None) -> IsUnreferenced | None:
    """Return a function that tells from a packet's bytes whether no other picture needs it.

    None where the stream cannot be told so simply: other codecs, byte streams with start codes, and H.265 with
    several temporal layers, whose upper ones may use what their own layer does not.

    Source: ISO/IEC 14496-15, 5.3.3.1 and 8.3.3.1 (decoder configuration records).
    """
    if codec == "h264" and extradata and len(extradata) > 6 and extradata[0] == 1:
        return _of_units(extradata[4] % 4 + 1, _h264_picture)
    if codec == "hevc" and extradata and len(extradata) > 22 and extradata[0] == 1:
        temporal_layers = extradata[21] >> 3 & 7
        return _of_units(extradata[21] % 4 + 1, _hevc_picture) if temporal_layers == 1 else None
    return None


def _of_units(length_bytes: int, is_unreferenced: Callable[[int], bool | None]) -> IsUnreferenced:
    """Ask the first picture unit of a packet; the standards demand the same answer of a picture's other units."""

    def test(packet: memoryview) -> bool:
        position = 0
        while position + length_bytes < len(packet):
            answer = is_unreferenced(packet[position + length_bytes])
            if answer is not None:
                return answer
            position += length_bytes + int.from_bytes(packet[position : position + length_bytes], "big")
        return False

    return test


def _h264_picture(first_byte: int) -> bool | None:
    """Read a unit header; None: no picture. Source: ITU-T H.264, 7.4.1 (nal_ref_idc, nal_unit_type 1 to 5)."""
    return first_byte & 0x60 == 0 if 1 <= first_byte & 0x1F <= 5 else None


def _hevc_picture(first_byte: int) -> bool | None:
    """Read a unit header; None: no picture. Source: ITU-T H.265, table 7-1 (even types below 16: not referenced)."""
    kind = first_byte >> 1 & 0x3F
    return kind < 16 and kind % 2 == 0 if kind < 32 else None
