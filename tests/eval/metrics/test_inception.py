"""Inception features against clean-fid's own functions: same images, same weights file, both modes.

The published network cannot be had without a network, so a TorchScript file of the same interface stands in; the test
that needs the published one runs where $RAYDDPM_WEIGHTS holds it.
"""

import hashlib
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from eval.errors import BlockedError
from eval.metrics.extractor import build_extractor
from eval.metrics.inception import Inception, resize_clean
from eval.metrics.scores import kernel_distance
from eval.metrics.statistics import FeatureStatistics, statistics_distance
from eval.metrics.weights import INCEPTION_FILE
from eval.protocol import parse_protocol
from tests.support.reference.inception import make_inception

MODES = {"clean": "fid_clean_10k", "legacy_tensorflow": "fid_tf_10k"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("weights")
    make_inception(folder)
    return folder


@pytest.fixture(scope="module")
def images() -> Tensor:
    """40 smooth images of 48 px: noise alone would look the same to every resizer."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(40, 3, 6, 6, generator=generator)
    fine = nn.functional.interpolate(coarse, size=(48, 48), mode="bicubic")
    return (fine.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def picture_folder(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index:03d}.png")
    return folder


def ours(folder, mode, images, family="fid"):
    sha256 = hashlib.sha256((folder / INCEPTION_FILE).read_bytes()).hexdigest()
    protocol = replace(parse_protocol(MODES[mode].replace("fid", family)), extractor_sha256=sha256)
    return build_extractor(protocol, folder)(images)


def theirs(folder, mode, picture_folder):
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = InceptionV3W(str(folder), download=False, resize_inside=mode == "legacy_tensorflow").eval()
        return get_folder_features(
            str(picture_folder),
            model,
            num_workers=0,
            batch_size=7,
            device=torch.device("cpu"),
            mode=mode,
            verbose=False,
        )


@pytest.mark.parametrize("mode", MODES)
def test_features_fid_and_kid_equal_clean_fids(folder, images, picture_folder, mode):
    from cleanfid.fid import fid_from_feats
    from cleanfid.fid import kernel_distance as clean_fid_kernel_distance

    features, expected = ours(folder, mode, images).numpy(), theirs(folder, mode, picture_folder)
    assert features.shape == expected.shape == (40, 2048)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    # Few features of many, as fid_from_feats takes minutes for the 2048 x 2048 square root.
    few, expected = features[:, :30], expected[:, :30].astype(np.float64)
    halves = [FeatureStatistics.of(part) for part in (few[:18], few[18:])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert statistics_distance(*halves) == pytest.approx(fid_from_feats(expected[:18], expected[18:]), rel=1e-4)
    np.random.seed(3)
    reference = clean_fid_kernel_distance(expected[:20], expected[20:], num_subsets=20, max_subset_size=12)
    value, _, _ = kernel_distance(few[:20], few[20:], seed=3, num_subsets=20, max_subset_size=12)
    assert value == pytest.approx(reference, rel=1e-4)


def test_the_clean_resizer_is_clean_fids(images):
    from cleanfid.resize import build_resizer

    resize = build_resizer("clean")
    expected = np.stack([resize(image.permute(1, 2, 0).numpy()) for image in images[:5]]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(resize_clean(images[:5]).numpy(), expected, rtol=0, atol=1e-5)


def test_the_modes_differ_and_both_ignore_the_batch(folder, images):
    features = {mode: ours(folder, mode, images) for mode in MODES}
    assert not torch.allclose(features["clean"], features["legacy_tensorflow"])
    for mode, whole in features.items():
        parts = torch.cat([ours(folder, mode, part) for part in images.split([1, 22, 17])])
        assert torch.equal(whole, parts)


def test_the_inception_score_sees_probabilities_without_the_output_bias(folder, images):
    probabilities = ours(folder, "clean", images[:4], family="is")
    module = torch.jit.load(str(folder / INCEPTION_FILE))
    with torch.inference_mode():
        pixels = resize_clean(images[:4])
        expected = module(pixels, no_output_bias=True)
    assert probabilities.shape == (4, 1008)
    torch.testing.assert_close(probabilities.float(), expected, rtol=1e-4, atol=1e-7)
    assert probabilities.sum(1).numpy() == pytest.approx(1.0, abs=1e-5)


def test_a_file_that_is_not_the_one_the_protocol_names_is_never_loaded(folder):
    with pytest.raises(BlockedError, match="sha256"):
        build_extractor(parse_protocol("fid_clean_10k"), folder)


# The published network cannot be had everywhere: where RAYDDPM_WEIGHTS names its folder, there is one test more.
if "RAYDDPM_WEIGHTS" in os.environ:

    @pytest.mark.parametrize("mode", MODES)
    def test_features_of_the_published_network_equal_clean_fids(images, picture_folder, mode):
        folder = Path(os.environ["RAYDDPM_WEIGHTS"])
        features = build_extractor(parse_protocol(MODES[mode]), folder)(images).numpy()
        np.testing.assert_allclose(features, theirs(folder, mode, picture_folder), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_network_without_parameters_is_taken_as_it_is():
    class Layers(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))[:, :1].expand(-1, 2048)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = Layers()

        def forward(self, x, return_features: bool = False, no_output_bias: bool = False):
            return self.layers(x)

    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert Inception(torch.jit.script(Network()).eval(), "clean")(images).shape == (2, 2048)
