"""Say what pre-training changes inside an object detector, and how wide each layer must be.

Three engines know nothing of experiments, and work on any PyTorch model or any covariance file:

    observe     covariances of a model's feature maps
    channels    tied widths, their cost, and the network rebuilt with others
    spectra     eigenvalues, metrics, similarity, comparison

On these stands the experiment, each package on those above it:

    config      the experiment as validated values
    plugins     finding, checking and loading plugins; the names that their authors use
    data        data sets and batches
    networks    backbones and detectors from their definitions; snapshots
    widths      from spectra and a budget to widths
    monitoring  the same measured while someone's own loop trains a network
    report      results read back, findings, figures, the page
    runs        everything that runs a network: training, evaluation, covariances, latency; and the plan of it
    testing     the contract of plugins as tests
    cli         a command for each stage

Beneath all: `errors` for users, `files` whole or absent, `progress` of long jobs, `processes` that work
together.
"""

import lazy_loader

__version__ = "0.2.0.dev0"
# The names in __init__.pyi, imported when they are first used: the command line must not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
