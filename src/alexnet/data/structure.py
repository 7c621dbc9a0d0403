"""Limits on the structure of an image file, checked before it is decoded.

The header's width × height limits the work of a decoder only if each pixel and each part of the file is processed once.
Small files can break that: a progressive JPEG with hundreds of scans over all its pixels, a header of a million
segments that the decoder joins one by one, chunks that each unpack to a megabyte, thousands of tags that are each the
same megabyte of the file. Each check here stops at its limit.
"""

import re
import struct

MAX_SCANS = 100  # of a JPEG; encoders write 1, or 10 to 15 for a progressive JPEG
FREE_SCANS = 16  # scans that are allowed at the largest size; with more scans, fewer pixels are allowed
MAX_SEGMENTS = 2_000  # of a JPEG, without scans and their tables; a color profile takes up to 255
MAX_STRAY = 4_096  # bytes of a JPEG before its pixels that are in no segment
MAX_CHUNKS = 1_000  # of a PNG besides image data
MAX_BLOCKS = 1_000_000  # of a GIF, at most 255 bytes each
MAX_COMMENTS = 1_000  # of a plain-text PPM
MAX_DIRECTORIES = 10_000  # of a TIFF, one a page
MAX_TAGS = 200_000  # of a TIFF, or of EXIF
MAX_EXIF = 16  # blocks of EXIF in one HEIC or AVIF
MAX_PNM_HEADER = 65_536  # bytes of the header of a PPM, PGM or PBM, with its comments

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not a stuffed byte, a fill byte or a restart marker
_IMAGE_CHUNKS = (b"IDAT", b"fdAT", b"fcTL")
_EXIF = b"Exif\0\0"
_TIFF_HEADER = re.compile(rb"(II|MM)(\0[*+]|[*+]\0)")
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # by type
_DIRECTORY_TAGS = (0x8769, 0x8825, 0xA005)  # their value is the position of another directory: EXIF, GPS, Interop


