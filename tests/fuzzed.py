"""Damage files of one kind and read them, in a process whose memory and time are limited.

`python fuzzed.py KIND COUNT` reads COUNT inputs in the present folder and prints what happened.
"""

import csv
import io
import json
import os
import pickle
import pickletools
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import time
import traceback
import warnings
import zipfile
import zlib
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from conftest import network, write_image
from isolated import peak_megabytes
from PIL import Image
from safetensors.torch import save_file
from tiny import noise_loaders, train

import resnet_ft
from resnet_ft.data.cache import decode_once
from resnet_ft.evaluation.predictions import tabulate
from resnet_ft.features.store import FeatureFile
from resnet_ft.models.build import build_model

MEMORY = 2**30  # bytes beyond what the libraries take
SECONDS = 30  # for one input

NUMBERS = [-1, 0, 1, 3, 255, 2**15, 2**31 - 1, 2**31, 10**9, 10**11, 2**63 - 1, 2**64, 10**400]
TEXTS = ["", "..", "../../x", "/x", "a" * 300, "\0", "é\u202e", "nan", "=1+1", "1e999", "\ud800"]
VALUES = [*NUMBERS, *TEXTS, None, True, -0.5, float("nan"), float("inf"), [], {}, [[]], {"a": 1}]


# ---- damage to bytes, texts and structures


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, a part lost, doubled or overwritten, the end cut off."""
    data, at = bytearray(content), rng.randrange(max(1, len(content)))
    length = min(rng.choice([1, 2, 4, 8, 64, 1024]), len(data) - at)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice([1, 3, 10])):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[at : at + length]
        case 2:
            data[at:at] = data[at : at + length]
        case 3:
            data[at : at + length] = rng.randbytes(length)
        case 4:
            data[at : at + length] = rng.choice([b"\0", b"\xff"]) * length
        case 5:
            del data[at:]
    return bytes(data)


def damaged_value(rng: random.Random, value: object) -> object:
    """One place in nested lists and dicts lost, renamed, doubled or replaced by something else."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(6):
            case 0:
                del changed[name]
            case 1:
                changed[rng.choice(TEXTS)] = changed.pop(name)
            case _:
                changed[name] = damaged_value(rng, value[name])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        part = rng.choice([[], [value[at]] * 2, [damaged_value(rng, value[at])]])
        return [*value[:at], *part, *value[at + 1 :]]
    return rng.choice(VALUES)


def damaged_json(rng: random.Random, path: Path) -> bool:
    content = path.read_bytes()
    if rng.random() < 0.1:
        path.write_bytes(damaged_bytes(rng, content))
        return False
    if rng.random() < 0.05:
        depth = 100_000
        path.write_text(
            rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
        )
        return True
    value = json.loads(content)
    for _ in range(rng.choice([1, 1, 2, 4])):
        value = damaged_value(rng, value)
    path.write_text(json.dumps(value), encoding="utf-8")
    return True


def damaged_csv(rng: random.Random, path: Path) -> bool:
    content = path.read_bytes()
    if rng.random() < 0.2:
        path.write_bytes(damaged_bytes(rng, content))
        return False
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig", "surrogateescape"))))
    for _ in range(rng.choice([1, 1, 2, 5])):
        row = rng.choice(rows) if rows else []
        match rng.randrange(6):
            case 0 if rows:
                rows.remove(row)
            case 1:
                rows.insert(rng.randrange(len(rows) + 1), list(row))
            case 2 if row:
                del row[rng.randrange(len(row))]
            case 3:
                at = rng.randrange(len(rows[0])) if rows and rows[0] else 0
                rows = [line[:at] + line[at + 1 :] for line in rows]
            case _ if row:
                row[rng.randrange(len(row))] = str(rng.choice(VALUES))
    with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        csv.writer(file).writerows(rows)
    return True


# ---- damage that puts checksums and lengths right again


