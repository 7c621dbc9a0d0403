"""What a file or folder name tells: image, label file, split, or a file that another program left."""

import re
from fnmatch import fnmatchcase
from pathlib import PurePath

SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjpg", ".pjp", ".png", ".apng", ".webp"),
        *(".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)

_TOOL_FOLDERS = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "@sharebin", "#recycle", "#snapshot"),  # NAS
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "_vti_cnf"),  # Windows
        *("lost+found", "__pycache__", "_gsdata_"),
    )
)
_TOOL_FILES = (
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "folder.jpg.ini"),
    *("synofile_thumb_*", "synophoto_thumb_*", "*@synoeastream", "*@synoresource", "zbthumbnail.info", "~$*"),
)


def is_tool_folder(name: str) -> bool:
    """Whether the folder is hidden, or made by a NAS, a desktop or a file system for its own use."""
    return name.startswith(".") or name.lower() in _TOOL_FOLDERS


def is_tool_file(name: str) -> bool:
    """Whether the file is hidden (``.DS_Store``, ``._a.jpg``), or an index, thumbnail or lock of another program."""
    return name.startswith(".") or any(fnmatchcase(name.lower(), pattern) for pattern in _TOOL_FILES)


def is_image_name(name: str) -> bool:
    """Whether the name has an image suffix. The content is checked when it is decoded."""
    return PurePath(name).suffix.lower() in SUFFIXES


def is_text_name(name: str) -> bool:
    """Whether the name is that of a table or list, which may hold labels."""
    return PurePath(name).suffix.lower() in (".txt", ".csv", ".tsv")


def is_label_file(name: str) -> bool:
    """Whether the file may hold labels: a table, a list, or ILSVRC's ``meta.mat``."""
    return is_text_name(name) or name == "meta.mat"


SPLITS = {  # folder or file name, lower case → split
    **dict.fromkeys(("train", "training", "trn", "trainset", "traindata", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "eval", "evaluation", "dev", "valset", "valdata"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "testset", "testdata"), "test"),
}
_FILLERS = frozenset(
    (  # words next to a split word that have no meaning: training_set, train_images, test2017
        *("set", "sets", "data", "dataset", "split", "splits", "image", "images", "img", "imgs", "image", "images"),
        *("photo", "photos", "jpg", "jpeg", "png", "folder"),
    )
)


def split_words(name: str) -> tuple[str, str] | None:
    """The split that ``name`` contains, and the rest of the name: ``seg_train`` → ("train", "seg").

    None for a name with no split word, or with more than one.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    splits = [SPLITS[word] for word in words if word in SPLITS]
    rest = [word for word in words if word not in SPLITS and word not in _FILLERS]
    return (splits[0], " ".join(rest)) if len(splits) == 1 else None
