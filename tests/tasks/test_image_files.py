"""Image files as people have them: turned, of several frames, in many formats, beside things that are no images."""

import os
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from shared_data import SHARED, needs_cases

from nystra_bench.errors import UserError
from nystra_bench.metrics.conventions import RGB8
from nystra_bench.metrics.psnr import Psnr
from nystra_bench.tasks.datasets import pictures
from nystra_bench.tasks.denoise import GaussianDenoise
from nystra_bench.tasks.image_files import frames, image_size, read_image
from nystra_bench.tasks.pairs import FolderPairs

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
UPRIGHT = {  # what EXIF 2.32 says of where the stored 0th row and column are
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


def save(file, pixels=PIXELS, **options):
    Image.fromarray(pixels).save(file, **options)
    return file


# --------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_an_image_is_turned_as_exif_says(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    expected = UPRIGHT[orientation](PIXELS)
    np.testing.assert_array_equal(read_image(file), expected)
    assert image_size(file) == expected.shape[:2]


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_jpeg_is_turned_as_exif_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, turned = save(tmp_path / "a.jpg"), save(tmp_path / "b.jpg", exif=exif)
    np.testing.assert_array_equal(read_image(turned), UPRIGHT[orientation](read_image(plain)))
    assert image_size(turned) == read_image(turned).shape[:2]


def test_exif_behind_the_pixels_of_a_png_counts_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = save(tmp_path / "a.png", exif=exif).read_bytes()
    start = whole.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(whole[start : start + 4], "big")
    last = whole.index(b"IEND") - 4
    (tmp_path / "a.png").write_bytes(whole[:start] + whole[end:last] + whole[start:end] + whole[last:])
    assert image_size(tmp_path / "a.png") == (30, 20)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), UPRIGHT[6](PIXELS))


@pytest.mark.parametrize("orientation", [0, 9, 70])
def test_an_orientation_that_exif_does_not_know_turns_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(file), PIXELS)
    assert image_size(file) == (20, 30)


@needs_cases
def test_the_case_of_a_photograph_held_upside_down(tmp_path):
    """A public bug report; the central 256 pixels as they are stored are 11.55 dB from those of its upright twin."""
    for side, name in (("lq", "rotated_180"), ("gt", "upright")):
        (tmp_path / side).mkdir()
        (tmp_path / side / "photo.jpg").symlink_to(SHARED / "cases" / "exif" / f"{name}.jpg")
    (sample,) = FolderPairs(str(tmp_path), crop=256).samples()
    assert Psnr()(sample.degraded, sample.clean, RGB8) == pytest.approx(15.47, abs=0.005)


# --------------------------------------------------------------------------- frames and formats


