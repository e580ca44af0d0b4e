from .errors import UserError as UserError
from .moments.covariance import Covariance as Covariance
from .monitoring.callbacks import lightning_callback as lightning_callback
from .monitoring.callbacks import transformers_callback as transformers_callback
from .monitoring.monitor import monitor as monitor
from .observe.gradients import tap_gradients as tap_gradients
from .observe.keys import TapKey as TapKey
from .observe.passes import covariances as covariances
from .observe.taps import Taps as Taps
from .observe.taps import tap as tap
from .report.results import read_spectra as read_spectra
from .widths.suggestion import suggest_widths as suggest_widths

__version__: str
