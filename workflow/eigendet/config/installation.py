"""Say where this very library comes from: the checkout that it stands in, and what pip would install it from."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import eigendet


def checkout() -> Path | None:
    """Return the checkout that this file stands in, with the workflow; none where the library is installed without."""
    folder = Path(__file__).resolve().parents[3]
    return folder if (folder / "pyproject.toml").is_file() else None


def requirement() -> str:
    """Return a requirement, or the folder of a checkout, that `pip install` takes for the library that runs here.

    It is its checkout, the address from which pip installed it, or else the version. Jobs in an environment of their
    own so run the same one.
    """
    if folder := checkout():
        return str(folder)
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
