"""The model and the images that come with edgekit.

In a checkout they lie in its folders ``exports`` and ``calibration``, in an installation in the
package itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parents[1]


def folder(kind: Literal["exports", "calibration"], name: str) -> Path:
    """Where a shipped folder is; in a checkout even if it is missing."""
    installed = _PACKAGE / "shipped" / kind / name
    return installed if installed.is_dir() else _PACKAGE.parent / kind / name
