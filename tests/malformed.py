"""A folder with every kind of file that a data set may hold and that is hard to read."""

import io
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw, TiffImagePlugin

SIZE = (48, 40)
LEFT, RIGHT = (200, 60, 40), (40, 200, 90)  # of TWO_HALVES
TWO_HALVES = Image.new("RGB", SIZE, LEFT)
ImageDraw.Draw(TWO_HALVES).rectangle([SIZE[0] // 2, 0, *SIZE], fill=RIGHT)
GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and all that begin with I;

EXTENSIONS = "jpg jpeg jpe jfif png webp bmp gif tif tiff avif heic heif".split()  # noqa: SIM905


@dataclass(frozen=True)
class Expected:
    """What a reader may do with a file: "read" it, have it "listed" as unreadable, or "either".

    Where it is read: the size as (width, height), and the colours of the left and right halves.
    """

    outcome: str
    size: tuple[int, int] | None = None
    halves: tuple[tuple[int, ...], tuple[int, ...]] | None = None


READ = Expected("read", SIZE, (LEFT, RIGHT))
LISTED = Expected("listed")
EITHER = Expected("either")

Group = Iterator[tuple[str, bytes, Expected]]


def make_malformed(folder: Path) -> dict[Path, Expected]:
    """Write each group of files below to its own folder: path -> what to expect of it."""
    expected = {}
    for make in (_formats, _tiffs, _variants, _pngs, _sizes, _names, _not_images, _truncated):
        expected |= _write(folder / make.__name__.strip("_"), make())
    for make in (_mutated, _huge_headers, _exif, _gifs, _tiff_directories):
        expected |= _write(folder / make.__name__.strip("_"), make())
    return expected | make_special(folder / "special")


def make_malformed_dataset(folder: Path) -> dict[Path, Expected]:
    """A data set of two classes, one of which holds every malformed file among good ones."""
    good = {}
    for name, image in (
        ("odd", TWO_HALVES),
        ("fine", TWO_HALVES.transpose(Image.Transpose.ROTATE_90)),
    ):
        for split in ("Train", "Val"):
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                path = folder / split / name / f"good_{i}.png"
                path.write_bytes(encoded(image, "PNG"))
                good[path] = Expected("read", image.size)
    return good | make_malformed(folder / "Train" / "odd")


def _write(folder: Path, files: Group) -> dict[Path, Expected]:
    folder.mkdir(parents=True)
    expected = {}
    for name, content, outcome in files:
        (folder / name).write_bytes(content)
        expected[folder / name] = outcome
    return expected


def encoded(image: Image.Image, image_format: str, **options) -> bytes:
    # Never to a path: Pillow's SPIDER writer registers the path's extension as its own.
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))


def _in_mode(mode: str) -> Image.Image:
    """TWO_HALVES in one of Pillow's modes, its tones over the mode's full range."""
    grey = _grey(TWO_HALVES)
    neutral = Image.new("L", SIZE, 128)
    unusual = {
        "F": lambda: Image.fromarray((grey / 255).astype(np.float32)),
        "I": lambda: Image.fromarray(grey.astype(np.int32) * 257),
        "LAB": lambda: Image.merge("LAB", [TWO_HALVES.convert("L"), neutral, neutral]),
        "La": lambda: TWO_HALVES.convert("LA").convert("La"),
        "P": lambda: TWO_HALVES.quantize(16),
        "PA": lambda: TWO_HALVES.quantize(16).convert("PA"),
        "RGBa": lambda: TWO_HALVES.convert("RGBA").convert("RGBa"),
    }
    if mode.startswith("I;16"):
        order = ">u2" if mode == "I;16B" else "<u2"
        return Image.frombytes(mode, SIZE, (grey.astype(np.uint32) * 257).astype(order).tobytes())
    return unusual[mode]() if mode in unusual else TWO_HALVES.convert(mode)


