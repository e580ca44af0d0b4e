"""Image files: deeper than 8 bits, turned by their EXIF orientation, broken, too large, or replaced."""

from __future__ import annotations

import io
import itertools
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from eigendet import config
from eigendet.data import images
from eigendet.data.batches import detection_batches
from eigendet.data.coco import CocoDetection
from eigendet.data.datasets import check_data
from eigendet.data.images import decode
from eigendet.data.samples import Rectangles
from tests.faults.refusal import one_line_or_nothing, refused
from tests.unit.test_datasets import open_dataset

Coco = Callable[..., tuple[Path, Path]]
RAMP = np.arange(256, dtype=np.float64).reshape(16, 16)


def png(values: np.ndarray) -> bytes:
    """Return (H, W, 1 to 4) as a PNG of 16 bits, which Pillow does not write in color."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray) -> bytes:
    """Return (H, W, 3) as a TIFF of 16 bits a color."""
    height, width, _ = values.shape
    content = values.astype("<u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140),
            (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(content)), (284, 3, 1, 1)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return head + struct.pack("<HHH", 16, 16, 16) + content


def saved(values: np.ndarray, format: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format)
    return stream.getvalue()


def gray(scale: float, channels: int = 1) -> np.ndarray:
    return np.round(RAMP * scale)[:, :, None].repeat(channels, axis=2)


# Files of the ramp 0 to 255, each stretched to the range of its camera.
DEEP: dict[str, tuple[bytes, tuple[float, float]]] = {
    **{
        f"PNG with {channels} channels of 16 bits, white at {white}": (png(gray(white / 255, channels)), (0, white))
        for channels, white in ((1, 65535), (1, 4095), (1, 16383), (2, 65535), (3, 65535), (4, 65535))
    },
    "TIFF of 16 bits a color": (tiff(gray(257, 3)), (0, 65535)),
    "TIFF of 16 bits": (saved(gray(257)[..., 0].astype(np.uint16), "TIFF"), (0, 65535)),
    "TIFF of 12 bits in 16": (saved(gray(4095 / 255)[..., 0].astype(np.uint16), "TIFF"), (0, 4095)),
    "TIFF of 32 bits": (saved(gray(1000)[..., 0].astype(np.int32), "TIFF"), (0, 255000)),
    "TIFF of negative numbers": (saved(gray(10)[..., 0].astype(np.int32) - 1000, "TIFF"), (-1000, 1550)),
    "TIFF of floats": (saved((RAMP / 255).astype(np.float32), "TIFF"), (0, 1)),
    "TIFF of floats from -1": (saved((RAMP / 127.5 - 1).astype(np.float32), "TIFF"), (-1, 1)),
    "black at the top": (saved((255 - RAMP).astype(np.float32), "TIFF"), (255, 0)),
}


@pytest.mark.fault(kind="pixels deeper than 8 bits", stage="check-data")
@pytest.mark.parametrize(("content", "pixel_range"), DEEP.values(), ids=DEEP)
def test_deep_images_are_scaled_by_their_range_or_refused_with_file_and_mode(
    content: bytes, pixel_range: tuple[float, float], tmp_path: Path
) -> None:
    file = tmp_path / "deep.img"
    file.write_bytes(content)
    with refused(file, r"deeper than 8 bits \(mode [IFLR]", r"pixel_range: \[0, 65535\]"):
        decode(file)
    pixels = decode(file, pixel_range=pixel_range)
    np.testing.assert_array_equal(pixels.numpy(), RAMP[None].repeat(3, axis=0))


@pytest.mark.fault(kind="pixels deeper than 8 bits", stage="check-data")
@pytest.mark.parametrize("white", [255, 4095, 65535])
@pytest.mark.parametrize("format", ["P5", "P6"])
def test_a_format_that_says_what_is_white_needs_no_range(format: str, white: int, tmp_path: Path) -> None:
    file = tmp_path / "deep.ppm"
    values = gray(white / 255, 1 if format == "P5" else 3).astype(">u2" if white > 255 else np.uint8)
    file.write_bytes(f"{format} 16 16 {white}\n".encode() + values.tobytes())
    for pixel_range in (None, (0.0, 4095.0)):
        np.testing.assert_array_equal(decode(file, pixel_range=pixel_range)[0].numpy(), RAMP)


@pytest.mark.fault(kind="pixels deeper than 8 bits", stage="check-data")
def test_what_is_beyond_the_range_is_cut_off_and_what_has_no_value_refused(tmp_path: Path) -> None:
    file = tmp_path / "deep.tif"
    values = np.full((4, 4), -5.0, np.float32)
    values[0] = 7
    Image.fromarray(values).save(file)
    assert decode(file, pixel_range=(0, 1))[0].tolist() == [[255] * 4, *[[0] * 4] * 3]
    for wrong in (np.nan, np.inf, -np.inf):
        values[1, 1] = wrong
        Image.fromarray(values).save(file)
        with refused(file, "not finite .mode F"):
            decode(file, pixel_range=(0, 1))


@pytest.mark.fault(kind="pixels deeper than 8 bits", stage="check-data")
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colors_whose_upper_bits_are_not_their_range_are_refused(channels: int, tmp_path: Path) -> None:
    file = tmp_path / "deep.png"
    file.write_bytes(png(gray(4095 / 255, channels)))
    with refused(file, "several channels deeper than 8 bits .mode [LARGB]*;16B", r"\[0, 65535\]`, not \[0, 4095\]"):
        decode(file, pixel_range=(0, 4095))


@pytest.mark.fault(kind="pixels deeper than 8 bits", stage="check-data")
@pytest.mark.parametrize("pixel_range", [[5, 5], [0], [0, 1, 2], "16", [0, "nan"], [0, float("inf")], [True, 5], 4095])
@pytest.mark.parametrize("plugin", ["coco", "image_folder"])
def test_a_range_that_is_none_names_its_key(plugin: str, pixel_range: Any, coco: Coco) -> None:
    file, folder = coco()
    options = {"path": folder.parent} if plugin == "image_folder" else {"annotations": file, "images": folder}
    with refused("pixel_range"):
        open_dataset(plugin=plugin, pixel_range=pixel_range, **options)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_modes_of_8_bits_are_decoded_as_pillow_converts_them(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    written = 0
    for format in ("PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP"):
        file = tmp_path / f"image.{format.lower()}"
        try:
            image.save(file, format)
        except (OSError, KeyError, ValueError):
            continue
        with Image.open(file) as reference:
            expected = np.array(reference.convert("RGB"))
        np.testing.assert_array_equal(decode(file, (20, 30)).permute(1, 2, 0).numpy(), expected)
        written += 1
    assert written or mode in ("PA", "RGBX", "HSV")


@pytest.mark.parametrize("extra", [{"transparency": 3}, {"gamma": 0.45}, {"icc_profile": b"\0" * 128}, {"dpi": (1, 1)}])
def test_what_stands_beside_the_pixels_changes_nothing(extra: dict[str, Any], tmp_path: Path) -> None:
    image = Image.fromarray(RAMP.astype(np.uint8))
    image.save(tmp_path / "image.png", **extra)
    np.testing.assert_array_equal(decode(tmp_path / "image.png")[0].numpy(), RAMP)


def oriented(file: Path, orientation: Any, height: int = 40, width: int = 60) -> np.ndarray:
    """Write an image with an EXIF orientation, without a loss; return its pixels as they are stored."""
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    Image.fromarray(pixels).save(file, exif=exif)
    return pixels


def upright(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(ImageOps.exif_transpose(image))


@pytest.mark.fault(kind="EXIF orientation", stage="check-data")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_it_is_applied_where_sizes_then_agree(orientation: int, suffix: str, tmp_path: Path) -> None:
    file, notes = tmp_path / f"a.{suffix}", list[str]()
    stored = oriented(file, orientation)
    if suffix == "webp":  # with a loss
        with Image.open(file) as image:
            stored = np.array(image.convert("RGB"))
    turned = upright(file)
    as_annotated = decode(file, turned.shape[:2], note=notes.append).permute(1, 2, 0).numpy()
    as_stored = decode(file, stored.shape[:2], note=notes.append).permute(1, 2, 0).numpy()
    unknown = decode(file, note=notes.append).permute(1, 2, 0).numpy()
    by_default = suffix == "tif"  # Pillow itself turns these
    np.testing.assert_array_equal(unknown, turned if by_default else stored)
    if orientation >= 5:
        np.testing.assert_array_equal(as_annotated, turned)
        np.testing.assert_array_equal(as_stored, stored)
        assert notes[:2] == [images.TURNED, images.AS_STORED]
    else:
        np.testing.assert_array_equal(as_stored, unknown)
    undecided = images.APPLIED if by_default else images.NOT_APPLIED
    assert notes[2:] == [undecided] if orientation >= 5 else notes == [undecided] * 3 * (orientation > 1)


@pytest.mark.fault(kind="EXIF orientation", stage="check-data")
@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_where_neither_way_fits_it_is_refused_by_name(orientation: int, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    oriented(file, orientation)
    for look in (decode, images.check_size):
        with refused(file, f"EXIF orientation {orientation}", "its annotations say 50x50"):
            look(file, (50, 50))


@pytest.mark.fault(kind="EXIF orientation", stage="check-data")
@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_does_not_count(orientation: int, tmp_path: Path) -> None:
    stored = oriented(tmp_path / "a.png", orientation)
    np.testing.assert_array_equal(decode(tmp_path / "a.png", (40, 60)).permute(1, 2, 0).numpy(), stored)
    with refused(tmp_path / "a.png", "is 60x40 pixels; its annotations say 40x60"):
        decode(tmp_path / "a.png", (60, 40))


@pytest.mark.fault(kind="EXIF orientation", stage="check-data")
def test_the_summary_counts_it(coco: Coco, values: dict[str, Any]) -> None:
    file, folder = coco(lambda content: content["images"][1].update(width=40, height=60))
    oriented(folder / "a.png", 8)
    oriented(folder / "b.png", 6)
    choice = {"plugin": "coco", "annotations": str(file), "images": str(folder)}
    values["data"]["detection"] = {"train": choice, "val": choice}
    notes = check_data(config.parse(values), "detection", "train")["notes"]
    assert f"{file}: 1 {images.TURNED} (images id 9)" in notes
    assert f"{file}: 1 {images.AS_STORED} (images id 7)" in notes
    assert "data.detection: train and val are the same data, so what is evaluated was learned" in notes


def jpeg(size: int = 64) -> bytes:
    return saved(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8), "JPEG")


def bomb(width: int, height: int) -> bytes:
    """Return the header of an image that says how large it is, and nothing of it."""
    return (
        saved(np.zeros((1, 1), np.uint8), "BMP")[:18] + struct.pack("<ii", width, height) + b"\1\0\x08\0" + b"\0" * 24
    )


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.jpg", b"", "not a readable image"),
    "a text": ("a.png", b"no image", "not a readable image"),
    "zeros": ("a.png", b"\0" * 1000, "not a readable image"),
    "HEIC": ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100, "not a readable image.*convert it"),
    "a signature alone": ("a.png", b"\x89PNG\r\n\x1a\n", "not a readable image"),
    "a page of HTML": ("a.jpg", b"<html>404</html>", "not a readable image"),
    "a pointer of Git LFS": ("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "not a"),
    **{
        f"{name} cut to {share:.0%}": (f"a.{name}", content[: int(len(content) * share)], "not a readable image")
        for share in (0.1, 0.5, 0.9)
        for name, content in {
            "jpg": jpeg(), "png": png(gray(1, 3)), "tif": saved(RAMP.astype(np.uint8), "TIFF"),
            "bmp": saved(np.zeros((30, 30), np.uint8), "BMP"),
        }.items()
    },
    "179 megapixels": ("a.bmp", bomb(20_000, 9_000), "too large to be decoded .*at most 178956970 pixels"),
    "4 terapixels": ("a.bmp", bomb(2_000_000, 2_000_000), "too large to be decoded"),
    "a crossed-out checksum": ("a.png", png(gray(1))[:60] + b"\xff" + png(gray(1))[61:], "not a readable image"),
}  # fmt: skip


@pytest.mark.fault(kind="broken images", stage="check-data")
@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_image_names_itself(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(tmp_path / name, message):
        decode(tmp_path / name)


@pytest.mark.fault(kind="broken images", stage="check-data")
@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[31ma.png", "\u202ea.png"])
def test_a_name_that_cannot_be_printed_is_quoted(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    for look in (decode, images.header_size):
        with refused(repr(name)[1:-1], "not a readable image"):
            look(tmp_path / name)


@pytest.mark.fault(kind="broken images", stage="check-data")
@pytest.mark.parametrize("seed", range(8))
def test_changed_bytes_are_an_image_or_a_line(seed: int, tmp_path: Path) -> None:
    random, file = np.random.default_rng(seed), tmp_path / "a.img"
    contents = [
        jpeg(),
        png(gray(1, 3)),
        *(saved(RAMP.astype(np.uint8), name) for name in ("TIFF", "GIF", "WEBP", "PPM")),
    ]
    for content, _ in itertools.product(contents, range(5)):
        changed = np.frombuffer(content, np.uint8).copy()
        changed[random.integers(0, len(changed), 3)] = random.integers(0, 256, 3)
        file.write_bytes(changed.tobytes())
        if message := one_line_or_nothing(lambda: decode(file, pixel_range=(0, 65535))):
            assert str(file) in message


@pytest.mark.fault(kind="broken images", stage="check-data")
def test_a_wrong_suffix_is_read_by_its_content_and_a_folder_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(jpeg())
    assert decode(tmp_path / "a.png").shape == (3, 64, 64)
    with refused(tmp_path / "absent.png", "no such image file"):
        decode(tmp_path / "absent.png")
    with refused(tmp_path, "not a readable image"):
        decode(tmp_path)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_used_and_that_counted(format: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {}
    frames[0].save(tmp_path / "a.img", format, save_all=True, append_images=frames[1:], **options)
    notes: list[str] = []
    assert decode(tmp_path / "a.img", (8, 8), note=notes.append)[:, 0, 0].tolist() == [255, 0, 0]
    assert notes == [images.FRAMES]


@pytest.mark.fault(kind="replaced images", stage="train")
@pytest.mark.parametrize("plugin", ["coco", "image_folder"])
def test_a_replaced_image_changes_the_digest(plugin: str, coco: Coco, tmp_path: Path) -> None:
    file, folder = coco()
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes/one").symlink_to(folder)
    options = {"path": tmp_path / "classes"} if plugin == "image_folder" else {"annotations": file, "images": folder}

    def digest(**more: Any) -> str:
        return str(open_dataset(plugin=plugin, **options, **more).digest)

    first = digest()
    assert digest() == first != digest(pixel_range=[0, 255])
    content, state = (folder / "a.png").read_bytes(), (folder / "a.png").stat()
    (folder / "a.png").write_bytes(content[:-1] + b"\0")  # of the same length
    os.utime(folder / "a.png", ns=(state.st_atime_ns, state.st_mtime_ns + 10**7))
    assert digest() != first
    os.utime(folder / "a.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert digest() == first
    (folder / "a.png").write_bytes(content + b"\0")
    os.utime(folder / "a.png", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert digest() != first


@pytest.mark.fault(kind="broken images", stage="train")
@pytest.mark.parametrize(("width", "height"), [(4000, 1), (1, 4000), (30_000, 100)])
def test_a_side_that_would_round_to_nothing_is_found_by_the_check(
    width: int, height: int, coco: Coco, values: dict[str, Any]
) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["images"][1] |= {"width": width, "height": height}
        content["annotations"][2] |= {"bbox": [0, 0, 1, 1], "segmentation": []}

    file, folder = coco(edit)
    Image.new("RGB", (width, height)).save(folder / "b.png")
    choice = {"plugin": "coco", "annotations": str(file), "images": str(folder)}
    values["data"]["detection"] = {"train": choice, "val": choice}
    experiment = config.parse(values)
    with refused(folder / "b.png", f"{width}x{height} pixels; resized to a longer side of 64"):
        check_data(experiment, "detection", "val")
    with refused(folder / "b.png", "training.max_size"):
        detection_batches(CocoDetection(file, folder), experiment.training, seed=0, start=0, masks=False)
    detection_batches(Rectangles(64), experiment.training, seed=0, start=0, masks=False)


@pytest.mark.fault(kind="deep images", stage="data")
def test_a_large_deep_image_is_scaled_in_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "image.tiff"
    Image.fromarray(np.arange(4_000_000, dtype=np.uint16).reshape(2000, 2000)).save(file)
    tracemalloc.start()
    try:
        pixels = decode(file, pixel_range=(0, 65535))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    expected = np.round(np.arange(4_000_000, dtype=np.uint16).astype(float) / 257)
    assert (pixels.reshape(3, -1).numpy() == expected).all() and most < 16 * expected.size


@pytest.mark.fault(kind="large images", stage="data")
@pytest.mark.filterwarnings("ignore:Image size")
def test_a_very_large_image_is_counted(tmp_path: Path) -> None:
    file, notes = tmp_path / "image.png", list[str]()
    Image.new("1", (10_000, 8_901)).save(file)
    decode(file, note=notes.append)
    assert notes == [images.LARGE]
