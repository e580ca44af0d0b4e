"""Read the results of an experiment back, and show them.

results     what an experiment's folder holds, as tables
records     what other stages leave as JSON, as far as the page reads it
accuracy    how accurate arms are beside one another, in sentences
findings    what holds and what does not, in sentences
wording     numbers in words, so that rounding says nothing that they do not
layers      what layers are called, and which stand together
views       tables of comparisons and spectra as the figures show them
figures     the figures
page        one self-contained page with all of it
events      TensorBoard's scalars
"""
