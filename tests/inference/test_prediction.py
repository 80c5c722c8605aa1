"""What a prediction is for a program, in a terminal and in a notebook."""

import dataclasses
import io
import json
import pickle

import numpy as np
import pytest
import torch
from browser import chromium
from PIL import Image
from torch import nn

from resnet_ft import Prediction, Predictor, eval_transform

SURE = Prediction([("ants", 0.9996), ("bees", 0.0004)], unsure=False)
UNSURE = Prediction([("ants", 0.52), ("bees", 0.48)], unsure=True, unfamiliar=True)


def test_it_is_plain_data_for_json():
    assert json.loads(json.dumps(UNSURE.to_dict())) == {
        "class_name": "ants",
        "confidence": 0.52,
        "top": [
            {"class_name": "ants", "probability": 0.52},
            {"class_name": "bees", "probability": 0.48},
        ],
        "unsure": True,
        "unfamiliar": True,
    }
    assert SURE.to_dict()["unfamiliar"] is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        SURE.unsure = True
    assert pickle.loads(pickle.dumps(UNSURE)) == UNSURE != SURE


def test_a_terminal_shows_a_line_that_never_claims_certainty():
    assert str(SURE) == repr(SURE) == "ants >99.9%, bees <0.1%"
    assert str(UNSURE) == "ants 52.0%, bees 48.0% (unsure, unfamiliar)"
    assert str(Prediction([("\x1b[31mred\udce9\n", 1.0)])) == "?[31mred?? >99.9%"


def test_the_numbers_are_pythons_own_and_not_those_of_a_library():
    predictor = Predictor(Channels(), ["red", "green", "blue"], eval_transform(8))
    found = predictor.predict(Image.new("RGB", (9, 9), "red"))
    assert all(type(share) is float for _, share in found.top)
    assert found.unsure is None and found.unfamiliar is None
    picture = Image.open(io.BytesIO(found.picture))
    assert picture.size == (9, 9) and picture.getpixel((4, 4))[0] > 240


class Channels(nn.Module):
    def forward(self, images):
        return 5 * images.mean(dim=(2, 3))


def test_the_picture_of_a_large_image_is_small():
    predictor = Predictor(Channels(), ["red", "green", "blue"], lambda image: torch.zeros(3, 4, 4))
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), np.uint8)
    picture = predictor.predict(noise).picture
    assert Image.open(io.BytesIO(picture)).size == (200, 150) and len(picture) < 50_000


def test_names_are_text_in_html_and_no_formulas():
    html = Prediction([("<script>alert(1)</script>", 0.7), ("$x$", 0.3)])._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "mathjax_ignore" in html and "&lt;0.1%" in SURE._repr_html_()


@pytest.mark.browser
def test_a_notebook_shows_a_picture_with_bars():
    predictor = Predictor(Channels(), ["red", "green", "blue"], eval_transform(64))
    found = predictor.predict(Image.new("RGB", (90, 60), "orange"))
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 400, "height": 300})
        page.set_content(dataclasses.replace(found, unsure=True)._repr_html_())
        assert page.locator("img").evaluate("image => image.naturalWidth") > 60
        rows = page.locator("tr").all_inner_texts()
        assert [row.split()[0] for row in rows] == [name for name, _ in found.top]
        assert page.get_by_text("unsure").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
