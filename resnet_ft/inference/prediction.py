"""What a model says of one image: data, a line of text, a picture with bars."""

from base64 import b64encode
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from resnet_ft.notebook import NO_FORMULAS, percent, scrolling

_SIDE = 200  # pixels of the picture beside the bars


@dataclass(frozen=True, repr=False)
class Prediction:
    """What a model says of one image; a notebook shows it as a picture with bars.

    `top` are (class name, probability) pairs, the most probable first. `unsure` says whether the
    confidence is below the calibration's threshold, `unfamiliar` whether the image is unlike those
    of the training; None where the calibration has no threshold for that. `picture` is a small JPEG
    file of the image.
    """

    top: list[tuple[str, float]]
    unsure: bool | None = None
    unfamiliar: bool | None = None
    picture: bytes | None = field(default=None, compare=False)

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return self.top[0][0]

    @property
    def confidence(self) -> float:
        """The probability of that class."""
        return self.top[0][1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `top` is a list of {"class_name": ..., "probability": ...}."""
        return {
            **{name: getattr(self, name) for name in ("class_name", "confidence")},
            "top": [{"class_name": name, "probability": share} for name, share in self.top],
            **{name: getattr(self, name) for name in ("unsure", "unfamiliar")},
        }

    def __repr__(self) -> str:
        shares = ", ".join(f"{_printable(name)} {percent(share)}" for name, share in self.top)
        return f"{shares} ({flags})" if (flags := self._flags()) else shares

    def _repr_html_(self) -> str:
        cell = "<td style='border:0;text-align:left"
        rows = "</tr><tr>".join(
            f"{cell}'>{escape(_printable(name))}</td>"
            f"{cell};width:12em;background:linear-gradient(to right, #0072B2 {share:.1%}, "
            f"#6B728030 0) content-box'></td>{cell}'>{escape(percent(share))}</td>"
            for name, share in self.top
        )
        source = f"data:image/jpeg;base64,{b64encode(self.picture or b'').decode()}"
        picture = f"<img alt='' style='min-width:96px' src='{source}'>" if self.picture else ""
        return scrolling(
            f"<div class='{NO_FORMULAS}' style='display:flex;flex-wrap:wrap;gap:1em;"
            f"align-items:center'>{picture}<table><tr>{rows}</tr></table><b>{self._flags()}</b></div>"
        )

    def _flags(self) -> str:
        return ", ".join(name for name in ("unsure", "unfamiliar") if getattr(self, name))


def small_jpeg(pixels: np.ndarray) -> bytes:
    """A small JPEG file of an image, bytes (H, W, 3)."""
    image, file = Image.fromarray(pixels), BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _printable(name: str) -> str:
    """A name without characters that control a terminal or are no Unicode."""
    return "".join(one if one.isprintable() else "?" for one in name)
