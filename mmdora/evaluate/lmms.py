"""Lets lmms-eval (0.7) evaluate every model that `mmdora.load` opens. Install it apart, because it pins many packages.

lmms-eval finds it by this package's entry point in the group `lmms_eval.models`:

    pip install lmms-eval
    lmms-eval --model mmdora --model_args pretrained=runs/dora,dtype=bf16 --tasks pope --batch_size 16

Merged exports are ordinary checkpoints and do not need this: `--model llava_hf --model_args pretrained=EXPORT`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from lmms_eval.protocol import ChatMessages  # pyright: ignore[reportMissingImports]

from mmdora.errors import MmdoraError
from mmdora.evaluate.processes import processes
from mmdora.families import Prompt
from mmdora.models.load import load
from mmdora.predict.answers import generate

MAX_NEW_TOKENS = 1024  # The default for tasks that set no length, as in lmms-eval's own models.
MANIFEST = ModelManifest("mmdora", chat_class_path=f"{__name__}.MmdoraModel")


class MmdoraModel(lmms):
    """Gives greedy answers, in batches of similar length. Images may stand in any turn.

    Args:
        pretrained: bundled name, hub id, checkpoint, adapter or run folder.
        batch_size: questions per forward pass.
        dtype: "fp32", "bf16" or "fp16".
    """

    is_simple = False

    def __init__(self, pretrained: str, batch_size: int | str = 16, dtype: str = "fp32", device: str | None = None):
        super().__init__()
        state = processes()
        self._rank, self._world_size = state.process_index, state.num_processes
        self.device = state.device if device is None or state.num_processes > 1 else device
        self.batch_size = int(batch_size)
        self.model, self.processor = load(pretrained, dtype=dtype, device=self.device)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answer to each request, in the order of the requests.

        Raises:
            MmdoraError: if a request asks for sampling or beams, or holds a video or sound.
        """
        alike: defaultdict[str, list[int]] = defaultdict(list)  # settings of generation -> numbers of their requests
        for number, request in enumerate(requests):
            alike[json.dumps(request.args[2], sort_keys=True)].append(number)
        answers = [""] * len(requests)
        for settings, numbers in alike.items():
            options = json.loads(settings)
            if options.get("do_sample") or (options.get("temperature") or 0) > 0 or (options.get("num_beams") or 1) > 1:
                raise MmdoraError(f"mmdora answers lmms-eval greedily; it was asked for {settings}")
            texts = generate(
                self.model,
                self.processor,
                [self._prompt(*requests[number].args) for number in numbers],
                max_new_tokens=options.get("max_new_tokens") or MAX_NEW_TOKENS,
                batch_size=self.batch_size,
            )
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = _until(text, options.get("until"))
        return answers

    def _prompt(self, context: str, messages_of: Any, options: Any, number: int, task: str, split: str) -> Prompt:
        chat = ChatMessages(messages=messages_of(self.task_dict[task][split][number]))
        images, videos, sounds = chat.extract_media()
        if videos or sounds:
            raise MmdoraError(f"{task}: a video or sound in {number}; only text and images are answered")
        messages: list[Any] = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text} if part.type == "text" else {"type": "image"}
                    for part in message.content
                ],
            }
            for message in chat.messages
        ]
        return Prompt(messages, [image.convert("RGB") for image in images])

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("mmdora generates answers; tasks of loglikelihood are not supported")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("tasks of several rounds are not supported")


def _until(text: str, stops: str | list[str] | None) -> str:
    """The text before the first stop that occurs in it."""
    for stop in [stops] if isinstance(stops, str) else stops or []:
        if stop:
            text = text.split(stop)[0]
    return text
