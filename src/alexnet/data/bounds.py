"""What the structure of an image file may cost, counted before a decoder reads it.

The header's width × height bounds a decoder's work only while each pixel and each part of the file is handled once.
Small files break that: a progressive JPEG with hundreds of scans over all its pixels, a header of a million segments
that the decoder joins one by one, chunks that each unpack a megabyte. Each walk here stops at its bound.
"""

import re

MAX_SCANS = 100  # of a JPEG; encoders write 1, and 10 to 15 for a progressive one
FREE_SCANS = 16  # scans over the largest image; with more, fewer pixels are allowed
MAX_SEGMENTS = 2_000  # of a JPEG besides scans and their tables: a color profile takes up to 255
MAX_STRAY = 4_096  # bytes of a JPEG before its pixels that belong to no segment
MAX_CHUNKS = 1_000  # of a PNG besides image data
MAX_BLOCKS = 1_000_000  # of a GIF, at most 255 bytes each
MAX_COMMENTS = 1_000  # of a plain-text PPM

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # no stuffed byte, no fill byte, no restart
_IMAGE_CHUNKS = (b"IDAT", b"fdAT", b"fcTL")


def check(data: bytes) -> int:
    """The number of scans over the pixels of the file ``data``: 1, or a multi-scan JPEG's.

    Raises ValueError with the reason if a part of the structure is over its bound.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_scans(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data)
    elif data[:2] in (b"P1", b"P2", b"P3") and data.count(b"#") > MAX_COMMENTS:
        raise ValueError(f"more than {MAX_COMMENTS:,} comments")
    return 1


def allowed_pixels(most: int, scans: int) -> int:
    """Width × height of an image that is decoded in ``scans`` passes, where ``most`` is allowed in one."""
    return most if scans <= FREE_SCANS else most * FREE_SCANS // scans


def _jpeg_scans(data: bytes) -> int:
    """Walk over the markers, as libjpeg does; to the first scan if that is the only one that it decodes."""
    at, segments, scans, stray, components = 2, 0, 0, 0, 0
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        stray += 0 if scans else marker.start() - at
        kind, at = data[marker.start() + 1], marker.end()
        if kind == 0xD9:
            break
        if kind < 0xC0 or kind == 0xD8:  # nothing follows these
            stray += 2
        elif kind == 0xDA:
            scans += 1
            if scans == 1 and components and data[at + 2 : at + 3] == bytes([components]):
                break  # sequential and all components in one scan: the decoder accepts no second one
        elif kind in (0xC0, 0xC1):
            components = data[at + 7] if at + 7 < len(data) else 0
        elif kind not in (0xC4, 0xDB, 0xDD):
            segments += 1
        if scans > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans")
        if segments > MAX_SEGMENTS or stray > MAX_STRAY:
            raise ValueError(f"more than {MAX_SEGMENTS:,} segments or {MAX_STRAY:,} stray bytes before the pixels")
        if kind >= 0xC0 and kind != 0xD8:
            at += int.from_bytes(data[at : at + 2], "big")
    return max(scans, 1)


def _check_png(data: bytes) -> None:
    at, others = 8, 0
    while at + 8 <= len(data):
        others += data[at + 4 : at + 8] not in _IMAGE_CHUNKS
        if others > MAX_CHUNKS:
            raise ValueError(f"more than {MAX_CHUNKS:,} chunks besides image data")
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _check_gif(data: bytes) -> None:
    at = 13 + _color_table(data, 10)
    blocks = 0
    while at < len(data) and data[at] != 0x3B:
        blocks += 1
        if data[at] in (0x21, 0x2C):  # an extension; an image, with its own colors and the size of its codes
            at += 2 if data[at] == 0x21 else 11 + _color_table(data, at + 9)
            while at < len(data) and data[at]:
                at += 1 + data[at]
                blocks += 1
                if blocks > MAX_BLOCKS:
                    break
        at += 1
        if blocks > MAX_BLOCKS:
            raise ValueError(f"more than {MAX_BLOCKS:,} blocks")


def _color_table(data: bytes, at: int) -> int:
    """Bytes of the color table that the flags at ``at`` announce."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
