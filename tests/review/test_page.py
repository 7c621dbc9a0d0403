"""The page of a review: who can open it, and a review by mouse and by keyboard in a real browser, with axe."""

import http.client
import json
from urllib.parse import urlsplit

import pytest

from alexnet.data.sources import open_source
from alexnet.data.sources.corrections import Decision, read_corrections
from alexnet.review.session import Case, Session, Topic

from .conftest import KINDS, served

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture
def address(review):
    with served(review) as url:
        yield url


def ask(address, path="", method="GET", body=None, **headers):
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=600)
    try:
        target = path if path.startswith("/") else parts.path + path
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def test_only_the_address_with_the_token_and_only_this_machine(address):
    status, headers, body = ask(address)
    assert status == 200 and b"<title>Review</title>" in body
    assert "default-src 'none'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer" and headers["x-content-type-options"] == "nosniff"
    for path in ("/", "/data.json", "/wrong-token/data.json", "/test-token", "/../test-token/data.json"):
        assert ask(address, path)[0] == (200 if path == "/test-token" else 404), path
    assert ask(address, "data.json", Host="evil.example")[0] == 403
    assert ask(address, "decisions", "POST", b"[]", Origin="http://evil.example", Sec_Fetch_Site="cross-site")[0] == 403


def test_images_and_wrong_requests(review, address):
    data = json.loads(ask(address, "data.json")[2])
    names = [image["origin"] for image in data["images"]]
    status, headers, body = ask(address, f"image/{names.index('cats/wrong.png')}")
    assert status == 200 and headers["content-type"] == "image/jpeg" and body[:2] == b"\xff\xd8"
    status, _, body = ask(address, f"image/{names.index('dogs/broken.png')}")
    assert status == 422 and "looks like HTML" in json.loads(body)["error"]
    assert ask(address, "image/999")[0] == 404 and ask(address, "image/x")[0] == 404
    for body in (b"", b"{", b"{}", b'[{"image": "0", "action": "keep"}]', b'[{"image": 0, "action": "drop"}]'):
        assert ask(address, "decisions", "POST", body)[0] == 422, body
    assert ask(address, "decisions")[0] == 405
    assert ask(address, "decisions", "POST", b"[" + b" " * (5 << 20) + b"]")[0] == 413
    assert not review.path.exists()
    status, _, body = ask(address, "decisions", "POST", b'[{"image": 0, "action": "exclude"}]')
    assert (status, json.loads(body)) == (200, {"decided": 1})
    review.path.write_text("other")
    status, _, body = ask(address, "decisions", "POST", b'[{"image": 0, "action": "keep"}]')
    assert status == 409 and "was changed by another program" in json.loads(body)["error"]


