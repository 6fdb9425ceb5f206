"""Choices of a model that are refused before anything is started."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from imgnet.checkpoint.export import export_model
from imgnet.config import DataConfig, DataKind, Mode, ModelConfig
from imgnet.models.build import SmallCnn, build_model
from imgnet.models.checks import FIXED_PX, problems
from imgnet.models.trial import Trial, carry_out, refusal


def data(train_px: int = 224, eval_px: int = 224, num_classes: int = 1000) -> DataConfig:
    return DataConfig(
        name="any", kind=DataKind.synthetic, num_classes=num_classes, train_px=train_px, eval_px=eval_px,
        eval_resize_px=eval_px, mean=[0.5] * 3, std=[0.5] * 3, num_train=1, num_val=1,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def trials_in_this_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process would import torch anew for each."""

    def here(wanted: Trial) -> str | None:
        with suppress(SystemExit):
            carry_out(wanted)
            return None
        return capsys.readouterr().out.strip()

    monkeypatch.setattr("imgnet.models.checks.refusal", here)


@pytest.mark.parametrize(
    ("model", "images", "mode", "line"),
    [
        (ModelConfig("resnet51"), data(), Mode.train, "model.name=resnet51: neither torchvision nor timm has it; "),
        (
            ModelConfig("resnet50.a1_in1"),
            data(),
            Mode.train,
            "model.name=resnet50.a1_in1: timm's resnet50 has no weights 'a1_in1'; did you mean 'a1_in1k'?",
        ),
        (ModelConfig("resnet50"), data(), Mode.evaluate, "mode=evaluate needs model.weights=<file> or model.pre"),
        (ModelConfig("resnet50", True, "x"), data(), Mode.train, "model.pretrained=true contradicts model.weights=x"),
        (ModelConfig("resnet50", False, "x.pt"), data(), Mode.train, "model.weights=x.pt: an exported model ends in"),
        (
            ModelConfig("resnet50", False, "gone.safetensors"),
            data(),
            Mode.train,
            "model.weights=gone.safetensors: No such file or directory",
        ),
        (
            ModelConfig("small_cnn", True),
            data(),
            Mode.train,
            "model.pretrained=true: there are no published weights of small_cnn",
        ),
        (
            ModelConfig("resnet50", True),
            data(num_classes=10),
            Mode.train,
            "model.pretrained=true: the published weights of resnet50 have 1000 classes; data.num_classes=10",
        ),
        (
            ModelConfig("vit_base_patch16_224.augreg_in21k", True),
            data(),
            Mode.evaluate,
            "model.pretrained=true: the published weights of vit_base_patch16_224.augreg_in21k have 21843 classes; ",
        ),
        (
            ModelConfig("vit_tiny_patch16_224", True),
            data(num_classes=10),
            Mode.evaluate,
            "model.pretrained=true: the published weights of vit_tiny_patch16_224 have 1000 classes; ",
        ),
        (
            ModelConfig("vit_b_16"),
            data(176),
            Mode.train,
            "data.train_px=176: model.name=vit_b_16 takes images of 224 pixels only; set data.train_px=224",
        ),
        (
            ModelConfig("vit_tiny_patch16_224"),
            data(176),
            Mode.train,
            "model.name=vit_tiny_patch16_224 does not train on images of data.train_px=176 pixels: Input height (176) ",
        ),
        (
            ModelConfig("vgg11"),
            data(16, 32),
            Mode.train,
            "model.name=vgg11 does not train on images of data.train_px=16 pixels: Given input size: (512x1x1).",
        ),
        (
            ModelConfig("squeezenet1_1"),
            data(32, 8),
            Mode.train,
            "model.name=squeezenet1_1 takes no images of data.eval_px=8 pixels: ",
        ),
    ],
)
def test_refused_in_one_line(model: ModelConfig, images: DataConfig, mode: Mode, line: str) -> None:
    (found,) = problems(model, images, mode)
    assert found.startswith(line)


