"""The feature cache against the tower itself: equal features, one forward per image, and what makes it compute anew."""

import os
import pickle
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
from shrunken import shrunken_llava
from shrunken_vlbart import picture, small_vlbart
from torch.utils.data import DataLoader

from mmdora.errors import MmdoraError
from mmdora.families import family_of
from mmdora.models.vlbart.feature_cache import FeatureCache
from mmdora.models.vlbart.mapped_rows import INDEX, ROWS
from mmdora.records.images import FileRef, open_image
from mmdora.records.row import Row


@pytest.fixture(scope="module")
def model_and_processor():
    return small_vlbart("resnet", grid=2)


def row_with(name: str, images: list[FileRef]) -> Row:
    return {"id": name, "messages": [], "images": images, "features": None, "meta": {}}


@pytest.fixture
def images(tmp_path):
    """A root with 7 pictures, and rows of records about them: one twice, one row with two, one without."""
    root = tmp_path / "images"
    root.mkdir()
    for number in range(7):
        picture(number, side=60 + 8 * number).save(root / f"{number}.png")
    names = [["0.png"], ["1.png", "2.png"], [], ["0.png"], ["3.png"], ["4.png", "0.png"], ["5.png"], ["6.png"]]
    rows = [[FileRef(name, root) for name in row] for row in names]
    return root, [row_with(f"r{i}", row) for i, row in enumerate(rows)]


class Counted:
    """How many images a tower's forward has seen."""

    def __init__(self, tower):
        self.images = 0
        self.handle = tower.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.images += len(args[0] if args else kwargs["pixel_values"])


@torch.no_grad()
@pytest.mark.parametrize("workers", [0, 1])
def test_the_tower_runs_once_per_image_and_gives_the_same(model_and_processor, images, tmp_path, workers):
    model, processor = model_and_processor
    root, rows = images
    tower, counted = model.model.vision_tower, Counted(model.model.vision_tower)
    cache = FeatureCache.of(frozen(model), family_of(processor), tmp_path / "cache")
    tower.train()  # in which batch norms would mix the pictures of a batch
    assert cache.fill(rows, batch_size=3, workers=workers) == 7 == counted.images and tower.training
    tower.eval()
    assert cache.fill(rows, batch_size=3, workers=workers) == 0
    again = FeatureCache.of(model, family_of(processor), tmp_path / "cache")
    assert again.fill(rows) == 0 and counted.images == 7
    for number in range(7):
        batch = processor(text="a", images=open_image(FileRef(f"{number}.png", root)))
        expected = model.model.get_image_features(batch["pixel_values"])[0, 0]
        found = again.features(FileRef(f"{number}.png", root))
        assert found.shape == expected.shape == (4, tower.config.hidden_size) and found.dtype == torch.float32
        assert (found - expected).abs().max() < 2e-6 * expected.abs().max()  # other batches round otherwise
        assert (found - expected.roll(1, 0)).abs().max() > 0.05 * expected.abs().max()
    counted.handle.remove()


def frozen(model):
    return model.requires_grad_(False)


def one_row(root, name="0.png"):
    return [row_with("r", [FileRef(name, root)])]


def test_another_image_tower_or_preprocessing_is_computed_anew(images, tmp_path):
    model, processor = small_vlbart("resnet", grid=2)
    root, rows = images
    frozen(model)

    def filled():
        return FeatureCache.of(model, family_of(processor), tmp_path / "cache").fill(rows)

    assert (filled(), filled()) == (7, 0)
    (root / "0.png").write_bytes((root / "1.png").read_bytes())
    assert filled() == 0  # by content: known under another name
    image = picture(99)
    image.save(root / "0.bmp")  # bitmaps alike but for the last bytes
    rows.append(row_with("last", [FileRef("0.bmp", root)]))
    assert filled() == 1
    image.putpixel((image.width - 1, 0), (1, 2, 3))
    image.save(root / "0.bmp")
    assert filled() == 1
    picture(98).save(root / "0.png")
    assert filled() == 1
    processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert filled() == 8
    with torch.no_grad():
        model.model.vision_tower.visual.conv1.weight[0, 0, 0, 0] += 1e-3
    assert filled() == 8
    with torch.no_grad():
        next(b for name, b in model.model.vision_tower.named_buffers() if "running_var" in name)[0] *= 2
    assert filled() == 8
    model.to(torch.bfloat16)
    assert filled() == 8
    model.model.vision_tower.config.grid = 1
    assert (
        filled() == 8
        and FeatureCache.of(model, family_of(processor), tmp_path / "cache").features(FileRef("0.png", root)).shape[0]
        == 1
    )
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_bf16_towers_keep_bf16(images, tmp_path):
    model, processor = small_vlbart("vit")
    cache = FeatureCache.of(frozen(model).to(torch.bfloat16), family_of(processor), tmp_path / "cache")
    cache.fill(one_row(images[0]))
    pixels = processor(text="a", images=open_image(FileRef("0.png", images[0])))["pixel_values"].bfloat16()
    with torch.no_grad():
        expected = model.model.get_image_features(pixels)[0, 0]
    assert torch.equal(cache.features(FileRef("0.png", images[0])), expected) and expected.dtype == torch.bfloat16


