"""The examples that answer over HTTP, started as their first lines say, from a fresh directory."""

import asyncio
import contextlib
import io
import os
import runpy
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn

from resnet_ft import Predictor, build_model, eval_transform, save_checkpoint

EXAMPLES = ROOT / "examples"
CLASSES = ["red", "green", "blue & <b>"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of a network that knows nothing and says different things of different images."""
    torch.manual_seed(0)
    model = build_model("resnet18", 3, weights=None)
    preprocessing = {"image_size": 32, "mean": [0.5] * 3, "std": [0.1] * 3}
    folder = tmp_path_factory.mktemp("run")
    save_checkpoint(folder / "best.pt", model, classes=CLASSES, preprocessing=preprocessing)
    return folder


def png(number, size=(40, 32)):
    """The bytes of an image that is another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
    pixels[:, :, number % 3] //= 2
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def started(command, folder, port, ready="/", **environment):
    """A server in a process of its own, once it answers; yields its address and its log file."""
    log, address = folder / "log.txt", f"http://127.0.0.1:{port}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=folder,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                opener.open(address + ready, timeout=5).close()
                break
            time.sleep(0.2)
        yield address, log
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_the_server_answers_two_hundred_requests_at_once_each_with_its_own(run_dir, tmp_path):
    pytest.importorskip("fastapi")
    port = free_port()
    command = [EXAMPLES / "serve.py", run_dir, "--port", port]
    images = [png(number) for number in range(200)]
    expected = [one.to_dict() for one in Predictor.load(run_dir).predict(images)]
    assert len({one["confidence"] for one in expected}) == 200
    with (
        started(command, tmp_path, port, "/healthz") as (address, log),
        httpx.Client(timeout=60, limits=httpx.Limits(max_connections=None), trust_env=False) as web,
        ThreadPoolExecutor(200) as pool,
    ):

        def ask(number):
            content = images[number]
            given = {"files": {"file": content}} if number % 2 else {"content": content}
            return web.post(f"{address}/predict", **given)

        answers = [pool.submit(ask, number) for number in range(200)]
        health = web.get(f"{address}/healthz")
        is_waiting = not all(answer.done() for answer in answers)
        assert health.json() == {"status": "ok", "classes": CLASSES} and is_waiting
        for answer, wanted in zip(answers, expected, strict=True):
            found = answer.result()
            assert found.status_code == 200
            assert found.json()["class_name"] == wanted["class_name"]
            assert found.json()["confidence"] == pytest.approx(wanted["confidence"], abs=1e-5)
        with socket.create_connection(("127.0.0.1", port)) as leaving:
            leaving.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\nabc")
        assert web.get(f"{address}/healthz").status_code == 200
    assert "Traceback" not in log.read_text()


class Slow(nn.Module):
    def forward(self, images):
        time.sleep(0.5)
        return images.mean(dim=(2, 3))


@pytest.fixture
def ask():
    """Ask the server in this process, with limits of its own: a request, or several at once."""
    pytest.importorskip("fastapi")
    script = runpy.run_path(str(EXAMPLES / "serve.py"))
    script["application"].__globals__.update(MOST_SECONDS=0.8, MOST_BYTES=100_000)
    app = script["application"](Predictor(Slow(), CLASSES, eval_transform(16)))

    def ask(*requests):
        async def answers():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as web:
                return await asyncio.gather(*(web.post("/predict", **one) for one in requests))

        return [(one.status_code, one.json().get("detail")) for one in asyncio.run(answers())]

    return ask


def test_the_server_refuses_what_is_no_image_and_never_opens_a_path(ask, tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    for content in (str(tmp_path / "a.png"), "http://127.0.0.1/a.png", "file:///etc/hostname"):
        assert ask({"content": content.encode()})[0][0] == 422
        assert ask({"data": {"file": content}, "files": {"other": png(0)}})[0][0] == 400
    assert ask({"content": b""}) == [(422, "the file is empty")]
    assert ask({"files": {"other": png(0)}}) == [(400, "Send the image as the form's `file`.")]
    form = {"Content-Type": "multipart/form-data"}
    assert ask({"content": b"x", "headers": form})[0][0] == 400


def test_the_server_has_limits_of_size_and_time(ask):
    async def slowly():
        for part in (png(0)[:50], png(0)[50:]):
            yield part
            await asyncio.sleep(1)

    assert ask({"content": bytes(100_001)})[0][0] == 413
    assert ask({"files": {"file": bytes(100_001)}})[0][0] == 413
    assert ask({"content": slowly()})[0][0] == 408
    codes = [code for code, _ in ask(*[{"content": png(0)}] * 4)]
    assert codes == [200, 503, 503, 503]  # the second would be ready after a second


@pytest.mark.slow
def test_the_page_is_a_space_and_asks_nothing_of_the_network(run_dir, tmp_path):
    gradio_client = pytest.importorskip("gradio_client")
    space = tmp_path / "space"
    (space / "run").mkdir(parents=True)
    shutil.copy(EXAMPLES / "gradio_page.py", space / "app.py")
    shutil.copy(run_dir / "best.pt", space / "run")
    (tmp_path / "photo.png").write_bytes(png(3))
    (tmp_path / "none.png").write_bytes(b"no image")
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as proxy:

        def listen():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = proxy.accept()
                    asked.append(connection.recv(200))
                    connection.close()

        threading.Thread(target=listen, daemon=True).start()
        elsewhere = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        without = {"http_proxy": elsewhere, "https_proxy": elsewhere, "no_proxy": "127.0.0.1"}
        port = free_port()
        options = {**without, "GRADIO_SERVER_PORT": str(port)}
        with started([space / "app.py"], tmp_path, port, **options) as (address, _):
            client = gradio_client.Client(address, verbose=False, analytics_enabled=False)
            photograph = gradio_client.handle_file(tmp_path / "photo.png")
            html = client.predict(photograph, api_name="/predict")
            with pytest.raises(Exception, match=r"\w"):
                client.predict(gradio_client.handle_file(tmp_path / "none.png"))
        assert not asked
    best = Predictor.load(run_dir).predict(tmp_path / "photo.png")
    assert f"{best.confidence:.1%}" in html and "blue &amp; &lt;b&gt;" in html
