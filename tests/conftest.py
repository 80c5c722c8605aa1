"""What the tests share: seeds fixed once, tiny real data sets, and where the real ones lie."""

import multiprocessing
import os
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

if method := os.environ.get("RESNET_FT_START_METHOD"):  # see test_start_methods.py
    multiprocessing.set_start_method(method, force=True)
matplotlib.use("agg")  # for this process alone: the kernels of the notebooks draw inline


def pytest_configure(config):
    """What is compared to the last bit is compared on the processor; `-m gpu` uses a GPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Decoded photographs of the tests do not stay in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def one_thread(request):
    """Tiny networks wait for a second thread longer than it saves; not so those of slow tests."""
    threads = torch.get_num_threads()
    if request.node.get_closest_marker("slow") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def figures_closed():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def write_image(path: Path, size=(48, 40), colour=(200, 60, 40)) -> Path:
    """A small real image: one colour with a little noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-3:]).encode()))
    pixels = np.array(colour) + rng.integers(-20, 21, (size[1], size[0], 3))
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes that differ in colour: 9 and 8 training images, 3 and 3 for validation."""
    colours = {"blue": (40, 60, 200), "red": (200, 60, 40)}
    counts = {("Train", "blue"): 9, ("Train", "red"): 8, ("Val", "blue"): 3, ("Val", "red"): 3}
    for (split, name), count in counts.items():
        for i in range(count):
            write_image(tmp_path / "photos" / split / name / f"{i}.png", colour=colours[name])
    return tmp_path / "photos"


def network() -> torch.nn.Module:
    """A few hundred parameters, with BatchNorm and dropout: every step draws and remembers."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(8, 2),
    )


@pytest.fixture
def small_network() -> torch.nn.Module:
    return network()


def tensors(count: int, seed: int) -> TensorDataset:
    """Noise of 9x9 pixels, of class 1 where its mean is positive."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 9, 9, generator=generator)
    return TensorDataset(images, (images.mean(dim=(1, 2, 3)) > 0).long())


def shared_data(name: str) -> Path:
    """A real data set, or a skipped test with the reason."""
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"the data set {name} is not at {folder}")
    return folder
