"""Bundles on the Hugging Face hub: a repository holds the files of one bundle, its README.md is the model card.

The only door to huggingface_hub, which is imported when something is fetched or pushed.
"""

from pathlib import Path
from typing import Any

from alexnet.bundle import Bundle, find_bundle
from alexnet.errors import BundleError
from alexnet.system import temporary_folder

FILES = ["config.json", "*.safetensors", "reference/*", "certificate.json", "README.md"]  # what a bundle consists of


def load_bundle(name: str | Path, *, revision: str | None = None, token: str | None = None) -> Bundle:
    """The bundle in a folder (a bundle or a run), or on the hub under ``owner/name``; every byte is checked.

    ``revision`` is a branch, tag or commit of the hub. Raises :class:`BundleError`.
    """
    if Path(name).exists():
        return Bundle.load(find_bundle(name))
    words = str(name).split("/")
    if len(words) > 2 or not all(words) or str(name).startswith((".", "~")):
        raise BundleError(f"there is no folder {name}", "a folder, or owner/name on the Hugging Face hub")
    hub = _hub()
    try:
        folder = hub.snapshot_download(str(name), revision=revision, token=token, allow_patterns=FILES)
    except Exception as error:  # its own errors, those of its HTTP library, and the operating system's
        raise BundleError(
            f"{name} could not be fetched from the Hugging Face hub: {_one_line(error)}",
            "",
            "check the name, the network and, for a private repository, the token",
        ) from error
    cache = Path(folder).parents[1]  # files of a snapshot are links into the repository's blobs
    return Bundle.load(Path(folder), links_within=cache)


def push_to_hub(
    bundle: Bundle,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload an AlexNet classifier",
) -> str:
    """Publish ``bundle`` as ``repo_id`` (owner/name; made if it does not exist); returns its address.

    Reference images go along: they come from the data, so publish none that may not be seen. Raises
    :class:`BundleError`.
    """
    hub = _hub()
    with temporary_folder() as temporary:
        folder = bundle.save(temporary / "bundle")
        try:
            api = hub.HfApi(token=token)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=message, allow_patterns=FILES)
        except Exception as error:  # as above
            raise BundleError(
                f"{repo_id} could not be pushed to the Hugging Face hub: {_one_line(error)}",
                "",
                "check the name, the network and the token (huggingface-cli login)",
            ) from error
    return str(url)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise BundleError(
            "the Hugging Face hub needs huggingface_hub", "installed", "pip install 'alexnet[hub]'"
        ) from error
    return huggingface_hub


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