def _expected_in_mode(mode: str) -> Expected:
    if mode == "LAB":
        return EITHER
    if mode in GREY_MODES or mode.startswith("I;"):
        row = _grey(TWO_HALVES)[0].tolist()
        return Expected("read", SIZE, ((row[0],) * 3, (row[-1],) * 3))
    return READ


def _formats() -> Group:
    """Every mode that each of Pillow's writers takes; what has no extension in `own` as .png."""
    Image.init()
    own = {"JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "AVIF": "avif"}
    for image_format in sorted(Image.SAVE):
        contents = {}
        for mode in sorted(Image.MODES):
            with suppress(Exception):  # this writer does not take this mode
                contents[mode] = encoded(_in_mode(mode), image_format)
        for mode, content in contents.items():
            name = f"{image_format}_{mode}.{own.get(image_format, 'png')}"
            yield name, content, _expected_in_format(image_format, mode)


def _expected_in_format(image_format: str, mode: str) -> Expected:
    if image_format not in {*Image.OPEN, "MPO"}:  # MPO is opened as JPEG
        return LISTED
    # EPS needs Ghostscript, HEIF pillow-heif; Pillow cannot read every ICNS that it has written.
    if image_format in ("EPS", "HEIF", "ICNS"):
        return EITHER
    if image_format == "ICO":
        return Expected("read")  # in another size
    if (image_format, mode) == ("TIFF", "YCbCr"):
        return EITHER  # as in _tiffs
    cut_off = image_format in ("AVIF", "GIF", "WEBP") and mode[0] in "IF"  # has 8 bits alone
    if cut_off or image_format == "SPIDER":  # floats without a white of their own
        return Expected("read", SIZE)
    return _expected_in_mode(mode)


def _tiffs() -> Group:
    """Every mode of TIFF in every compression."""
    for compression in sorted(TiffImagePlugin.COMPRESSION_INFO_REV):
        contents = {}
        for mode in sorted(TiffImagePlugin.SAVE_INFO):
            if _ends_the_process(compression, mode):
                continue
            with suppress(Exception):  # this compression does not take this mode
                contents[mode] = encoded(_in_mode(mode), "TIFF", compression=compression)
        for mode, content in contents.items():
            # Pillow, or older versions of it, does not read back what it has written.
            unsure = (compression, mode) in (("tiff_raw_16", "1"), ("raw", "YCbCr"))
            yield (
                f"{compression}_{mode}.tif",
                content,
                EITHER if unsure else _expected_in_mode(mode),
            )


def _ends_the_process(compression: str, mode: str) -> bool:
    """Pillow 12 crashes on some modes that a compression does not take, instead of refusing."""
    if int(PIL.__version__.split(".")[0]) >= 13:
        return False
    if compression in ("group3", "group4", "tiff_ccitt", "tiff_raw_16"):
        return mode != "1"
    if compression in ("jpeg", "tiff_jpeg"):
        return mode not in ("L", "RGB", "CMYK", "YCbCr")
    return compression in ("webp", "zstd") or compression.startswith(("tiff_sgi", "tiff_thunder"))


def _variants() -> Group:
    """What else a format can do: progressive, lossless, animated, half transparent."""
    for mode in ("L", "RGB", "CMYK"):
        content = encoded(_in_mode(mode), "JPEG", progressive=True, quality=95)
        yield f"progressive_{mode}.jpg", content, _expected_in_mode(mode)
    yield "lossless.webp", encoded(TWO_HALVES, "WEBP", lossless=True), READ
    yield "few_colours.png", encoded(TWO_HALVES.quantize(2), "PNG", bits=1), READ
    frames = {
        "save_all": True,
        "append_images": [Image.new("RGB", SIZE, c) for c in ("red", "lime")],
    }
    for image_format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        if image_format in Image.SAVE:
            content = encoded(TWO_HALVES, image_format, **frames)
            yield f"animated.{image_format.lower()}", content, READ
    clear = TWO_HALVES.convert("RGBA")
    clear.putalpha(0)
    for image_format in ("PNG", "TIFF"):  # all is transparent, so the picture under it is shown
        yield f"clear.{image_format.lower()}", encoded(clear, image_format), READ


def png(width: int, height: int, pixels: bytes, *, bits=8, colour=2, chunks=(), level=1) -> bytes:
    """A PNG from its unpacked rows, each with its filter byte; `chunks` are (type, data) pairs."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    image = [(b"IDAT", zlib.compress(pixels, level)), (b"IEND", b"")]
    for kind, content in [(b"IHDR", header), *chunks, *image]:
        checksum = zlib.crc32(kind + content)
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return data


def _rows(pixels: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def _pngs() -> Group:
    """What Pillow reads but does not write: colours of 16 bits; and texts that explode."""
    colours = np.asarray(TWO_HALVES).astype(np.uint16) * 257
    opaque = np.full((*colours.shape[:2], 1), 65535, np.uint16)
    rows = _rows(colours.astype(">u2"))
    yield "rgb16.png", png(*SIZE, rows, bits=16), READ
    rows = _rows(np.concatenate([colours, opaque], axis=2).astype(">u2"))
    yield "rgba16.png", png(*SIZE, rows, bits=16, colour=6), READ
    rows = _rows(np.asarray(TWO_HALVES))
    exploding = zlib.compress(bytes(100_000_000), 9)
    for name, data in {
        "zTXt": b"Comment\0\0" + exploding,
        "iTXt": b"Comment\0\1\0\0\0" + exploding,
        "iCCP": b"icc\0\0" + exploding,
        "tEXt": b"Comment\0" + bytes(10_000_000),
        "eXIf": b"MM\0*\xff\xff\xff\xff" + bytes(100_000),
    }.items():
        yield f"{name}_bomb.png", png(*SIZE, rows, chunks=[(name.encode(), data)]), EITHER
    many = [(b"tEXt", b"a\0b")] * 20_000
    yield "many_chunks.png", png(*SIZE, rows, chunks=many), READ
    yield "wrong_checksum.png", png(*SIZE, rows).replace(b"IDAT", b"IDAS"), LISTED


def _sizes() -> Group:
    for width, height in ((1, 1), (2, 1), (1, 20_000), (20_000, 1), (1, 65_500), (65_500, 1)):
        for image_format in ("PNG", "JPEG", "BMP", "TIFF"):
            content = encoded(TWO_HALVES.resize((width, height)), image_format)
            name = f"{width}x{height}.{image_format.lower().replace('jpeg', 'jpg')}"
            yield name, content, Expected("read", (width, height))
    for width, height in ((1, 1_000_000), (1_000_000, 1)):
        rows = (b"\0" + bytes(3 * width)) * height
        yield f"{width}x{height}.png", png(width, height, rows), Expected("read", (width, height))
    yield "0x0.png", png(0, 0, b""), LISTED
    yield "0x7.png", png(0, 7, b""), LISTED


def _names() -> Group:
    content = encoded(TWO_HALVES, "JPEG", quality=95)
    for name in (
        "with space",
        " leading and trailing ",
        "ünïcödé 写真 🌻",
        "decomposed u\u0308",
        "right-to-left \u202e gpj",
        "new\nline",
        "carriage\rreturn and tab\t",
        "'single' \"double\" `back`",
        "comma,semicolon;pipe|",
        "back\\slash",
        "*?[glob]{brace}",
        "%s %d {} {0} $HOME ~",
        "-rf",
        "<b>tag &amp;",
        "#hash?query=1",
        os.fsdecode(b"not utf-8 \xff\xfe"),
        "x" * 251,
        "ä" * 125,
        "many.dots.png.jpg.exe",
    ):
        yield f"{name}.jpg", content, READ
    yield "UPPER.JPG", content, READ


def _not_images() -> Group:
    noise = np.random.default_rng(0)
    for extension in EXTENSIONS:
        yield f"random.{extension}", noise.bytes(5000), LISTED
        yield f"empty.{extension}", b"", LISTED
        yield f"one_byte.{extension}", b"\xff", LISTED
        yield f"zeros.{extension}", bytes(5000), LISTED
    yield "text.jpg", b"this is no image\n" * 100, LISTED
    yield "web_page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", LISTED
    yield "drawing.jpg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', LISTED
    yield "archive.jpg", b"PK\3\4" + noise.bytes(5000), LISTED
    yield "film.jpg", b"\0\0\0\x18ftypmp42" + noise.bytes(5000), LISTED
    # Pillow hands PostScript to Ghostscript, where it is installed: data that runs as a program.
    yield "endless.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n", LISTED


def _noisy() -> Image.Image:
    noise = np.random.default_rng(0).integers(-40, 41, (*SIZE[::-1], 3))
    return Image.fromarray((np.asarray(TWO_HALVES) + noise).clip(0, 255).astype(np.uint8))


def _encodings() -> dict[str, bytes]:
    contents = {
        "plain.jpg": encoded(_noisy(), "JPEG"),
        "progressive.jpg": encoded(_noisy(), "JPEG", progressive=True),
        "plain.png": encoded(_noisy(), "PNG"),
        "lossy.webp": encoded(_noisy(), "WEBP"),
        "lossless.webp": encoded(_noisy(), "WEBP", lossless=True),
        "plain.gif": encoded(_noisy(), "GIF"),
        "plain.bmp": encoded(_noisy(), "BMP"),
        "plain.tif": encoded(_noisy(), "TIFF"),
        "lzw.tif": encoded(_noisy(), "TIFF", compression="tiff_lzw"),
    }
    if "AVIF" in Image.SAVE:
        contents["plain.avif"] = encoded(_noisy(), "AVIF")
    return contents


def _truncated() -> Group:
    """Each format cut at 20 points, the last a twentieth before its end."""
    for name, content in _encodings().items():
        for i in range(20):
            outcome = LISTED if name.endswith(("jpg", "png", "bmp")) else EITHER
            yield f"{i:02d}_{name}", content[: i * len(content) // 20], outcome


def _mutated() -> Group:
    """Bytes turned to others, a few or many, and blocks left out or doubled."""
    random = np.random.default_rng(0)
    for name, content in _encodings().items():
        for i, count in enumerate((1, 1, 1, 3, 10, 30, 100)):
            broken = np.frombuffer(content, np.uint8).copy()
            broken[random.integers(0, len(broken), count)] = random.integers(0, 256, count)
            yield f"bytes_{i}_{name}", broken.tobytes(), EITHER
        for i in range(4):
            start, stop = np.sort(random.integers(0, len(content), 2))
            yield f"gap_{i}_{name}", content[:start] + content[stop:], EITHER
            yield f"double_{i}_{name}", content[:stop] + content[start:], EITHER
        yield f"long_{name}", content + random.bytes(100_000), EITHER


def _with_jpeg_size(content: bytes, width: int, height: int) -> bytes:
    start = content.index(b"\xff\xc0") + 5  # the frame header: marker, length, precision, size
    return content[:start] + struct.pack(">HH", height, width) + content[start + 4 :]


def _huge_headers() -> Group:
    """Small files that promise many pixels: beyond Pillow's limit of 179 million, and below it."""
    few = zlib.compress(bytes(1000))
    for side, outcome in ((50_000, LISTED), (2**31 - 1, LISTED), (13_000, LISTED)):
        yield f"{side}.png", png(side, side, few), outcome
    jpeg = encoded(TWO_HALVES, "JPEG")
    yield "65500.jpg", _with_jpeg_size(jpeg, 65_500, 65_500), LISTED
    # libjpeg fills up with grey what is missing before a proper end.
    yield "10000.jpg", _with_jpeg_size(jpeg, 10_000, 10_000), EITHER
    segments = (b"\xff\xe1\xff\xff" + bytes(65_533)) * 50
    yield "many_segments.jpg", jpeg[:2] + segments + jpeg[2:], READ
    gif = encoded(TWO_HALVES, "GIF")
    yield "65535.gif", gif[:6] + b"\xff\xff\xff\xff" + gif[10:], LISTED
    yield "7000.gif", gif[:6] + struct.pack("<HH", 7_000, 7_000) + gif[10:], EITHER
    bmp = encoded(TWO_HALVES, "BMP")
    yield "50000.bmp", bmp[:18] + struct.pack("<ii", 50_000, 50_000) + bmp[26:], LISTED
    yield "13000.bmp", bmp[:18] + struct.pack("<ii", 13_000, 13_000) + bmp[26:], LISTED
    webp = bytearray(encoded(TWO_HALVES, "WEBP"))
    webp[26:30] = struct.pack("<HH", 16_383, 16_383)  # width and height of a VP8 key frame
    yield "16383.webp", bytes(webp), LISTED
    for width, outcome in ((4_000_000_000, LISTED), (13_000, LISTED)):
        content = bytearray(encoded(TWO_HALVES, "TIFF"))
        for tag in (256, 257):
            _set_tiff_entry(content, tag, 4, 1, width)
        yield f"{width}.tif", bytes(content), outcome


def _exif() -> Group:
    for orientation in (0, 1, 9, 255, 65535):
        exif = Image.Exif()
        exif[274] = orientation
        for image_format in ("JPEG", "PNG"):
            name = f"orientation_{orientation}.{image_format.lower().replace('jpeg', 'jpg')}"
            yield name, encoded(TWO_HALVES, image_format, exif=exif), READ
    turned = Image.Exif()
    turned[274] = 6
    turned = turned.tobytes()  # the AVIF writer takes the orientation out of an Exif object
    sideways = TWO_HALVES.transpose(Image.Transpose.ROTATE_90)
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        if image_format in Image.SAVE:
            content = encoded(sideways, image_format, exif=turned)
            yield f"orientation_6.{image_format.lower().replace('jpeg', 'jpg')}", content, READ
    for name, data in {
        "no_header": b"\xff" * 50,
        "only_header": b"Exif\0\0",
        "directory_outside": b"Exif\0\0MM\0*\xff\xff\xff\xff",
        "directory_of_itself": b"Exif\0\0II*\0\x08\0\0\0\1\0"
        + struct.pack("<HHII", 34665, 4, 1, 8) * 2,
        "endless_entries": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\1\3\0\xff\xff\xff\xff" * 9,
        "orientation_is_text": b"Exif\0\0II*\0\x08\0\0\0\1\0"
        + struct.pack("<HHI4sI", 274, 2, 4, b"six\0", 0),
        "long": b"Exif\0\0" + bytes(65_000),
    }.items():
        yield f"{name}.jpg", encoded(TWO_HALVES, "JPEG", exif=data), READ

    late = png(*SIZE[::-1], _rows(np.asarray(sideways)))
    end = late.index(b"IEND") - 4
    data = turned.removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(data)) + b"eXIf" + data
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + data))
    yield "orientation_6_after_the_pixels.png", late[:end] + chunk + late[end:], READ


