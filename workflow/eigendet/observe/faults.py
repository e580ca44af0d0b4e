"""What is wrong with a tap, in one line: which, in which pass, and what to do."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from eigendet.errors import UserError, first_line
from eigendet.moments.covariance import Covariance
from eigendet.observe.keys import TapKey

logger = logging.getLogger(__name__)


def inconstant(key: TapKey, source: TapKey) -> UserError:
    """Return the error of a tensor that was not made of what it is linked to."""
    return UserError(
        f"{key}: its moments were to be computed from those of {source}, but the two do not belong together in every "
        "pass: a layer was left out or repeated, or its input was changed in place. Give shortcuts=False."
    )


def changed(key: TapKey, index: int) -> UserError:
    """Return the error of a layer that is not the map by which its output is linked."""
    return UserError(
        f"{key}: does not follow in forward pass {index} (the first is 0) from what its layer read by the weights that "
        "it had when the pass began: layer, weights or map were changed meanwhile. Give shortcuts=False."
    )


def rewritten(key: TapKey) -> UserError:
    """Return the error of weights that were written to without a trace, on a device that is not waited for."""
    return UserError(
        f"{key}: the weights of its layer were changed through `.data` while it was tapped, so its moments cannot be "
        "computed from its input's; open a context for each state of the weights, or give shortcuts=False."
    )


def amplified(key: TapKey) -> UserError:
    """Return the error of a link that amplifies rounding errors."""
    return UserError(
        f"{key}: its layer cancels what varies most in later passes, though not in the first, so that its moments do "
        "not follow from its input's to 1e-6; begin with images like the others, or give shortcuts=False."
    )


def not_accumulated(key: TapKey, error: Exception) -> UserError:
    """Return the error of a tensor whose samples cannot be taken."""
    return UserError(f"{key}: cannot be accumulated: {type(error).__name__}: {first_line(error)}.")


def not_finite(key: TapKey, index: int) -> UserError:
    """Return the error of samples that are not finite."""
    return UserError(
        f"{key}: NaN, infinity, or numbers whose squares overflow float32, in forward pass {index} (the first is 0); "
        "the taps keep what was accumulated before."
    )


def described(output: Any) -> str:
    """Return what a module gave, where it holds no samples.

    >>> import torch
    >>> described(torch.zeros(3, dtype=torch.int64))
    'torch.int64 (3,)'
    """
    return f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


def of_samples(key: TapKey, covariance: Covariance) -> UserError | None:
    """Return what is wrong with the samples of a tap, if anything is; log where they lose digits."""
    try:
        if (rejected := covariance.first_rejected) is not None:
            return not_finite(key, rejected)
        if covariance.underflows:
            logger.warning("%s: its values vary so little that squares underflow float32", key)
    except RuntimeError as error:  # samples without values, of a model that was only traced
        return not_accumulated(key, error)
    return None