def test_packed_images_of_one_name_are_told_apart(model_and_processor, images, tmp_path):
    model, processor = model_and_processor
    root = images[0]
    one, two = (FileRef("x.png", data=(root / f"{i}.png").read_bytes()) for i in range(2))
    cache = FeatureCache.of(frozen(model), family_of(processor), tmp_path / "cache")
    assert cache.fill([row_with("r", [one]), row_with("s", [two])]) == 2
    assert not torch.equal(cache.features(one), cache.features(two))
    assert cache.fill(one_row(root)) == 0  # the same bytes in a file


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_is_computed_anew_with_one_line(model_and_processor, images, tmp_path, damage):
    model, processor = model_and_processor
    root, rows = images
    cache = FeatureCache.of(frozen(model), family_of(processor), tmp_path / "cache")
    cache.fill(rows)
    before = cache.features(FileRef("0.png", root))
    with (cache.rows.folder / ROWS).open("r+b") as file:
        if damage == "flip":
            file.seek(10)
            file.write(bytes([file.read(1)[0] ^ 64]))
            file.seek(11)
            file.write(b"xyz")
        else:
            file.truncate(17)
    with pytest.raises(MmdoraError, match=r"0\.png: its features in .* are missing or damaged"):
        cache.features(FileRef("0.png", root))
    with pytest.warns(UserWarning, match=f"{1 if damage == 'flip' else 7} damaged features were computed anew") as told:
        assert cache.fill(rows) == (1 if damage == "flip" else 7)
    assert len(told) == 1
    torch.testing.assert_close(cache.features(FileRef("0.png", root)), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.fill(rows) == 0


def test_two_runs_fill_at_once_and_one_that_is_killed_is_taken_up(model_and_processor, images, tmp_path):
    model, processor = model_and_processor
    _, rows = images

    def fill(slow):
        cache = FeatureCache.of(frozen(model), family_of(processor), tmp_path / "cache")
        cache.tower.register_forward_pre_hook(lambda *args: time.sleep(slow))
        cache.fill(rows, batch_size=1)

    children = []
    for slow in (0.005, 0.0, 0.05):
        children.append(os.fork())
        if not children[-1]:
            try:
                fill(slow)
                os._exit(0)
            finally:
                os._exit(1)
    index = tmp_path / "cache"
    while not any(path.stat().st_size for path in index.glob(f"*/{INDEX}")):
        time.sleep(0.002)
    os.kill(children[2], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0, -signal.SIGKILL]
    cache = FeatureCache.of(model, family_of(processor), tmp_path / "cache")
    assert len(cache.rows) == 7 and cache.fill(rows) == 0
    assert (cache.rows.folder / ROWS).stat().st_size == 7 * cache.rows.row_bytes


class Reading:
    """A dataset of features, as a loader process reads them."""

    def __init__(self, cache, root):
        self.cache, self.root = cache, root

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return self.cache.features(FileRef(f"{index}.png", self.root))


def test_loader_processes_read_without_the_tower(model_and_processor, images, tmp_path):
    model, processor = model_and_processor
    root, rows = images
    cache = FeatureCache.of(frozen(model), family_of(processor), tmp_path / "cache")
    cache.fill(rows)
    for path in cache.rows.folder.iterdir():
        path.chmod(0o444)
    copied = pickle.loads(pickle.dumps(cache))  # as a loader that spawns its processes gets it
    assert copied.tower is None and len(pickle.dumps(cache)) < 10_000
    expected = torch.stack([copied.features(FileRef(f"{i}.png", root)) for i in range(7)])
    (found,) = DataLoader(Reading(cache, root), batch_size=7, num_workers=1)  # type: ignore[arg-type]
    assert torch.equal(found, expected) and expected.abs().max() > 0


def test_what_cannot_be_cached_is_refused(images, tmp_path):
    model, processor = small_vlbart("resnet")
    with pytest.raises(MmdoraError, match=r"data\.feature_cache: the tower trains \(.*visual\.conv1\.weight"):
        FeatureCache.of(model, family_of(processor), tmp_path / "cache")
    with pytest.raises(MmdoraError, match="LlavaForConditionalGeneration takes no features in place of pixels"):
        FeatureCache.of(frozen(shrunken_llava()), family_of(processor), tmp_path / "cache")
    towerless, texts = small_vlbart(None)
    with pytest.raises(MmdoraError, match="no image tower"):
        FeatureCache.of(towerless, family_of(texts), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    cache = FeatureCache.of(frozen(model), family_of(processor), tmp_path / "cache")
    (images[0] / "bad.png").write_bytes(b"no picture")
    with pytest.raises(MmdoraError, match=r"record r: image .*bad\.png: not an image of a known format"):
        cache.fill(one_row(images[0], "bad.png"))
    with pytest.raises(MmdoraError, match="missing or damaged"):
        cache.features(FileRef("0.png", images[0]))


def test_filling_leaves_the_random_numbers_alone(model_and_processor, images, tmp_path):
    model, processor = model_and_processor
    cache = FeatureCache.of(frozen(model), family_of(processor), tmp_path / "cache")
    before = torch.get_rng_state()
    cache.fill(images[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert Path(cache.rows.folder, "about.json").read_text().startswith("{")