def _gifs() -> Group:
    """Frames outside of their canvas, and codes that mean nothing."""
    gif = encoded(TWO_HALVES, "GIF")
    descriptor = gif.index(b"\x2c" + struct.pack("<HHHH", 0, 0, *SIZE))
    for name, x, y in (("shifted", 40, 30), ("outside", 1000, 1000), ("far", 65_535, 65_535)):
        moved = gif[: descriptor + 1] + struct.pack("<HH", x, y) + gif[descriptor + 5 :]
        yield f"{name}.gif", moved, EITHER
    yield "no_canvas.gif", gif[:6] + bytes(4) + gif[10:], EITHER
    yield "no_frame.gif", gif[:descriptor] + b";", LISTED
    yield "bad_codes.gif", gif[: descriptor + 11] + b"\xff" * 300, EITHER
    yield "endless_extensions.gif", gif[:descriptor] + b"!\xfe\1x\0" * 200_000, LISTED


def _tiff_entries(content: bytes) -> Iterator[int]:
    """Where the entries of the first directory of a little-endian TIFF begin, and where it ends."""
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    for i in range(count + 1):
        yield directory + 2 + 12 * i


def _set_tiff_entry(content: bytearray, tag: int, kind: int, count: int, value: int) -> None:
    for start in list(_tiff_entries(content))[:-1]:
        if struct.unpack_from("<H", content, start)[0] == tag:
            struct.pack_into("<HHII", content, start, tag, kind, count, value)


