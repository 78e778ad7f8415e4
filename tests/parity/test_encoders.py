"""The image encoders against their published counterparts: EfficientNet-Lite2's stored outputs, and ResNet-101 and VGG-19 written out
below as torchvision has them (its key names, batch norm in eval mode)."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from triptych.checkpoints.parts import part_path
from triptych.checkpoints.weight_files import open_file
from triptych.errors import InputError
from triptych.nn.cnn import VGG19, EfficientNetLite, ResNet101, fold_batch_norms

LITE2 = Path(__file__).parents[1] / "golden" / "efficientnet_lite2.safetensors"


def assert_same(ours, published):
    """``published [B, D, h, w]``; equal to 1e-4 of its largest value."""
    published = published.flatten(2).transpose(1, 2)
    assert ours.shape == published.shape
    assert (ours - published).abs().max() < 1e-4 * published.abs().max()


@torch.no_grad()
def random_batch_norms(model, generator):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(torch.rand(module.weight.shape, generator=generator) * 0.6 + 0.2)
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.1)
            module.running_mean.copy_(torch.randn(module.bias.shape, generator=generator) * 0.2)
            module.running_var.copy_(torch.rand(module.bias.shape, generator=generator) * 2 + 0.2)
    return model.eval()


class PublishedBottleneck(nn.Module):
    def __init__(self, dim, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, width * 4, 1, bias=False), nn.BatchNorm2d(width * 4)
        if stride != 1 or dim != width * 4:
            self.downsample = nn.Sequential(nn.Conv2d(dim, width * 4, 1, stride, bias=False), nn.BatchNorm2d(width * 4))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (self.downsample(x) if hasattr(self, "downsample") else x))


class PublishedResNet101(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.layer1 = self.stage(64, 64, 3, 1)
        self.layer2 = self.stage(256, 128, 4, 2)
        self.layer3 = self.stage(512, 256, 23, 2)
        self.layer4 = self.stage(1024, 512, 3, 2)
        self.fc = nn.Linear(2048, 10)

    @staticmethod
    def stage(dim, width, blocks, stride):
        rest = [PublishedBottleneck(width * 4, width, 1) for _ in range(blocks - 1)]
        return nn.Sequential(PublishedBottleneck(dim, width, stride), *rest)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


@torch.no_grad()
def test_resnet101():
    generator = torch.Generator().manual_seed(0)
    published = random_batch_norms(PublishedResNet101(), generator)
    encoder = ResNet101().eval()
    encoder.load_published(published.state_dict())
    x = torch.randn(2, 3, 64, 97, generator=generator)
    assert_same(encoder(x), F.adaptive_avg_pool2d(published(x), 14))


@torch.no_grad()
def test_vgg19():
    state, plan, dim = {}, [], 3  # torchvision numbers convolution, ReLU and pooling alike
    generator = torch.Generator().manual_seed(0)
    for convolutions, width in ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)):
        for _ in range(convolutions):
            index = sum(2 if step == "conv" else 1 for step, _ in plan)
            scale = (2 / (9 * dim)) ** 0.5
            state[f"features.{index}.weight"] = torch.randn(width, dim, 3, 3, generator=generator) * scale
            state[f"features.{index}.bias"] = torch.randn(width, generator=generator) * 0.1
            plan.append(("conv", index))
            dim = width
        plan.append(("pool", None))
    assert max(index for step, index in plan if step == "conv") == 34
    x = maps = torch.randn(2, 3, 64, 97, generator=generator)
    for step, index in plan[:-1]:  # not the last pooling
        if step == "conv":
            maps = F.relu(F.conv2d(maps, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1))
        else:
            maps = F.max_pool2d(maps, 2)
    encoder = VGG19().eval()
    encoder.load_published(state | {"classifier.0.weight": torch.zeros(1)})
    assert_same(encoder(x), maps)


@torch.no_grad()
@pytest.mark.parts
@pytest.mark.parametrize("case", ["even", "odd"])
def test_efficientnet_lite2(case):
    """The stored outputs are ``efficientnet_lite_pytorch``'s with the part's weights, for 64 x 96 and 97 x 65 pixels."""
    golden = load_file(LITE2)
    encoder = EfficientNetLite().eval()
    encoder.load_published(open_file(part_path("efficientnet-lite2")))
    assert_same(encoder(golden[f"in/{case}"]), golden[f"out/{case}"])


@torch.no_grad()
def test_folding_uses_the_epsilon_and_every_statistic():
    generator = torch.Generator().manual_seed(0)
    published = random_batch_norms(
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, eps=1e-3)), generator
    )
    published[1].running_var.mul_(1e-2)  # small enough for the epsilon to matter
    state, x = published.state_dict(), torch.randn(2, 3, 9, 9, generator=generator)

    def folded(state, eps=1e-3):
        parts = fold_batch_norms(state, {"0": "1"}, eps)
        return F.conv2d(x, parts["0.weight"], parts["0.bias"])

    torch.testing.assert_close(folded(state), published(x), atol=1e-5, rtol=1e-5)
    assert (folded(state, eps=1e-5) - published(x)).abs().max() > 1e-2
    for name in ("1.weight", "1.bias", "1.running_mean"):
        assert (folded(state | {name: -state[name]}) - published(x)).abs().max() > 1e-2


@torch.no_grad()
def test_a_cut_anywhere_changes_nothing():
    torch.manual_seed(0)
    whole = EfficientNetLite().eval()
    x = torch.randn(1, 3, 64, 47)
    expected = whole(x)
    assert expected.shape == (1, 2 * 2, whole.dim)
    assert expected.std() > 0
    state = whole.state_dict()
    for cut in range(1, len(whole.layers) + 1):
        with torch.device("meta"):
            encoder = EfficientNetLite(cut)
        encoder.load_state_dict(state, assign=True)
        maps = encoder.trunk(x)
        assert torch.equal(maps, whole.layers[:cut](x))
        assert torch.equal(encoder.tail(maps), expected)


def test_the_trunk_carries_no_gradient_but_the_tail_does():
    encoder = EfficientNetLite(cut=21)
    encoder(torch.randn(1, 3, 32, 32)).sum().backward()
    has_gradient = [any(p.grad is not None for p in layer.parameters()) for layer in encoder.layers]
    assert has_gradient == [False] * 21 + [True] * 2


@pytest.mark.parametrize("encoder", [EfficientNetLite, VGG19, ResNet101])
def test_a_cut_out_of_range_is_refused(encoder):
    with torch.device("meta"):
        layers = len(encoder().layers)
        for cut in (-1, 0, layers + 1):
            with pytest.raises(InputError, match=f"cut is {cut}: {encoder.name} has {layers} layers"):
                encoder(cut)
