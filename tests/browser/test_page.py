"""What a visitor does, in a real browser."""

import pytest
from browser.conftest import serving
from playwright.sync_api import expect

from mmdora.data_prep.easy_vqa import samples
from mmdora.demo import app, server
from mmdora.demo.access import Access
from mmdora.demo.hosts import Allowed
from mmdora.demo.inside import Inside
from mmdora.demo.turns import ModelColumn
from mmdora.demo.votes import Votes
from mmdora.predict.answers import Partial

PICTURE, QUESTION = samples(4)[3]
NAMES = ("base", "lora", "dora")


def test_ask_and_watch_every_column_answer(visit, url):
    tab = visit(url)
    settings(tab, "Max tokens", "60")
    # the page notes every state of the first column itself: asking from outside could miss them all
    tab.page.evaluate(
        """() => { window.seen = [];
        new MutationObserver(() => {
            const text = document.querySelector('.answer .text')?.innerText ?? '';
            if (text !== window.seen.at(-1)) window.seen.push(text);
        }).observe(document.body, {subtree: true, childList: true, characterData: true}); }"""
    )
    tab.ask(PICTURE, QUESTION)
    expect(tab.page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    expect(tab.cards("done")).to_have_count(3)
    texts = tab.texts()
    grown = [text for text in tab.page.evaluate("window.seen") if text and texts[0].startswith(text)]
    assert len(grown) > 2 and grown == sorted(grown, key=len), "the answer came at once"
    assert texts[0] == texts[1] == texts[2]
    for figures in tab.page.locator(".answer dl").all_inner_texts():
        _, first, _, rate, _, tokens = figures.split("\n")
        assert first.endswith(("ms", " s")) and int(rate) > 0 and tokens == "60"
    assert tab.page.locator(".answer h2").all_inner_texts() == ["base", "lora", "dora"]
    expect(tab.page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_columns_are_equal_and_side_by_side(visit, url):
    boxes = [card.bounding_box() for card in visit(url).page.locator(".answer").all()]
    assert len({box["y"] for box in boxes}) == len({round(box["width"]) for box in boxes}) == 1


def test_stop_ends_every_column_and_the_next_question_works(visit, url):
    tab = visit(url)
    settings(tab, "Max tokens", "1000")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("running")).to_have_count(1)
    tab.page.get_by_role("button", name="Stop", exact=True).click()
    _stopped(tab)
    before = tab.cards("done").count()  # On a busy machine a column can end by itself before the button is reached.
    settings(tab, "Max tokens", "5")
    expect(tab.page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
    tab.ask(None, QUESTION)
    expect(tab.cards("done")).to_have_count(before + 3)


def test_another_question_meanwhile_is_told_and_changes_nothing(visit, url):
    tab = visit(url)
    settings(tab, "Max tokens", "1000")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("running")).to_have_count(1)
    tab.ask(None, "and another one?")
    tab.page.get_by_text("still being answered").wait_for()
    expect(tab.page.locator(".asked")).to_have_text([QUESTION])
    tab.page.get_by_role("button", name="Stop", exact=True).click()
    _stopped(tab)


def test_clear_during_an_answer(visit, url):
    tab = visit(url)
    settings(tab, "Max tokens", "1000")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("running")).to_have_count(1)
    tab.page.get_by_role("button", name="Clear", exact=True).click()
    expect(tab.cards("idle")).to_have_count(3)
    expect(tab.page.get_by_label("Question", exact=True)).to_have_value("")
    expect(tab.page.locator(".picture img")).to_have_count(0)
    tab.page.wait_for_timeout(1_000)
    expect(tab.cards("idle")).to_have_count(3)
    settings(tab, "Max tokens", "3")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("done")).to_have_count(3)


