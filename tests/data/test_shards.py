import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import traceback
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from conftest import ROOT, write_image
from PIL import Image
from torch import nn

from resnet_ft import (
    Callback,
    DatasetError,
    ImageError,
    ParameterError,
    balanced_loader,
    eval_transform,
    evaluate,
    fine_tune,
    make_dataloaders,
    pack_dataset,
    precompute,
    train_model,
)
from resnet_ft.data.shards import ShardBatchSampler

load = partial(make_dataloaders, image_size=16, batch_size=5, num_workers=0)


@pytest.fixture
def shards(photos, tmp_path) -> Path:
    """17 training images in several shards, 6 for validation."""
    return pack_dataset(photos, tmp_path / "shards", max_shard_mb=0.03)


@pytest.fixture
def single_shards(photos, tmp_path) -> Path:
    """Each image in its own shard."""
    return pack_dataset(photos, tmp_path / "single", max_shard_mb=0.001)


def batches(loader) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images.clone(), labels.clone()) for images, labels in loader]


def same(first, second) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one, other)
        for batch, other_batch in zip(first, second, strict=True)
        for one, other in zip(batch, other_batch, strict=True)
    )


def contents(loader) -> list[tuple[int, bytes]]:
    """Label and pixels of every sample, whatever their order."""
    return sorted(
        (int(label), image.numpy().tobytes())
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    )


