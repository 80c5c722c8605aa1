"""What a predictor takes: everything that is an image, and nothing else."""

import io
import re
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import write_image
from PIL import Image
from torch import nn

from resnet_ft import ImageError, ParameterError, Predictor, eval_transform
from resnet_ft.inference import inputs


class Shares(nn.Module):
    """The mean of each channel as its logit."""

    def forward(self, images):
        return 5 * images.mean(dim=(2, 3))


@pytest.fixture
def predictor():
    return Predictor(Shares(), ["red", "green", "blue"], eval_transform(16))


@pytest.fixture
def path(tmp_path):
    return write_image(tmp_path / "a.png", size=(40, 30), colour=(20, 60, 200))


def shares(prediction):
    return pytest.approx(dict(prediction.top), abs=1e-5)


def pixels(path):
    return np.asarray(Image.open(path))


def tensor(path):
    return torch.from_numpy(pixels(path).copy()).permute(2, 0, 1)


SAME = {
    "text": str,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file": lambda path: path.open("rb"),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "PIL": Image.open,
    "array": pixels,
    "float64": lambda path: pixels(path) / 255,
    "float32": lambda path: (pixels(path) / 255).astype(np.float32),
    "four channels": lambda path: np.dstack([pixels(path), np.full((30, 40), 255, np.uint8)]),
    "not contiguous": lambda path: pixels(path)[:, ::-1][:, ::-1],
    "tensor": tensor,
    "float tensor": lambda path: tensor(path) / 255,
    "tensor with gradients": lambda path: (tensor(path) / 255).requires_grad_(),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_pixels_have_the_same_answer_whatever_holds_them(predictor, path, kind):
    assert dict(predictor.predict(SAME[kind](path)).top) == shares(predictor.predict(path))


def test_a_list_may_mix_them_and_a_file_may_have_been_read_before(predictor, path):
    file = path.open("rb")
    file.read()
    found = predictor.predict([make(path) for make in SAME.values()] + [file])
    assert len(found) == len(SAME) + 1
    for one in found:
        assert dict(one.top) == shares(found[0])


def test_grey_arrays_are_grey_images(predictor):
    grey = np.arange(120, dtype=np.uint8).reshape(10, 12)
    expected = predictor.predict(Image.fromarray(grey))
    assert dict(predictor.predict(grey).top) == shares(expected)
    assert dict(predictor.predict(grey / 255).top) == shares(expected)


MODES = "1 L La LA P PA RGB RGBa RGBA RGBX CMYK YCbCr HSV LAB I I;16 I;16B F"


@pytest.mark.parametrize("mode", MODES.split())
def test_a_pil_image_may_have_any_mode(predictor, mode):
    image = Image.new(mode, (9, 12))
    pixels = predictor._pixels(image)
    assert pixels.shape == (12, 9, 3) and pixels.dtype == np.uint8 and (pixels == pixels[0]).all()
    assert dict(predictor.predict(image).top) == shares(predictor.predict(pixels))


def test_a_tensor_that_is_prepared_already_is_said_to_be(predictor, path):
    prepared = predictor.transform(Image.open(path))
    with pytest.raises(ParameterError, match=r"floats are from 0 to 1.*pass normalised=True"):
        predictor.predict(prepared)
    found = predictor.predict(prepared, normalised=True)
    assert dict(found.top) == shares(predictor.predict(path))
    assert found.picture is None
    both = predictor.predict([prepared, prepared.double()], normalised=True)
    assert [dict(one.top) for one in both] == [shares(found)] * 2


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((3, 16, 16), np.float32), torch.zeros(3, 16, 17), torch.zeros(16, 16), None]
    + [torch.zeros(3, 16, 16, dtype=torch.uint8), torch.full((3, 16, 16), torch.nan)],
)
def test_anything_else_is_no_prepared_tensor(predictor, wrong):
    with pytest.raises(ParameterError, match=r"tensor of finite floats \(3, 16, 16\)"):
        predictor.predict(wrong, normalised=True)


