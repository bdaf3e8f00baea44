"""ImageData and WindowData: no recordings of Caffe exist for them, so its formulas are the oracle."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from source_layers import make_layer, tops

from caffe_compat.errors import CaffeError, DataError

RNG = np.random.default_rng(0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Five PNG images of 9 x 8 pixels, image i filled with 10 * i in blue, and their list; label i + 100."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for i in range(5):
        image = np.zeros((9, 8, 3), np.uint8)
        image[..., 0] = 10 * i
        assert cv2.imwrite(f"images/{i}.png", image)
    (tmp_path / "list.txt").write_text("".join(f"{i}.png {i + 100}\n" for i in range(5)))
    return tmp_path


def image_data(settings: str = "", transform: str = "") -> str:
    return (f'layer {{ name: "im" type: "ImageData" top: "data" top: "label" transform_param {{ {transform} }} '
            f'image_data_param {{ source: "list.txt" root_folder: "images/" {settings} }} }}')


def test_images_in_order_and_wrapping(folder):
    layer = make_layer(image_data("batch_size: 3"))
    assert layer.shapes == [(3, 3, 9, 8), (3,)]
    for expected in ([0, 1, 2], [3, 4, 0], [1, 2, 3]):
        data, label = tops(layer)
        assert (label - 100).tolist() == expected
        assert (data[:, 0] == 10 * np.array(expected)[:, None, None]).all() and not data[:, 1:].any()


def test_grey_resized_transformed(folder):
    layer = make_layer(image_data("is_color: false new_height: 4 new_width: 6", "scale: 0.5 mean_value: 1 crop_size: "
                                                                                "3"))
    data, label = tops(layer)
    assert data.shape == (1, 1, 3, 3) and (data == -0.5).all() and label.tolist() == [100]


def test_shuffled_passes_resume(folder):
    layer = make_layer(image_data("batch_size: 2 shuffle: true", "mirror: true crop_size: 5"))
    batches = [tops(layer) for _ in range(3)]
    state = json.loads(json.dumps(layer.state()))
    batches += [tops(layer) for _ in range(7)]
    passes = np.concatenate([label for _, label in batches]).reshape(4, 5)
    assert (np.sort(passes) == np.arange(100, 105)).all()
    assert len({tuple(order) for order in passes.tolist()}) > 1
    other = make_layer(image_data("batch_size: 2 shuffle: true", "mirror: true crop_size: 5"), seed=7)
    other.load_state(state)
    for batch in batches[3:]:
        for found, expected in zip(tops(other), batch, strict=True):
            np.testing.assert_array_equal(found, expected)
    layer.rewind()
    np.testing.assert_array_equal(tops(layer)[1], batches[0][1])


def test_rand_skip_starts_at_one_of_the_first(folder):
    starts = {tops(make_layer(image_data("rand_skip: 3"), seed=seed))[1][0] - 100 for seed in range(20)}
    assert starts == {0, 1, 2}
    starts = {tops(make_layer(image_data("rand_skip: 1000"), seed=seed))[1][0] - 100 for seed in range(40)}
    assert starts == set(range(5))
    layer = make_layer(image_data("rand_skip: 3 batch_size: 4"), seed=3)
    first = tops(layer)[1].tolist()
    layer.rewind()
    assert tops(layer)[1].tolist() == first


@pytest.mark.parametrize(("text", "message"), [
    (image_data("new_height: 4"), "new_height is 4 and new_width is 0"),
    (image_data("batch_size: 0"), "batch_size is 0"),
    (image_data().replace("list.txt", "nowhere.txt"), "nowhere.txt: the list of images cannot be read"),
    (image_data().replace("images/", "images"), r"im .*image 0.png \(list.txt:1\): images0.png: the image cannot be "
                                                r"read"),
    (image_data(transform="crop_size: 10"), r"crop_size is 10, but image 0.png \(list.txt:1\) is only 9 x 8"),
])
def test_image_data_that_cannot_be(folder, text, message):
    with pytest.raises(CaffeError, match=message):
        make_layer(text)


def test_damaged_image_is_named_when_reached(folder):
    (folder / "images" / "3.png").write_bytes(b"no image")
    layer = make_layer(image_data("batch_size: 3"))
    tops(layer)
    with pytest.raises(DataError, match=r"im .*image 3.png \(list.txt:4\): images/3.png: OpenCV cannot decode"):
        tops(layer)


# -- WindowData -------------------------------------------------------------------------------------------------------

WINDOWS = """# 0
a.png
3
20
30
3
1 0.9 2 3 11 12
2 0.5 0 0 29 19
5 0.4 4 4 9 9
# 1
b.png
3 20 30
1
0 0.1 5 5 14 14
"""


@pytest.fixture
def windows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = {name: RNG.integers(1, 256, (20, 30, 3), dtype=np.uint8) for name in ("a.png", "b.png")}
    for name, image in images.items():
        assert cv2.imwrite(name, image)
    (tmp_path / "windows.txt").write_text(WINDOWS)
    return images


def window_data(settings: str = "", transform: str = "crop_size: 10") -> str:
    return (f'layer {{ name: "win" type: "WindowData" top: "data" top: "label" transform_param {{ {transform} }} '
            f'window_data_param '
            f'{{ source: "windows.txt" batch_size: 8 fg_threshold: 0.5 bg_threshold: 0.3 {settings} }} }}')


@pytest.mark.parametrize("cached", ["", "cache_images: true"])
def test_windows_background_first_then_objects(windows, cached):
    layer = make_layer(window_data(f"{cached} fg_fraction: 0.7 scale: 0.5"))
    assert layer.shapes == [(8, 3, 10, 10), (8,)]
    data, label = tops(layer)
    objects = {1: windows["a.png"][3:13, 2:12], 2: cv2.resize(windows["a.png"], (10, 10))}
    background = windows["b.png"][5:15, 5:15]
    assert label[:3].tolist() == [0, 0, 0] and set(label[3:].tolist()) <= {1, 2}
    for found, kind in zip(data, label, strict=True):
        expected = background if kind == 0 else objects[kind]
        np.testing.assert_array_equal(found, expected.transpose(2, 0, 1) * 0.5)


def test_windows_are_random_and_resume(windows):
    text = window_data("fg_fraction: 0.5", "crop_size: 10 mirror: true")
    layer = make_layer(text)
    first, state = tops(layer), layer.state()
    batches = [tops(layer) for _ in range(3)]
    assert any((batch[0] != first[0]).any() for batch in batches)
    other = make_layer(text, seed=5)
    other.load_state(json.loads(json.dumps(state)))
    for batch in batches:
        np.testing.assert_array_equal(tops(other)[0], batch[0])
    crop = windows["b.png"][5:15, 5:15].transpose(2, 0, 1)
    found = {item.tobytes() for batch in batches for item in batch[0][:4]}
    assert found == {crop.astype(np.float32).tobytes(), crop[..., ::-1].astype(np.float32).tobytes()}


def one_window(corners: str) -> str:
    return f"# 0 a.png 3 20 30 2 1 0.9 {corners} 0 0.1 {corners}"


def test_context_around_a_window(windows, tmp_path):
    """Corners 10 4 19 13 with 2 of 14 pixels of context: scale 14 / 10, half size 5, so 8..22 by 2..16, all inside."""
    (tmp_path / "windows.txt").write_text(one_window("10 4 19 13"))
    data, _ = tops(make_layer(window_data("context_pad: 2", "crop_size: 14")))
    expected = cv2.resize(windows["a.png"][2:17, 8:23], (14, 14)).transpose(2, 0, 1)
    np.testing.assert_array_equal(data, np.broadcast_to(expected, data.shape))


@pytest.mark.parametrize("mirror", [False, True])
def test_context_beyond_the_image_is_zero(windows, tmp_path, mirror):
    """Corners 0 0 9 9 with 4 of 16 pixels of context: scale 2, centre 5, half 5: -5..15, 21 pixels, 5 of them outside.

    Warped: 16 / 21 a pixel: round(5 * 16 / 21) = 4 rows and columns of padding, round(16 * 16 / 21) = 12 of the image.
    """
    (tmp_path / "windows.txt").write_text(one_window("0 0 9 9"))
    mean = 'mean_value: 7'
    data, _ = tops(make_layer(window_data("context_pad: 4", f"crop_size: 16 mirror: {str(mirror).lower()} {mean}")))
    warped = cv2.resize(windows["a.png"][:16, :16], (12, 12)).transpose(2, 0, 1) - np.float32(7)
    plain, flipped = np.zeros((2, 3, 16, 16), np.float32)
    plain[:, 4:, 4:] = warped
    flipped[:, 4:, :12] = warped[..., ::-1]
    allowed = [plain, flipped] if mirror else [plain]
    for found in data:
        assert any((found == expected).all() for expected in allowed)


def test_square_windows(windows, tmp_path):
    """Corners 5 8 14 11 are 10 wide and 4 high: made square about their centre 10 10: 5..15 by 5..15."""
    (tmp_path / "windows.txt").write_text(one_window("5 8 14 11"))
    data, _ = tops(make_layer(window_data('crop_mode: "square"', "crop_size: 11")))
    expected = windows["a.png"][5:16, 5:16].transpose(2, 0, 1)
    np.testing.assert_array_equal(data, np.broadcast_to(expected, data.shape))


def test_mean_file_is_cropped_at_its_middle(windows, tmp_path):
    from caffe_compat.tools.compute_image_mean import write_mean

    mean = RNG.standard_normal((3, 14, 14)).astype(np.float32)
    write_mean(tmp_path / "mean.binaryproto", mean)
    (tmp_path / "windows.txt").write_text(one_window("2 3 11 12"))
    data, _ = tops(make_layer(window_data("", 'crop_size: 10 mean_file: "mean.binaryproto"')))
    expected = windows["a.png"][3:13, 2:12].transpose(2, 0, 1).astype(np.float32) - mean[:, 2:12, 2:12]
    np.testing.assert_array_equal(data[0], expected)
    write_mean(tmp_path / "small.binaryproto", mean[:, :9, :9])
    with pytest.raises(DataError, match="small.binaryproto is too small"):
        make_layer(window_data("", 'crop_size: 10 mean_file: "small.binaryproto"'))


@pytest.mark.parametrize(("text", "message"), [
    ("", "windows.txt: has no foreground window"),
    ("# 0 a.png 3 20 30 1 1 0.9 0 0 9 9", "windows.txt: has no background window"),
    ("# 1 a.png 3 20 30 0", "windows.txt: image 0: found the index 1"),
    ("x", 'windows.txt: image 0: found "x" in place of "#"'),
    ("# 0 a.png 3 20 30 2 1 0.9 0 0", "windows.txt: image 0: the file ends within it"),
    ("# 0 a.png 3 20 thirty 2", "windows.txt: image 0: .*'thirty'"),
    ("# 0 a.png 3 20 30 1 0 0.9 0 0 9 9", "a foreground window has the class 0"),
])
def test_window_files_that_cannot_be_used(windows, tmp_path, text, message):
    (tmp_path / "windows.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        make_layer(window_data())


def test_windows_that_cannot_be_made(windows, tmp_path):
    with pytest.raises(CaffeError, match="crop_size is 0"):
        make_layer(window_data("", ""))
    with pytest.raises(CaffeError, match="crop_size is 10 and context_pad is 5"):
        make_layer(window_data("context_pad: 5"))
    (tmp_path / "windows.txt").unlink()
    with pytest.raises(DataError, match="windows.txt: the window file cannot be read"):
        make_layer(window_data())
    (tmp_path / "windows.txt").write_text(one_window("25 3 34 12"))
    with pytest.raises(DataError, match=r"win .*window \(25, 3, 34, 12\) of a.png .*leaves the image, which is 30 x "
                                        r"20"):
        tops(make_layer(window_data()))
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="a.png: the image cannot be read"):
        tops(make_layer(window_data()))
