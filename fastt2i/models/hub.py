"""Models on the hub of Hugging Face: where a name leads to."""

from __future__ import annotations

import re
from pathlib import Path

from fastt2i.errors import UserError

NAME = re.compile(r"[\w.-]+/[\w.-]+")
#: Nothing else of a repository is read.
FILES = ("config.json", "*.safetensors", "README.md", "*.png", "language-model/*")


def find_model(model: str | Path, revision: str | None = None, offline: bool = False) -> Path:
    """The folder of a model: itself, where there is one, else `user/name` from the hub's cache or from the hub.

    Args:
        model: a folder, or `user/name`.
        revision: branch, tag or commit on the hub.
        offline: take what the cache has, and ask no network.

    Raises:
        UserError: there is neither such a folder nor such a model.
    """
    folder = Path(model)
    if folder.exists() or not NAME.fullmatch(str(model)):
        if revision:
            raise UserError(f"revision is {revision}, but {model} is no name on the hub; leave it out")
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(model), revision=revision, local_files_only=offline, allow_patterns=list(FILES))
        )
    except Exception as error:  # the library raises what it likes for networks, names and revisions
        where = "the hub's cache, which is all that is looked at offline" if offline else "the hub or its cache"
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"there is no folder {model}, and {model}{f' at {revision}' if revision else ''} cannot be had from "
            f"{where} ({type(error).__name__}: {reason})"
        ) from error
