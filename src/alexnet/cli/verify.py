"""The command ``verify``."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from alexnet.cli import parser
from alexnet.errors import AlexNetError, RecipeError


@dataclass(frozen=True)
class VerifyArguments:
    """Replay reference images, and say what differs: numbers, class order, channel order, resize, a changed byte.

    Exit status 0: answers as it must. 1: it does not, or is damaged. 2: wrong use.
    """

    target: Positional[str]  # a bundle or run, FILE.onnx, FILE.xml, FILE.pt2, or http://HOST:PORT of a server
    against: Path | None = None  # the original (bundle, run or exported file), to compare with
    key_file: Path | None = None  # file with the server's API key; else the environment's ALEXNET_API_KEY
    trust: bool = False  # open a FILE.pt2, which may run code of whoever made it
    json: bool = False  # print one JSON object


def run(argv: list[str]) -> int:
    """prove that a bundle, an exported file or a server answers right"""
    args: VerifyArguments = parser.parse(VerifyArguments, argv, "verify")
    key = _key(args.key_file)
    from alexnet.export.verify import verify as replay

    try:
        result = replay(args.target, args.against, key, args.trust)
    except AlexNetError as error:
        if args.json:
            print(json.dumps({"target": args.target, "ok": False, "reason": str(error)}))
        raise
    if args.json:
        print(json.dumps(result.to_dict()))
    else:
        print(
            f"{result.target} ({result.kind}) answers as it must: {result.images} images, "
            f"largest difference of a probability {result.max_abs_diff:.1e} (at most {result.limit:g})"
        )
    return 0


def _key(file: Path | None) -> str:
    if file is None:
        return os.environ.get("ALEXNET_API_KEY", "")
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--key-file {file} can not be read", "a text file with the key") from error