@pytest.mark.parametrize(
    ("model", "images", "mode"),
    [
        (ModelConfig("small_cnn"), data(32, 32), Mode.train),
        (ModelConfig("resnet50"), data(8, 8), Mode.train),
        (ModelConfig("vit_b_16"), data(), Mode.train),
        (ModelConfig("vit_b_16", True), data(176, 256), Mode.evaluate),
        (ModelConfig("mobilenetv3_small_050"), data(32, 32, 10), Mode.train),
        (ModelConfig("vit_tiny_patch16_224", True), data(num_classes=10), Mode.train),
        (ModelConfig("crossvit_9_240"), data(), Mode.train),
        (ModelConfig("tv_resnet34"), data(), Mode.train),
        (ModelConfig("resnet18.a1_in1k", True), data(), Mode.evaluate),
    ],
)
def test_accepted(model: ModelConfig, images: DataConfig, mode: Mode) -> None:
    assert list(problems(model, images, mode)) == []


def test_batch_norm_needs_more_than_one_value() -> None:
    (line,) = problems(ModelConfig("small_cnn"), data(8, 8), Mode.train, one_by_one=True)
    assert line.startswith("model.name=small_cnn does not train on images, one at a time, of data.train_px=8 pixels: ")
    assert list(problems(ModelConfig("small_cnn"), data(32, 32), Mode.train, one_by_one=True)) == []


def test_models_of_one_size_take_no_other() -> None:
    meta = torch.device("meta")
    for name, px in FIXED_PX.items():
        with meta:
            model = build_model(ModelConfig(name), 10, device=meta, channels_last=False).eval()
        with torch.no_grad():
            assert model(torch.zeros(1, 3, px, px, device=meta)).shape == (1, 10)
            for other in (176, 256):
                with pytest.raises((AssertionError, RuntimeError)):
                    model(torch.zeros(1, 3, other, other, device=meta))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    settings = {"model.name": "small_cnn", "data.num_classes": 10}
    export_model(tmp_path / "model.safetensors", SmallCnn(10), {"settings": settings, "val_acc1": 90.0})
    return tmp_path / "model.safetensors"


def test_an_exported_model_says_what_it_is(exported: Path) -> None:
    for mode in Mode:
        assert list(problems(ModelConfig("small_cnn", weights=str(exported)), data(32, 32, 10), mode)) == []
    assert list(problems(ModelConfig("resnet18", weights=str(exported)), data(32, 32, 1000), Mode.evaluate)) == [
        f"model.weights={exported} is of model.name=small_cnn, not model.name=resnet18",
        f"model.weights={exported} is of data.num_classes=10, not data.num_classes=1000",
    ]


def test_a_file_of_another_origin_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(SmallCnn(10).state_dict(), path)
    assert list(problems(ModelConfig("small_cnn", weights=str(path)), data(32, 32, 10), Mode.train)) == []
    (line,) = problems(ModelConfig("small_cnn", weights=str(path)), data(32, 32, 7), Mode.train)
    assert line.startswith(f"model.weights={path} does not fit model.name=small_cnn: ")
    assert "classifier.weight is (10, 64), not (7, 64)" in line


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 pickled", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"[:5]])
def test_what_is_no_safetensors_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    (line,) = problems(ModelConfig("small_cnn", weights=str(path)), data(32, 32, 10), Mode.train)
    assert line.startswith(f"model.weights={path} is no whole safetensors file: ")


def test_a_trial_runs_in_a_process_of_its_own() -> None:
    one = refusal(Trial("small_cnn", 10, train_px=8, num_images=1, eval_px=32, own_px=224, weights=None))
    assert one is not None
    assert re.match(r"model.name=small_cnn does not train on images, one at a time, of data.train_px=8 pixels: .+", one)


def test_settings_that_are_no_settings_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file(SmallCnn(10).state_dict(), path, metadata={"imgnet": json.dumps([1, 2])})
    assert list(problems(ModelConfig("small_cnn", weights=str(path)), data(32, 32, 10), Mode.train)) == []
