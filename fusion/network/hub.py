"""A model in memory <-> a folder or a Hugging Face Hub repository with one safetensors file in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelHubMixin, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from fusion.network.save import FILE_NAME, load_as, save_model
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from typing_extensions import Self


class HubModel(
    ModelHubMixin,
    library_name="championship-sr",
    tags=["super-resolution", "image-to-image"],
    pipeline_tag="image-to-image",
):
    """`save_pretrained`, `push_to_hub` and `from_pretrained` for the fusion network.

    The file's own header holds all settings; there is no second file that could contradict it.
    """

    def _save_pretrained(self, save_directory: Path) -> None:
        self._hub_mixin_config = None  # or the mixin would write a config.json beside the file
        save_model(self, save_directory / FILE_NAME)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """A folder, a .safetensors file or a Hub id (`owner/name`; the mixin's options) -> the model in eval mode."""
        path = Path(pretrained_model_name_or_path)
        if path.is_dir() or path.suffix == ".safetensors":
            return load_as(cls, path)  # type: ignore[return-value]
        # The mixin would ask for a config.json first: there is none.
        return cls._from_pretrained(model_id=str(pretrained_model_name_or_path), **options)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        try:
            file = hf_hub_download(repo_id=model_id, filename=FILE_NAME, **options)
        except HFValidationError:
            raise Refusal("no such folder, file or Hub id", where=model_id, cure="check the path") from None
        except (RepositoryNotFoundError, EntryNotFoundError, LocalEntryNotFoundError) as error:
            raise Refusal(
                f"cannot be had from the Hub ({type(error).__name__})", where=model_id, cure="check the id or the path"
            ) from None
        return load_as(cls, Path(file))  # type: ignore[return-value]
