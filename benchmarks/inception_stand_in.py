"""The FID Inception with random weights, as each library takes them: what stands in for the published file offline."""

import hashlib
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import nn

from eval.metrics.extractor import FeatureExtractor, build_extractor
from eval.metrics.weights import INCEPTION_FILE
from eval.protocol import parse_protocol

MODES = {"clean": "fid_clean_10k", "legacy_tensorflow": "fid_tf_10k"}


class Layers(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> (B, 2048), as `layers` of the published file."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x).flatten(1)


class StandIn(nn.Module):
    """The published file's interface: uint8 range in, resized inside as TensorFlow 1 did, features out."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False) -> torch.Tensor:
        height, width = img.shape[2], img.shape[3]
        # Pixel i of the output lies at i * size / 299 of the input: corners aligned, centres not.
        rows = torch.arange(299, device=img.device) * (2.0 / 299) + (1.0 / height - 1.0)
        columns = torch.arange(299, device=img.device) * (2.0 / 299) + (1.0 / width - 1.0)
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        grid = torch.stack([x, y], dim=-1).unsqueeze(0).expand(img.shape[0], -1, -1, -1)
        resized = nn.functional.grid_sample(
            img.to(torch.float32), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        features = self.layers((resized - 128) / 128)
        if return_features:
            return features
        logits = nn.functional.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(1)


def random_state() -> dict[str, torch.Tensor]:
    """A random state dict of the FID Inception: activations keep their size through the layers (He et al. 2015).

    Batch norms are mild on purpose. Fitted to data they would make a random network chaotic: rounding errors then
    grow layer by layer as they do in no trained one (measured: features differ by 3e-5 instead of 4e-7).
    """
    from pytorch_fid import inception

    torch.manual_seed(0)
    with mock.patch.object(inception, "load_state_dict_from_url"), mock.patch.object(nn.Module, "load_state_dict"):
        network = inception.fid_inception_v3()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.05)
            nn.init.uniform_(module.running_var, 0.8, 1.25)
    return network.state_dict()


class Networks:
    """The same weights as each library takes them."""

    def __init__(self, folder: Path) -> None:
        from cleanfid.inception_torchscript import InceptionV3W
        from pytorch_fid import inception
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        state = random_state()
        torch.save(state, folder / "state.pth")
        with mock.patch.object(inception, "load_state_dict_from_url", return_value=state):
            self.pytorch_fid = inception.InceptionV3().eval()
        self.torch_fidelity = FeatureExtractorInceptionV3(
            "inception", ["2048"], feature_extractor_weights_path=str(folder / "state.pth")
        )
        blocks = [block for sequential in self.pytorch_fid.blocks for block in sequential]
        script = torch.jit.script(StandIn(Layers(nn.ModuleList(blocks))).eval())
        script.save(str(folder / INCEPTION_FILE))
        sha256 = hashlib.sha256((folder / INCEPTION_FILE).read_bytes()).hexdigest()
        self.ours: dict[str, FeatureExtractor] = {}
        self.ours_bfloat16: dict[str, FeatureExtractor] = {}
        self.clean_fid: dict[str, nn.Module] = {}
        for mode, name in MODES.items():
            protocol = replace(parse_protocol(name), extractor_sha256=sha256)
            self.ours[mode] = build_extractor(protocol, folder)
            self.ours_bfloat16[mode] = build_extractor(replace(protocol, precision="bfloat16"), folder)
            resize_inside = mode == "legacy_tensorflow"
            self.clean_fid[mode] = InceptionV3W(str(folder), download=False, resize_inside=resize_inside).eval()


def pictures(number: int, side: int, seed: int) -> np.ndarray:
    """uint8 (number, side, side, 3): smooth colours with some grain."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        coarse = Image.fromarray(generator.integers(0, 255, (8, 8, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        found.append((smooth + generator.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(found)
