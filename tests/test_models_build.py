"""Names of models, and what they become."""

from pathlib import Path

import pytest
import torch
from torchvision.models import get_model, get_model_weights
from torchvision.transforms.functional import normalize

from imgnet.config import ModelConfig
from imgnet.models.build import build_model
from imgnet.published import published

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["small_cnn", "resnet18", "googlenet", "mobilenetv3_small_050"])
def test_a_name_of_any_library_becomes_a_classifier(name: str) -> None:
    model = build_model(ModelConfig(name=name), 7, device=CPU, channels_last=True)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    convolutions = [parameter for parameter in model.parameters() if parameter.ndim == 4 and parameter.shape[1] > 1]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"model\.name=resnet51: neither torchvision nor timm has it; did you mean 'res"
    ):
        build_model(ModelConfig(name="resnet51"), 10, device=CPU, channels_last=False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("small_cnn", "there are no published weights of small_cnn"), ("resnet18", "have 1000 classes, the data 10")],
)
def test_weights_that_cannot_be_had_are_refused_before_a_download(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_model(ModelConfig(name=name, pretrained=True), 10, device=CPU, channels_last=False)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_inceptions_are_what_their_exported_values_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's normalise their inputs anew, and have outputs that no other library's have."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    theirs = get_model(name, weights=None, aux_logits=True, transform_input=True, init_weights=False)
    weights = get_model_weights(name)["DEFAULT"]
    torch.save(theirs.state_dict(), tmp_path / "hub" / "checkpoints" / Path(weights.url).name)
    ours = build_model(ModelConfig(name=name, pretrained=True), 1000, device=CPU, channels_last=False)
    pixels = torch.rand(1, 3, 299, 299)
    wanted, brought = weights.transforms(), published(name).values
    with torch.no_grad():
        shown = theirs.eval()(normalize(pixels, wanted.mean, wanted.std))
        torch.testing.assert_close(ours.eval()(normalize(pixels, brought["mean"], brought["std"])), shown)
        again = build_model(ModelConfig(name=name), 1000, device=CPU, channels_last=False)
        again.load_state_dict(ours.state_dict())
        images = normalize(pixels, brought["mean"], brought["std"])
        torch.testing.assert_close(again.eval()(images), ours(images))
    assert ours.train()(torch.rand(2, 3, 299, 299)).shape == (2, 1000)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same_and_keeps_its_names() -> None:
    torch.manual_seed(0)
    plain = build_model(ModelConfig(name="small_cnn"), 10, device=CPU, channels_last=False)
    torch.manual_seed(0)
    compiled = build_model(ModelConfig(name="small_cnn"), 10, device=CPU, channels_last=False, compiled=True)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(plain(images), compiled(images), atol=1e-5)
    assert list(plain.state_dict()) == list(compiled.state_dict())