def test_a_question_right_after_clear(visit, url):
    tab = visit(url)
    settings(tab, "Max tokens", "1000")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("running")).to_have_count(1)
    settings(tab, "Max tokens", "3")
    tab.page.get_by_role("button", name="Clear", exact=True).click()
    expect(tab.cards("idle")).to_have_count(3)
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("done")).to_have_count(3)
    expect(tab.page.get_by_role("button", name="Stop", exact=True)).to_be_disabled()


def test_a_question_without_a_picture_is_answered(visit, url):
    tab = visit(url)
    settings(tab, "Max tokens", "3")
    tab.ask(None, QUESTION)
    expect(tab.cards("done")).to_have_count(3)
    expect(tab.page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()


def test_a_file_that_is_no_picture_is_told(visit, url, tmp_path):
    tab = visit(url)
    (tmp_path / "x.png").write_text("no picture")
    tab.page.locator("input[type=file]").first.set_input_files(tmp_path / "x.png")
    tab.page.get_by_text("not an image of a known format").wait_for()  # at once, without a question
    expect(tab.page.locator(".picture img")).to_have_count(0)


def test_an_example_fills_picture_and_question(visit, url):
    tab = visit(url)
    tab.page.get_by_text(QUESTION).first.click()
    expect(tab.page.get_by_label("Question", exact=True)).to_have_value(QUESTION)
    tab.page.locator(".picture img").wait_for()
    settings(tab, "Max tokens", "5")
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    expect(tab.cards("done")).to_have_count(3)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_does_not_scroll_sideways(visit, url, dark):
    tab = visit(url, width=390, height=844, dark=dark)
    settings(tab, "Max tokens", "20")
    tab.ask(PICTURE, "long " * 100)
    expect(tab.cards("done")).to_have_count(3)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
    boxes = [card.bounding_box() for card in tab.page.locator(".answer").all()]
    assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"] and len({box["x"] for box in boxes}) == 1
    assert "·" not in tab.page.locator("footer").inner_text()  # it would stand alone


def test_markup_in_an_answer_stays_text(visit, free_port):
    nasty = '<img src=x onerror="document.title=1"><script>document.title=2</script>${document.title=3}{{title}}'
    names = ("<b>one</b>", "two")
    columns = [ModelColumn(n, "<i>kind</i>", "cpu", lambda *_, t=t: iter([Partial(t, 1, 0.1, None)])) for n, t in
               zip(names, (nasty, nasty + " <b>more</b>"), strict=True)]  # fmt: skip
    with server.upload_folder():
        page = app.Page(columns, [], Votes(names), Inside({"<u>x</u>": "tiny-llava"}))
        server.launch(page, Access(port=free_port), Allowed(), None)
        try:
            tab = visit(page.blocks.local_url)
            tab.ask(PICTURE, nasty)
            expect(tab.cards("done")).to_have_count(2)
            assert tab.texts() == [nasty, nasty + " <b>more</b>"]
            assert tab.page.locator(".answer mark").all_inner_texts() == ["<b>more</b>"]
            assert tab.page.locator(".answer h2").first.inner_text() == "<b>one</b>"
            assert tab.page.locator(".asked").inner_text() == nasty
            assert tab.page.title() == "mmdora"
        finally:
            page.blocks.close(verbose=False)


def test_escape_stops(visit, url):
    tab = visit(url)
    settings(tab, "Max tokens", "1000")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("running")).to_have_count(1)
    tab.page.keyboard.press("Escape")
    _stopped(tab)


def test_a_closed_tab_frees_the_models(visit, url):
    first = visit(url)
    settings(first, "Max tokens", "1000")
    first.ask(PICTURE, QUESTION)
    expect(first.cards("running")).to_have_count(1)
    first.page.close()
    second = visit(url)
    settings(second, "Max tokens", "5")
    second.ask(PICTURE, QUESTION)
    expect(second.cards("done")).to_have_count(3, timeout=20_000)


