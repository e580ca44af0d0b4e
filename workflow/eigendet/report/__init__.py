"""Read the results of an experiment back, and show them.

results     what an experiment's folder holds, as tables
records     what other stages leave as JSON, as far as the page reads it
readings    the table of readings, and what it says
accuracy    how accurate arms are beside one another, in sentences
differences whether arms differ in their spectra, in sentences
equal_accuracy  the same where they are equally accurate
findings    what widths were found, in sentences
forecast    what initializations promised beside what came of them
wording     numbers in words, so that rounding says nothing that they do not
layers      what layers are called, and which stand together
curves      losses over training, precision over recall, as tables
examples    a few images with objects and what each arm detects there
outlines    masks as outlines that a page can draw
views       tables of comparisons and spectra as the figures show them
figures     the figures
page        one self-contained page with all of it
events      TensorBoard's scalars
"""
