"""Read covariances: their eigenvalues, metrics of one spectrum, distances of two, and the comparison of runs.

spectrum        eigenvalues and leading eigenvectors; the spectra of a run
metrics         metrics of one spectrum
transfer        scores by which others forecast how well features transfer
tails           the power law of the largest eigenvalues, and whether it fits
similarity      distances and similarities of two feature maps
references      what the statistic of two arms is compared with
significance    whether arms differ by more than their seeds do
metric_table    every metric of every spectrum as a table
observed        what was observed of a run, and what two maps have between them
arm_tests       every two of several arms against the spread of their seeds
comparison      arms and seeds against one another, as tables
matching        arms where they are equally accurate
tables          the files that hold all this, written and read
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