def test_with_a_transform_of_ones_own_prepared_tensors_have_any_size():
    predictor = Predictor(Shares(), ["red", "green", "blue"], lambda image: torch.zeros(3, 4, 4))
    images = [torch.zeros(3, 5, 7), torch.zeros(3, 6, 6)]
    assert [one.confidence < 0.34 for one in predictor.predict(images, normalised=True)] == [
        True
    ] * 2
    for wrong in (torch.zeros(3, 5), torch.zeros(3, 0, 5), torch.zeros(1, 3, 5, 7)):
        with pytest.raises(ParameterError, match=r"finite floats \(3, H, W\)"):
            predictor.predict(wrong, normalised=True)


NO_IMAGES = {
    "image is NoneType": None,
    "image is int": 3,
    "image is dict": {"image": "a.png"},
    "image is an empty Image": Image.new("RGB", (0, 4)),
    "image is an array (0, 4, 3) of uint8": np.zeros((0, 4, 3), np.uint8),
    "image is an array (4, 4, 2) of uint8": np.zeros((4, 4, 2), np.uint8),
    "image is an array (3, 9, 9) of float64": np.zeros((3, 9, 9)),
    "image is an array (9,) of float64": np.zeros(9),
    "image is an array (9, 9) of uint16": np.zeros((9, 9), np.uint16),
    "image is an array (1,) of <U5": np.array(["a.png"]),
    "image is an array (9, 9) of float64 from nan to nan": np.full((9, 9), np.nan),
    "image is an array (9, 9) of float64 from inf to inf": np.full((9, 9), np.inf),
    "image is an array (9, 9) of float64 from 200 to 200; floats are from 0 to 1. Divide colours "
    "up to 255 by 255": np.full((9, 9), 200.0),
    "image is a tensor (9, 9, 3) of torch.uint8": torch.zeros(9, 9, 3, dtype=torch.uint8),
    "image is a tensor (1, 3, 9, 9) of torch.float32": torch.zeros(1, 3, 9, 9),
    "image is a tensor (3, 9, 9) of torch.int64": torch.zeros(3, 9, 9, dtype=torch.int64),
    "image is a tensor (3, 9, 9) of torch.float32 from -1 to -1": torch.zeros(3, 9, 9) - 1,
}


