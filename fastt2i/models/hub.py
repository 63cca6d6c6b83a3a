"""Models on the hub of Hugging Face: where a name leads to, and how a model gets there."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from fastt2i.errors import UserError

if TYPE_CHECKING:
    from fastt2i.models.pretrained import PretrainedModel

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


def push_to_hub(model: PretrainedModel, name: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload a model folder with its card as `user/name`, which is made if it is not there.

    Args:
        model: what to upload.
        name: `user/name`.
        private: whether a new repository is for its owner alone.
        revision: the branch to commit to.

    Returns:
        the address of the commit.

    Raises:
        UserError: it is no such name, or the hub refuses.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name on the hub; give user/name")
    from huggingface_hub import HfApi

    from fastt2i.models.model_card import model_card
    from fastt2i.models.pretrained import save_pretrained

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, Path(folder) / "model", model_card(model, name), {})
        try:
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=name, folder_path=Path(folder) / "model", revision=revision, commit_message="Model of fastt2i"
            )
        except Exception as error:  # as above
            raise UserError(f"the hub does not take {name}: {' '.join(str(error).split())[:200]}") from error
    return str(commit.commit_url)
