"""The files that pictures are written in."""

from __future__ import annotations

from fastt2i.errors import UserError

#: Formats, by suffix.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def check_suffix(suffix: str) -> None:
    """Raise UserError where pictures are not written in such files."""
    if suffix not in FORMATS:
        raise UserError(
            f"pictures are written as {', '.join(FORMATS)} and not as {suffix or 'a file without a suffix'}"
        )
