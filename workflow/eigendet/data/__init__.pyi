from .datasets import RLE as RLE
from .datasets import Classification as Classification
from .datasets import Detection as Detection
from .datasets import Target as Target
from .datasets import decode as decode
