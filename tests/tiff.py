"""Writes TIFF files with samples of any depth, which Pillow reads in part and does not write (TIFF 6.0, section 8)."""

from __future__ import annotations

import struct

WIDTH, HEIGHT = 8, 6


def of(bits: int, samples: int, data: bytes) -> bytes:
    """An uncompressed little-endian TIFF of 8 x 6 pixels.

    Args:
        bits: of each sample, as the file declares them.
        samples: 1 for grey, 3 for RGB.
        data: the pixels, row by row.
    """
    short, long = 3, 4
    entries = [
        (256, short, 1, WIDTH),
        (257, short, 1, HEIGHT),
        (258, short, samples, bits),
        (259, short, 1, 1),
        (262, short, 1, 2 if samples == 3 else 1),
        (273, long, 1, 0),
        (277, short, 1, samples),
        (278, short, 1, HEIGHT),
        (279, long, 1, len(data)),
    ]
    behind = 8 + 2 + 12 * len(entries) + 4
    depths = struct.pack(f"<{samples}H", *[bits] * samples)
    written = b""
    for tag, kind, count, value in entries:
        if tag == 258 and samples > 1:
            value = behind
        elif tag == 273:
            value = behind + len(depths)
        written += struct.pack("<HHII", tag, kind, count, value)
    head = b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    return head + written + struct.pack("<I", 0) + depths + data