def _tiff_directories() -> Group:
    """Directories that point to themselves, to nowhere, or at far too much."""
    tiff = encoded(TWO_HALVES, "TIFF")
    directory, end = tiff[4:8], list(_tiff_entries(tiff))[-1]
    yield "next_is_itself.tif", tiff[:end] + directory + tiff[end + 4 :], READ
    yield "next_is_outside.tif", tiff[:end] + b"\xf0\xff\xff\xff" + tiff[end + 4 :], READ
    yield "first_is_outside.tif", tiff[:4] + b"\xf0\xff\xff\xff" + tiff[8:], LISTED
    yield "first_is_the_header.tif", tiff[:4] + bytes(4) + tiff[8:], EITHER
    for name, tag, kind, count, value in (
        ("strips_outside", 273, 4, 1, 2**32 - 16),
        ("many_strips", 273, 4, 2**31, 8),
        ("no_compression_known", 259, 3, 1, 60_000),
        ("many_samples", 277, 3, 1, 60_000),
        ("many_bits", 258, 3, 2**30, 8),
        ("rows_per_strip_0", 278, 4, 1, 0),
    ):
        content = bytearray(tiff)
        _set_tiff_entry(content, tag, kind, count, value)
        yield f"{name}.tif", bytes(content), EITHER