def test_they_give_the_very_pixels_of_the_files(tmp_path):
    sideways = Image.Exif()
    sideways[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((1000, 700), Image.Resampling.BICUBIC)
    for split in ("Train", "Val"):
        for name in ("red", "blue"):
            folder = tmp_path / "photos" / split / name
            write_image(folder / "small.png", (20, 30))
            image.save(folder / "large.jpg", quality=90)
            image.save(folder / "sideways.jpeg", exif=sideways)
            image.convert("L").save(folder / "grey.webp")
    shards = pack_dataset(tmp_path / "photos", tmp_path / "shards", max_shard_mb=1)
    options = {"image_size": 48, "num_workers": 0, "train": eval_transform(48)}
    of_files = make_dataloaders(tmp_path / "photos", **options)
    of_shards = make_dataloaders(shards, **options)
    for split in ("train", "val"):
        assert contents(of_shards[split]) == contents(of_files[split])


def test_the_data_set_is_described_as_that_of_its_files(photos, shards):
    of_files, of_shards = load(photos), load(shards)
    assert list(of_shards) == list(of_files)
    for split, loader in of_shards.items():
        other = of_files[split]
        assert (len(loader), len(loader.dataset)) == (len(other), len(other.dataset))
        for name in ("classes", "preprocessing", "fingerprint"):
            assert getattr(loader.dataset, name) == getattr(other.dataset, name)


def test_batches_have_the_shapes_that_are_promised(shards):
    loader = load(shards)["train"]
    images, labels = next(iter(loader))
    assert images.shape == (5, 3, 16, 16) and images.dtype == torch.float32
    assert labels.shape == (5,) and labels.dtype == torch.int64
    assert [len(labels) for _, labels in loader] == [5, 5, 5, 2] and len(loader) == 4
    loader = load(shards, batch_size=4)["train"]  # 17 = 4 * 4 + 1
    assert [len(labels) for _, labels in loader] == [4, 4, 4, 5] and len(loader) == 4


def test_batches_are_the_same_whatever_the_number_of_workers(photos, tmp_path):
    shards = pack_dataset(photos, tmp_path / "shards", max_shard_mb=0.1)
    assert len(list(shards.glob("val-*.tar"))) == 1  # fewer than workers
    runs = []
    for workers in (0, 3):
        loaders = load(shards, num_workers=workers)
        runs.append([batches(loaders[split]) for split in ("train", "train", "val")])
    for first, second in zip(*runs, strict=True):
        assert same(first, second)


def test_every_sample_comes_once_in_every_epoch_in_another_order(photos, single_shards):
    expected = contents(load(photos, train=eval_transform(16))["train"])
    loader = load(single_shards, train=eval_transform(16))["train"]
    epochs = [batches(loader) for _ in range(2)]
    assert all(contents(epoch) == expected for epoch in epochs)
    assert not same(*epochs)
    loader.batch_sampler.set_epoch(0)
    assert same(batches(loader), epochs[0])
    assert not same(
        batches(load(single_shards, train=eval_transform(16), seed=1)["train"]), epochs[0]
    )


def test_augmentation_depends_on_seed_epoch_and_index_alone(shards):
    dataset, again = load(shards)["train"].dataset, load(shards, batch_size=3)["train"].dataset
    image, label = dataset[3, 7]
    _ = dataset[0, 1]
    torch.rand(3)
    assert torch.equal(dataset[3, 7][0], image) and torch.equal(again[3, 7][0], image)
    assert not torch.equal(dataset[4, 7][0], image)
    assert not torch.equal(load(shards, seed=1)["train"].dataset[3, 7][0], image)
    assert dataset[4, 7][1] == label


@pytest.mark.processes
def test_one_pass_can_start_mid_epoch_without_reading_what_came_before(shards):
    for split in ("train", "val"):
        loader = load(shards, batch_size=2, num_workers=1)[split]
        loader.batch_sampler.set_epoch(3)
        full = batches(loader)
        loader.batch_sampler.set_epoch(3)
        loader.batch_sampler.start_at(2)
        assert same(batches(loader), full[2:])
        loader.batch_sampler.set_epoch(3)
        assert same(batches(loader), full)
    (shards / "val-000000.tar").unlink()
    loader = load(shards, batch_size=5)["val"]
    loader.batch_sampler.start_at(1)
    assert len(batches(loader)) == 1


def of_process(rank, count, monkeypatch, sampler) -> list[list[int]]:
    """The batches of one of several processes, as torchrun would tell it."""
    monkeypatch.setenv("WORLD_SIZE", str(count))
    monkeypatch.setenv("RANK", str(rank))
    batches = [[key.index for key in batch] for batch in sampler]
    assert len(batches) == len(sampler) or not sampler.shuffle
    return batches


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_the_samples_of_an_epoch_between_them(count, shuffle, monkeypatch):
    rng = np.random.default_rng(0)
    for total in range(count, 40):
        counts = np.bincount(rng.integers(0, 6, total), minlength=6).tolist()  # some are empty
        samplers = [ShardBatchSampler(counts, 6, shuffle=shuffle) for _ in range(count)]
        epochs = [of_process(r, count, monkeypatch, s) for r, s in enumerate(samplers)]
        indices = [index for batches in epochs for batch in batches for index in batch]
        assert sorted(indices) == list(range(total))


def test_a_process_reads_from_its_own_shards_few_at_a_time(monkeypatch):
    read = []
    for rank in (0, 1):
        sampler = ShardBatchSampler([50] * 40, 6, shuffle=True)
        shards = [
            index // 50 for batch in of_process(rank, 2, monkeypatch, sampler) for index in batch
        ]
        assert sorted(sampler.shards(0)) == sorted(set(shards))
        last = {shard: place for place, shard in enumerate(shards)}
        first = {shard: shards.index(shard) for shard in last}
        for place in range(len(shards)):
            assert sum(first[shard] <= place <= last[shard] for shard in last) <= 6
        neighbours = [a == b for a, b in pairwise(shards)]
        assert sum(neighbours) < 0.35 * len(neighbours)  # they are mixed: about a fifth
        read.append(set(shards))
    assert not read[0] & read[1]


def test_a_data_set_of_shards_can_go_to_another_process(shards):
    dataset = load(shards)["train"].dataset
    image, label = dataset[2, 3]
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[2, 3][0], image) and sent[2, 3][1] == label


@pytest.mark.processes
def test_they_train_and_evaluate_a_model(shards, small_network):
    loaders = load(shards, num_workers=1)
    model, history = train_model(small_network, loaders, num_epochs=2)
    assert len(history) == 2
    predictions = evaluate(model, loaders["val"])
    assert len(predictions.table) == 6
    assert predictions.accuracy == history["val_accuracy"].max()


