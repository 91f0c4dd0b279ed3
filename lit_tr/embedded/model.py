"""A language model of about 1M parameters that ships with the package; `lit_tr/embedded/build.py` makes it."""

from pathlib import Path

from lit_tr.errors import UserError

TINY = "embedded:tiny"
"""Path of the model and tokenizer that ship with the package."""
SECONDS = 5.0
"""How long the hub may take to answer at all."""


def resolve(path: str) -> str:
    """Return the folder of the embedded model for `TINY`, and other paths unchanged.

    Raises:
        UserError: it is neither a folder nor in the hub's cache, and the hub does not answer.
    """
    if path == TINY:
        return str(Path(__file__).parent / "tiny")
    if not Path(path).exists():
        check_hub(path)
    return path


def check_hub(path: str, kind: str = "model") -> None:
    """Ask whether the hub answers, where its client would try each file for half a minute.

    Args:
        path: hub id.
        kind: `model` or `dataset`.

    Raises:
        UserError: it does not, and the id is not in the hub's cache.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.file_download import repo_folder_name

    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type=kind)
    if constants.HF_HUB_OFFLINE or cached.exists():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # whatever the client of the network raises
        raise UserError(
            f"{path} is no folder and not in the cache, and {constants.ENDPOINT} does not answer: give a folder, or "
            "check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 takes what is in the cache without asking"
        ) from error
