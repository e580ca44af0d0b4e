from .errors import UserError as UserError
from .observe.covariance import Covariance as Covariance
from .observe.keys import TapKey as TapKey
from .observe.passes import covariances as covariances
from .observe.taps import Taps as Taps
from .observe.taps import tap as tap
from .report.results import read_spectra as read_spectra

__version__: str