def check_structure(data: bytes) -> int:
    """The number of scans over the pixels of the file ``data``: 1, or more for a multi-scan JPEG.

    Raises ValueError with the reason if a part of the structure is over its limit.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_scans(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data)
    elif data[:1] == b"P" and data[1:2] in b"0123456fy":
        _check_pnm(data)
    elif _TIFF_HEADER.match(data):
        _check_tags(data)
    elif data[4:8] == b"ftyp":
        _check_media_exif(data)
    return 1


def allowed_pixels(max_pixels: int, scans: int) -> int:
    """The largest width × height of an image with ``scans`` scans; ``max_pixels`` is the limit for one scan."""
    return max_pixels if scans <= FREE_SCANS else max_pixels * FREE_SCANS // scans


def _jpeg_scans(data: bytes) -> int:
    """Count the scans by walking over the markers as libjpeg does, to the first if libjpeg decodes only that."""
    at, segments, scans, stray, components = 2, 0, 0, 0, 0
    exif: list[bytes] = []
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        stray += 0 if scans else marker.start() - at
        kind, at = data[marker.start() + 1], marker.end()
        if kind == 0xD9:
            break
        if kind < 0xC0 or kind == 0xD8:  # markers without a length
            stray += 2
        elif kind == 0xDA:
            scans += 1
            if scans == 1 and components and data[at + 2 : at + 3] == bytes([components]):
                break  # sequential and all components in one scan: the decoder accepts no second one
        elif kind in (0xC0, 0xC1):
            components = data[at + 7] if at + 7 < len(data) else 0
        elif kind not in (0xC4, 0xDB, 0xDD):
            segments += 1
            if kind == 0xE1 and data[at + 2 : at + 8] == _EXIF:
                exif.append(data[at + 8 : at + int.from_bytes(data[at : at + 2], "big")])
        if scans > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans")
        if segments > MAX_SEGMENTS or stray > MAX_STRAY:
            raise ValueError(f"more than {MAX_SEGMENTS:,} segments or {MAX_STRAY:,} stray bytes before the pixels")
        if kind >= 0xC0 and kind != 0xD8:
            at += int.from_bytes(data[at : at + 2], "big")
    if exif:
        check_exif(b"".join(exif))  # as Pillow joins them
    return max(scans, 1)


def check_exif(data: bytes) -> None:
    """Raise ValueError for EXIF, with or without its first six bytes, that is much work or memory."""
    data = data.removeprefix(_EXIF)
    if data.startswith(_EXIF):  # Pillow copies all that follows for each of them
        raise ValueError("EXIF that begins twice")
    _check_tags(data)


def _check_media_exif(data: bytes) -> None:
    """The same for HEIC and AVIF, where EXIF is anywhere in the file."""
    starts = [found.start() for _, found in zip(range(MAX_EXIF + 1), _TIFF_HEADER.finditer(data), strict=False)]
    if len(starts) > MAX_EXIF or data.count(_EXIF) > MAX_EXIF:
        raise ValueError(f"more than {MAX_EXIF} blocks of EXIF")
    for start in starts:
        _check_tags(data[start:])


def _check_tags(data: bytes) -> None:
    """Raise ValueError for a TIFF, or EXIF, of too many tags, or whose tags have more bytes than twice the file.

    Pillow reads the values of all tags into memory, each where it is said to be: they may all be the same.
    """
    if not _TIFF_HEADER.match(data):
        return
    if 43 in data[2:4]:
        _check_directories(data, is_big=True)
    if data[2] != 43:  # Pillow reads big-endian BigTIFF as if it were none
        _check_directories(data, is_big=False)


def _check_directories(data: bytes, is_big: bool) -> None:
    order = "<" if data.startswith(b"II") else ">"
    width, count_type = (8, "Q") if is_big else (4, "H")
    entry = struct.Struct(f"{order}HHQQ" if is_big else f"{order}HHLL")
    pointer, counter = struct.Struct(order + ("Q" if is_big else "L")), struct.Struct(order + count_type)
    waiting: list[int] = [pointer.unpack_from(data, width)[0]] if len(data) >= 2 * width else []
    seen: set[int] = set()
    tags = total = 0
    while waiting:
        at = waiting.pop()
        if at in seen or not 0 < at <= len(data) - counter.size:
            continue
        seen.add(at)
        start = at + counter.size
        count = min(counter.unpack_from(data, at)[0], (len(data) - start) // entry.size)
        tags += count
        if len(seen) > MAX_DIRECTORIES or tags > MAX_TAGS:
            raise ValueError(f"more than {MAX_DIRECTORIES:,} directories or {MAX_TAGS:,} tags")
        end = start + count * entry.size
        for tag, kind, number, value in entry.iter_unpack(data[start:end]):
            size = number * _TAG_BYTES.get(kind, 0)
            if width < size <= len(data):  # a larger one is not read
                total += size
            if tag in _DIRECTORY_TAGS:
                waiting.append(value)
        if total > 2 * len(data):
            raise ValueError("tags of more bytes than the file has")
        if end + width <= len(data):
            waiting.append(pointer.unpack_from(data, end)[0])


def _check_png(data: bytes) -> None:
    at, others = 8, 0
    while at + 8 <= len(data):
        others += data[at + 4 : at + 8] not in _IMAGE_CHUNKS
        if others > MAX_CHUNKS:
            raise ValueError(f"more than {MAX_CHUNKS:,} chunks besides image data")
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def _check_pnm(data: bytes) -> None:
    """Pillow reads a header byte by byte, 3 MB a second."""
    header = re.sub(rb"#[^\r\n]*", b"", data[:MAX_PNM_HEADER])
    numbers = 2 if data[1:2] in b"14" else 3
    if len(data) > MAX_PNM_HEADER and len(header.split(maxsplit=numbers + 1)) <= numbers:
        raise ValueError(f"a header of more than {MAX_PNM_HEADER:,} bytes")
    if data[1:2] in b"123" and data.count(b"#") > MAX_COMMENTS:
        raise ValueError(f"more than {MAX_COMMENTS:,} comments")


def _check_gif(data: bytes) -> None:
    at = 13 + _color_table(data, 10)
    blocks = 0
    while at < len(data) and data[at] != 0x3B:
        blocks += 1
        if data[at] in (0x21, 0x2C):  # an extension, or an image with its color table and code size
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
    """Bytes of the color table, from the flags at offset ``at``."""
    flags = data[at] if at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
