"""Decode image files: values deeper than 8 bits scaled, and turned as their annotations say."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from eigendet.data.notes import printable
from eigendet.errors import UserError, first_line

TURNED = "images turned as their EXIF orientation says, as they are annotated"
AS_STORED = "images with an EXIF orientation that is not applied, as they are annotated"
NOT_APPLIED = "images with an EXIF orientation that is not applied; no size of an annotation says whether to"
APPLIED = "images with an EXIF orientation that is applied; no size of an annotation says whether to"
FRAMES = "images of several frames or pages, of which the first is used"
MEGAPIXELS = 89  # from which on Pillow warns, though not of which file
LARGE = f"images of more than {MEGAPIXELS} megapixels, each of which takes 0.3 GB or more to be decoded"

ORIENTATION = 0x0112  # the tag
# From the pixels as they are stored to those that are seen; rows come first.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
BACK = {6: 8, 8: 6}  # all others undo themselves
DEEP = re.compile(r";(12|16|24|32|64)[A-Z]+$")  # of Pillow's raw modes; its BGR;16 has 5 bits a value
FULL = (0.0, 65535.0)  # to which Pillow scales what these formats hold, since their headers say what is white
BLOCK = 1_000_000  # values that are scaled at a time, since float64 takes 8 times their memory
SCALED_BY_PILLOW = {"PPM", "JPEG2000"}

Range = tuple[float, float]


def decode(
    path: Path,
    size: tuple[int, int] | None = None,
    pixel_range: Range | None = None,
    note: Callable[[str], object] = lambda what: None,
) -> Tensor:
    """Return an image file as uint8 (3, H, W), RGB.

    Args:
        path: the file.
        size: height and width that its annotations say; an EXIF orientation is applied where they agree with that.
        pixel_range: values of black and white in images deeper than 8 bits; what is beyond is cut off.
        note: called with what is worth a count, such as `TURNED`.

    Raises:
        UserError: the file is missing, truncated, not an image, of another size than its annotations say, or deeper
            than 8 bits while no range is given; the message names it.
    """
    with _named(path), _opened(path) as image:
        deep = _deep_mode(image)
        if image.format != "MPO" and getattr(image, "is_animated", False):  # phones add a preview of their own
            note(FRAMES)
        if image.width * image.height > MEGAPIXELS * 1_000_000:
            note(LARGE)
        by_pillow = _orientation(image) if image.format == "TIFF" else 1  # which turns these while it loads
        image.load()
        orientation = by_pillow if image.format == "TIFF" else _orientation(image)
        pixels = np.array(image.convert("RGB")) if deep is None else _scaled(path, image, deep, pixel_range)
    pixels = _turned(path, pixels, orientation, by_pillow != 1, size, note)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def check_range(pixel_range: Range | None) -> None:
    """Raise UserError if black and white are the same value.

    >>> check_range((0, 4095))
    """
    if pixel_range is not None and pixel_range[0] == pixel_range[1]:
        raise UserError(f"pixel_range: got {list(pixel_range)}; expected different values for black and white.")


def check_size(path: Path, annotated: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of an image by its header.

    Raises:
        UserError: it cannot be read, or is of another size than annotated, turned by its EXIF orientation or not.
    """
    height, width = header_size(path)
    if (height, width) != annotated:
        with _named(path), _opened(path) as image:
            orientation = _orientation(image)
        if orientation < 5 or (width, height) != annotated:
            raise UserError(_mismatch(path, (height, width), orientation, annotated))
    return annotated


def header_size(path: Path) -> tuple[int, int]:
    """Return height and width of an image by its header.

    Raises:
        UserError: it cannot be read.
    """
    with _named(path), _opened(path) as image:
        return image.height, image.width


def _opened(path: Path) -> Image.Image:
    """Open an image of any format that Pillow reads by itself; of PostScript it would run what the file says."""
    Image.init()
    return Image.open(path, formats=[name for name in Image.ID if name != "EPS"])


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever the reader of an image raises into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{printable(path)}: no such image file.") from None
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{printable(path)}: too large to be decoded ({first_line(error)}); expected at most "
            f"{2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels: make it smaller, or cut it into several."
        ) from None
    except UnidentifiedImageError:
        hint = ": convert it" if path.suffix.lower() in (".heic", ".heif") else ""
        raise UserError(
            f"{printable(path)}: not a readable image (empty, or of no format that Pillow reads here); expected "
            f"JPEG, PNG or the like{hint}."
        ) from None
    except Exception as error:  # a hostile file makes Pillow's readers raise anything
        reason = repr(first_line(error))[1:-1]
        raise UserError(
            f"{printable(path)}: not a readable image, perhaps truncated ({reason}); expected JPEG, PNG or the like."
        ) from None


