"""The files of docs/cluster start commands that exist, with options that exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from alexnet.cli import parser
from alexnet.cli.train import TrainArguments

CLUSTER = Path(__file__).parents[1] / "docs" / "cluster"


def command_of(name):
    """The words of the command that a file starts on each machine."""
    text = (CLUSTER / name).read_text(encoding="utf-8")
    if name == "trainjob.yaml":
        yaml = pytest.importorskip("yaml")
        return yaml.safe_load(text)["spec"]["trainer"]["command"]
    (command,) = re.findall(r"torchrun (?:.*\\\n)*.*alexnet train.*", text)
    return shlex.split(command.replace("\\\n", " "))


@pytest.mark.parametrize("name", ["trainjob.yaml", "slurm.sh", "skypilot.yaml"])
def test_the_command_has_existing_options(name):
    from torch.distributed.run import get_args_parser

    command = command_of(name)
    split = command.index("alexnet")
    assert command[0] == "torchrun" and command[split - 2 : split] == ["-m", "--"]
    words = [{"$SLURM_NNODES": "4", "$SKYPILOT_NUM_NODES": "4"}.get(word, word) for word in command[1 : split - 1]]
    words = [re.sub(r"^\$SKYPILOT_\w+$", "1", word) for word in words]
    assert get_args_parser().parse_args([*words, "alexnet"]).training_script == "alexnet"
    assert command[split + 1] == "train"
    args = parser.parse(TrainArguments, command[split + 2 :], "train")
    assert str(args.run.output_dir) == "/shared/my-run"


def test_the_slurm_script_is_valid_bash():
    bash = shutil.which("bash")
    assert subprocess.run([bash, "-n", CLUSTER / "slurm.sh"], check=False).returncode == 0


def test_the_yaml_files_are_read():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((CLUSTER / "trainjob.yaml").read_text())
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    assert job["kind"] == "TrainJob" and job["spec"]["trainer"]["numNodes"] == task["num_nodes"] == 4