@pytest.fixture
def opened(browser, address):
    """(width, scheme) -> the page; nothing goes to another host, and no script fails."""
    pytest.importorskip("playwright")
    contexts, odd = [], []

    def open_page(size=DESKTOP, scheme="light"):
        context = browser.new_context(viewport=size, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(600_000)  # a busy machine
        own = (address, "data:")
        page.on("request", lambda request: None if request.url.startswith(own) else odd.append(request.url))
        page.on("pageerror", lambda error: odd.append(str(error)))
        page.on("console", lambda message: odd.append(message.text) if "Content Security" in message.text else None)
        page.goto(address)
        page.locator("#images img, #images .soft").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert odd == []


def violations(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(v["id"], [node["target"] for node in v["nodes"]]) for v in found]


def go_to(page, name):
    page.locator("#topics button", has_text=name).first.click()


def said(page, text):
    page.locator("#status", has_text=text).wait_for()


@pytest.mark.parametrize(("size", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")], ids=["phone", "desktop"])
def test_a_review_by_mouse(review, opened, size, scheme):
    page = opened(size, scheme)
    assert violations(page) == []
    go_to(page, "label-doubt")
    assert "cats/wrong.png" in page.locator("#images").inner_text()
    assert "Suggested: Relabel: dogs" in page.locator("#images").inner_text()
    page.locator("#actions button", has_text="Relabel: dogs").click()
    said(page, "Relabel: dogs: cats/wrong.png")
    assert read_corrections(review.path) == {"cats/wrong.png": Decision("relabel", "dogs", "cats")}
    go_to(page, "label-doubt")
    assert page.locator("#topics button[aria-current=true] .count").inner_text().startswith("1 /")
    page.locator("#actions button", has_text="Relabel").last.click()
    page.locator("#choices button", has_text="owls").click()
    said(page, "Relabel: owls")
    page.locator("#undo").click()
    said(page, "Undone")
    assert read_corrections(review.path)["cats/wrong.png"].label == "dogs"
    page.locator("#undo").click()
    page.locator("#undo:disabled").wait_for()
    assert read_corrections(review.path) == {}
    go_to(page, "unreadable")
    page.locator("#images", has_text="This image cannot be shown").wait_for()
    page.locator("#actions button", has_text="Exclude").last.click()
    said(page, "Exclude: dogs/broken.png")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    assert violations(page) == []


def test_a_review_by_keyboard_alone(review, opened):
    page = opened()
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.querySelector('span')?.textContent") != "label-doubt":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Enter")  # accept the suggestion
    said(page, "Relabel: dogs: cats/wrong.png")
    page.keyboard.press("u")
    said(page, "Undone")
    page.keyboard.press("r")
    page.keyboard.type("ow")
    page.keyboard.press("Enter")
    said(page, "Relabel: owls: cats/wrong.png")
    assert read_corrections(review.path)["cats/wrong.png"] == Decision("relabel", "owls", "cats")
    page.keyboard.press("u")
    said(page, "Undone")
    page.keyboard.press("r")
    page.keyboard.press("Escape")
    page.keyboard.press("k")
    said(page, "Keep: cats/wrong.png")
    page.keyboard.press("u")
    said(page, "Undone")
    page.keyboard.press("x")
    said(page, "Exclude: cats/wrong.png")
    page.keyboard.press("u")
    said(page, "Undone")
    assert read_corrections(review.path) == {}
    before = page.locator("#topic-title").inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#topic-title").inner_text() != before
    page.keyboard.press("ArrowRight")
    assert page.locator("#topic-title").inner_text() == before
    assert violations(page) == []


def test_copies_are_decided_together(review, opened):
    page = opened()
    name = next(topic.name for topic in review.topics if topic.name in ("duplicate", "leak", "leak-validation"))
    go_to(page, name)
    assert page.locator("#images > li").count() == 2
    assert page.locator("#images .image").nth(1).get_attribute("aria-pressed") == "true", "it has a suggestion"
    page.keyboard.press("ArrowDown")
    assert page.locator("#images .image").nth(0).get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("x")
    said(page, "Exclude: owls/copy-")
    assert page.locator("#images .image").nth(0).get_attribute("aria-pressed") == "true", "the other copy is next"
    page.keyboard.press("k")
    said(page, "Keep: owls/copy-")
    assert sorted(one.action for one in read_corrections(review.path).values()) == ["exclude", "keep"]


def test_all_suggested_exclusions_at_once(review, opened, faulty_images):
    page = opened()
    cases = tuple(Case((image.origin,), "", {image.origin: Decision("exclude")}) for image in review.images)
    review.topics = [Topic("many", "warning", "many images", "", cases)]
    page.reload()
    page.locator("#exclude-all", has_text=f"Exclude all {len(cases)} that are suggested").click()
    said(page, f"{len(cases)} images excluded")
    assert len(read_corrections(review.path)) == len(cases)
    page.keyboard.press("u")
    said(page, "Undone")
    assert read_corrections(review.path) == {}


def test_unlabeled_images_get_a_label(browser, faulty_images, tmp_path):
    path, samples = tmp_path / "x.csv", open_source(faulty_images).splits["all"][:2]
    unlabeled = {image.origin: image for image in samples}
    cases = tuple(Case((origin,), "", {}, (("dogs", 0.6), ("owls", 0.3))) for origin in unlabeled)
    review = Session("new", KINDS, {}, unlabeled, [Topic("label-next", "note", "2 images", "", cases)], path)
    with served(review) as url:
        page = browser.new_page()
        page.set_default_timeout(600_000)  # a busy machine
        page.goto(url)
        page.locator("#images", has_text="no label").wait_for()
        assert page.locator("#actions button").all_inner_texts() == ["1 dogs 60.0 %", "2 owls 30.0 %", "R Other class"]
        for key in ("k", "x", "Enter", "3", "0"):  # these need a label, or a suggestion
            page.keyboard.press(key)
        page.locator("#actions button", has_text="owls").click()
        said(page, f"Label: owls: {samples[0].origin}")
        page.keyboard.press("r")
        page.keyboard.type("ca")
        page.keyboard.press("Enter")
        said(page, f"Label: cats: {samples[1].origin}")
        page.keyboard.press("u")
        said(page, "Undone")
        page.keyboard.press("1")
        said(page, f"Label: dogs: {samples[1].origin}")
        assert violations(page) == []
        page.close()
    labels = {samples[0].origin: Decision("add", "owls"), samples[1].origin: Decision("add", "dogs")}
    assert read_corrections(path) == labels


def test_a_server_that_is_gone_and_a_file_that_was_changed(review, opened, address):
    page = opened()
    go_to(page, "blank")
    review.path.write_text("other")
    page.keyboard.press("x")
    page.locator("#problem", has_text="was changed by another program").wait_for()
    assert "Suggested: Exclude" in page.locator("#images").inner_text() and page.locator("#undo").is_disabled()
    page.context.set_offline(True)  # a handler that aborts the request once did not return
    page.keyboard.press("x")
    page.locator("#problem", has_text="the server does not respond").wait_for()
    assert violations(page) == []
