from .groups import ChannelError as ChannelError
from .groups import Channels as Channels
from .groups import Widths as Widths
from .groups import table as table
from .tracing import SIDE as SIDE
from .tracing import rebuild as rebuild
from .tracing import trace as trace