def test_several_turns_retry_and_edit(visit, url):
    tab = visit(url)
    settings(tab, "Max tokens", "8")
    tab.ask(PICTURE, "what shape is it?")
    expect(tab.page.get_by_role("button", name="Retry", exact=True)).to_be_enabled()
    first = tab.texts()
    tab.ask(None, "and where?")
    expect(tab.page.locator(".asked")).to_have_text(["and where?", "what shape is it?"])
    expect(tab.cards("done")).to_have_count(6)
    assert tab.texts()[3:] == first
    expect(tab.page.get_by_role("button", name="Retry", exact=True)).to_be_enabled()
    second = tab.texts()[:3]
    tab.page.get_by_role("button", name="Retry", exact=True).click()
    expect(tab.cards("done")).to_have_count(6)
    expect(tab.page.get_by_role("button", name="Edit", exact=True)).to_be_enabled()
    assert tab.texts() == [*second, *first]
    tab.page.get_by_role("button", name="Edit", exact=True).click()
    expect(tab.page.get_by_label("Question", exact=True)).to_have_value("and where?")
    expect(tab.page.locator(".asked")).to_have_text(["what shape is it?"])


def test_a_blind_vote_reveals_the_names(visit, tiny_llava, endless):
    models = {"base": tiny_llava, "endless": endless}  # A page of its own: the votes of the shared one are not ours.
    with serving(*(f"{name}={model}" for name, model in models.items())) as address:
        tab = visit(address)
        settings(tab, "Max tokens", "5")
        tab.page.get_by_label("Blind: hide the names until I vote").check()
        tab.ask(PICTURE, QUESTION)
        expect(tab.cards("done")).to_have_count(2)
        heads = tab.page.locator(".answer h2")
        expect(heads).to_have_text(["Model A", "Model B"])
        assert tab.page.locator(".answer dl").count() == 0
        first, second = tab.texts()
        assert first != second, "equal answers are a tie, whatever is clicked"
        tab.page.get_by_role("button", name="B is best", exact=True).click()
        expect(tab.page.locator(".turn .vote")).to_be_visible()
        assert sorted(heads.all_inner_texts()) == sorted(models)
        assert tab.page.locator(".turn .vote strong").inner_text() == heads.nth(1).inner_text()
        expect(tab.page.get_by_role("button", name="Tie", exact=True)).to_be_hidden()
        assert tab.page.locator(".tally th").all_inner_texts() == list(models)
        assert "ties (0)" in tab.page.locator(".tally").inner_text()
        tab.page.get_by_role("button", name="Take the vote back", exact=True).click()
        expect(tab.page.locator(".turn .vote")).to_have_count(0)
        assert sorted(heads.all_inner_texts()) == sorted(models), "what was seen stays seen"
        expect(tab.page.locator(".tally")).to_have_count(0)
        expect(tab.page.get_by_role("button", name="Take the vote back", exact=True)).to_be_hidden()


def test_a_link_repeats_a_comparison(visit, url):
    tab = visit(url)
    tab.page.locator(".examples button").nth(1).click()
    tab.page.locator(".picture img").wait_for()
    expect(tab.page.get_by_label("Question", exact=True)).to_have_value(samples(2)[1][1])
    settings(tab, "Max tokens", "6")
    tab.page.get_by_role("button", name="Ask", exact=True).click()
    expect(tab.cards("done")).to_have_count(3)
    expect(tab.page.get_by_role("button", name="Copy link")).to_be_visible()
    tab.page.on("dialog", lambda dialog: dialog.dismiss())
    tab.page.get_by_role("button", name="Copy link").click()
    tab.page.wait_for_url("**/?c=*")
    again = visit(tab.page.url)  # another browser: it has the picture and the answers, and asks on
    again.page.locator(".picture img").wait_for()
    expect(again.cards("done")).to_have_count(3)
    assert again.texts() == tab.texts()
    again.ask(None, "and where?")
    expect(again.cards("done")).to_have_count(6)


