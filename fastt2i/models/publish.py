"""Uploading a model to the hub of Hugging Face."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fastt2i.errors import UserError
from fastt2i.models.hub import NAME
from fastt2i.models.model_card import model_card
from fastt2i.models.pretrained import PretrainedModel, save_pretrained


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
