"""The seconds of a training: all of it, before its first epoch, and of each epoch."""

import time
from itertools import pairwise


class Clock:
    """Started when it is made; `lap()` marks the first epoch's begin and every epoch's end."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget what came before."""
        self._laps = [time.perf_counter()]

    def lap(self) -> None:
        self._laps.append(time.perf_counter())

    def seconds(self) -> dict[str, float | list[float]]:
        """`seconds` in all until now; of these, those `before` the first epoch and of `epochs`."""
        total = time.perf_counter() - self._laps[0]
        before, *epochs = [round(later - earlier, 3) for earlier, later in pairwise(self._laps)]
        return {"seconds": round(total, 3), "before": before, "epochs": epochs}
