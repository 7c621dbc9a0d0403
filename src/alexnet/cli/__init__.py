"""The ``alexnet`` command: the table of commands, their dispatch, and the exit status and message of every error.

Results go to standard output, everything else to standard error. Exit status: 0 success, 1 failure, 2 wrong use,
130 or 143 interrupted. Only this package reads arguments and environment variables.
"""

import errno
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from alexnet.cli import output
from alexnet.errors import AlexNetError, Interrupted, RecipeError, did_you_mean, no_files, no_memory, reason
from alexnet.terminal import safe_output


class Command(NamedTuple):
    """One command: its group and line in the overview, and the module of ``alexnet.cli`` that has its function."""

    group: str
    summary: str
    module: str


COMMANDS: dict[str, Command] = {
    "prepare": Command("Data", "prepare images as a store, which training reads fast", "data"),
    "doctor": Command("Data", "check a data set for faults before training", "data"),
    "review": Command("Data", "review findings and doubtful labels in a browser; correct them in a file", "review"),
    "suggest": Command("Data", "choose the unlabeled images to label next", "review"),
    "train": Command("Train", "train or fine-tune a classifier on digits, a folder, a store, cifar10, ...", "train"),
    "lr-find": Command("Train", "suggest a learning rate by a short training in which it grows", "hyperparameters"),
    "sweep": Command("Train", "search for hyperparameters by the validation split", "hyperparameters"),
    "recipes": Command("Train", "list the recipes, show one, or compare two", "hyperparameters"),
    "models": Command("Train", "list the networks, or show the layers of one", "networks"),
    "layers": Command("Train", "check, list and plot a cuda-convnet layer file of 2012", "networks"),
    "import": Command("Train", "convert weights of torchvision, Caffe or cuda-convnet to a bundle", "networks"),
    "evaluate": Command("Evaluate", "top-1 and top-5 accuracy of a classifier or of an ensemble", "evaluate"),
    "compare": Command("Evaluate", "compare a new classifier with an old one: better, or not worse?", "compare"),
    "predict": Command("Evaluate", "classify image files, folders and globs", "predict"),
    "report": Command("Evaluate", "write report.html: a run on one page", "plot"),
    "bench": Command("Evaluate", "measure the training and inference speed of this machine", "machine"),
    "plot": Command("Explain", "plot filters, learning curves, saliency, nearest neighbors, ...", "plot"),
    "export": Command("Ship", "export a classifier to ONNX, OpenVINO or torch.export", "export"),
    "compress": Command("Ship", "make a classifier about 35 times smaller (Han et al. 2015)", "export"),
    "promote": Command("Ship", "replace a served bundle by a new one that is shown not to be worse", "compare"),
    "verify": Command("Ship", "check a bundle, an exported file or a server against its reference images", "export"),
    "serve": Command("Ship", "serve a classifier over HTTP, with a web page", "serve"),
    "info": Command("Ship", "print versions, devices and kernels, for a bug report", "machine"),
    "monitor": Command("Ship", "report changes in the images of a server: the counts of serve --monitor", "serve"),
    "study claims": Command("2012 studies", "test a claim of the paper", "studies"),
    "study contest": Command("2012 studies", "compare AlexNet, its successors and Fisher vectors", "studies"),
    "study data-size": Command("2012 studies", "train on growing parts of a dataset", "studies"),
    "study depth": Command("2012 studies", "train plain and residual networks of growing depth", "studies"),
    "study probes": Command("2012 studies", "fit a linear classifier on each layer", "studies"),
    "study scaling": Command("2012 studies", "predict the time of a training step on many devices", "studies"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_closed_streams()
    if argv[:1] != ["serve"]:  # the server has its own signal handlers
        output.handle()
    sys.exit(run(argv))


def _open_closed_streams() -> None:
    """Open standard streams that are closed (``>&-``): the next file would get their number, and what is printed."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


def run(argv: list[str]) -> int:
    """Run a command line and return its exit status."""
    with safe_output():
        return _run(argv)


def _run(argv: list[str]) -> int:
    try:
        os.getcwd()  # noqa: PTH109  # without one, libraries end the process
    except FileNotFoundError:
        return output.fail("the current folder does not exist any more; change to another one", 1)
    try:
        status = _dispatch(argv)
        sys.stdout.flush()  # a closed pipe raises here, inside the try
        return status
    except Interrupted as error:
        return output.fail(str(error), 128 + error.signal)
    except RecipeError as error:
        return output.fail(str(error), 2)
    except AlexNetError as error:
        return output.fail(reason(error), 1)
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        return output.fail("interrupted; the same command goes on where it can", 128 + number)
    except BrokenPipeError:  # the reader of `alexnet ... | head` has closed the pipe
        stopped = _has_no_reader(2)  # messages, as of a training with `2>&1 | tee log`: it did not reach its end
        for number in (1, 2) if stopped else (1,):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        return 128 + signal.SIGPIPE if stopped else 0
    except OSError as error:
        return output.fail(reason(error) if no_files(error) else _os_error(error), 1)
    except (MemoryError, RuntimeError) as error:
        return output.fail(_runtime_error(error), 1)


def execute(name: str, argv: list[str]) -> int:
    """Import the module of a command and run its function: ``lr_find_command`` for ``lr-find``.

    Returns the exit status. Errors are raised, not printed.
    """
    function = name.removeprefix("study ").replace("-", "_") + "_command"
    status: int = getattr(import_module(f"alexnet.cli.{COMMANDS[name].module}"), function)(argv)
    return status


def _has_no_reader(descriptor: int) -> bool:
    """Whether ``descriptor`` is a pipe whose reader is gone."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _os_error(error: OSError) -> str:
    """The message for an OSError that no command handles, such as a full disk."""
    try:
        sys.stdout.flush()
    except OSError:  # Python would flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    path = f"{error.filename}: " if error.filename is not None else ""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{path}{error.strerror or error}" + ("; make room, or write to another disk" if is_full else "")


def _runtime_error(error: BaseException) -> str:
    """The message for a lack of memory or an error of PyTorch. Re-raises ``error`` if ALEXNET_DEBUG is set."""
    if size := no_memory(error):
        return f"not enough memory: {size} could not be allocated. Close other programs, or use a smaller batch size"
    if os.environ.get("ALEXNET_DEBUG", "") not in ("", "0"):
        raise error
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]} (set ALEXNET_DEBUG=1 for the traceback)"


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        from alexnet import __version__

        print(f"alexnet {__version__}")
        return 0
    if argv[0] == "study":
        return _dispatch_study(argv[1:])
    if argv[0] not in COMMANDS:
        names = [name for name in COMMANDS if " " not in name] + ["study"]
        return output.fail(f"unknown command {argv[0]!r}. {did_you_mean(argv[0], names)}", 2)
    return execute(argv[0], argv[1:])


def _dispatch_study(argv: list[str]) -> int:
    names = [name.removeprefix("study ") for name in COMMANDS if name.startswith("study ")]
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview("2012 studies"))
        return 0 if argv else 2
    if argv[0] not in names:
        return output.fail(f"unknown study {argv[0]!r}. {did_you_mean(argv[0], names)}", 2)
    return execute(f"study {argv[0]}", argv[1:])


def _overview(group: str = "") -> str:
    """The help text: all commands by group, or those of one group."""
    name = "study NAME" if group else "COMMAND"
    lines = [f"usage: alexnet {name} ...", "", f"'alexnet {name} --help' lists the options of a command."]
    for title in dict.fromkeys(command.group for command in COMMANDS.values()):
        if group in ("", title):
            lines += ["", f"{title}:"]
            lines += [f"  {name:<14} {c.summary}" for name, c in COMMANDS.items() if c.group == title]
    return "\n".join(lines if group else [*lines, "", "To begin: alexnet train digits"])
