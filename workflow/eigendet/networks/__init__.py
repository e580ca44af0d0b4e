"""Build backbones and detectors from their definitions, and check that plugins give what they must.

models          networks from their definitions; snapshots of them
widths_file     files of widths, by hand or by `eigendet widths`
weights         weights of a backbone, from wherever they come
checks          whether what a plugin gives is what it must
parts           for authors of detectors: feature pyramids, the maps of a backbone, norms of heads
norms           for authors of backbones: another normalization in the place of batch norm
"""
