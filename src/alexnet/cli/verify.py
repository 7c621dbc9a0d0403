"""The command ``verify``."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from alexnet.cli import parser
from alexnet.cli.parser import Flag, option
from alexnet.errors import AlexNetError, RecipeError


@dataclass(frozen=True)
class VerifyArguments:
    """Predict the stored reference images again and compare: weights, class order, preprocessing, file hashes.

    Exit status: 0 equal within the tolerance, 1 different or damaged, 2 wrong use.
    """

    target: Positional[Annotated[str, option("TARGET")]]
    """a run, a bundle, FILE.onnx, FILE.xml, FILE.pt2, a folder of export --format web (needs --against), or
    http://HOST:PORT of a server"""
    against: Annotated[Path | None, option("RUN")] = None
    """original to compare with: a run, a bundle or an exported file"""
    key_file: Annotated[Path | None, option("FILE")] = None
    """file with the API key of the server (default: the environment variable ALEXNET_API_KEY)"""
    trust: Flag = False
    """open FILE.pt2, which can execute code of whoever made it"""
    json: Flag = False
    """print one JSON object"""


def run(argv: list[str]) -> int:
    """check that a bundle, an exported file or a server still predicts its reference images"""
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
            f"{result.target} ({result.kind}) equals the reference: {result.images} images, "
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
