"""Photographs as arrays, read from the decode-once cache or else from their files."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from resnet_ft.data.cache import no_records
from resnet_ft.data.images import open_image
from resnet_ft.data.paths import PathArray
from resnet_ft.data.resizing import open_resized


class DecodedImages(Sequence[np.ndarray]):
    """Upright RGB photographs as uint8 arrays of shape (H, W, 3), each a copy of one's own.

    With `side`, the short side is that many pixels (see `open_resized`). What `decode_once` stored
    is read from memory that all processes share; anything else is decoded when it is asked for,
    to the same pixels, and raises ImageError if it cannot be.
    """

    def __init__(
        self,
        paths: Iterable[str | Path],
        side: int | None = None,
        *,
        pixels: Path | None = None,
        records: np.ndarray | None = None,
    ):
        self.paths = paths if isinstance(paths, PathArray) else PathArray(paths)
        self.side = side
        self._pixels = pixels
        self._records = no_records(len(self.paths)) if records is None else records
        self._mapped = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> np.ndarray:
        _, offset, height, width = self._records[i]
        if offset >= 0 and self._map() is not None:
            end = offset + height * width * 3
            return self._mapped[offset:end].reshape(height, width, 3).copy()
        return self.decode(i)

    def decode(self, i: int) -> np.ndarray:
        """The photograph from its file, whether it is stored or not."""
        path = self.paths[i]
        return np.array(open_resized(path, self.side) if self.side else open_image(path))

    def take(self, rows: np.ndarray) -> "DecodedImages":
        """The photographs in these rows."""
        return DecodedImages(
            self.paths.take(rows), self.side, pixels=self._pixels, records=self._records[rows]
        )

    def _map(self) -> np.ndarray | None:
        if self._mapped is None and self._pixels is not None:
            try:
                self._mapped = np.asarray(np.memmap(self._pixels, np.uint8, mode="r"))
            except (OSError, ValueError):  # deleted since: photographs are decoded again
                self._pixels = None
        return self._mapped

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_mapped": None}  # a new process maps the file itself
