"""From a run to an ordinary checkpoint: merge, write in the hub's layout, read back, compare.

Nothing appears at OUT before the written files were loaded by stock transformers and gave the
logits of the unmerged model.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from PIL import Image, ImageDraw
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from mmdora.config import RunConfig, load_config
from mmdora.data.images import open_image
from mmdora.data.prompt import encode, prompt_messages, render
from mmdora.data.records import read_records
from mmdora.errors import MmdoraError
from mmdora.injectors import merge, plan_of
from mmdora.layout import llama_cpp_commands, save_checkpoint
from mmdora.model_card import card
from mmdora.models.load import DTYPES, adapter_folder, load, resolve
from mmdora.predict import Prompt, generate

__all__ = ["Parity", "export", "llama_cpp_commands"]

Dtype = Literal["fp32", "bf16", "fp16"]
MAX_REL: dict[str, float] = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 2e-2}
TOP1 = 0.97
ROWS = 8
COPIED = (
    *("tokenizer*", "vocab*", "merges.txt", "*.model", "added_tokens.json", "special_tokens_map.json"),
    *("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"),
    *("chat_template.*", "additional_chat_templates/*.jinja", "generation_config.json", "LICENSE*"),
)
"""Files that no run changes: copied from the base byte for byte, since re-serialising breaks other loaders."""


@dataclass(frozen=True)
class Parity:
    """How far the written checkpoint is from the unmerged model, at the text positions of some rows.

    The files are loaded by stock transformers and run in fp32, so that what is measured is the merge
    and the one rounding to `dtype`, not the arithmetic of a device.
    """

    max_rel: float  # max|a - b| / max|b| of the logits, in the worst row
    top1: float  # share of positions with the same best token, where `dtype` can tell the best two apart
    rows: int
    dtype: str
    same_text: bool | None = None  # greedy answers equal; asked for in fp32 only
    source: str = "given rows"

    def check(self) -> None:
        """Raise `MmdoraError` if a bound does not hold (NaN never does)."""
        if not (self.max_rel <= MAX_REL[self.dtype] and self.top1 >= TOP1 and self.same_text is not False):
            raise MmdoraError(f"the merged model is not the trained one; nothing was exported: {self}")

    def __str__(self) -> str:
        text = {None: "", True: ", same greedy text", False: ", other greedy text"}[self.same_text]
        return (
            f"{self.dtype} on {self.rows} rows ({self.source}): max-rel {self.max_rel:.1e} "
            f"(at most {MAX_REL[self.dtype]:.0e}), top-1 agreement {self.top1:.1%} (at least {TOP1:.0%}){text}"
        )


def export(
    source: Path | str,
    out: Path | str,
    *,
    dtype: Dtype | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
    images_root: Path | str | None = None,
    scores: Mapping[str, Any] | None = None,
) -> Parity:
    """Write `source`, adapters merged, as an ordinary checkpoint to `out`.

    Args:
        source: run folder, adapter folder, or a plain checkpoint (folder, hub id, bundled name).
        out: a new or empty folder; written beside its final place and renamed when all holds.
        dtype: of the written weights; default that of the base. Merged in fp32, rounded once.
        rows: records to compare on, images below `images_root`; default some of the run's data, or
            drawn pictures.
        scores: name -> number (or text) for the model card.

    Raises:
        MmdoraError: if `out` is not empty, the disk is full, or the parity bounds do not hold.
    """
    out = Path(out)
    _check_free(out)
    model, processor = load(source)
    name = str(model.name_or_path)
    base = _base_folder(name)
    dtype = dtype or _dtype_of(base)
    config = _run_config(source)
    checks, origin = _checks(config, rows, images_root)
    plan = plan_of(model)
    reference = _outputs(model, processor, checks, text=dtype == "fp32")
    merged: Any = (merge(model) if plan else model).to(DTYPES[dtype])
    size = sum(parameter.numel() * parameter.element_size() for parameter in merged.parameters())
    with _beside(out, size) as folder:
        if (base / "generation_config.json").is_file():
            # The base's own file is copied; transformers refuses to write some that it reads (vicuna's).
            merged.generation_config = GenerationConfig()
        save_checkpoint(merged, folder)
        del model, merged
        gc.collect()
        for path in _copied(base):
            (folder / path.relative_to(base)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.relative_to(base))
        parity = _compare(reference, _outputs(*_reload(folder), checks, text=dtype == "fp32"), dtype, origin)
        parity.check()
        text = card(
            base,
            base_name=name,
            plan=plan,
            config=config,
            parity=parity,
            scores=scores,
            dtype=dtype,
            name=out.name,
        )
        (folder / "README.md").write_text(text, encoding="utf-8")
        _readable(folder)
    return parity


def _check_free(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise MmdoraError(f"{out}: is not a folder; export to a new or empty one")
    if out.is_dir() and any(out.iterdir()):
        raise MmdoraError(f"{out}: is not empty; export to a new or empty folder")


@contextmanager
def _beside(out: Path, size: int) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` on success and disappears otherwise."""
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise MmdoraError(f"{out}: the checkpoint needs {size:,} bytes, its disk has {free:,} left")
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        yield folder
        _check_free(out)
        if out.is_dir():
            out.rmdir()
        folder.rename(out)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MmdoraError(f"{out}: cannot write the checkpoint of {size:,} bytes: {reason}") from None
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _readable(folder: Path) -> None:
    """Ordinary permissions: temporary folders and safetensors files are made for their owner alone."""
    os.umask(mask := os.umask(0o077))
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _base_folder(base: str) -> Path:
    folder = Path(resolve(base))
    return folder if folder.is_dir() else Path(snapshot_download(base, allow_patterns=[*COPIED, "*.json", "README.md"]))


