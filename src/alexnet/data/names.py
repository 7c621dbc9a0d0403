"""What a file's or folder's name says: an image, a text that may hold labels, or what tools leave beside images."""

from fnmatch import fnmatchcase
from pathlib import PurePath

SUFFIXES = frozenset((
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjpg", ".pjp", ".png", ".apng", ".webp"),
    *(".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
))  # fmt: skip

FOLDERS = frozenset((
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@__thumb", "@sharebin", "#recycle", "#snapshot"),  # NAS
    *("__macosx", "network trash folder", "temporary items"),  # macOS
    *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "_vti_cnf"),  # Windows
    *("lost+found", "__pycache__", "_gsdata_"),
))  # fmt: skip
FILES = (
    *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "folder.jpg.ini"),
    *("synofile_thumb_*", "synophoto_thumb_*", "*@synoeastream", "*@synoresource", "zbthumbnail.info", "~$*"),
)


def is_tool_folder(name: str) -> bool:
    """A hidden folder, or one that a NAS, a desktop or a file system makes for itself."""
    return name.startswith(".") or name.lower() in FOLDERS


def is_tool_file(name: str) -> bool:
    """A hidden file (``.DS_Store``, ``._a.jpg``), or an index, thumbnail or lock of another program."""
    return name.startswith(".") or any(fnmatchcase(name.lower(), pattern) for pattern in FILES)


def is_picture_name(name: str) -> bool:
    """Does the name end like a picture's? What the file holds is seen when it is decoded."""
    return PurePath(name).suffix.lower() in SUFFIXES


def is_text_name(name: str) -> bool:
    """Does the name end like that of a table or a list, which may hold labels?"""
    return PurePath(name).suffix.lower() in (".txt", ".csv", ".tsv")


def is_label_file(name: str) -> bool:
    """May the file say which image is of which class? Beside tables that is ILSVRC's ``meta.mat``."""
    return is_text_name(name) or name == "meta.mat"