def test_an_interrupted_run_on_shards_resumes_mid_epoch(shards, tmp_path):
    class Interrupt(Callback):
        def on_step_begin(self, state):
            if (state.epoch, state.phase, state.step) == (2, "train", 3):
                raise KeyboardInterrupt

    def train(run_dir, callbacks=()):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
        loaders = make_dataloaders(shards, image_size=16, batch_size=2, num_workers=0)
        model(next(iter(loaders["val"]))[0])
        return train_model(model, loaders, num_epochs=3, run_dir=run_dir, callbacks=callbacks)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", [Interrupt()])
    model, history = train(tmp_path / "run")
    expected, full = train(None)
    assert history.drop(columns="seconds").equals(full.drop(columns="seconds"))
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))


def test_what_needs_files_says_what_to_use_instead(shards, small_network):
    loaders = load(shards)
    for refusing in (fine_tune, partial(precompute, cache_dir=None)):
        with pytest.raises(ParameterError, match="train_model"):
            refusing(small_network, loaders)
    with pytest.raises(ParameterError, match="WeightedRandomSampler"):
        balanced_loader(loaders["train"])
    with pytest.raises(ParameterError, match="give them to pack_dataset"):
        load(shards, decisions="decisions.csv")


def write_shard(folder: Path, samples: list[dict], /, **facts) -> Path:
    """A data set of one shard, written by the webdataset library as another program would."""
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/train-%06d.tar", verbose=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"sample{number}", **sample})
    facts = {
        "name": "train-000000.tar",
        "samples": len(samples),
        "bytes": (folder / "train-000000.tar").stat().st_size,
    } | facts
    described = {"classes": ["blue", "red"], "splits": {"train": [facts]}}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def test_shards_of_other_programs_are_read(photos, tmp_path):
    content = (photos / "Train" / "red" / "0.png").read_bytes()
    samples = [{"png": content, "cls": label, "json": {"of": "another"}} for label in (1, 0, 1)]
    loader = load(write_shard(tmp_path / "other", samples))["train"]
    assert sorted(next(iter(loader))[1].tolist()) == [0, 1, 1]


def test_an_image_that_cannot_be_decoded_is_named_with_its_shard(tmp_path):
    folder = write_shard(tmp_path / "broken", [{"jpg": b"no image", "cls": 0}])
    with pytest.raises(
        ImageError, match=r"train-000000\.tar, sample sample0: not an image"
    ) as error:
        next(iter(load(folder)["train"]))
    assert error.value.reason == "not an image in a format that can be read"


@pytest.mark.parametrize(
    "sample, facts, reason",
    [
        ({"jpg": b"-"}, {}, r"sample sample0 has no label \(\.cls\)"),
        ({"cls": 0}, {}, r"sample sample0 has no image"),
        ({"jpg": b"-", "cls": "red"}, {}, r"train-000000\.tar is broken: .*'red'"),
        ({"jpg": b"-", "cls": 2}, {}, "1 of them of an unknown class"),
        ({"jpg": b"-", "cls": 0}, {"samples": 2}, "has 1 samples of 2 that dataset.json says"),
        ({"jpg": b"-", "cls": 0}, {"bytes": 7}, "has 10,240 bytes, not 7 as dataset.json says"),
        ({"jpg": b"-", "cls": 0}, {"name": "../a.tar"}, r"should be called train-000000\.tar"),
        (
            {"jpg": b"-", "cls": 0},
            {"name": "train-000001.tar"},
            r"train-000001\.tar could not .*: No such file",
        ),
    ],
)
def test_a_broken_shard_is_named_with_the_reason(tmp_path, sample, facts, reason):
    folder = write_shard(tmp_path / "broken", [sample], **facts)
    with pytest.raises(DatasetError, match=reason):
        next(iter(load(folder)["train"]))


