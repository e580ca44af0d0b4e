"""Say what pip would install this very library from, so that jobs in an environment of their own run the same one."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import eigendet


def requirement() -> str:
    """Return a requirement, or the folder of a checkout, that `pip install` takes for the library that runs here.

    It is the checkout that this file stands in, the address from which pip installed it, or else the version.
    """
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file():
        return str(checkout)
    try:
        text = metadata.distribution("eigendet").read_text("direct_url.json")  # there unless it came from an index
    except metadata.PackageNotFoundError:
        text = None
    if not text:
        return f"eigendet=={eigendet.__version__}"
    origin = json.loads(text)
    if "vcs_info" in origin:
        return f"eigendet @ {origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}"
    return f"eigendet @ {origin['url']}"
