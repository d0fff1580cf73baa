"""Image files of every kind decode to the pixels that a viewer shows, and damaged files raise one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from score_sde.data import load
from score_sde.data.decoding import decode
from score_sde.errors import UserError

RAMP = np.tile(np.linspace(0, 255, 8).astype(np.uint8), (8, 1))


def test_sixteen_bits_are_scaled(tmp_path):
    wide = np.tile(np.linspace(0, 65535, 8).astype(np.uint16), (8, 1))
    Image.fromarray(wide).save(tmp_path / "gray.png")
    Image.fromarray(wide).save(tmp_path / "gray.tiff")
    for name in ("gray.png", "gray.tiff"):
        np.testing.assert_array_equal(decode(tmp_path / name, 1)[..., 0], np.rint(wide / 257))
        np.testing.assert_array_equal(decode(tmp_path / name, 3)[0, :, 2], [0, 36, 73, 109, 146, 182, 219, 255])


def test_orientation_is_applied(tmp_path):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
        image.save(tmp_path / "turned.png", exif=exif)
        upright = {
            1: image,
            2: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
            3: image.transpose(Image.Transpose.ROTATE_180),
            4: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
            5: image.transpose(Image.Transpose.TRANSPOSE),
            6: image.transpose(Image.Transpose.ROTATE_270),
            7: image.transpose(Image.Transpose.TRANSVERSE),
            8: image.transpose(Image.Transpose.ROTATE_90),
        }[orientation]
        np.testing.assert_array_equal(decode(tmp_path / "turned.png", 1)[..., 0], np.asarray(upright))


@pytest.mark.parametrize(("background", "value"), [("white", 255), ("#00ff00", None), ("black", 0)])
def test_transparency_is_composited(tmp_path, background, value):
    """Half-transparent black over the background; over white it is gray."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:, 3] = 128
    for i in range(4):
        (tmp_path / "all").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "all" / f"{i}.png")
    kwargs = {"background": background, "test_share": 0.25}
    image = load("image_folder", "train", 8, 3, str(tmp_path), kwargs).examples[0]["image"]
    expected = np.array([0, 255, 0] if value is None else [value] * 3)
    np.testing.assert_array_equal(image[:, :4], np.broadcast_to(expected, (8, 4, 3)))
    np.testing.assert_allclose(image[:, 4:], np.broadcast_to(expected * (1 - 128 / 255), (8, 4, 3)), atol=1)
    kept = load("image_folder", "train", 8, 4, str(tmp_path), {"test_share": 0.25}).examples[0]["image"]
    np.testing.assert_array_equal(kept, pixels)


def test_palettes_single_bits_and_cmyk(tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    palette = Image.fromarray(colors).quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(decode(tmp_path / "palette.png", 3), np.asarray(palette.convert("RGB")))
    palette.save(tmp_path / "clear.png", transparency=0)
    over = decode(tmp_path / "clear.png", 3, (9, 8, 7))
    assert (over[np.asarray(palette) == 0] == (9, 8, 7)).all()
    Image.fromarray(RAMP).convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(decode(tmp_path / "bits.png", 1))) == {0, 255}
    Image.fromarray(colors).convert("CMYK").save(tmp_path / "print.tiff")
    np.testing.assert_array_equal(decode(tmp_path / "print.tiff", 3), colors)


def pack(parts):
    """Returns a PNG file of chunks (name, data)."""
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def damaged():
    """Returns damaged PNG files that make Pillow fail in several ways."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    raw = buffer.getvalue()
    header = (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0))
    data = raw[raw.index(b"IDAT") + 4 : raw.rindex(b"IEND") - 8]
    halves = pack([header, (b"IDAT", data[:4000]), (b"IDAT", data[4000:]), (b"IEND", b"")])
    second = halves.rindex(b"IDAT")
    rest = [(b"IDAT", data), (b"IEND", b"")]
    return {
        "chunk_name": halves[:second] + b"\x00\xff!!" + halves[second + 4 :],
        "huge_text": pack([header, (b"zTXt", b"k\0\0" + zlib.compress(b"a" * (2 << 20))), *rest]),
        "huge_profile": pack([header, (b"iCCP", b"k\0\0" + zlib.compress(b"a" * (2 << 20))), *rest]),
        "bomb": pack([(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)), *rest]),
        "cut": raw[: len(raw) // 2],
        "empty": b"",
        "text": b"this is not an image",
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / f"{name}.png").write_bytes(damaged()[name])
    with pytest.raises(UserError, match=rf"{name}.png can't be decoded as an image: ."):
        decode(tmp_path / f"{name}.png", 3)


def pillow_pixels(path, channels):
    """Returns the pixels that Pillow gives: upright, 16 bits scaled, over white."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    over = Image.new("RGBA", image.size, "white")
    over.alpha_composite(image.convert("RGBA"))
    return np.asarray(over.convert("L" if channels == 1 else "RGB")).reshape(*image.size[::-1], channels)


