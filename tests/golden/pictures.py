"""Records what diffusers makes of starting pictures and masks, and files that are good and bad, into pictures.json.

    python pictures.py        # needs torch, diffusers and Pillow

The pixels of the prepared pictures are a function that `src/engine/picture.rs` has too. Results are kept as SHA-256 of
their little-endian f32, with the first values; files as hexadecimal digits, with the SHA-256 of their upright RGBA.
"""

import hashlib
import io
import json
import pathlib
import struct
import zlib

import numpy
import PIL
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from tiny import versions

PICTURES = VaeImageProcessor(vae_scale_factor=8)
MASKS = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
# width and height, of the picture and as asked
SIZES = [
    (64, 48, 64, 48), (8, 8, 8, 8), (128, 96, 64, 48), (100, 75, 64, 64), (75, 100, 64, 64), (33, 57, 128, 64),
    (57, 33, 64, 128), (1, 1, 16, 8), (3, 200, 24, 16), (200, 3, 24, 16), (500, 401, 56, 72), (65, 64, 64, 64),
    (64, 65, 64, 64), (41, 29, 328, 232), (1000, 10, 8, 8),
]


def pixels(width, height):
    y, x, c = numpy.meshgrid(*map(numpy.arange, (height, width, 3)), indexing="ij")
    mixed = (x * 37 + y * 59 + c * 101 + x * y * (c + 3)).astype(numpy.uint64) * 2654435761 % 2**32 >> 24
    # Noise in one half, a ramp with a hard edge in the other.
    ramp = numpy.where(x * 3 // width == 2, 255, (x * 5 + y * 3 + c * 40) % 256)
    return numpy.where(y * 2 < height, mixed, ramp).astype(numpy.uint8)


def digest(array):
    return hashlib.sha256(numpy.ascontiguousarray(array).tobytes()).hexdigest()


def prepared():
    for from_width, from_height, width, height in SIZES:
        image = Image.fromarray(pixels(from_width, from_height))
        ready = PICTURES.preprocess(image, height=height, width=width, resize_mode="crop")
        mask = MASKS.preprocess(image, height=height, width=width, resize_mode="crop")
        latent = torch.nn.functional.interpolate(mask, size=(height // 8, width // 8))
        yield {
            "from": [from_width, from_height], "to": [width, height],
            "first": ready.flatten()[:6].tolist(), "picture": digest(ready.numpy().astype("<f4")),
            "mask": digest(mask.numpy().astype("<f4")), "white": int(mask.sum()),
            "latent_mask": digest(latent.numpy().astype("<f4")),
        }


def nearest():
    values = torch.arange(12 * 20, dtype=torch.float32).reshape(1, 1, 12, 20)
    for height, width in [(3, 5), (5, 7), (12, 20), (24, 30), (1, 1)]:
        yield {"to": [height, width], "values": torch.nn.functional.interpolate(values, size=(height, width)).int().flatten().tolist()}


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def good_files():
    rgb = Image.fromarray(pixels(11, 7))
    rgba = Image.fromarray(numpy.dstack([pixels(11, 7), pixels(11, 7)[..., 1]]))
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        yield f"PNG, EXIF orientation {orientation}", rgb, saved(rgb, "png", exif=exif)
    yield "PNG, RGBA", rgba, saved(rgba, "png")
    yield "PNG, grey", rgb.convert("L"), saved(rgb.convert("L"), "png")
    yield "PNG, palette", rgb.quantize(16), saved(rgb.quantize(16), "png")
    yield "PNG, one bit", rgb.convert("1"), saved(rgb.convert("1"), "png")
    yield "WebP, lossless", rgb, saved(rgb, "webp", lossless=True)
    yield "WebP, lossless, RGBA", rgba, saved(rgba, "webp", lossless=True, exact=True)
    exif[0x0112] = 6
    yield "WebP, EXIF orientation 6", rgb, saved(rgb, "webp", lossless=True, exif=exif)


def lossy_files():
    y, x = numpy.mgrid[0:24, 0:40]
    smooth = Image.fromarray(numpy.dstack([x * 6, y * 10, 255 - x * 3]).astype(numpy.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "JPEG", smooth, saved(smooth, "jpeg", quality=95)
    yield "JPEG, progressive", smooth, saved(smooth, "jpeg", quality=95, progressive=True)
    yield "JPEG, EXIF orientation 6", smooth, saved(smooth, "jpeg", quality=95, exif=exif)
    yield "JPEG, grey", smooth.convert("L"), saved(smooth.convert("L"), "jpeg", quality=95)
    yield "WebP, lossy", smooth, saved(smooth, "webp", quality=95)


def bad_files():
    rgb = Image.fromarray(pixels(11, 7))
    others = [Image.fromarray(255 - pixels(11, 7))]
    yield "animated PNG", "animated PNG", saved(rgb, "png", save_all=True, append_images=others)
    yield "animated WebP", "animated WebP", saved(rgb, "webp", save_all=True, append_images=others, lossless=True)
    yield "GIF", "a GIF", saved(rgb, "gif")
    yield "BMP", "a BMP", saved(rgb, "bmp")
    yield "TIFF", "a TIFF", saved(rgb, "tiff")
    yield "SVG", "SVG", b'\n <svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
    yield "SVG with a declaration", "SVG", b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'
    yield "page", "an HTML page", b"<!DOCTYPE html><html></html>"
    yield "text", "unknown kind", b"a red star"
    yield "huge PNG", "50000 x 50000", png_header(50000, 50000) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    yield "long PNG", "1 x 2000000000", png_header(1, 2000000000) + chunk(b"IDAT", zlib.compress(bytes(100)))
    jpeg = saved(rgb, "jpeg")
    at = jpeg.index(b"\xff\xc0") + 5
    yield "huge JPEG", "50000 x 50000", jpeg[:at] + struct.pack(">HH", 50000, 50000) + jpeg[at + 4:]
    webp = saved(Image.fromarray(numpy.dstack([pixels(11, 7)] * 2)[..., :4]), "webp")
    at = webp.index(b"VP8X") + 12
    yield "huge WebP", "16000 x 16000", webp[:at] + struct.pack("<I", 15999)[:3] + struct.pack("<I", 15999)[:3] + webp[at + 6:]
    yield "PNG without pixels", "cannot be decoded", png_header(0, 0) + chunk(b"IEND", b"")
    at = jpeg.index(b"\xff\xda")
    end = at + 2 + int.from_bytes(jpeg[at + 2:at + 4], "big")
    yield "JPEG of too many scans", "scans", jpeg[:end] + jpeg[at:end] * 64 + jpeg[end:]


def main():
    def upright(image):
        return digest(numpy.array(image.convert("RGBA")))

    good = []
    for name, image, data in good_files():
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        good.append({"name": name, "bytes": data.hex(), "size": list(turned.size), "rgba": upright(turned)})
    lossy = []
    for name, image, data in lossy_files():
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        lossy.append({"name": name, "bytes": data.hex(), "size": list(turned.size), "rgb": numpy.array(turned).tobytes().hex()})
    bad = [{"name": name, "says": says, "bytes": data.hex()} for name, says, data in bad_files()]
    document = {
        "versions": versions(PIL), "prepared": list(prepared()), "nearest": list(nearest()), "good": good, "lossy": lossy,
        "bad": bad,
    }
    text = json.dumps(document).replace('{"from"', '\n{"from"').replace('{"name"', '\n{"name"').replace('{"to"', '\n{"to"')
    pathlib.Path(__file__).with_suffix(".json").write_text(text + "\n")


main()
