"""Words in place of a photograph are found, photographs are not taken for them."""

import numpy as np
import pytest
from conftest import shared_data, write_image
from PIL import Image, ImageDraw, ImageFont

from resnet_ft import audit_dataset, make_sample_dataset, open_image
from resnet_ft.audit.placeholders import background_share

WHITE, DARK, GREY = (255, 255, 255), (25, 25, 25), (150, 150, 150)


def placeholder(size, text, background, ink, *, symbol=False):
    """One line of text in the middle, below a camera where there is a symbol."""
    image = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(image)
    x, y = size[0] / 2, size[1] / 2
    if symbol:
        draw.rectangle([0.7 * x, 0.5 * y, 1.3 * x, y], fill=ink)
        draw.ellipse([0.9 * x, 0.65 * y, 1.1 * x, 0.85 * y], fill=background)
        y *= 1.4
    draw.text((x, y), text, ink, ImageFont.load_default(size[1] / 12), anchor="mm")
    return image


def page(size, height, background=WHITE, ink=DARK, lines=99):
    """Lines of words of different lengths, with margins."""
    image = Image.new("RGB", size, background)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(height)
    rng = np.random.default_rng(0)
    for line in range(min(lines, int(0.8 * size[1] / (1.5 * height)))):
        text = ""
        while draw.textlength(text, font) < 0.75 * size[0]:
            text += "photograph"[: rng.integers(2, 10)] + " "
        draw.text((0.1 * size[0], 0.1 * size[1] + line * 1.5 * height), text, ink, font)
    return image


WORDS = {
    "grey": placeholder((400, 300), "Image not available", (238, 238, 238), GREY),
    "symbol": placeholder((500, 500), "NO IMAGE", (225, 225, 225), (170, 170, 170), symbol=True),
    "coloured": placeholder((640, 480), "This photo was removed", (0, 120, 130), WHITE),
    "dark": placeholder((640, 360), "Video unavailable", DARK, WHITE),
    "small": placeholder((120, 100), "no photo", WHITE, GREY),
    "page": page((1240, 1754), 28),
    "large print": page((800, 1100), 36),
    "half a page": page((1000, 1400), 30, lines=14),
    "dark page": page((1200, 800), 30, background=DARK, ink=(220, 220, 220)),
    "slide": page((1280, 720), 50, ink=(20, 40, 120), lines=6),
}


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("name", WORDS)
def test_placeholders_and_pages_of_text_are_found(tmp_path, name, kind):
    WORDS[name].save(tmp_path / f"a.{kind}")
    assert background_share(open_image(tmp_path / f"a.{kind}")) > 0.65


def subject(colours, noise=0.0):
    """A round thing on a white ground, shaded from one colour to another, as in a catalogue."""
    y, x = np.mgrid[:300, :300]
    shade = (x[..., None] / 300) * np.array(colours[0]) + (1 - x[..., None] / 300) * colours[1]
    inside = ((x - 150) ** 2 + (y - 150) ** 2 < 80**2)[..., None]
    pixels = np.where(inside, shade, 255) + np.random.default_rng(0).normal(0, noise, (300, 300, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


PHOTOGRAPHS = {
    "grey on white": subject([(200, 200, 200), (20, 20, 20)]),
    "coloured on white": subject([(220, 120, 40), (90, 20, 10)]),
    "noise": subject([(200, 200, 200), (20, 20, 20)], noise=6),
    "one colour": Image.new("RGB", (300, 200), (240, 240, 240)),
    "one pixel": Image.new("RGB", (1, 1)),
}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_a_subject_on_a_plain_ground_is_no_page(name):
    assert background_share(PHOTOGRAPHS[name]) == 0


def test_the_audit_warns_of_placeholders_and_of_nothing_else(tmp_path):
    data = make_sample_dataset(tmp_path / "sample")
    WORDS["grey"].save(data / "Train/fish/none.png")
    for i in range(3):
        write_image(data / f"Train/fish/plain{i}.png")
    issues = audit_dataset(data, cache_dir=tmp_path / "cache").issues
    found = issues[issues["issue"] == "placeholder or page of text"]
    assert found["path"].tolist() == ["Train/fish/none.png"]
    assert found["severity"].tolist() == ["warning"]
    assert found["detail"].iloc[0].endswith("% is one colour")
    assert "blank" not in set(issues["issue"][issues["path"] == "Train/fish/none.png"])


def test_the_placeholder_among_the_ants_is_found(tmp_path):
    found = audit_dataset(shared_data("hymenoptera"), cache_dir=tmp_path).issues
    words = found[found["issue"] == "placeholder or page of text"]
    assert words["path"].tolist() == ["Train/ants/imageNotFound.gif"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flowers12", "signdigits10", "textures10", "waste6"])
def test_no_photograph_is_taken_for_a_page(tmp_path, name):
    found = audit_dataset(shared_data(name), cache_dir=tmp_path).issues
    assert "placeholder or page of text" not in set(found["issue"])