def test_what_is_no_archive_or_no_description_is_an_error(shards):
    shard = shards / "train-000000.tar"
    shard.write_bytes(bytes(range(256)) * (shard.stat().st_size // 256))
    with pytest.raises(DatasetError, match=r"train-000000\.tar is broken"):
        batches(load(shards)["train"])
    (shards / "dataset.json").write_text('{"classes": ["blue", "red"]}')
    with pytest.raises(DatasetError, match=r"dataset\.json does not describe shards.*splits"):
        load(shards)


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.server.requests.append(name)
        if self.server.failures.get(name, 0):
            self.server.failures[name] -= 1
            if name.endswith(".json"):
                self.send_error(503)
            else:  # half a shard
                content = Path(self.translate_path(self.path)).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
            return
        super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """A web server of the test's folder; `failures` says how often a file is sent only in part."""
    handler = partial(_Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.requests, server.failures = [], {}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.processes
def test_shards_from_the_web_are_fetched_once(shards, tmp_path, server):
    local, remote = (
        load(shards),
        load(f"{server.url}/shards", cache_dir=tmp_path / "cache", num_workers=2),
    )
    for split in ("train", "val", "train"):
        assert same(batches(remote[split]), batches(local[split]))
    assert sorted(server.requests) == sorted(path.name for path in shards.iterdir())
    server.requests.clear()
    again = load(f"{server.url}/shards/{{}}?key=3", cache_dir=tmp_path / "cache")
    assert same(batches(again["val"]), batches(local["val"]))


def test_a_cache_that_is_too_small_keeps_what_is_in_use(single_shards, tmp_path, server):
    options = {"cache_dir": tmp_path / "cache", "cache_size_gb": 0, "num_workers": 1}
    remote, local = load(f"{server.url}/single", **options), load(single_shards)
    for _ in range(2):
        assert same(batches(remote["train"]), batches(local["train"]))
        assert len(list((tmp_path / "cache").rglob("*.tar"))) <= 9  # eight, and one on its way
    assert 17 < len([name for name in server.requests if name.startswith("train")]) <= 35


def test_an_interrupted_download_is_fetched_again(shards, tmp_path, server):
    server.failures |= {"dataset.json": 2, "val-000000.tar": 2}
    remote = load(f"{server.url}/shards", cache_dir=tmp_path / "cache")["val"]
    assert same(batches(remote), batches(load(shards)["val"]))
    assert server.requests.count("dataset.json") == server.requests.count("val-000000.tar") == 3


@pytest.mark.slow
def test_what_cannot_be_fetched_is_named_with_the_reason(shards, tmp_path, server):
    with pytest.raises(DatasetError, match=r"/none/dataset\.json could not be read: .* 404"):
        load(f"{server.url}/none", cache_dir=tmp_path / "cache")
    assert server.requests == ["dataset.json"]  # asking again would not help
    server.failures["val-000000.tar"] = 9
    with pytest.raises(DatasetError, match=r"val-000000\.tar could not .* only .* bytes came"):
        batches(load(f"{server.url}/shards", cache_dir=tmp_path / "cache")["val"])
    with pytest.raises(
        DatasetError, match=r"http://127\.0\.0\.1:9/dataset\.json could not be read"
    ):
        load("http://127.0.0.1:9", cache_dir=tmp_path / "cache")


@pytest.mark.processes
def test_an_error_of_a_worker_names_shard_and_reason_too(shards, tmp_path, server):
    (shards / "val-000000.tar").unlink()
    loader = load(f"{server.url}/shards", cache_dir=tmp_path / "cache", num_workers=1)["train"]
    (shards / "train-000001.tar").unlink()
    with pytest.raises(DatasetError, match=r"train-000001\.tar could not be read: .* 404"):
        batches(loader)


def test_whatever_the_webdataset_library_opens_is_read(shards, tmp_path):
    location = f"pipe:cat '{shards}/{{}}'"
    remote = load(location, cache_dir=tmp_path / "cache")["val"]
    assert same(batches(remote), batches(load(shards)["val"]))
    with pytest.raises(DatasetError, match="no gopen handler"):
        load("gopher://old/shards", cache_dir=tmp_path / "cache")


_PROCESS = """
import json, sys, torch
from resnet_ft import make_dataloaders, train_model

loaders = make_dataloaders(sys.argv[1], batch_size=6, image_size=16, num_workers=1)
labels = {split: [len(labels) for _, labels in loader] for split, loader in loaders.items()}
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
model, history = train_model(model, loaders, num_epochs=1)
weights = model[1].weight.double().sum().item()
print(json.dumps({"labels": labels, "weights": weights}))
"""


@pytest.mark.slow
def test_two_processes_train_together_each_on_its_part(shards):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        environment = {
            **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"},
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", _PROCESS, str(shards)],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    assert first["labels"] == {"train": [3, 3, 3], "val": [3]}  # 17 = 9 + 8, 6 = 3 + 3
    assert second["labels"] == {"train": [3, 3, 2], "val": [3]}
    assert first["weights"] == second["weights"]


def test_a_sample_with_two_images_is_refused(single_shards):
    shard = next(single_shards.glob("train-*.tar"))
    with tarfile.open(shard) as tar:
        (key,) = {member.name.split(".")[0] for member in tar}
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo(f"{key}.bmp"))  # a mask, say
    index = json.loads((single_shards / "dataset.json").read_text())
    for entry in index["splits"]["train"]:
        entry["bytes"] = (single_shards / entry["name"]).stat().st_size
    (single_shards / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(
        DatasetError, match=rf"{key} has two images.*call the other {key}\.mask\.bmp"
    ):
        list(load(single_shards)["train"])


def test_a_dataset_json_of_something_else_beside_images_is_not_taken_for_shards(photos):
    (photos / "dataset.json").write_text('{"name": "photos"}')
    (photos / "original.tar").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"original\.tar is not unpacked"):
        assert len(load(photos)["train"].dataset) == 17


@pytest.mark.parametrize(
    "facts",
    [{"samples": -1}, {"samples": 10**11}, {"bytes": -1}, {"samples": 1e999}, {"bytes": 2**70}],
    ids=str,
)
def test_numbers_that_no_shard_has_are_refused(tmp_path, facts):
    folder = write_shard(tmp_path / "broken", [{"jpg": b"-", "cls": 0}], **facts)
    with pytest.raises(DatasetError, match=r"dataset\.json does not describe shards"):
        load(folder)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", "null", '{"splits": 1}', '{"splits": {}}', "\0"]
)
def test_a_description_of_another_form_is_named(shards, text):
    (shards / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=r"dataset\.json .*Pack the data set again"):
        load(shards)


@pytest.mark.parametrize("label", [2**31, -1, 10**30, "1" * 10_000])
def test_a_label_that_no_class_has_is_named(tmp_path, label):
    folder = write_shard(tmp_path / "broken", [{"jpg": b"-", "cls": str(label)}])
    with pytest.raises(DatasetError, match=r"train-000000\.tar is broken: .*label"):
        next(iter(load(folder)["train"]))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("size", [10**11, -1, 2**62])
def test_a_size_in_a_header_that_no_file_has_takes_no_memory(shards, number, size):
    """Of the image, or of its label; the checksum of the header is right."""
    shard = shards / "val-000000.tar"
    data = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        start = tar.getmembers()[number].offset
    data[start + 124 : start + 136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    shard.write_bytes(data)
    with pytest.raises(DatasetError, match=r"val-000000\.tar is broken"):
        batches(load(shards)["val"])


@pytest.mark.slow
def test_passwords_in_the_address_of_shards_are_never_shown(tmp_path):
    for address in (
        "http://ann:opensesame@127.0.0.1:9/{}?sig=s1gn4ture",
        "pipe:sh -c 'exit 3' -u ann:opensesame 'http://host/{}?sig=s1gn4ture'",
        "http://ann:opensesame@[::1/{}",
    ):
        with pytest.raises(DatasetError) as raised:
            make_dataloaders(address, cache_dir=tmp_path)
        shown = "".join(traceback.format_exception(raised.value))
        assert "opensesame" not in shown and "s1gn4ture" not in shown
