"""What has come of a file from the web, on disk, so that a later call can continue it."""

import json
import shutil
from pathlib import Path


class Partial:
    """What has come so far, and a note of which state of the file at the server it is."""

    def __init__(self, folder: Path):
        self.path = folder / "partial"
        self._note = folder / "server.json"

    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.exists() else 0

    def server(self) -> dict:
        """The file's `total` size and `validator` (ETag or date), None where nobody told."""
        try:
            return json.loads(self._note.read_text())
        except (OSError, ValueError):
            return {"total": None, "validator": None}

    def begin(self, total: int | None, validator: str | None) -> None:
        """Forget what came; what comes now is of this state."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        self._note.write_text(json.dumps({"total": total, "validator": validator}))

    def discard(self) -> None:
        """Leave nothing: it is not what was wanted."""
        shutil.rmtree(self.path.parent)
