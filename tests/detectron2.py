"""detectron2 for the tests: the one that is installed, or the Python sources of release 0.6 with stand-ins.

The package registry has no official detectron2, but an unofficial source distribution of release 0.6, without the C++
sources. Its Python runs once a module stands in for the compiled one (of rotated boxes and deformable convolutions,
which are not used here) and Pillow has the name LINEAR again.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

ARCHIVE = "pb1-detectron2==0.6"
DIGEST = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
CACHE = Path(__file__).parent / ".detectron2"

STANDINS = """
import sys as _sys, types as _types
from PIL import Image as _Image
if not hasattr(_Image, "LINEAR"):
    _Image.LINEAR = _Image.BILINEAR
_sys.modules[__name__ + "._C"] = _types.ModuleType(__name__ + "._C")
"""


@cache
def unavailable() -> str:
    """Make detectron2 importable, here and in processes started from here; why that cannot be, if so."""
    if importlib.util.find_spec("detectron2") is not None:
        return ""
    sources = CACHE / "pb1-detectron2-0.6"
    if not (sources / "ready").is_file():
        CACHE.mkdir(exist_ok=True)
        requirements = CACHE / "requirements.txt"
        requirements.write_text(f"{ARCHIVE} --hash=sha256:{DIGEST}\n")
        options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--require-hashes"]
        line = [sys.executable, "-m", "pip", "download", "-q", *options, "-r", str(requirements), "-d", str(CACHE)]
        found = subprocess.run(line, capture_output=True, text=True, check=False)
        if found.returncode:
            return f"detectron2 is not installed, and its sources could not be fetched: {found.stderr.strip()[-200:]}"
        with tarfile.open(CACHE / "pb1-detectron2-0.6.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
        init = sources / "detectron2/__init__.py"
        init.write_text(STANDINS + init.read_text())
        (sources / "ready").touch()
    sys.path.append(str(sources))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(sources)]))
    return ""