def _copied(base: Path) -> list[Path]:
    return sorted({path for pattern in COPIED for path in base.glob(pattern) if path.is_file()})


def _dtype_of(base: Path) -> Dtype:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    names: dict[str, Dtype] = {"bfloat16": "bf16", "float16": "fp16"}
    return names.get(config.get("dtype") or config.get("torch_dtype") or "", "fp32")


def _run_config(source: Path | str) -> RunConfig | None:
    """The config of a run, also when its adapter folder is given."""
    adapter = adapter_folder(source)
    path = adapter.parent / "config.yaml" if adapter else Path(source) / "config.yaml"
    return load_config(path) if path.is_file() else None


# --- what is compared, and how


@dataclass(frozen=True)
class _Outputs:
    logits: list[Tensor]  # per row [text positions, vocabulary], fp32 on the CPU
    ids: list[Tensor]  # per row [positions]
    texts: list[str] | None


def _checks(
    config: RunConfig | None, rows: Sequence[Mapping[str, Any]] | None, images_root: Path | str | None
) -> tuple[list[Prompt], str]:
    """Conversations with their images, and where they come from."""
    data = config.data if config else None
    path = data and next((path for path in (data.eval, data.train) if path and path.is_file()), None)
    if rows is not None:
        root, origin = Path(images_root or "."), "given rows"
    elif data and path:
        records = read_records(path, data.images)
        rows, root, origin = [records[i] for i in range(min(ROWS, len(records)))], records.root, f"of {path}"
    else:
        return [_drawn(i) for i in range(ROWS)], "drawn pictures"
    if not rows:
        raise MmdoraError("rows: no records to compare on; give at least one")
    return [Prompt(row["messages"], [open_image(name, root) for name in row["images"]]) for row in rows], origin


def _drawn(number: int) -> Prompt:
    """A picture of coloured boxes and a question about it, the same on every machine."""
    image = Image.new("RGB", (96, 96), (20 + 25 * number, 200 - 20 * number, 120))
    ImageDraw.Draw(image).rectangle((10 + 4 * number, 20, 60, 50 + 5 * number), (230 - 25 * number, 30 * number, 60))
    question = ("What is in the picture?", "What colour is the box?")[number % 2]
    return Prompt([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}], [image])


@torch.inference_mode()
def _outputs(model: Any, processor: Any, checks: list[Prompt], *, text: bool) -> _Outputs:
    """Logits one row at a time (no padding, little memory); greedy answers if `text`."""
    logits, ids = [], []
    for check in checks:
        asks = check.messages[-1]["role"] != "assistant"
        rendered = render(processor, check.messages, generation_prompt=asks)
        inputs = encode(processor, [rendered], [check.images], left=False).to(model.device)
        found = inputs["input_ids"][0]
        seen = found != getattr(processor, "image_token_id", -1)
        logits.append(model(**inputs, use_cache=False).logits[0, seen].float().cpu())
        ids.append(found.cpu())
    questions = [Prompt(_question(check), check.images) for check in checks]
    texts = generate(model, processor, questions, max_new_tokens=16, batch_size=1) if text else None
    return _Outputs(logits, ids, texts)


def _question(check: Prompt) -> list[dict[str, Any]]:
    asks = check.messages[-1]["role"] != "assistant"
    return check.messages if asks else prompt_messages({"messages": check.messages})


def _reload(folder: Path) -> tuple[Any, Any]:
    """The written checkpoint, by stock transformers.

    Raises:
        MmdoraError: if a tensor is missing, unexpected or of another shape.
    """
    opened: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, info = opened
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            first = ", ".join(map(str, sorted(info[kind])[:5]))
            raise MmdoraError(f"the written checkpoint does not load: {kind.replace('_', ' ')} {first}")
    return model.eval(), AutoProcessor.from_pretrained(folder)


def _compare(reference: _Outputs, written: _Outputs, dtype: str, source: str) -> Parity:
    if not all(torch.equal(a, b) for a, b in zip(reference.ids, written.ids, strict=True)):
        raise MmdoraError("the written processor gives other token ids than the base's")
    pairs = list(zip(written.logits, reference.logits, strict=True))
    same = torch.cat([(a.argmax(-1) == b.argmax(-1))[_decided(b, DTYPES[dtype])] for a, b in pairs])
    worst = torch.stack([(a - b).abs().max() / b.abs().max() for a, b in pairs]).max()
    text = None if reference.texts is None else reference.texts == written.texts
    return Parity(float(worst), float(same.float().mean()), len(pairs), dtype, text, source)


def _decided(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions [P] of logits [P, V] whose best two tokens are not a tie once rounded to `dtype`."""
    best = logits.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1] > torch.finfo(dtype).eps * best[:, 0].abs()
