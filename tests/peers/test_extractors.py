"""Inception beside pytorch-fid's own module, and DINOv2 beside timm's, with the same random weights, live."""

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from score_sde.data import Dataset
from score_sde.data.examples import Arrays
from score_sde.evaluation.extractors import EXTRACTORS, dinov2, inception
from score_sde.evaluation.features import make_extract
from tests.peers import torchvision_without_cuda  # noqa: F401

import timm  # isort: skip
from pytorch_fid import inception as pytorch_fid  # isort: skip
from torchvision import transforms  # isort: skip

pytestmark = pytest.mark.peers


def randomized(network):
    """Weights that keep activations of the order of 1, with every bias, mean and variance away from 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.dtype != torch.float32:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim > 1 and "weight" in name:
                tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                tensor.copy_(1 + 0.5 * noise.abs())
            elif name.endswith(("weight", "gamma")):
                tensor.copy_(1 + 0.1 * noise)
            else:
                tensor.copy_(0.1 * noise)
    return network.eval()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """pytorch-fid's network with random weights in place of the downloaded ones, and its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
        whole = randomized(pytorch_fid.fid_inception_v3())
        path = tmp_path_factory.mktemp("weights") / "inception.pth"
        torch.save(whole.state_dict(), path)
        patch.setattr(pytorch_fid, "fid_inception_v3", lambda: whole)
        return pytorch_fid.InceptionV3(resize_input=False, normalize_input=False).eval(), whole, path


def test_inception_is_pytorch_fids(theirs):
    network, whole, path = theirs
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    source = Dataset(Arrays(images, np.zeros(4)), (32, 32, 3), 256, 1)
    extractor = EXTRACTORS["inception"](source, {}, str(path))
    prepared = extractor.prepare(images)
    features, logits = jax.jit(extractor.apply)(extractor.params, prepared)
    with torch.no_grad():
        expected = network(torch.from_numpy(prepared).permute(0, 3, 1, 2))[0][..., 0, 0]
        expected_logits = whole.fc(expected).numpy()
    expected = expected.numpy()
    assert features.shape == (4, 2048)
    assert expected.std() > 0.01
    assert np.abs(features - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(logits - expected_logits).max() < 1e-4 * np.abs(expected_logits).max()


def test_gray_images_with_17_levels_become_rgb_with_256(theirs):
    """Both images have the same features in an evaluation."""
    *_, path = theirs
    grey = np.random.default_rng(0).integers(0, 17, (3, 8, 8, 1), np.uint8)
    colour = np.rint(grey.repeat(3, -1) * 255.0 / 16).astype(np.uint8)
    found = []
    for images, levels in ((grey, 17), (colour, 256)):
        source = Dataset(Arrays(images, np.zeros(3)), images.shape[1:], levels, 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("score_sde.evaluation.features.BATCH_PER_DEVICE", 4)
            extract = make_extract(EXTRACTORS["inception"](source, {}, str(path)))
            found.append(extract(images.__getitem__, 3).vectors)
    np.testing.assert_array_equal(*found)


def test_dinov2_is_timms(tmp_path):
    """Of three blocks and two heads; positions for 16 patches a side, as the network is asked."""
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=224,
        patch_size=14,
        embed_dim=128,
        depth=3,
        num_heads=2,
        init_values=1e-5,
        num_classes=0,
        global_pool="",
    )
    randomized(network)
    torch.save(network.state_dict(), tmp_path / "dinov2.pth")
    images = np.random.default_rng(0).integers(0, 256, (3, 50, 50, 3), np.uint8)
    source = Dataset(Arrays(images, np.zeros(3)), (50, 50, 3), 256, 1)
    extractor = EXTRACTORS["dinov2"](source, {}, str(tmp_path / "dinov2.pth"))
    prepared = extractor.prepare(images)
    shown = transforms.Compose(
        [
            transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    theirs = torch.stack([shown(Image.fromarray(image)) for image in images])
    np.testing.assert_allclose(prepared, theirs.permute(0, 2, 3, 1), atol=2e-6)
    with torch.no_grad():
        expected = network.forward_features(theirs)[:, 0].numpy()
    features, logits = jax.jit(extractor.apply)(extractor.params, prepared)
    assert logits.shape == (3, 0)
    assert np.abs(features - expected).max() < 1e-4 * np.abs(expected).max()


def test_positions_are_moved_as_pytorch_moves_them():
    """As the released code calls it: by a scale factor that is not the quotient of the sizes."""
    embedding = torch.randn(1, 1 + 37**2, 24, generator=torch.Generator().manual_seed(0))
    grid = embedding[:, 1:].reshape(1, 37, 37, 24).permute(0, 3, 1, 2)
    scale = (16 + 0.1) / 37
    expected = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    found = dinov2.positions(embedding.numpy())
    np.testing.assert_array_equal(found[:, 0], embedding[:, 0])
    np.testing.assert_allclose(found[0, 1:], expected.permute(0, 2, 3, 1).reshape(-1, 24), atol=1e-5)


def test_the_weights_of_a_file_are_all_read(theirs):
    *_, whole, path = theirs
    del path
    arrays = {name: tensor.numpy() for name, tensor in whole.state_dict().items()}
    _, params = inception.convert(arrays)
    counted = sum(tensor.numel() for name, tensor in whole.named_parameters() if "bn.weight" not in name)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == counted  # the scales are folded in