@pytest.mark.filterwarnings("ignore:.*(EXIF|Tag data)")
def test_generated_files_decode_or_raise_one_sentence(tmp_path):
    """200 files of all modes, formats and orientations, half of them damaged by flipped, cut or added bytes."""
    rng = np.random.default_rng(0)
    modes = {"1": "png", "L": "png", "P": "png", "LA": "png", "RGB": "png", "RGBA": "png", "I;16": "png"}
    kinds = [
        *modes.items(),
        ("L", "jpg"),
        ("RGB", "jpg"),
        ("CMYK", "jpg"),
        ("RGB", "webp"),
        ("P", "gif"),
        ("RGB", "bmp"),
    ]
    decoded = 0
    for n in range(200):
        mode, suffix = kinds[n % len(kinds)]
        size = rng.integers(1, 24, 2)
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 65536, size, np.uint16))
        else:
            image = Image.fromarray(rng.integers(0, 256, (*size, 4), np.uint8)).convert(
                "RGB" if mode == "CMYK" else "RGBA"
            )
            image = image.convert(mode)
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(1, 9))
        path = tmp_path / f"{n}.{suffix}"
        image.save(path, **({"exif": exif} if suffix in ("png", "jpg", "webp") else {}))
        raw = bytearray(path.read_bytes())
        if n % 2:
            for _ in range(rng.integers(1, 4)):
                raw[rng.integers(len(raw))] = rng.integers(256)
            raw = raw[: rng.integers(1, len(raw) + 1)] if n % 4 == 1 else raw
            path.write_bytes(raw)
        channels = 1 if n % 3 else 3
        try:
            pixels = decode(path, channels)
        except UserError as error:
            assert n % 2, f"{path.name}: {error}"
            assert path.name in str(error) and "\n" not in str(error)
            continue
        decoded += 1
        assert pixels.dtype == np.uint8 and pixels.shape[2] == channels
        np.testing.assert_allclose(
            pixels.astype(int), pillow_pixels(path, channels).astype(int), atol=1, err_msg=path.name
        )
    assert decoded > 100


def test_generated_archives_load_or_raise_one_sentence(tmp_path):
    """Arrays of all types and shapes, some damaged: valid examples or one sentence."""
    rng = np.random.default_rng(1)
    types = ("uint8", "int64", "float32", "float64", "complex64", "bool", "U3", "float16", "uint16")
    read = 0
    for n in range(100):
        shape = tuple(rng.integers(0, 9, rng.integers(0, 6)))
        images = rng.integers(0, 200, shape).astype(types[n % len(types)])
        arrays = {"images" if n % 2 else "x_train": images}
        if n % 3:
            arrays["labels" if n % 2 else "y_train"] = rng.integers(-1, 9, shape[:1]).astype(
                types[(n // 3) % len(types)]
            )
        path = tmp_path / f"{n}.npz"
        np.savez(path, **arrays)
        if n % 5 == 0:
            raw = bytearray(path.read_bytes())
            raw[rng.integers(len(raw))] ^= 255
            path.write_bytes(raw)
        size, channels = (shape[1], shape[3]) if len(shape) == 4 else (0, shape[1] if len(shape) == 2 else 1)
        try:
            dataset = load("npz", "train", int(size), int(channels), str(path))
        except UserError as error:
            assert "\n" not in str(error)
            continue
        read += 1
        example = dataset.examples[0]
        assert example["image"].shape == dataset.image_shape and 0 <= example["label"] < dataset.num_classes
        assert example["image"].dtype in (np.uint8, np.float32)
    assert read > 3
