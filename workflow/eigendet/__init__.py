"""What pre-training changes inside an object detector, and how wide each layer must be.

The modules, each with one idea, from the bottom up:

    errors, files   messages for users; atomic writes and digests
    sections        the sections of an experiment's configuration
    config          the experiment as validated values
    plugins         backbones, detectors, data sets and width rules, found by name
    products        samples times their transpose, in float32 whatever the process has set
    covariance      the streaming accumulator
    points          what a module's output stands for; every call of every module
    padding         which positions of a map are padding
    shortcuts       layers whose output's moments follow from the input's
    observer        every tensor of interest accumulated once, as the model runs
    taps            which tensors of a model are observed
    passes          the same under a memory limit
    store           the HDF5 file of covariances
    spectrum        eigenvalues and what is read from them
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
    figures, report the page
    cli             a command a stage
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Covariance", "TapKey", "Taps", "UserError", "covariances", "tap"]

if TYPE_CHECKING:
    from eigendet.covariance import Covariance
    from eigendet.errors import UserError
    from eigendet.passes import covariances
    from eigendet.points import TapKey
    from eigendet.taps import Taps, tap

_HOMES = {"Covariance": "covariance", "TapKey": "points", "Taps": "taps", "UserError": "errors", "tap": "taps"}
_HOMES["covariances"] = "passes"


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: the command line must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'eigendet' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"eigendet.{_HOMES[name]}"), name)
