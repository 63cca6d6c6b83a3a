"""Contents that carry their own digest: what disks and copies have changed in them is found out when they are read."""

from __future__ import annotations

from fastt2i.files.atomic import sha256


def sealed(content: bytes) -> bytes:
    """A content with its SHA-256 as a last line."""
    return content + f"\n{sha256(content)}\n".encode()


def unsealed(content: bytes) -> bytes:
    """The content that was sealed. Raises ValueError: it is not that one any more, or never was sealed."""
    content, mark, digest = content.removesuffix(b"\n").rpartition(b"\n")
    if not mark or sha256(content).encode() != digest:
        raise ValueError("its digest is not the one noted in it")
    return content
