"""EfficientNet-Lite0 features: what goes in, what comes out, and what they may not depend on."""

import pytest
import torch

from eval.errors import BlockedError
from eval.metrics.chunks import as_rgb
from eval.metrics.efficientnet import bicubic_resize, input_size
from eval.metrics.extractor import build_extractor
from eval.metrics.weights import efficientnet_lite0_path, inception_path
from eval.protocol import parse_protocol


@pytest.fixture(scope="module")
def extractor():
    torch.set_num_threads(1)
    return build_extractor(parse_protocol("fd_efficientnet_lite0_512"))


def images(count, channels=3, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)


def test_features_are_1280_doubles_per_image(extractor):
    features = extractor(images(5))
    assert features.shape == (5, extractor.dimension) == (5, 1280)
    assert features.dtype == torch.float64
    assert torch.isfinite(features).all()
    assert features.std(0).max() > 0.1


def test_an_images_features_do_not_depend_on_its_company(extractor):
    """Bit for bit: blocks may be cut anywhere, the last chunk may be short."""
    batch = images(21)
    whole = extractor(batch)
    parts = torch.cat([extractor(part) for part in batch.split([3, 1, 17])])
    assert torch.equal(whole, parts)


def test_grey_images_are_seen_as_equal_channels(extractor):
    grey = images(3, channels=1)
    assert torch.equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


def test_the_network_knows_a_photograph(extractor):
    """Its softmax names scikit-image's cat: weights, scaling and channel order are those it was trained with."""
    from skimage import data

    cat = torch.from_numpy(data.chelsea()[:, 75:375]).permute(2, 0, 1)[None]
    probabilities = build_extractor(parse_protocol("is_efficientnet_lite0_512"))(cat)
    assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-6)
    tabby, tiger_cat, egyptian_cat = 281, 282, 285
    assert probabilities[0, [tabby, tiger_cat, egyptian_cat]].sum() > 0.5


def test_resizing_keeps_flat_images_flat_and_the_range():
    flat = torch.full((1, 3, 8, 8), 200.0)
    assert torch.allclose(bicubic_resize(flat, 96), torch.full((1, 3, 96, 96), 200.0), atol=1e-3)
    edges = bicubic_resize(images(4).float(), 96)
    assert edges.min() >= 0
    assert edges.max() <= 255


def test_shrinking_is_antialiased():
    """A one-pixel checkerboard becomes its mean; plain bicubic sampling would alias it."""
    board = torch.arange(256)[:, None].add(torch.arange(256)).remainder(2).mul(255.0)[None, None]
    inner = bicubic_resize(board, 96)[..., 8:-8, 8:-8]
    assert (inner - 127.5).abs().max() < 30


@pytest.mark.parametrize(("side", "expected"), [(8, 96), (32, 96), (33, 128), (64, 128), (65, 224), (256, 224)])
def test_the_input_size_follows_the_documented_rule(side, expected):
    assert input_size((side, side)) == expected


@pytest.mark.parametrize("wrong", [torch.rand(2, 3, 8, 8), images(2, channels=2), images(1)[0]])
def test_anything_but_8_bit_images_is_refused(wrong):
    with pytest.raises(ValueError, match="uint8"):
        as_rgb(wrong)


def test_missing_inception_weights_block_and_say_what_to_do(tmp_path):
    with pytest.raises(BlockedError, match="fetch-weights"):
        build_extractor(parse_protocol("fid_clean_10k"), tmp_path)


def test_damaged_inception_weights_block_before_they_are_loaded(tmp_path):
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"not the network")
    with pytest.raises(BlockedError, match="sha256"):
        inception_path(tmp_path)


def test_the_weights_folder_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYDDPM_WEIGHTS", str(tmp_path))
    with pytest.raises(BlockedError, match=str(tmp_path)):
        inception_path(None)


def test_another_weights_file_than_the_pinned_is_refused():
    with pytest.raises(BlockedError, match="reinstall"):
        efficientnet_lite0_path("0" * 64)