def animated(file, **options):
    others = [Image.fromarray(255 - PIXELS), Image.fromarray(PIXELS // 2)]
    return save(file, save_all=True, append_images=others, **options)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.gif", "a.webp"])
def test_of_several_frames_the_first_is_taken_and_said_so(tmp_path, name):
    animated(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    save(tmp_path / "b.png")
    task = GaussianDenoise(25.0, images=str(tmp_path))
    assert frames(tmp_path / name) == 3
    if name != "a.gif":  # which has a palette
        np.testing.assert_array_equal(read_image(tmp_path / name), PIXELS)
    assert task.notes() == [f"task.images={tmp_path}: of several frames or pages the first is taken, in 1 files (a)"]
    assert [sample.id for sample in task.samples()] == ["a", "b"]


@needs_cases
@pytest.mark.parametrize("name", ["mode_grayscale.png", "multipage.tiff", "multipage-mmap.tiff"])
def test_the_cases_of_several_frames(name):
    file = SHARED / "cases" / "multiframe" / name
    with Image.open(file) as image:
        first = np.asarray(image.convert("RGB"))
    assert frames(file) == 3
    np.testing.assert_array_equal(read_image(file), first)


@pytest.mark.parametrize("name", ["a.ppm", "a.pnm", "a.PPM"])
def test_portable_pixmaps_are_taken(tmp_path, name):
    save(tmp_path / name, format="PPM")
    (picture,) = pictures(str(tmp_path))
    np.testing.assert_array_equal(picture.read(), PIXELS)


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe"])
def test_a_jpeg_by_another_name_is_taken(tmp_path, name):
    save(tmp_path / name, format="JPEG")
    expected = read_image(save(tmp_path / "other.jpg"))
    np.testing.assert_array_equal(pictures(str(tmp_path))[0].read(), expected)


def test_grey_pixmaps_and_bitmaps_are_taken(tmp_path):
    save(tmp_path / "a.pgm", PIXELS[..., 0])
    (tmp_path / "b.pbm").write_bytes(b"P1 2 2\n1 0 0 1\n")
    grey, bits = (picture.read() for picture in pictures(str(tmp_path)))
    np.testing.assert_array_equal(grey, PIXELS[..., :1].repeat(3, -1))
    np.testing.assert_array_equal(bits[..., 0], [[0, 255], [255, 0]])


@pytest.mark.parametrize(
    "content", [b"P6 2 2 65535\n" + bytes(24), b"P3 1 1 65535\n1 2 3", b"P5 2 2 65535\n" + bytes(8)]
)
def test_pixmaps_of_16_bits_are_refused(tmp_path, content):
    (tmp_path / "deep.ppm").write_bytes(content)
    with pytest.raises(UserError, match="deep.ppm has mode .*16 bits: accepted are 8-bit"):
        read_image(tmp_path / "deep.ppm")


@pytest.mark.parametrize("error", [TypeError("Missing dimensions"), struct.error("unpack"), KeyError(256), EOFError()])
def test_whatever_pillow_stumbles_over_makes_a_file_broken(tmp_path, monkeypatch, error):
    """The first of these came out of 2,000 damaged files."""

    def stumble(*_):
        raise error

    file = save(tmp_path / "a.tif")
    monkeypatch.setattr(ImageOps, "exif_transpose", lambda *_, **__: stumble())
    with pytest.raises(UserError, match="a.tif cannot be read as an image .*: mend or remove it"):
        read_image(file)
    monkeypatch.setattr(Image, "open", stumble)
    with pytest.raises(UserError, match="a.tif cannot be read as an image .*: mend or remove it"):
        image_size(file)
    assert frames(file) == 1


@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_file_of_a_few_bytes_that_says_to_be_huge_is_refused_before_it_is_decoded(tmp_path, monkeypatch, read):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match=r"bomb.png says to have more than \d+ pixels.*: accepted are smaller"):
        read(tmp_path / "bomb.png")


# --------------------------------------------------------------------------- what is left out


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "good.png")
    return tmp_path


def notes_and_ids(folder):
    task = GaussianDenoise(25.0, images=str(folder))
    return task.notes(), [sample.id for sample in task.samples()]


def test_what_is_no_image_is_told_once(folder):
    for name in ("photo.HEIC", "other.heic", "notes.txt", "README", ".DS_Store", "._good.png"):
        (folder / name).write_text("no image")
    (folder / "more").mkdir()
    save(folder / "more" / "hidden.png")
    (note,), ids = notes_and_ids(folder)
    assert ids == ["good"]
    told = "1 in .txt (notes.txt), 2 in .heic (other.heic, photo.HEIC), 1 in a folder of its own (more)"
    for part in (*told.split("), "), "1 without an ending (README", "taken are images of this folder itself, png, "):
        assert part.removesuffix(")") in note
    assert "DS_Store" not in note


def test_a_folder_of_images_alone_has_nothing_to_tell(folder):
    assert notes_and_ids(folder) == ([], ["good"])


def test_a_pipe_a_socket_and_links_to_nowhere_are_left_out_and_not_opened(folder, monkeypatch):
    os.mkfifo(folder / "pipe.png")
    monkeypatch.chdir(folder)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        (folder / "nowhere.png").symlink_to(folder / "absent.png")
        (folder / "circle.png").symlink_to(folder / "circle.png")
        (folder / "folder.png").mkdir()
        (folder / "link.png").symlink_to(folder / "good.png")
        (note,), ids = notes_and_ids(folder)
    assert ids == ["good", "link"]
    assert "4 no regular file (circle.png, nowhere.png, pipe.png, …)" in note
    assert "1 in a folder of its own (folder.png)" in note


def test_a_folder_without_images_tells_what_it_holds(tmp_path):
    (tmp_path / "a.heic").touch()
    with pytest.raises(UserError, match=r"holds no image, but 1 in .heic \(a.heic\): accepted are .*png"):
        pictures(str(tmp_path))


def test_pairs_tell_what_is_left_out_too(tmp_path):
    for side in ("lq", "gt"):
        (tmp_path / side).mkdir()
        for name in ("a_x.png", "b_x.png", "stray.png"):
            save(tmp_path / side / name, PIXELS if name != "b_x.png" else PIXELS[:7, :9])
    (tmp_path / "gt" / "list.csv").touch()
    os.mkfifo(tmp_path / "lq" / "c_x.png")
    task = FolderPairs(str(tmp_path), degraded_name="{name}_x", clean_name="{name}_x")
    assert [sample.id for sample in task.samples()] == ["a"]
    others, unnamed, small = task.notes()
    assert "1 in .csv (list.csv), 1 no regular file (c_x.png)" in others
    assert "2 images are left out" in unnamed and "{name}_x" in unnamed and "stray.png" in unnamed
    assert "b is 9x7" in small


def test_both_sides_in_one_folder_leave_nothing_out(tmp_path):
    for name in ("a_real.jpg", "a_mean.jpg"):
        save(tmp_path / name)
    assert FolderPairs(str(tmp_path), ".", ".", "{name}_real", "{name}_mean").notes() == []


# --------------------------------------------------------------------------- names and folders


NAMES = {
    "latin-1": b"caf\xe9.png",
    "gbk": "\u98ce\u666f.png".encode("gbk"),
    "a control character": b"a\nb.png",
    "28 CJK characters": ("\u98ce" * 28).encode() + b".png",
    "a stem of 246 letters": b"a" * 246 + b".png",
    "a stem of 251 letters": b"a" * 251 + b".png",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_name_that_a_file_can_have(tmp_path, name):
    save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", os.path.join(os.fsencode(tmp_path), name))
    task = GaussianDenoise(25.0, images=str(tmp_path))
    (sample,) = task.samples()
    sample.id.encode()
    assert len(task.digest()) == 64 and task.notes() == []


FOLDERS = {
    "a name of 300 letters": lambda folder: folder / ("a" * 300),
    "links in circles": lambda folder: folder / "circle",
    "below a file": lambda folder: folder / "file" / "images",
    "no such home": lambda folder: "~nobody_of_this_name/images",
    "with a null": lambda folder: "a\0b",
}


@pytest.mark.parametrize("path", FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize("option", ["images", "root"])
def test_a_path_that_can_be_no_folder_is_refused(tmp_path, path, option):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").touch()
    value = str(path(tmp_path))
    with pytest.raises(UserError, match=f"^task.{option}=.* is no folder: accepted"):
        GaussianDenoise(25.0, images=value) if option == "images" else FolderPairs(value).sizes()


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs Linux's /proc")
def test_a_folder_of_the_system_holds_no_image():
    with pytest.raises(UserError, match="task.images=/proc holds no image"):
        pictures("/proc")
