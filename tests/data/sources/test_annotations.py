"""ILSVRC as its organizers pack it: a train tar of class tars, a flat val tar and its ground truth."""

import numpy as np
import pytest

from alexnet.data.sources import open_source
from alexnet.errors import DataError
from data.conftest import counts, png_bytes

from .test_archives import tar_bytes

IDS = ("n01", "n02", "n03")
TRUTH = ["n02", "n01", "n03", "n02"]  # of the four images of val


def layout(root, val=True):
    inner = [
        (f"{w}.tar", tar_bytes([(f"{w}_{i}.JPEG", png_bytes(10 * k + i)) for i in range(3)])) for k, w in enumerate(IDS)
    ]
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))
    files = [(f"ILSVRC2012_val_{i + 1:08d}.JPEG", png_bytes(100 + i)) for i in range(4)]
    if val:
        (root / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(files[::-1]))  # the order in the tar means nothing
    return root


def meta(root):
    from scipy.io import savemat

    synsets = np.zeros(4, dtype=[("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O")])
    for row, (number, wordnet) in zip(synsets, [(1, "n03"), (2, "n01"), (3, "n02"), (4, "n99")], strict=True):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = number, wordnet, "a thing"
    savemat(str(root / "meta.mat"), {"synsets": synsets.reshape(-1, 1)})


def kaggle(root):
    lines = [f"ILSVRC2012_val_{i + 1:08d},{w} 1 2 3 4 " for i, w in enumerate(TRUTH)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[::-1]]))


def numbers(root):
    lines = [f"ILSVRC2012_val_{i + 1:08d}.JPEG {IDS.index(w)}" for i, w in enumerate(TRUTH)]
    (root / "val.txt").write_text("\n".join(lines))


def names(root):
    lines = [f"ILSVRC2012_val_{i + 1:08d}.JPEG {w}" for i, w in enumerate(TRUTH)]
    (root / "val.txt").write_text("\n".join(lines) + "\n")


def official(root):
    own = {"n03": 1, "n01": 2, "n02": 3}
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(str(own[w]) for w in TRUTH))
    meta(root)


@pytest.mark.parametrize("truth", [kaggle, numbers, names, official])
def test_every_form_of_the_ground_truth(tmp_path, truth):
    truth(layout(tmp_path))
    source = open_source(tmp_path)
    assert source.classes == IDS and counts(source) == {"train": 9, "test": 4}
    images = sorted(source.splits["test"], key=lambda p: p.origin.rsplit("/", 1)[-1])
    assert [IDS[p.label] for p in images] == TRUTH
    assert [p.load() for p in images] == [png_bytes(100 + i) for i in range(4)]
    assert source.splits["train"][0].load() == png_bytes(0)


def test_what_is_wrong_is_said(tmp_path):
    layout(tmp_path)
    with pytest.raises(DataError, match="no class folders and no ground truth next to it"):
        open_source(tmp_path)
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n")
    with pytest.raises(DataError, match="2 lines for 4 images"):
        open_source(tmp_path)
    truth.write_text("1\n2\n1\n2\n")
    with pytest.raises(DataError, match=r"meta\.mat: not there"):
        open_source(tmp_path)
    truth.write_text("1\n2\n1\n4\n")
    meta(tmp_path)
    with pytest.raises(DataError, match="is n99; must be one of the 3 classes"):
        open_source(tmp_path)
    (tmp_path / "val.txt").write_text("x\n")
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path)
    (tmp_path / "val.txt").write_text("x y z\n")  # the image "x y"
    with pytest.raises(DataError, match="is not listed"):
        open_source(tmp_path)
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 7\n")
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path)
    (tmp_path / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG n01\n")
    with pytest.raises(DataError, match="is not listed"):
        open_source(tmp_path)


def test_a_tar_of_class_folders_for_each_split(tmp_path):
    for split in ("train", "val", "test"):
        files = [(f"{c}/{split}{i}.png", png_bytes(i)) for c in "ab" for i in range(2)]
        (tmp_path / f"{split}.tar").write_bytes(tar_bytes(files))
    assert counts(open_source(tmp_path)) == {"train": 4, "validation": 4, "test": 4}
    (tmp_path / "train-2.tar").write_bytes(tar_bytes([]))
    with pytest.raises(DataError, match=r"are both of train"):
        open_source(tmp_path)


def test_one_tar_alone_is_no_data_set(tmp_path):
    layout(tmp_path, val=False)
    with pytest.raises(DataError, match="no class folders"):
        open_source(tmp_path)
