"""Read covariances: their eigenvalues, metrics of one spectrum, distances of two, and the comparison of runs.

spectrum        eigenvalues and leading eigenvectors
metrics         scalars of one spectrum
metric_tables   every number that is read from a spectrum, as a table
similarity      how alike two feature maps are
significance    whether arms differ by more than their seeds do
comparison      arms and seeds against one another, as tables
tables          the columns that all tables share, and how tables are read
"""
