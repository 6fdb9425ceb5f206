"""Exported models."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import resnet18

from imgnet.checkpoint.export import export_model, load_model, read_about
from imgnet.config import ModelConfig
from imgnet.models.build import SmallCnn, build_model
from tests.commands import environment


def test_an_exported_model_comes_back_bit_for_bit_with_its_metrics(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    one, other = SmallCnn(10), SmallCnn(10)
    export_model(path, one, {"val_acc1": 97.5})
    load_model(path, other)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert read_about(path) == {"val_acc1": 97.5}
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


SAVE = """
import sys
from pathlib import Path
import torch
from imgnet.checkpoint.export import export_model
from imgnet.models.build import SmallCnn
torch.manual_seed(0)
about = {key: "\\u00e4 \\n\\x7f \\" \\\\" for key in {"seed", "epoch", "step", "val_acc1", "val_loss", "settings"}}
for number in range(8):
    export_model(Path(sys.argv[1]) / f"{number}.safetensors", SmallCnn(10), about | {"number": 1})
    torch.manual_seed(0)
"""


def test_the_same_model_has_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    # The library orders the metadata anew for each file: eight files in each of two processes cannot agree by chance.
    for hash_seed in ("1", "2"):
        (tmp_path / hash_seed).mkdir()
        command = [sys.executable, "-c", SAVE, str(tmp_path / hash_seed)]
        subprocess.run(command, env=environment(PYTHONHASHSEED=hash_seed), check=True)
    files = [file.read_bytes() for file in sorted(tmp_path.glob("*/*.safetensors"))]
    assert len(files) == 16
    assert len(set(files)) == 1
    assert read_about(tmp_path / "1" / "0.safetensors")["epoch"] == '\u00e4 \n\x7f " \\'
    load_model(tmp_path / "1" / "0.safetensors", SmallCnn(10))


def test_plain_torchvision_loads_an_exported_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = build_model(ModelConfig(name="resnet18"), 1000, device=torch.device("cpu"), channels_last=True)
    export_model(path, model, {})
    fresh = resnet18()
    fresh.load_state_dict(load_file(path))
    images = torch.rand(1, 3, 64, 64)
    assert torch.allclose(fresh.eval()(images), model.eval()(images), atol=1e-5)


def test_another_model_is_refused_with_the_differences(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export_model(path, SmallCnn(10), {})
    with pytest.raises(ValueError, match=r"holds another model: classifier.weight is \(10, 64\), not \(12, 64\)"):
        load_model(path, SmallCnn(12))


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95 a pickle", b"\xff" * 100])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_model(path, SmallCnn(10))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        read_about(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export_model(path, SmallCnn(10), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        load_model(path, SmallCnn(10))
