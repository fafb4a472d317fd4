"""VL-BART in the Auto classes, whatever was imported first, and no cost before."""

import subprocess
import sys

import pytest
from shrunken_vlbart import small_vlbart
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from mmdora.models.open_clip.tower import OpenClipVisionModel
from mmdora.models.vlbart.config import VLBartConfig
from mmdora.models.vlbart.head import VLBartForConditionalGeneration
from mmdora.models.vlbart.processor import VLBartProcessor

LIGHT = "import mmdora, sys; assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules)"
USE = """
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
config = AutoConfig.from_pretrained(sys.argv[1])
assert type(config).__name__ == "VLBartConfig" and type(config.text_config).__name__ == "BartConfig"
assert AutoModelForImageTextToText.from_config(config).config is config
assert type(AutoProcessor.from_pretrained(sys.argv[1])).__name__ == "VLBartProcessor"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vlbart")
    for part in small_vlbart():
        part.save_pretrained(path)
    return str(path)


def test_registered_after_import_and_free_before(folder):
    # this import reaches the Auto classes from within transformers' own modules
    first = "from transformers import CLIPImageProcessor"
    run = subprocess.run([sys.executable, "-c", f"{LIGHT}\n{first}{USE}", folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_registered_if_transformers_came_first(folder):
    first = "import sys\nfrom transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor\nimport mmdora"
    run = subprocess.run([sys.executable, "-c", first + USE, folder], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_real_classes_come_out(folder):
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, VLBartConfig)
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is VLBartForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(folder)) is VLBartProcessor
    assert type(AutoModel.from_config(config.vision_config)) is OpenClipVisionModel
