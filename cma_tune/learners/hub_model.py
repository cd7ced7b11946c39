"""huggingface_hub's mixin on every learner: `save_pretrained`, `from_pretrained`, `push_to_hub`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.constants import CONFIG_NAME

from cma_tune.clip.backbone import Backbone
from cma_tune.errors import UserError
from cma_tune.hub import MESSAGE, check_repository, upload

if TYPE_CHECKING:
    from cma_tune.learners.base import Learner

# Below, saving and model card are imported where they are used: they know all learners, which stand on this.

T = TypeVar("T", bound="HubModel")


class HubModel(ModelHubMixin):
    """The mixin over the files and the checks of `cma_tune.learners.saving`.

    The mixin keeps a model's arguments in ``config.json`` and makes it from them again. A prompt has its card
    for that, so nothing of ``config.json`` is kept, written, fetched or read here.
    """

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Without the mixin's copy of the arguments, which it would write to ``config.json``."""
        return object.__new__(cls)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write what `save_prompt` writes, and a model card unless there is one.

        Args:
            save_directory: made if it is missing.
            repo_id: ``ORG/NAME`` that the model card names.
            push_to_hub: also push it there.
            model_card_kwargs: of `generate_model_card`.
            push_to_hub_kwargs: of `push_to_hub`.

        Returns:
            What `push_to_hub` does, if it is called.

        Raises:
            UserError: there is a file, or the folder has a ``config.json``, which belongs to another model
                and which the mixin would delete; or see `push_to_hub`.
        """
        folder = Path(save_directory).expanduser()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"Expected a folder to save to, got the file {folder}; name another place.")
        if (folder / CONFIG_NAME).exists():
            raise UserError(
                f"Expected a folder without the {CONFIG_NAME} of a model, got {folder}; name another."
            )
        return super().save_pretrained(
            folder,
            repo_id=repo_id,
            push_to_hub=push_to_hub,
            model_card_kwargs={"repository": repo_id, **(model_card_kwargs or {})},
            **push_to_hub_kwargs,
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        from cma_tune.learners.saving import save_prompt

        save_prompt(cast("Learner", self), save_directory)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # what the backbone is loaded with in place of any keyword
        cls: type[T],
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        backbone: Backbone | None = None,
        device: torch.device | str = "cpu",
    ) -> T:
        """Load a learned prompt of this method, or of any on `Learner`, as `saving.from_pretrained` does.

        Args:
            pretrained_model_name_or_path: folder, or a repository ``ORG/NAME`` on the Hub.
            force_download, token, cache_dir, local_files_only, revision: of
                `huggingface_hub.snapshot_download`.
            backbone: the model it was learned on, if it is there already.
            device: where the backbone is loaded to if it is not.

        Raises:
            UserError: it is a prompt of another method, or see `saving.from_pretrained`.
        """
        return cls._from_pretrained(
            model_id=pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            backbone=backbone,
            device=device,
        )

    @classmethod
    def _from_pretrained(
        cls: type[T],
        *,
        model_id: str | Path,
        backbone: Backbone | None = None,
        device: torch.device | str = "cpu",
        **download: Any,
    ) -> T:
        from cma_tune.learners.saving import load_prompt

        return cast(T, load_prompt(model_id, cast("type[Learner]", cls), backbone, device, **download))

    def push_to_hub(  # type: ignore[override]  # without patterns, there being but these files
        self,
        repo_id: str,
        *,
        commit_message: str = MESSAGE,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        backbone: str | None = None,
        license: str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Put the learned prompt on the Hub with a model card.

        A run's prompt folder goes with the record's figures through `cma_tune.sharing.push_to_hub`.

        Args:
            repo_id: ``ORG/NAME``; made if it is missing, after all that can be wrong here has been looked at.
            commit_message: of the one commit.
            private: make it for its owner alone.
            token: of the Hub, if not that of the login.
            branch: that gets the commit, main by default.
            create_pr: whether to open a pull request with it.
            backbone: ``hf-hub:ORG/REPO`` or ``transformers:ORG/REPO`` under which others get the backbone,
                where it came from local files.
            license: the Hub's short name of it, such as ``mit``.
            model_card_kwargs: of `generate_model_card`.

        Returns:
            The repository's URL.

        Raises:
            UserError: the backbone can't be had by others, or the Hub can't be reached or refuses.
        """
        from cma_tune.learners.cards import read_card
        from cma_tune.learners.model_card import model_card
        from cma_tune.learners.saving import save_prompt
        from cma_tune.learners.shared_files import public_backbone, write_shared

        check_repository(repo_id)
        commit = {"commit_message": commit_message, "revision": branch, "create_pr": create_pr}
        with tempfile.TemporaryDirectory() as temporary:
            source, shared = Path(temporary) / "prompt", Path(temporary) / "shared"
            save_prompt(cast("Learner", self), source)
            card = read_card(source)
            card = {**card, "backbone": public_backbone(card["backbone"], backbone)}
            given = {"license": license, **(model_card_kwargs or {}), "repository": repo_id}
            write_shared(shared, source, card, model_card(card, **given))
            return upload(shared, repo_id, private, token, **commit)

    def generate_model_card(self, repository: str | None = None, license: str | None = None) -> ModelCard:
        """The README.md that a prompt is shared with.

        Args:
            repository: ``ORG/NAME``, where it is known.
            license: the Hub's short name of it, such as ``mit``.

        Raises:
            UserError: `license` is no such name.
        """
        from cma_tune.learners.model_card import model_card
        from cma_tune.learners.saving import describe

        return ModelCard(model_card(describe(cast("Learner", self)), repository, license))
