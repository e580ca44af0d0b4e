"""Your own detection data: COCO annotations and a folder of images."""

from typing import TYPE_CHECKING

from pydantic import DirectoryPath, FilePath

from eigendet.plugins import dataset

if TYPE_CHECKING:
    from eigendet.data import Detection


@dataset
def coco(*, annotations: FilePath, images: DirectoryPath) -> "Detection":
    """Read a COCO JSON file (boxes, polygons, run lengths, crowds) over a folder of images."""
    from eigendet.data.coco import CocoDetection

    return CocoDetection(annotations, images)