def damaged_pickle(rng: random.Random, content: bytes) -> bytes:
    """Arguments of a pickle replaced by others of their kind, or one operation lost or doubled."""
    operations = list(pickletools.genops(content))
    starts = [place for *_, place in operations] + [len(content)]
    parts = [content[a:b] for a, b in pairwise(starts)]
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(parts))
        name, argument = operations[at][0].name, operations[at][1]
        if name in ("BININT", "BININT1", "BININT2"):
            number = rng.choice([one for one in NUMBERS if -(2**31) <= one < 2**31])
            parts[at] = b"J" + struct.pack("<i", number)
        elif name == "LONG1" or (name.startswith("BININT") and rng.random() < 0.2):
            number = pickle.encode_long(rng.choice(NUMBERS[:-1]))
            parts[at] = b"\x8a" + bytes([len(number)]) + number
        elif name == "BINFLOAT":
            parts[at] = b"G" + struct.pack(">d", rng.choice([0, -1, 1e308, np.nan, np.inf]))
        elif name == "BINUNICODE":
            text = rng.choice([*TEXTS, argument[:-1], argument + "x"]).encode(
                "utf-8", "surrogatepass"
            )
            parts[at] = b"X" + struct.pack("<I", len(text)) + text
        elif name == "GLOBAL":
            names = [
                "os system",
                "builtins bytearray",
                "torch Tensor",
                "torch DoubleStorage",
                "a b",
            ]
            parts[at] = b"c" + rng.choice(names).replace(" ", "\n").encode() + b"\n"
        else:
            other = rng.choice(operations[:at] or operations)[0].code.encode("latin-1")
            parts[at] = rng.choice([b"", parts[at] * 2, b"N", b"}", b")", other])
    return b"".join(parts)


