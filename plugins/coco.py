"""Your own detection data: COCO annotations and a folder of images."""

from typing import TYPE_CHECKING

from pydantic import DirectoryPath, FilePath, FiniteFloat

from eigendet.plugins import dataset

if TYPE_CHECKING:
    from eigendet.data import Detection


@dataset
def coco(
    *,
    annotations: FilePath,
    images: DirectoryPath,
    pixel_range: tuple[FiniteFloat, FiniteFloat] | None = None,
    outside: bool = False,
) -> "Detection":
    """Read a COCO JSON file (boxes, polygons, run lengths, crowds) over a folder of images.

    Images deeper than 8 bits need `pixel_range`, their values of black and white; `outside` takes images that links or
    names lead to outside of the folder.
    """
    from eigendet.data.coco import CocoDetection

    return CocoDetection(annotations, images, pixel_range, outside)