def make_large(folder: Path, width: int, height: int) -> list[Path]:
    """Valid images of many pixels, one of each mode that is converted in its own way."""
    paths = []
    for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I", "F", "CMYK"):
        suffix = "tif" if mode in ("I", "F", "CMYK") else "png"
        paths.append(folder / f"{mode.replace(';', '_')}.{suffix}")
        image = Image.new(mode, (width, height))
        image.save(paths[-1], compress_level=1, compression="packbits" if suffix == "tif" else None)
    return paths


def make_special(folder: Path) -> dict[Path, Expected]:
    """What is no ordinary file, or only looks like a large one."""
    folder.mkdir(parents=True)
    good = encoded(TWO_HALVES, "PNG")
    makers: dict[str, tuple[Callable[[Path], object], Expected]] = {
        "directory.jpg": (lambda path: path.mkdir(), LISTED),
        "pipe.jpg": (os.mkfifo, LISTED),
        "socket.jpg": (lambda path: os.mknod(path, stat.S_IFSOCK | 0o600), LISTED),
        "dangling.jpg": (lambda path: path.symlink_to("nowhere.jpg"), LISTED),
        "loop.jpg": (lambda path: path.symlink_to("loop.jpg"), LISTED),
        "to_a_folder.jpg": (lambda path: path.symlink_to("directory.jpg"), LISTED),
        "to_its_parent.jpg": (lambda path: path.symlink_to(".."), LISTED),
        "to_a_device.jpg": (lambda path: path.symlink_to("/dev/zero"), LISTED),
        "to_a_file.png": (lambda path: path.symlink_to("target.png"), READ),
        "target.png": (lambda path: path.write_bytes(good), READ),
        "hard_link.png": (lambda path: path.hardlink_to(folder / "target.png"), READ),
        "sparse_2_gb.jpg": (lambda path: _sparse(path, b""), LISTED),
        "good_png_and_2_gb.png": (lambda path: _sparse(path, good), READ),
        "forbidden.png": (lambda path: (path.write_bytes(good), path.chmod(0)), EITHER),
    }
    expected = {}
    for name, (make, outcome) in makers.items():
        with suppress(OSError, AttributeError):  # not every system has all of them
            make(folder / name)
            expected[folder / name] = outcome
    return expected


def _sparse(path: Path, beginning: bytes) -> None:
    """Two gigabytes that take no space on the disk."""
    path.write_bytes(beginning)
    os.truncate(path, 2**31)
