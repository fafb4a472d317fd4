"""Every way a picture comes onto the page, besides the file dialog: dropped, pasted, and taken by a camera."""

import base64

import pytest
from browser.test_page import PICTURE
from playwright.sync_api import expect

# a file as the browser holds it, from base64
FILE = """(text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    window.file = new File([bytes], 'picture.png', {type: 'image/png'});
}"""
DROP = """() => {
    const data = new DataTransfer();
    data.items.add(window.file);
    const target = document.querySelector('.picture button');
    for (const kind of ['dragenter', 'dragover', 'drop'])
        target.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""
COPY = "() => navigator.clipboard.write([new ClipboardItem({'image/png': window.file})])"


@pytest.fixture
def page(chromium, url, executable_path):
    """A browser whose camera shows a pattern, and that may read the clipboard."""
    pretend = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    browser = chromium.browser_type.launch(executable_path=executable_path, args=pretend)
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write", "camera"])
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(url)
    page.get_by_role("button", name="Ask", exact=True).wait_for()
    page.wait_for_timeout(500)  # as in `visit`
    page.evaluate(FILE, base64.b64encode(PICTURE.read_bytes()).decode())
    yield page
    browser.close()


@pytest.mark.parametrize("way", ["dropped", "pasted", "taken"])
def test_a_picture_comes_onto_the_page(page, way):
    if way == "dropped":
        page.evaluate(DROP)
    elif way == "pasted":
        page.evaluate(COPY)
        page.get_by_role("button", name="Paste from clipboard").first.click()
    else:
        page.get_by_role("button", name="Capture from camera").first.click()
        page.get_by_text("Click to Access Webcam").first.click()
        page.wait_for_function("document.querySelector('video')?.videoWidth > 0")  # before, there is nothing to take
        page.get_by_role("button", name="capture photo").first.click()
    page.locator(".picture img").wait_for()
    page.get_by_label("Question", exact=True).fill("what is it?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".answer.running, .answer.done").first).to_be_visible()
    page.keyboard.press("Escape")
