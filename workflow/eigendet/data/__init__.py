"""Open data sets, check them, and make batches of them.

datasets       what a data set is, and the check of a whole data set
images         image files as pixels: deeper than 8 bits, or turned
checks         whether what a data set gives is what it must
notes          what may not be meant, counted
coco           annotations in COCO's format
segmentations  their polygons and run lengths
batches        augmentation, and an order that depends on nothing but the seed
folders        COCO files, their images and class folders, below a user's folder
presence       which classes the objects of images are of
survey         figures of these, quickly
samples        two tiny data sets on which plugins are tried
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
