"""JPEGs that are damaged inside, which decoders read in silence with a part of the picture wrong.

libjpeg warns of them, but Pillow passes no warning on. How it decodes shows the damage: where data
are lost, grey takes their place at the end of the picture, or data are left over when it is whole.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from PIL import Image, ImageFile

_END = b"\xff\xd9"
_GREY = 128  # what libjpeg puts where it has no data
_UNLIKELY = {"RGB": (1, 254, 3), "L": 253}  # marks a pixel that is not decoded yet
_WITHHELD = 32  # bytes before the end marker, without which the last rows cannot be decoded
_SCALE = 8  # at an eighth of the size a block is one pixel
_BASELINE, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_DAMAGED = "damaged inside, so a part of the picture is wrong"
# With the usual code of AC coefficients (ITU T.81, table K.5, its numbers of codes by length), no
# picture has as many bytes of zeros in a row. A disk or a network that loses a block leaves them.
_USUAL_CODE, _HOLE = bytes.fromhex("0002010303020403050504040000017d"), bytes(256)


def load(image: Image.Image) -> None:
    """Decode an open image; raises OSError for a JPEG of which a part is missing or wrong.

    One that only lacks its end marker is read.
    """
    jpeg: Any = image  # a JpegImageFile
    layout = None
    if image.format in ("JPEG", "MPO") and not ImageFile.LOAD_TRUNCATED_IMAGES:
        jpeg.fp.seek(0)
        layout = _layout(jpeg.fp.read())
    if layout is None or image.mode not in _UNLIKELY:
        image.load()
        return
    last, left_over = (image.width - 1, image.height - 1), True  # until more is asked for

    def pieces() -> Iterator[bytes]:
        nonlocal left_over
        withheld = max(layout.start, layout.end - _WITHHELD)
        yield layout.content[:withheld]
        left_over = jpeg.im.getpixel(last) != _UNLIKELY[image.mode]
        yield layout.content[withheld:]
        yield _END

    parts = pieces()
    jpeg.load_prepare()
    jpeg.im.putpixel(last, _UNLIKELY[image.mode])
    jpeg.load_read = lambda size: next(parts, b"")
    image.load()
    has_end = layout.end < len(layout.content)
    if image.getpixel(last) in (_GREY, (_GREY,) * 3) and not (has_end and layout.ends_in_grey()):
        raise OSError("truncated: the lower part of the picture is missing")
    if left_over or layout.has_hole() or not layout.is_complete(has_end=has_end):
        raise OSError("truncated" if not has_end else _DAMAGED)


def lacks_end(content: bytes) -> bool:
    """Whether the bytes are a JPEG without an end marker."""
    layout = _layout(content) if content.startswith(b"\xff\xd8") else None
    return layout is not None and layout.end == len(content)


@dataclass(frozen=True)
class _Layout:
    """A JPEG: its frame header (8 bytes and 3 per component), restart interval, first scan, end."""

    content: bytes
    kind: int
    frame: bytes
    interval: int
    start: int
    end: int

    def is_complete(self, *, has_end: bool) -> bool:
        """Whether all scans, and all restart markers between their parts, are there."""
        if self.kind == _PROGRESSIVE:
            return has_end and self._all_scans()
        in_one_scan = self.content[self.start + 4] == self.frame[5]
        return (has_end or in_one_scan) and not (
            self.interval and in_one_scan and not self._all_restarts()
        )

    def has_hole(self) -> bool:
        """Whether a block of the data was lost and is zeros now."""
        head, data = self.content[: self.start], self.content[self.start : self.end]
        return self.kind != _PROGRESSIVE and _USUAL_CODE in head and _HOLE in data

    def _all_scans(self) -> bool:
        """Whether the scans of a progressive JPEG bring all coefficients to full precision."""
        exact: set[tuple[int, int]] = set()  # component and coefficient
        for found in re.finditer(b"\xff\xda..(.)", self.content[self.start : self.end], re.DOTALL):
            place, count = self.start + found.end(), found[1][0]
            first, last, precision = self.content[place + 2 * count : place + 2 * count + 3]
            if precision % 16 == 0:
                components = self.content[place : place + 2 * count : 2]
                exact |= {(one, k) for one in components for k in range(first, last + 1)}
        return len(exact) >= 64 * self.frame[5]

    def _all_restarts(self) -> bool:
        """Whether there are as many restart markers as there should be, from 0 to 7 in turn."""
        data = np.frombuffer(self.content, np.uint8)[self.start : self.end]
        after = data[np.flatnonzero(data[:-1] == 0xFF) + 1]
        numbers = after[(after & 0xF8) == 0xD0] & 7
        height, width = (int.from_bytes(self.frame[i : i + 2]) for i in (1, 3))
        across, down = self._blocks()
        units = ceil(width / (8 * across)) * ceil(height / (8 * down))
        expected = np.arange(ceil(units / self.interval) - 1) % 8
        return np.array_equal(numbers, expected)

    def _blocks(self) -> tuple[int, int]:
        """How many blocks a unit of the data has across and down."""
        factors = self.frame[7 : 6 + 3 * self.frame[5] : 3]
        if len(factors) == 1:
            return 1, 1
        return max(factor >> 4 for factor in factors), max(factor & 15 for factor in factors)

    def ends_in_grey(self) -> bool:
        """Whether grey at the end of the picture is its own, and not a sign of missing data.

        A block has two bits or more. Without as many of the last bytes as grey blocks need, the
        rest of a whole picture is the same, but a picture whose data end too early loses more.
        """
        before, (_, down) = _small(self.content), self._blocks()
        is_grey = (before == _GREY).reshape(*before.shape[:2], -1).all(axis=2)
        own = np.flatnonzero(~is_grey.all(axis=1))
        rows = int(own[-1]) + 1 if len(own) else 0  # up to the last that is not all grey
        top = max(0, (rows - 1) // down * down)
        own = np.flatnonzero(~is_grey[top:rows].all(axis=0))
        across = int(own[-1]) + 1 if len(own) else 0
        is_grey[:top], is_grey[top:rows, :across] = False, False
        surplus = (2 * int(is_grey.sum()) - 7) // 8
        data = self.start + 2 + int.from_bytes(self.content[self.start + 2 : self.start + 4])
        if surplus < 1 or is_grey.all():  # too little to tell, or nothing that could be lost
            return surplus <= self.end - data
        if surplus >= self.end - data:
            return False
        after = _small(self.content[: self.end - surplus] + _END)
        return np.array_equal(before[~is_grey], after[~is_grey])


def _layout(content: bytes) -> _Layout | None:
    """What the headers say; None for what is no JPEG of the usual kinds."""
    place, kind, frame, interval = 2, 0, b"", 0
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4])
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker in (*_BASELINE, _PROGRESSIVE):
            kind, frame = marker, content[place + 4 : place + 2 + length]
        if marker == 0xDD:
            interval = int.from_bytes(content[place + 4 : place + 6])
        if marker == 0xDA:
            end = _find_end(content, place + 2 + length)
            is_usual = len(frame) > 8 and len(frame) >= 6 + 3 * frame[5] and frame[5]
            return _Layout(content, kind, frame, interval, place, end) if is_usual else None
        place += 2 + length
    return None


def _find_end(content: bytes, start: int) -> int:
    """Where the end marker is, or else the end of the file; in a tenth of the time of `find`."""
    data = np.frombuffer(content, np.uint8)[start:]
    markers = np.flatnonzero(data[:-1] == _END[0])
    ends = markers[data[markers + 1] == _END[1]]
    return start + int(ends[0]) if len(ends) else len(content)


def _small(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        image.draft(None, (ceil(image.width / _SCALE), ceil(image.height / _SCALE)))
        return np.asarray(image)
