"""The comparison for everyone: `python app.py`, as a Hugging Face Space of the SDK Gradio or a container runs it."""

import os

from mmdora.demo.access import Access
from mmdora.demo.server import serve

MODELS = []  # One to four, as ["base=tiny-llava", "mine=adapter"]; none for the bundled base and its two adapters.
HOST = os.environ.get("SPACE_HOST", "localhost")  # The name under which browsers ask for the page; a Space sets it.

access = Access(
    host="0.0.0.0",
    port=int(os.environ.get("PORT", "7860")),
    insecure=True,  # Nobody logs in.
    allow_host=(HOST,),
    framed_by=("https://huggingface.co",),  # That site shows a Space in a frame.
)
serve(MODELS, access, shared_base=True)
