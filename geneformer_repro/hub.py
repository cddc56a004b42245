"""The Hugging Face hub: what names there look like, a copy of a checkpoint that was pushed, and pushing one."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from geneformer_repro.errors import InputError

_PLACE = re.compile(r"([\w-][\w.-]*(?:/[\w-][\w.-]*)?)(?:/([\w-][\w./-]*))?")
_OF_A_CHECKPOINT = ("json", "tsv", "safetensors", "parquet")


def place_named(name: str) -> tuple[str, str] | None:
    """Return the repository and the folder in it ("" for the whole) that a name could mean; None if it is no name."""
    named = _PLACE.fullmatch(name)
    return None if named is None else (named[1], named[2] or "")


def copy_of_ours(repo_id: str, subfolder: str, revision: str | None) -> Path | None:
    """Return the local copy of a checkpoint that `publish` wrote; None if that is no such one.

    Without the network, one that was fetched before. The first question is asked once and not again: a folder whose
    name was mistyped looks like a hub id, too.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    within = f"{subfolder}/" if subfolder else ""
    file = f"{within}vocabulary.json"
    try:
        get_hf_file_metadata(hf_hub_url(repo_id, file, revision=revision), timeout=10)
        offline = False
    except (HfHubHTTPError, ValueError):
        return None  # a stock model, for which transformers asks next, and says what is wrong
    except Exception:  # not to be reached, which every client of HTTP says in another way
        if not isinstance(try_to_load_from_cache(repo_id, file, revision=revision), str):
            return None
        offline = True
    patterns = [f"{within}*.{ending}" for ending in _OF_A_CHECKPOINT]
    root = snapshot_download(repo_id, revision=revision, allow_patterns=patterns, local_files_only=offline)
    return Path(root) / subfolder


def publish(
    repo_id: str, write: Callable[[Path, str], None], *, private: bool, overwrite: bool, token: str | None
) -> str:
    """Make a repository of what `write` puts into a folder, told its full name; return its address."""
    from huggingface_hub import HfApi

    place = place_named(repo_id)
    if place is None or place[1]:
        raise InputError(f"{repo_id!r}: is no name on the hub. Expected user/name.")
    hub = HfApi(token=token)
    try:
        address = hub.create_repo(repo_id, private=private, exist_ok=True)
        there = sorted(set(hub.list_repo_files(address.repo_id)) - {".gitattributes"})
        if there and not overwrite:
            raise InputError(
                f"{repo_id}: has {len(there)} files on the hub (first: {there[0]}). Choose another name, or give "
                "overwrite=True."
            )
        with tempfile.TemporaryDirectory() as name:
            write(Path(name), str(address.repo_id))
            hub.upload_folder(
                repo_id=address.repo_id, folder_path=Path(name), commit_message="Checkpoint", delete_patterns="*"
            )
    except InputError:
        raise
    except Exception as error:  # a refusal, or no network, which every client of HTTP says in another way
        raise InputError(
            f"{repo_id}: the hub refused ({error}). Log in with `hf auth login` as someone who may write there, or "
            "give token=…; what is there already is unchanged."
        ) from error
    return str(address)