def damaged_zip(rng: random.Random, content: bytes) -> bytes:
    """A record's content damaged, lost, renamed or compressed, its checksum and length right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w") as new:
        chosen = rng.choice(old.infolist())
        if rng.random() < 0.6:
            chosen = next((one for one in old.infolist() if one.filename.endswith(".pkl")), chosen)
        for record in old.infolist():
            inside, name, method = old.read(record), record.filename, zipfile.ZIP_STORED
            if record is chosen:
                match rng.randrange(12):
                    case 0:
                        continue
                    case 1:
                        name = f"{name.partition('/')[0]}/{rng.choice(['data/7', '../../x', ''])}"
                    case 2:
                        inside, method = bytes(rng.choice([100, 50_000_000])), zipfile.ZIP_DEFLATED
                    case _ if name.endswith(".pkl"):
                        inside = damaged_pickle(rng, inside)
                    case _:
                        inside = damaged_bytes(rng, inside)
            new.writestr(zipfile.ZipInfo(name), inside, method)
    return target.getvalue()


def damaged_tar(rng: random.Random, content: bytes) -> bytes:
    """Fields of a header replaced, its checksum right."""
    data = bytearray(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        start = rng.choice(tar.getmembers()).offset
    fields = {"name": (0, 100), "size": (124, 12), "type": (156, 1), "link": (157, 100)}
    fields |= {"mode": (100, 8), "time": (136, 12), "magic": (257, 8), "prefix": (345, 155)}
    for _ in range(rng.choice([1, 1, 2])):
        name = rng.choice([*fields, "size", "type", "name"])
        offset, length = fields[name]
        value = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
        if name == "size":
            number = rng.choice([0, 1, 511, 10**6, 10**11 - 1, 8**11 - 1])
            binary = [b"\x80" + bytes(3) + struct.pack(">q", n) for n in (10**11, 2**62)]
            value = rng.choice([b"%011o" % number, *binary, b"\xff" * 12, b"-0000000001"])
        if name == "type":
            value = rng.choice(
                [b"0", b"1", b"2", b"3", b"5", b"6", b"g", b"x", b"L", b"K", b"S", b"Z"]
            )
        data[start + offset : start + offset + length] = value[:length].ljust(length, b"\0")
    header = bytearray(data[start : start + 512])
    header[148:156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(data)


def damaged_zip_headers(rng: random.Random, content: bytes) -> bytes:
    """Fields in the directory of a zip replaced; what follows them stays where it is."""
    data, places = bytearray(content), []
    for magic, fields in {
        b"PK\1\2": [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (38, 4), (42, 4)],
        b"PK\3\4": [(6, 2), (8, 2), (14, 4), (18, 4), (22, 4)],
    }.items():
        at = data.find(magic)
        while at >= 0:
            places += [(at + offset, length) for offset, length in fields]
            at = data.find(magic, at + 4)
    for _ in range(rng.choice([1, 2])):
        place, length = rng.choice(places)
        value = rng.choice([0, 1, 8, 12, 99, 2**16 - 1, 2**31, 2**32 - 1]) % 256**length
        data[place : place + length] = value.to_bytes(length, "little")
    return bytes(data)


def damaged_png(rng: random.Random, content: bytes) -> bytes:
    """Chunks damaged, lost, doubled or mixed; checksums and lengths right."""
    chunks, at = [], 8
    while at < len(content):
        (length,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(len(chunks))
        kind, inside = chunks[at]
        match rng.randrange(5):
            case 0 if len(chunks) > 1:
                del chunks[at]
            case 1:
                chunks.insert(at, chunks[at])
            case 2:
                kind = rng.choice([b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"acTL", b"PLTE", b"gAMA"])
                chunks.insert(at, (kind, rng.randbytes(rng.choice([0, 1, 6, 13, 100]))))
            case _ if kind == b"IHDR":
                sizes = [rng.choice([0, 1, 40, 10**5, 2**31 - 1]) for _ in range(2)]
                rest = bytes([rng.choice([1, 8, 16, 3]), rng.randrange(8), 0, 0, rng.randrange(2)])
                chunks[at] = kind, struct.pack(">II", *sizes) + rest
            case _:
                if kind == b"IDAT" and rng.random() < 0.7:
                    inside = zlib.compress(damaged_bytes(rng, zlib.decompress(inside)))
                else:
                    inside = damaged_bytes(rng, inside)
                chunks[at] = kind, inside
    made = content[:8]
    for kind, inside in chunks:
        made += struct.pack(">I", len(inside)) + kind + inside
        made += struct.pack(">I", zlib.crc32(kind + inside))
    return made


def raw_or(rng: random.Random, content: bytes, repair: Callable, share=0.75) -> tuple[bytes, bool]:
    """Damaged bytes, and whether their checksums and lengths were put right."""
    if rng.random() < share:
        try:
            return repair(rng, content), True
        except (ValueError, zlib.error):  # damage on damage
            pass
    return damaged_bytes(rng, content), False


# ---- kinds of files: how they are made, damaged and read


class Checkpoints:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "best.pt"
        preprocessing = {"image_size": 9, "mean": [0.5] * 3, "std": [0.5] * 3}
        resnet_ft.save_checkpoint(
            self.path, network(), classes=["a", "b"], preprocessing=preprocessing, scores={"a": 1}
        )
        legacy = io.BytesIO()
        content = torch.load(self.path, weights_only=True)
        torch.save(content, legacy, _use_new_zipfile_serialization=False)
        self.seeds = [self.path.read_bytes()] * 4 + [legacy.getvalue()]

    def damage(self, rng: random.Random) -> bool:
        seed = rng.choice(self.seeds)
        repair = damaged_zip if seed.startswith(b"PK") else damaged_bytes
        content, repaired = raw_or(rng, seed, repair)
        self.path.write_bytes(content)
        return repaired and repair is damaged_zip

    def read(self) -> None:
        checkpoint = resnet_ft.load_checkpoint(self.path)
        checkpoint.class_names()
        predictor = resnet_ft.Predictor.load(self.path, network())
        prediction = predictor.predict(Image.new("RGB", (12, 12)))
        assert all(0 <= share <= 1 for _, share in prediction.top)


class Weights:
    def __init__(self, folder: Path) -> None:
        self.folder, self.arch = folder, "timm/test_resnet"
        tensors = build_model(self.arch, 3, weights=None).state_dict()
        beside = {"args": Namespace(lr=np.float64(0.1), out=Path("x")), "epoch": np.int64(3)}
        wrapped = {f"_orig_mod.module.{name}": one for name, one in tensors.items()}
        self.seeds = []
        for content in ({"model_ema": wrapped, **beside}, tensors):
            for zipped in (True, True, False):
                file = io.BytesIO()
                torch.save(content, file, _use_new_zipfile_serialization=zipped)
                self.seeds.append((".pth", file.getvalue()))
        save_file(tensors, folder / "a.safetensors")
        self.seeds.append((".safetensors", (folder / "a.safetensors").read_bytes()))

    def damage(self, rng: random.Random) -> bool:
        suffix, seed = rng.choice(self.seeds)
        self.path, repair = self.folder / f"weights{suffix}", damaged_bytes
        if seed.startswith(b"PK"):
            repair = damaged_zip
        elif suffix == ".safetensors":
            repair = self._header
        content, repaired = raw_or(rng, seed, repair)
        self.path.write_bytes(content)
        return repaired and repair is not damaged_bytes

    @staticmethod
    def _header(rng: random.Random, content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        header = damaged_value(rng, json.loads(content[8 : 8 + length]))
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    def read(self) -> None:
        model = build_model(self.arch, 2, weights=self.path)
        assert all(one.isfinite().all() for one in model.parameters())


class ResumeStates:
    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        train(noise_loaders(), self.run, num_epochs=1)
        (path,) = [one for one in self.run.glob("last.?.pt") if one.stat().st_size]
        self.path, self.seed = path, path.read_bytes()
        self.kept = {one: one.read_bytes() for one in self.run.iterdir()}

    def damage(self, rng: random.Random) -> bool:
        for path in self.run.iterdir():
            path.unlink()
        for path, content in self.kept.items():
            path.write_bytes(content)
        inside, number = self.seed[:-40], self.seed[-40:-32]
        content, repaired = raw_or(rng, inside, damaged_zip, 0.95)
        if repaired or rng.random() < 0.5:
            content += number
            self.path.write_bytes(content + sha256(content).digest())
            return True
        self.path.write_bytes(damaged_bytes(rng, self.seed))
        return False

    def read(self) -> None:
        train(noise_loaders(), self.run, num_epochs=2)


class RunFiles:
    def __init__(self, folder: Path) -> None:
        self.run = folder / "runs" / "first"
        train(noise_loaders(), self.run, num_epochs=2)
        resnet_ft.Run(self.run).record(data_source="photos")
        classes = ["a", "=b", "-c"]
        probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 9).astype(np.float32)
        labels = torch.arange(9) % 3
        losses = torch.nn.functional.nll_loss(
            torch.tensor(probabilities).log(), labels, reduction="none"
        )
        paths = [f"Val/a/{i}.png" for i in range(9)]
        told = tabulate(torch.tensor(probabilities), losses, labels, classes, paths)
        told.save(self.run / "evaluation.csv")
        rows = [{"path": path, "decision": "exclude", "reason": "@x"} for path in paths]
        resnet_ft.write_decisions(pd.DataFrame(rows), self.run / "decisions.csv")
        self.kept = {one: one.read_bytes() for one in self.run.iterdir()}

    def damage(self, rng: random.Random) -> bool:
        for path, content in self.kept.items():
            path.write_bytes(content)
        name = rng.choice(["config.json", "history.csv", "evaluation.csv", "decisions.csv"])
        if rng.random() < 0.5:  # then nothing can be rebuilt
            (self.run / "last.0.pt").unlink()
            (self.run / "last.1.pt").unlink(missing_ok=True)
        self.path = self.run / name
        return (
            damaged_json(rng, self.path) if name.endswith("json") else damaged_csv(rng, self.path)
        )

    def read(self) -> None:
        run = resnet_ft.load_run(self.run)
        match self.path.name:
            case "config.json":
                assert isinstance(run.data_source, str)
                resnet_ft.Run.open(self.run, {"seed": 0})
                with run.storage.locked():
                    pass
            case "history.csv":
                assert run.history["epoch"].max() > 0
                assert np.isfinite(run.history["val_loss"]).all()
                resnet_ft.plot_history(run.history)
            case "evaluation.csv":
                predictions = resnet_ft.load_predictions(self.path)
                assert 0 <= predictions.accuracy <= 1
                resnet_ft.class_scores(predictions)
                resnet_ft.find_label_errors(predictions)
            case "decisions.csv":
                resnet_ft.read_decisions(self.path)


class Shards:
    def __init__(self, folder: Path) -> None:
        photos = folder / "photos"
        for split in ("Train", "Val"):
            for name in ("a", "b"):
                for i in range(2):
                    write_image(photos / split / name / f"{i}.png", (9, 8))
        self.shards = resnet_ft.pack_dataset(photos, folder / "shards", max_shard_mb=1)
        shutil.rmtree(photos)
        self.kept = {one: one.read_bytes() for one in self.shards.iterdir()}

    def damage(self, rng: random.Random) -> bool:
        for path, content in self.kept.items():
            path.write_bytes(content)
        path = self.shards / rng.choice(["dataset.json", "train-000000.tar", "val-000000.tar"])
        if path.suffix == ".json":
            return damaged_json(rng, path)
        content, repaired = raw_or(rng, self.kept[path], damaged_tar)
        path.write_bytes(content)
        described = json.loads(self.kept[self.shards / "dataset.json"])
        described["splits"][path.name.partition("-")[0]][0]["bytes"] = len(content)
        (self.shards / "dataset.json").write_text(json.dumps(described))
        return repaired

    def read(self) -> None:
        loaders = resnet_ft.make_dataloaders(self.shards, image_size=8, batch_size=2, num_workers=0)
        for loader in loaders.values():
            for images, _ in loader:
                assert images.isfinite().all()


class Archives:
    def __init__(self, folder: Path) -> None:
        self.folder, photos = folder, folder / "photos"
        for name in ("a", "b"):
            for i in range(2):
                write_image(photos / name / f"{i}.png", (9, 8))
        for form in ("zip", "tar", "gztar"):
            shutil.make_archive(str(folder / form), form, photos)
        shutil.rmtree(photos)
        names = ("zip.zip", "zip.zip", "tar.tar", "tar.tar", "gztar.tar.gz")
        self.seeds = [(name, (folder / name).read_bytes()) for name in names]

    def damage(self, rng: random.Random) -> bool:
        name, seed = rng.choice(self.seeds)
        self.path = self.folder / name
        if name.endswith(".gz"):
            inside, repaired = raw_or(rng, zlib.decompress(seed, 31), damaged_tar)
            compress = zlib.compressobj(wbits=31)
            content = compress.compress(inside) + compress.flush()
        else:
            zips = rng.choice([damaged_zip, damaged_zip_headers])
            content, repaired = raw_or(rng, seed, zips if name.endswith("zip") else damaged_tar)
        self.path.write_bytes(content)
        return repaired

    def read(self) -> None:
        target = self.folder / "data"
        try:
            resnet_ft.stage_dataset(self.path, target)
        finally:
            shutil.rmtree(target, ignore_errors=True)


class Images:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        image, self.seeds = Image.fromarray(pixels), []
        for suffix in ("png", "png", "png", "jpg", "gif", "bmp", "tif", "webp"):
            image.save(folder / f"seed.{suffix}")
            self.seeds.append((suffix, (folder / f"seed.{suffix}").read_bytes()))
        image.quantize().save(folder / "seed.png")
        self.seeds += [("png", (folder / "seed.png").read_bytes())] * 2

    def damage(self, rng: random.Random) -> bool:
        suffix, seed = rng.choice(self.seeds)
        self.path = self.folder / f"image.{suffix}"
        content, repaired = raw_or(
            rng, seed, damaged_png if suffix == "png" else damaged_bytes, 0.9
        )
        self.path.write_bytes(content)
        return repaired and suffix == "png"

    def read(self) -> None:
        assert resnet_ft.open_image(self.path).mode == "RGB"


class Caches:
    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.images = [write_image(folder / f"{i}.png", (20, 16)) for i in range(4)]
        self._decode()
        self.features = FeatureFile(self.cache, "0123456789abcdef", 4)
        self.features.append(torch.ones(4, 6, dtype=torch.float16))
        self.features.finish()
        self.kept = {one: one.read_bytes() for one in self.cache.rglob("*") if one.is_file()}

    def _decode(self) -> None:
        images, _ = decode_once(self.images, 8, cache_dir=self.cache)
        assert all(min(images[i].shape[:2]) for i in range(4))

    def damage(self, rng: random.Random) -> bool:
        shutil.rmtree(self.cache)
        for path, content in self.kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        path = rng.choice([one for one in self.kept if self.kept[one]])
        if path.suffix == ".index":  # keys stay, the rest of some records changes
            data = bytearray(self.kept[path])
            for _ in range(3):
                place = 24 * rng.randrange(len(data) // 24) + 8
                kind, at = rng.choice([("<q", 0), ("<i", 8), ("<i", 12)])
                limit = 2 ** (63 if kind == "<q" else 31)
                number = max(-limit, min(limit - 1, rng.choice(NUMBERS)))
                data[place + at : place + at + struct.calcsize(kind)] = struct.pack(kind, number)
            path.write_bytes(data)
            return True
        path.write_bytes(damaged_bytes(rng, self.kept[path]))
        if path.suffix == ".f16":
            name = f"features-{self.features.key}-{rng.choice(['', '0', '6', 'x', '-1', '9' * 30])}"
            path.rename(self.cache / f"{name}{rng.choice(['.f16', '.bf16', '.f32.part'])}")
        return False

    def read(self) -> None:
        self._decode()
        found = self.features.find()
        assert found is None or found.shape == (4, 6)
        self.features.rows_done()
        self.features.forget()


KINDS = {
    **{"checkpoints": Checkpoints, "weights": Weights, "resume_states": ResumeStates},
    **{"run_files": RunFiles, "shards": Shards, "archives": Archives, "images": Images},
    "caches": Caches,
}


def main(name: str, count: int, first: int = 0) -> None:
    given, elsewhere = Path("given").absolute(), Path("elsewhere")
    given.mkdir()
    elsewhere.mkdir()
    os.chdir(elsewhere)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    silence = io.StringIO()
    with redirect_stdout(silence), redirect_stderr(silence):
        kind = KINDS[name](given)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    outcomes, wrong, slowest = Counter(), {}, 0.0
    for number in range(first, first + count):
        rng, began = random.Random(f"{name} {number}"), time.perf_counter()
        signal.alarm(SECONDS)  # ends the process
        outcomes["repaired"] += kind.damage(rng)
        try:
            with redirect_stdout(silence), redirect_stderr(silence):
                kind.read()
            outcomes["read"] += 1
        except resnet_ft.ResnetFtError as error:
            outcomes["refused"] += 1
            text = str(error)
            if "weights_only" in text or "\033" in text or len(text) > 3000:
                wrong.setdefault(f"words: {text[:200]}", number)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            wrong.setdefault(
                f"{type(error).__name__} {last.filename}:{last.lineno} {error}"[:300], number
            )
        slowest = max(slowest, time.perf_counter() - began)
        silence.truncate(0)
    signal.alarm(0)
    outcomes["written elsewhere"] = len(list(Path().rglob("*")))
    facts = {"wrong": wrong, "megabytes": peak_megabytes(), "slowest": slowest}
    print(json.dumps({**outcomes, **facts}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
