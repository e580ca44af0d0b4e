"""What pre-training changes inside an object detector, and how wide each layer must be.

The modules, each with one idea, from the bottom up:

    errors, files, processes   messages for users; atomic writes and digests; which of several processes this is
    names           what runs and taps are called
    sections        the sections of an experiment's configuration
    config          the experiment as validated values
    discovery       which plugins there are, by reading their files
    plugins         backbones, detectors, data sets and width rules: what each must do, and loading them
    structure, data_checks   whether what a plugin gives is what it must
    products        samples times their transpose, in float32 whatever the process has set
    covariance      the streaming accumulator
    points          what a module's output stands for; every call of every module
    padding         which positions of a map are padding
    shortcuts       layers whose output's moments follow from the input's
    observer        every tensor of interest accumulated once, as the model runs
    taps            which tensors of a model are observed
    passes          the same under a memory limit
    store           the HDF5 file of covariances
    spectrum        eigenvalues and leading eigenvectors
    metrics         scalars of one spectrum
    measures        every number that is read from a spectrum, as a table
    similarity      how alike two feature maps are
    significance    whether arms differ by more than their seeds do
    comparison      arms and seeds against one another, as tables
    sizes, operations, tracing   how sizes follow from another in a forward pass
    groups          channel groups and their costs
    construction    a network's own constructor with other sizes
    channels        which widths are tied, and networks rebuilt with others
    dimensions      what spectra show of each channel group
    allocation      how a budget becomes widths
    widths          from spectra to widths
    controls        widths to compare these with
    front           parameters against operations over a rule's option
    datasets, loading, models, training, evaluation, latency, dump, runs
    results         what an experiment's folder holds, read back
    findings        what holds and what does not, in sentences
    figures, views, report   figures, what they show, and the page with them
    events          TensorBoard's scalars
    trial           every network built and tried before any run
    footprint, throughput, plan   what an experiment takes: disk, time, jobs
    samples, contract   tiny data sets, and the contract of plugins as tests on these
    parallel        several processes that work together
    cli, cli_analysis, cli_plugins   a command a stage; `eigendet plugins`
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Covariance", "TapKey", "Taps", "UserError", "covariances", "read_spectra", "tap"]

if TYPE_CHECKING:
    from eigendet.covariance import Covariance
    from eigendet.errors import UserError
    from eigendet.names import TapKey
    from eigendet.passes import covariances
    from eigendet.results import read_spectra
    from eigendet.taps import Taps, tap

_HOMES = {"Covariance": "covariance", "TapKey": "names", "Taps": "taps", "UserError": "errors", "tap": "taps"}
_HOMES |= {"covariances": "passes", "read_spectra": "results"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: the command line must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'eigendet' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"eigendet.{_HOMES[name]}"), name)