def test_a_bad_link_and_settings_that_make_none_are_told(visit, url):
    tab = visit(f"{url}?example=99")
    box = tab.page.get_by_label("Question", exact=True)
    expect(box).to_have_attribute("placeholder", "link: there is no example 99")
    settings(tab, "Max tokens", "3")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("done")).to_have_count(3)
    tab.page.locator("button.label-wrap", has_text="Settings").click()  # Asking has folded them.
    tab.page.get_by_label("Seed (the same for every model)").fill("")
    tab.page.get_by_role("button", name="Copy link").click()
    expect(tab.page.get_by_text("seed", exact=False).locator("visible=true").last).to_be_visible()
    assert "?q=" not in tab.page.url


def test_a_question_during_a_retry_leaves_it_stoppable(visit, url):
    tab = visit(url)
    settings(tab, "Max tokens", "3")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("done")).to_have_count(3)
    settings(tab, "Max tokens", "1000")
    tab.page.get_by_role("button", name="Retry", exact=True).click()
    expect(tab.cards("running")).to_have_count(1)
    tab.ask(None, "and now?")
    expect(tab.page.get_by_text("stop it first")).to_be_visible()
    expect(tab.page.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    tab.page.keyboard.press("Escape")
    _stopped(tab)


@pytest.mark.parametrize(("button", "name"), [("Markdown", "comparison.md"), ("JSON", "comparison.json")])
def test_results_can_be_taken_along(visit, url, button, name):
    tab = visit(url)
    settings(tab, "Max tokens", "4")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("done")).to_have_count(3)
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name=button, exact=True).click()
    assert download.value.suggested_filename == name
    text = download.value.path().read_text()
    assert QUESTION in text and all(answer in text for answer in tab.texts())


def test_every_control_has_a_name(visit, url):
    tab = visit(url)
    tab.page.locator("button.label-wrap", has_text="Settings").click()
    nameless = tab.page.evaluate(
        """() => [...document.querySelectorAll('button, input, textarea, img, a[href]')].filter((e) => {
        if (!e.checkVisibility() || e.type === 'file') return false;
        if (e.getAttribute('alt') === '' && e.closest('tr, button')?.innerText.trim()) return false;  // decorates
        const name = e.getAttribute('aria-label') || e.getAttribute('alt') || e.title || e.innerText || e.placeholder ||
            [...(e.labels ?? [])].map((l) => l.innerText).join('');
        return !name?.trim();
        }).map((e) => e.outerHTML.slice(0, 160))"""
    )
    assert nameless == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_our_own_text_has_contrast(visit, url, dark):
    tab = visit(url, dark=dark)
    settings(tab, "Max tokens", "4")
    tab.ask(PICTURE, QUESTION)
    expect(tab.cards("done")).to_have_count(3)
    low = tab.page.evaluate(
        """() => { const channels = (c) => c.match(/[\\d.]+/g).map(Number);
        const light = (c) => { const [r, g, b] = channels(c).slice(0, 3).map((v) => v / 255)
            .map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            return .2126 * r + .7152 * g + .0722 * b; };
        const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if ((channels(c)[3] ?? 1) > .99) return c; } return 'rgb(255, 255, 255)'; };
        return [...document.querySelectorAll('.title *, .note, .note *, .turn *')].filter((e) => e.checkVisibility() &&
            [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
            const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
            return [e.outerHTML.slice(0, 90), (a + .05) / (b + .05)]; }).filter(([, ratio]) => ratio < 4.5); }"""
    )
    assert low == []


def _stopped(tab):
    """No column goes on; on a slow machine the first may have ended its 1,000 tokens before."""
    for status in ("running", "waiting"):
        expect(tab.cards(status)).to_have_count(0)
    assert tab.cards("stopped").count() > 0


def settings(tab, label: str, value: str) -> None:
    box = tab.page.get_by_label(f"number input for {label}")
    if not box.is_visible():
        tab.page.locator("button.label-wrap", has_text="Settings").click()
        tab.page.wait_for_timeout(500)  # what is typed while Gradio still mounts is lost
    box.fill(value)
    box.press("Tab")
