"""The page in a real browser: an upload, what goes wrong, two widths, whether everyone can use it; and its images.

    ALEXNET_PAGE_RUN=RUN ALEXNET_PAGE_IMAGE=image.jpg pytest tests/serve/test_page.py -k screenshots

writes docs/images/page-phone.png and page-desktop.png of that run; without both nothing is written.
"""

import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from alexnet.serve import service
from alexnet.serve.service import Settings

from .conftest import SECONDS, Threaded, threaded

pytest.importorskip("playwright")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
DOCS = Path(__file__).parents[2] / "docs" / "images"
PASTE_NOTHING = """() => document.body.dispatchEvent(
    new ClipboardEvent('paste', {clipboardData: new DataTransfer(), bubbles: true}))"""


@pytest.fixture
def opened(browser):
    """(server, width, scheme) -> its page; nothing may go to another host or fail on the page's own account."""
    contexts, odd = [], []

    def open_page(server, size=DESKTOP, scheme="light", wait=True):
        context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=size is PHONE)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.on("request", lambda request: odd.append(request.url) if not local(request.url, server) else None)
        page.on("pageerror", lambda error: odd.append(str(error)))
        page.on("console", lambda message: odd.append(message.text) if "Content Security" in message.text else None)
        page.goto(server.url + "/")
        if wait:
            page.locator("#model-summary", has_text="classes").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert odd == []


def local(url, server):
    return url.startswith((server.url + "/", "blob:", "data:"))


@pytest.fixture
def image(png, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(png)
    return path


def choose(page, path):
    page.locator("#file").set_input_files(path)


def violations(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(v["id"], [node["target"] for node in v["nodes"]]) for v in found]


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "light"), (DESKTOP, "dark")], ids=["phone", "desktop"])
def test_the_predictions_of_a_chosen_image_are_shown(server, opened, image, png, size, scheme):
    page = opened(server, size, scheme)
    assert violations(page) == []
    choose(page, image)
    page.locator("#result").wait_for()
    expected = server.post(png).json["predictions"][0]["top_k"]
    words = page.locator("#predictions li").all_inner_texts()
    assert len(words) == 5
    for text, prediction in zip(words, expected, strict=True):
        assert prediction["label"] in text and f"{100 * prediction['score']:.1f} %" in text
    bars = page.locator("#predictions .bar").evaluate_all(
        "bars => bars.map(b => b.offsetWidth / b.parentNode.offsetWidth)"
    )
    assert bars == pytest.approx([prediction["score"] for prediction in expected], abs=0.02)
    assert f"Best prediction: {expected[0]['label']}" in page.locator("#status").inner_text()
    assert page.locator("#problem").inner_text() == ""

    overlay = page.locator("#overlay")
    assert not overlay.is_visible()
    page.locator("#saliency").check()
    assert overlay.is_visible() and overlay.get_attribute("src").startswith("data:image/png;base64,")
    over, under = overlay.bounding_box(), page.locator("#image").bounding_box()
    assert over["width"] == pytest.approx(under["width"] * 24 / 32, rel=0.02)  # the view is 24 of 32 pixels
    assert over["x"] == pytest.approx(under["x"] + under["width"] / 8, abs=1.5)

    page.locator("summary").click()
    page.locator("#filters").wait_for()
    assert server.get("/v1/model").json["model_sha256"] in page.locator("#about").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    assert violations(page) == []


