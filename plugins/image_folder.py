"""Your own classification data: a folder for each class."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import DirectoryPath

from eigendet.errors import UserError
from eigendet.files import value_digest
from eigendet.plugins import dataset

if TYPE_CHECKING:
    from eigendet.data import Classification

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


@dataset
def image_folder(*, path: DirectoryPath) -> "Classification":
    """Read a folder that holds a folder of images for each class; classes are the folders' names, sorted."""
    return ImageFolder(path)


class ImageFolder:
    """Images that are decoded when asked for; the digest is of their paths and sizes."""

    def __init__(self, path: Path) -> None:
        folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
        if not folders:
            raise UserError(f"{path}: holds no folders; expected one folder of images for each class.")
        self.classes = [folder.name for folder in folders]
        self.notes: list[str] = []
        self._samples: list[tuple[Path, int]] = []
        for label, folder in enumerate(folders):
            images = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
            if not images:
                raise UserError(f"{folder}: class folder without images; expected files {', '.join(sorted(SUFFIXES))}.")
            self._samples += [(image, label) for image in images]
        self.digest = value_digest([[str(file.relative_to(path)), file.stat().st_size] for file, _ in self._samples])

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from eigendet.data import decode

        file, label = self._samples[index]
        return decode(file), label
