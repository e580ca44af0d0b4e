"""Build backbones and detectors from their definitions, and check that plugins give what they must.

definition      all that it takes to build a network
backbones       backbones with the widths of the reference or others, and their channel groups
by_name         networks by name, without a configuration
classifier      the classifier as which a backbone is pre-trained
detector        what a detector may say of itself
checkpoints     files of tensors with a digest beside each
snapshots       a network's definition and weights in one file
standalone      a network's own code, to run without this package
sources         the source of functions with all that it uses
program         a detector as a program of torch.export or ONNX
widths_file     files of widths, by hand or by `eigendet widths`
weights         weights of a backbone, from wherever they come
matching        which entries of a file are the backbone's
checks          whether what a plugin gives is what it must
parts           for authors of detectors: feature pyramids, the maps of a backbone, norms of heads
norms           for authors of backbones: another normalization in the place of batch norm
"""
