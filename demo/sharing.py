"""What is taken along from a conversation: a link, a file, and the conversation itself after a reload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from mmdora.demo import results
from mmdora.demo.cards import earlier_html
from mmdora.demo.kept import LINK_DAYS, Kept, Saved
from mmdora.demo.session import Session
from mmdora.demo.turns import AnswerSettings
from mmdora.demo.uploads import keep_pictures, upload_paths, without_paths
from mmdora.errors import MmdoraError
from mmdora.files import sha256
from mmdora.records.images import FileRef

KEPT = """() => {
  try {
    const made = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0"));
    if (!localStorage.getItem("mmdora")) localStorage.setItem("mmdora", made().join(""));
    const link = location.search, opened = !link || sessionStorage.getItem("mmdora-link") === link;
    sessionStorage.setItem("mmdora-link", link);
    return [localStorage.getItem("mmdora"), (opened && sessionStorage.getItem("mmdora")) || ""];
  } catch {
    return ["", ""];  // a browser that keeps nothing
  }
}"""
"""Gives the browser's own secret, by which it finds its conversations, and the name of this tab's conversation: none
where the address is a link that the tab has not opened yet."""
SECRET = 64  # Characters of a browser's secret that are read; it makes 32.


class Sharing:
    """Makes links and files of a conversation, and keeps it.

    Args:
        kinds: name of each model -> a line that describes the model.
        examples: the page's examples, in its folder of uploads.
        kept: where conversations are kept.
        listed: whether the visitor sees the list of earlier ones.
        session_of: gives the session of a request.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        examples: Sequence[tuple[Path, str]],
        kept: Kept,
        *,
        listed: bool,
        session_of: Callable[[gr.Request], Session],
    ):
        self.kinds, self.examples, self.kept, self.listed, self.session_of = kinds, examples, kept, listed, session_of
        self.digests = {sha256(path): number for number, (path, _) in enumerate(examples)}

    def save(self, request: gr.Request, secret: Any, image: Any, second: Any, *given: Any) -> tuple[str, str]:
        """Keep the conversation, for a reload; gives its name and the HTML of the list of earlier ones."""
        tab, owner = self.session_of(request), _owner(request, secret)
        tab.name = tab.name or Kept.new_name()
        try:
            pictures = tab.pictures if tab.turns else upload_paths(image, second)
            self.kept.save(tab.name, Saved(tuple(tab.turns), pictures, *_settings(given)), owner)
        except MmdoraError:  # Nobody asked for it to be kept; the conversation goes on without.
            return "", gr.skip()  # pyright: ignore[reportReturnType]
        return tab.name, self.earlier(owner)

    def earlier(self, owner: str) -> str:
        return earlier_html(self.kept.of(owner)) if self.listed else ""

    def opened(self, request: gr.Request, secret: Any, before: Any) -> tuple[list[Any], str, str]:
        """What a page shows when it is loaded: pictures, question and settings; a problem; the list of earlier ones.

        Args:
            before: name of the conversation that this browser tab had before a reload; empty if there was none, or if
                the address is a link that the tab has not opened yet.
        """
        query, owner = dict(request.query_params), _owner(request, secret)
        own = isinstance(before, str) and self.kept.owned(before, owner)
        nothing: list[Any] = [gr.skip()] * (4 + len(vars(AnswerSettings())))
        try:
            if own or "c" in query:
                values = self._replayed(self.session_of(request), before if own else query["c"])
                # Nobody but its visitor changes a conversation; to others it is a copy.
                self.session_of(request).name = before if own else ""
            elif query.keys() & {"q", "example", "blind", *results.KEYS}:
                question, settings, example, blind = results.from_link(query, len(self.examples))
                picture = gr.skip() if example is None else str(self.examples[example][0])
                values = [picture, gr.skip(), question, *vars(settings).values(), blind]
            else:
                values = nothing
            return values, "", self.earlier(owner)
        except MmdoraError as error:
            return nothing, without_paths(str(error)), self.earlier(owner)

    def _replayed(self, tab: Session, name: str) -> list[Any]:
        saved = self.kept.load(name)
        paths = keep_pictures([FileRef(path.name, path.parent) for path in saved.pictures])
        tab.turns, tab.pictures, tab.digests = list(saved.turns), tuple(paths), tuple(map(sha256, paths))
        first, second, *_ = (*map(str, paths), None, None)
        return [first, second, gr.skip(), *vars(saved.settings).values(), saved.blind]

    def link(self, request: gr.Request, question: Any, *given: Any) -> str:
        """The query of a link: to the whole conversation as it is now, or to a question that was not asked yet."""
        tab = self.session_of(request)
        try:
            settings, blind = _settings(given)
            if not tab.turns:
                return results.link(str(question), settings, self.example(tab), blind=blind)
            name = Kept.new_name()
            self.kept.save(name, Saved(tuple(tab.turns), tab.pictures, settings, blind), "", LINK_DAYS)
            return f"?c={name}"
        except MmdoraError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def take(self, form: Callable[..., str]) -> Callable[[gr.Request], str]:
        """A function that writes the conversation of a request in a form."""

        def take(request: gr.Request) -> str:
            tab = self.session_of(request)
            known = {"sha256": ", ".join(tab.digests)}
            if (example := self.example(tab)) is not None:
                known = {"example": str(example + 1), **known}
            return form(tab.turns, self.kinds, known)

        return take

    def example(self, tab: Session) -> int | None:
        """The number of the example that the conversation is about; None if it is about anything else."""
        return self.digests.get(tab.digests[0]) if len(tab.digests) == 1 else None


def _settings(given: Sequence[Any]) -> tuple[AnswerSettings, bool]:
    *values, blind = given
    return AnswerSettings(*values), blind is True


def _owner(request: gr.Request, secret: Any) -> str:
    """By what a visitor's conversations are found: the login, or else the secret that the browser made for itself."""
    if name := getattr(request, "username", None):
        return f"login {name}"
    return f"browser {secret[:SECRET]}" if isinstance(secret, str) and secret else f"tab {Kept.new_name()}"
