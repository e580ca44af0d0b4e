"""What pre-training changes inside an object detector, and how wide each layer must be.

The modules, each with one idea, from the bottom up:

    errors, files   messages for users; atomic writes and digests
    config          the experiment as validated values
    plugins         backbones, detectors and data sets, found by name
    covariance      the streaming accumulator
    taps            which tensors of a model are observed
    store           the HDF5 file of covariances
    spectrum        eigenvalues and what is read from them
    channels        which widths are tied, and networks rebuilt with others
    widths          from spectra to widths
    datasets, loading, models, training, evaluation, dump
    report          the page
    cli             a command a stage
"""

__version__ = "0.1.0"