def test_hostile_class_names_are_text(cifar, opened, image, tmp_path):
    names = ["<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "$x^2$", "=1+1", "{{7*7}}", "x" * 10_000]
    names += [f"&lt;b&gt; {i}" for i in range(len(cifar.classes) - len(names))]
    path = replace(cifar, classes=tuple(names)).save(tmp_path / "bundle")
    with threaded(path) as server:
        page, dialogs = opened(server, PHONE), []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        choose(page, image)
        page.locator("#result").wait_for()
        page.locator("summary").click()
        page.locator("#filters").wait_for()
        expected = server.post(image.read_bytes()).json["predictions"][0]["top_k"]
        words = page.locator("#predictions li").all_inner_texts()
        assert all(one["label"][:60] in text for text, one in zip(words, expected, strict=True))
        assert page.evaluate("document.querySelectorAll('[onerror], [src=x], script:not([src])').length") == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
        assert dialogs == []


def test_by_keyboard_alone(server, opened, image):
    page = opened(server)
    page.on("filechooser", lambda chooser: chooser.set_files(image))
    page.wait_for_timeout(500)  # until the browser hands its choosers over
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
    page.keyboard.press("Enter")
    page.locator("#result").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "take-photo"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "saliency"
    page.keyboard.press("Space")
    assert page.locator("#overlay").is_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#card").evaluate("card => card.open")


def test_a_camera_a_drop_and_a_paste(server, opened, image, png):
    page = opened(server, PHONE)
    assert page.locator("#camera").get_attribute("capture") == "environment"
    page.locator("#camera").set_input_files(image)
    page.locator("#result").wait_for()
    give = """([bytes, kind]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'}));
      document.body.dispatchEvent(kind === 'drop' ? new DragEvent('drop', {dataTransfer: data, bubbles: true})
        : new ClipboardEvent('paste', {clipboardData: data, bubbles: true}));
    }"""
    for kind in ("drop", "paste"):
        with page.expect_response(lambda response: "/v1/predict" in response.url) as response:
            page.evaluate(give, [list(png), kind])
        assert response.value.status == 200
    page.evaluate(PASTE_NOTHING)
    assert "clipboard has no image" in problem(page)


def test_a_response_does_not_replace_a_newer_message(server, opened, image):
    page, held = opened(server), []
    page.route("**/v1/predict*", lambda route: held.append(route))
    choose(page, image)
    while not held:
        page.wait_for_timeout(20)
    page.evaluate(PASTE_NOTHING)
    assert "clipboard has no image" in problem(page)
    held[0].continue_()
    page.locator("#result").wait_for()
    assert "clipboard has no image" in page.locator("#problem").inner_text()
    assert "Best prediction" in page.locator("#status").inner_text()
    page.unroute("**/v1/predict*")
    choose(page, image)  # the next question wipes it out
    page.locator("#result").wait_for()
    assert page.locator("#problem").inner_text() == ""


def problem(page):
    page.locator("#problem:not(:empty)").wait_for()
    return page.locator("#problem").inner_text()


def test_what_goes_wrong_is_one_clear_sentence(server, opened, image, tmp_path):
    page = opened(server)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<!doctype html><p>not found</p>")
    choose(page, bad)
    assert re.fullmatch(r"(⚠ )?This cannot be used: bad\.png: looks like HTML, not an image; .*\.", problem(page))
    assert not page.locator("#result").is_visible()
    assert violations(page) == []
    huge = tmp_path / "huge.png"
    huge.write_bytes(b"\0" * 21_000_000)
    choose(page, huge)
    page.locator("#problem", has_text="This image is too large: 21.0 MB of at most 20 MB.").wait_for()
    choose(page, image)  # and the next good one is answered
    page.locator("#result").wait_for()
    assert page.locator("#problem").inner_text() == ""


def test_a_slow_response_says_so(saved_bundle, opened, image):
    with threaded(saved_bundle) as server:
        page = opened(server)
        go, engine = threading.Event(), server.service.engine
        real = engine.predict
        engine.predict = lambda *words: (go.wait(SECONDS), real(*words))[1]
        choose(page, image)
        page.locator("#status", has_text="Predicting").wait_for()
        page.locator("#status", has_text="Still waiting: the server is slow or busy").wait_for()
        go.set()
        page.locator("#result").wait_for()


def test_a_server_that_is_gone_or_busy(saved_bundle, opened, image):
    server = Threaded(Settings(saved_bundle))
    assert server.ready.wait(SECONDS)
    page = opened(server)
    server.service.admission.images = 64
    choose(page, image)
    assert re.search(r"The server is busy; try again in \d+ s\.", problem(page))
    server.service.admission.images = 0
    server.stop()
    choose(page, image)
    page.locator("#problem", has_text="The server does not respond; is it still running?").wait_for()


def test_a_page_opened_too_early_waits_for_the_model(saved_bundle, opened, image, monkeypatch):
    """Also with an image that was chosen meanwhile: nobody has to reload the page, and nothing is called busy."""
    go, real = threading.Event(), service.Engine.open
    monkeypatch.setattr(service.Engine, "open", lambda *words: (go.wait(SECONDS), real(*words))[1])
    server = Threaded(Settings(saved_bundle))
    try:
        page = opened(server, wait=False)
        page.locator("#status", has_text="The model is loading").wait_for()
        choose(page, image)
        page.wait_for_timeout(1500)  # it has asked again
        page.locator("#status", has_text="The model is loading").wait_for()
        assert page.locator("#problem").inner_text() == ""
        go.set()
        page.locator("#model-summary", has_text="10 classes").wait_for()
        page.locator("#result").wait_for()
        assert page.locator("#problem").inner_text() == ""
    finally:
        go.set()
        server.stop()


def test_unknown_and_a_key(saved_bundle, opened, image):
    key = "0123456789abcdef"
    with threaded(saved_bundle, confidence_threshold=1.0, keys=(key,)) as server:
        page = opened(server, PHONE, wait=False)
        assert "This server requires an API key." in problem(page)
        assert violations(page) == []
        page.locator("#key").fill("wrong wrong wrong")
        page.keyboard.press("Enter")
        page.locator("#problem", has_text="This key is not valid.").wait_for()
        page.locator("#key").fill(key)
        page.keyboard.press("Enter")
        page.locator("#model-summary", has_text="10 classes").wait_for()
        choose(page, image)
        page.locator("#abstained").wait_for()
        assert page.locator("#abstained").inner_text().startswith("Unknown. The best prediction has a score of ")
        assert page.locator("#predictions li").count() == 5
        assert violations(page) == []


def test_names_from_ood_are_text(cifar, opened, image, tmp_path):
    import dataclasses

    names = tuple(f"<img src=x onerror=alert({k})>" for k in range(10))
    dataclasses.replace(cifar, classes=names).save(tmp_path / "bundle")
    with threaded(tmp_path / "bundle") as server:
        page = opened(server)
        choose(page, image)
        page.locator("#result").wait_for()
        assert "<img src=x onerror=alert(" in page.locator("#predictions").inner_text()
        assert page.locator("#predictions img").count() == 0


def test_the_policy_forbids_other_hosts(server):
    policy = server.get("/").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy and "http" not in policy
    for path in ("/", "/page.css", "/page.js"):
        text = server.get(path).body.decode()
        assert not re.search(r"https?://|//[a-z]+\.|@import|style=|onclick", text), path


@pytest.mark.skipif("ALEXNET_PAGE_RUN" not in os.environ, reason="ALEXNET_PAGE_RUN and ALEXNET_PAGE_IMAGE are not set")
def test_screenshots_for_the_docs(opened):
    """The page as the docs show it, of a trained run."""
    with threaded(Path(os.environ["ALEXNET_PAGE_RUN"]), share_images=True) as server:
        for name, size, scheme in (("page-phone", PHONE, "dark"), ("page-desktop", DESKTOP, "light")):
            page = opened(server, size, scheme)
            choose(page, os.environ["ALEXNET_PAGE_IMAGE"])
            page.locator("#result").wait_for()
            page.locator("#saliency").check()
            if size is DESKTOP:
                page.locator("summary").click()
                page.locator("#filters").wait_for()
            page.wait_for_timeout(300)
            page.screenshot(path=DOCS / f"{name}.png", full_page=True)
