"""Your own classification data: a folder for each class."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import DirectoryPath, FiniteFloat

from eigendet.files import value_digest
from eigendet.plugins import dataset

if TYPE_CHECKING:
    from eigendet.data import Classification

Range = tuple[FiniteFloat, FiniteFloat]


@dataset
def image_folder(*, path: DirectoryPath, pixel_range: Range | None = None) -> "Classification":
    """Read a folder that holds a folder of images for each class; classes are the folders' names, sorted.

    Images deeper than 8 bits need `pixel_range`, their values of black and white.
    """
    return ImageFolder(path, pixel_range)


class ImageFolder:
    """Images that are decoded when asked for; the digest is of their paths, sizes and times of change."""

    def __init__(self, path: Path, pixel_range: Range | None) -> None:
        from eigendet.data.folders import class_images
        from eigendet.data.images import check_range
        from eigendet.data.notes import Notes

        check_range(pixel_range)
        images = class_images(path)
        self.classes = list(images)
        self._samples = [(file, label) for label, files in enumerate(images.values()) for file in files]
        self._pixel_range, self._notes = pixel_range, Notes(str(path))
        states = [(file.relative_to(path), file.stat()) for file, _ in self._samples]
        self.digest = value_digest(
            [pixel_range, [[str(name), state.st_size, state.st_mtime_ns] for name, state in states]]
        )

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        """Return the path of an image, as messages name it."""
        return str(self._samples[index][0])

    @property
    def notes(self) -> list[str]:
        """What may not be meant of the images, as far as they were decoded."""
        return self._notes.sentences()

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from eigendet.data import decode

        file, label = self._samples[index]
        return decode(file, None, self._pixel_range, lambda what: self._notes.count(what, "number", index)), label