def _deep_mode(image: Image.Image) -> str | None:
    """Return the mode of an image before it is loaded, as Pillow names it, if it is deeper than 8 bits."""
    for tile in getattr(image, "tile", []):
        for argument in tile[3] if isinstance(tile[3], tuple) else (tile[3],):
            if isinstance(argument, str) and DEEP.search(argument):
                return argument
    return image.mode if image.mode.startswith(("I", "F")) else None


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none, or none that can be read."""
    with contextlib.suppress(Exception):  # it was not looked at so far, so it is no reason to refuse an image
        value = image.getexif().get(ORIENTATION)
        return value if value in TURNS else 1
    return 1


def _scaled(path: Path, image: Image.Image, mode: str, pixel_range: Range | None) -> np.ndarray:
    """Return an image that is deeper than 8 bits as uint8 (H, W, 3), black at 0 and white at 255."""
    low_high = FULL if image.format in SCALED_BY_PILLOW else pixel_range
    if low_high is None:
        raise UserError(
            f"{printable(path)}: is deeper than 8 bits (mode {mode}), so which values are black and white has to be "
            "said: `pixel_range: [0, 65535]` beside `plugin`, or [0, 4095] for a camera of 12 bits, or [0, 1]."
        )
    if not image.mode.startswith(("I", "F")):  # of colors Pillow keeps the upper 8 bits, which is that very range
        if low_high == FULL:
            return np.array(image.convert("RGB"))
        raise UserError(
            f"{printable(path)}: has several channels deeper than 8 bits (mode {mode}), of which only the upper 8 are "
            f"read; expected `pixel_range: [0, 65535]`, not {list(low_high)}, or an image of 8 bits, or of one channel."
        )
    low, high = low_high
    values = np.asarray(image)
    gray = np.empty(values.shape, np.uint8)
    for own, part in zip(
        *(np.array_split(array.reshape(-1), 1 + array.size // BLOCK) for array in (gray, values)), strict=True
    ):
        if not np.isfinite(part).all():
            raise UserError(f"{printable(path)}: holds values that are not finite (mode {mode}); expected numbers.")
        own[:] = np.clip((part.astype(np.float64) - low) * (255 / (high - low)), 0, 255).round()
    return gray[:, :, None].repeat(3, axis=2)


def _turned(
    path: Path,
    pixels: np.ndarray,
    orientation: int,
    applied: bool,
    annotated: tuple[int, int] | None,
    note: Callable[[str], object],
) -> np.ndarray:
    """Return pixels (H, W, 3) turned as the annotated height and width say; `applied` is how they come."""
    size = (pixels.shape[0], pixels.shape[1])
    other = size[::-1] if orientation >= 5 else size
    if annotated is not None and annotated not in (size, other):
        raise UserError(_mismatch(path, size, orientation, annotated))
    if orientation == 1:
        return pixels
    if annotated is None or size == other:
        note(APPLIED if applied else NOT_APPLIED)
        return pixels
    wanted = applied if annotated == size else not applied
    note(TURNED if wanted else AS_STORED)
    if wanted == applied:
        return pixels
    return TURNS[orientation if wanted else BACK.get(orientation, orientation)](pixels)


def _mismatch(path: Path, size: tuple[int, int], orientation: int, annotated: tuple[int, int]) -> str:
    """Say that an image is of another size than annotated; sizes are height and width."""
    turned = f", {size[0]}x{size[1]} if turned by its EXIF orientation {orientation}" if orientation >= 5 else ""
    about = turned or (f", whatever its EXIF orientation {orientation}" if orientation > 1 else "")
    said = f"{annotated[1]}x{annotated[0]}"
    return f"{printable(path)}: the image is {size[1]}x{size[0]} pixels{about}; its annotations say {said}."