@pytest.mark.parametrize("message", NO_IMAGES)
def test_what_is_no_image_is_refused_by_its_kind(predictor, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        predictor.predict(NO_IMAGES[message])


def test_the_one_of_a_list_that_is_none_is_named(predictor, path):
    with pytest.raises(ParameterError, match=r"images\[1\] is NoneType.*An image is a path"):
        predictor.predict([path, None])
    with pytest.raises(ImageError, match=r"images\[2\]: not an image"):
        predictor.predict([path, path, b"no image"])


def test_what_cannot_be_read_has_a_reason(predictor, path, tmp_path):
    for content, reason in ((b"", "the file is empty"), (path.read_bytes()[:500], "truncated")):
        with pytest.raises(ImageError, match=reason):
            predictor.predict(content)
    with pytest.raises(ParameterError, match="is a folder; predict_folder"):
        predictor.predict(tmp_path)
    with pytest.raises(ParameterError, match=r'open as text. Open it with "rb"'), path.open() as it:
        it.read = lambda: "text"
        predictor.predict(it)
    with pytest.raises(ImageError, match="embedded null"):
        predictor.predict("a\0b.png")
    closed = Image.open(path)
    closed.close()
    with pytest.raises(ImageError, match=r"image: .*closed"):
        predictor.predict(closed)


def test_a_function_of_ones_own_opens_bytes_too(path):
    def opener(file):
        return Image.open(file).rotate(180)

    turned = Predictor(Shares(), ["red", "green", "blue"], eval_transform(16), open_image=opener)
    assert dict(turned.predict(path.read_bytes()).top) == shares(turned.predict(path))


class Server:
    """An image on a loopback address, and how it is sent."""

    def __init__(self, content):
        self.content, self.kind, self.headers, self.url = content, "image/png", {}, ""
        self.wait_s, self.step, self.endless, self.asked = 0.0, 1 << 20, False, 0

    def answer(self, handler):
        self.asked += 1
        if handler.path.startswith("/moved"):
            handler.send_response(302)
            handler.send_header("Location", self.headers["Location"])
            handler.end_headers()
            return
        if handler.path.startswith("/missing"):
            handler.send_error(404)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", self.kind)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            for start in range(0, len(self.content), self.step):
                handler.wfile.write(self.content[start : start + self.step])
                time.sleep(self.wait_s)
            while self.endless:
                handler.wfile.write(bytes(1 << 20))
        except OSError:
            self.endless = False  # the client has had enough


@pytest.fixture
def server(path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(path.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.answer(self)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}/"
    yield server
    http.shutdown()
    http.server_close()


def test_an_address_is_read(predictor, path, server):
    assert dict(predictor.predict(f"{server.url}a.png").top) == shares(predictor.predict(path))
    server.headers["Location"] = "/a.png"
    assert dict(predictor.predict(f"{server.url}moved").top) == shares(predictor.predict(path))


def refused(predictor, url, reason):
    with pytest.raises(ImageError, match=reason) as error:
        predictor.predict(url)
    shown = "".join(traceback.format_exception(error.value))
    assert "secret" not in shown
    return str(error.value)


def test_an_address_without_an_image_is_named_with_the_reason(predictor, server):
    said = refused(predictor, f"{server.url}missing.png", "the server answered 404")
    assert said.startswith(f"{server.url}missing.png: ")
    refused(predictor, "http://127.0.0.1:9/a.png", "refused")
    server.kind = "text/html; charset=utf-8"
    refused(predictor, f"{server.url}page", "sent text/html; charset=utf-8, and no image")
    server.kind, server.content = "image/png", b"no image"
    refused(predictor, f"{server.url}a.png", f"{server.url}a.png: not an image")
    server.headers["Location"] = "/moved"
    refused(predictor, f"{server.url}moved", "redirects")
    server.headers["Location"] = "file:///etc/hostname"
    refused(predictor, f"{server.url}moved", "file:///etc/hostname")


def test_secrets_in_an_address_are_not_shown(predictor, server):
    url = server.url.replace("://", "://me:secret1@") + "missing?token=secret2"
    said = refused(predictor, url, "404")
    assert said.count("***") == 2


NOT_OF_THE_WEB = ["file:///etc/hostname", "ftp://a/b.png", "gs://a/b.png", "pipe:cat a.png"]
NO_ADDRESSES = ["http://", "https:/a/b.png", "http://a b/c.png"]


@pytest.mark.parametrize("url", NOT_OF_THE_WEB + NO_ADDRESSES)
def test_only_addresses_of_the_web_are_read(predictor, url):
    refused(predictor, url, r"does not begin with http|names no server|has a space")


def test_an_image_may_be_so_large_and_no_larger(predictor, server, monkeypatch):
    monkeypatch.setattr(inputs, "_MOST_BYTES", 1 << 20)
    server.content += bytes(2 << 20)
    refused(predictor, server.url, "larger than 1 MB")
    server.headers["Content-Length"] = str(1 << 40)
    refused(predictor, server.url, "larger than 1 MB")
    server.headers, server.endless = {}, True
    refused(predictor, server.url, "larger than 1 MB")


@pytest.mark.parametrize("wait_s", [0.1, 3])
def test_a_slow_server_is_given_up_in_time(predictor, server, monkeypatch, wait_s):
    monkeypatch.setattr(inputs, "_SECONDS", 0.5)
    server.step, server.wait_s = 40, wait_s
    began = time.monotonic()
    refused(predictor, server.url, "did not come within 0 seconds")
    assert time.monotonic() - began < 2
