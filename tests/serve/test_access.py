"""Who may send requests: names in the Host header, pages of other sites, CORS."""

import pytest

from .conftest import threaded

EVIL = "https://evil.example"
APP = "https://app.example.org"
ALL = ["/", "/page.js", "/metrics", "/v1/model", "/v1/filters.png", "/openapi.json", "/nothing"]


@pytest.fixture(scope="module")
def opened(saved_bundle):
    """A server with another name, and a site whose pages may send requests."""
    with threaded(saved_bundle, hosts=("images.example.org",), origins=(APP,)) as server:
        yield server


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", "", "["])
def test_another_name_in_host_is_refused(server, png, host):
    """A page of evil.example, pointed at 127.0.0.1 after it was loaded, would be of the same origin (DNS rebinding)."""
    host = host.format(port=server.port)
    for path in ALL:
        response = server.get(path, Host=host)
        assert response.status == 421 and "See --allow-host" in response.json["error"]
        assert response.headers["X-Request-ID"] == response.json["request_id"]
    assert server.post(png, Host=host).status == 421
    assert server.get("/healthz", Host=host).status == 200  # probes send what they like


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "localhost.", "127.0.0.1", "127.1.2.3:80", "[::1]:8000"])
def test_names_of_this_machine_are_accepted(server, png, host):
    assert server.post(png, Host=host).status == 200


def test_more_hosts(opened, saved_bundle, png):
    assert opened.post(png, Host="images.example.org").status == 200
    assert opened.post(png, Host="Images.Example.Org:443").status == 200
    assert opened.post(png, Host="other.example.org").status == 421
    with threaded(saved_bundle, hosts=None) as anywhere:  # not on loopback
        assert anywhere.post(png, Host="what.ever").status == 200


SENT_BY_OTHERS = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Origin": EVIL},
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Sec_Fetch_Site": "new-word"},
]


@pytest.mark.parametrize("headers", SENT_BY_OTHERS)
def test_pages_of_other_sites_are_refused(server, png, headers):
    before = server.counted("alexnet_images_total")
    response = server.post(png, Host="localhost", **headers)
    assert response.status == 403 and "See --allow-origin" in response.json["error"]
    assert "Access-Control-Allow-Origin" not in response.headers
    for path in ("/v1/model", "/v1/filters.png", "/metrics"):
        assert server.get(path, **headers).status == 403
    assert server.counted("alexnet_images_total") == before
    assert server.get("/", **headers).status == 200  # a link to the page is no harm


def test_its_own_page_and_programs_are_accepted(server, png):
    own = f"http://127.0.0.1:{server.port}"
    for headers in (
        {},
        {"Sec_Fetch_Site": "same-origin", "Origin": own},
        {"Sec_Fetch_Site": "none"},
        {"Origin": own},
    ):
        assert server.post(png, **headers).status == 200


def test_cors(opened, png):
    page = {"Sec_Fetch_Site": "cross-site", "Origin": APP}
    for response in (opened.post(png, **page), opened.post(b"", **page), opened.get("/v1/nothing", **page)):
        assert response.headers["Access-Control-Allow-Origin"] == APP  # on errors too: pages can read them
    assert opened.post(png, **page).status == 200
    assert "X-Request-ID" in response.headers["Access-Control-Expose-Headers"]
    preflight = {**page, "Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    headers = {key.replace("_", "-"): value for key, value in preflight.items()}
    response = opened.ask("OPTIONS", "/v1/predict", headers=headers)
    assert response.status == 200 and response.headers["Access-Control-Allow-Origin"] == APP
    assert opened.ask("OPTIONS", "/v1/predict", headers=headers | {"Origin": EVIL}).status == 403
    assert opened.post(png, Sec_Fetch_Site="cross-site", Origin=EVIL).status == 403
    assert opened.post(png, Origin="https://images.example.org", Host="127.0.0.1").status == 200  # behind a proxy


def test_cors_comes_with_keys(saved_bundle, png):
    """A preflight has no key; a rejection for want of one can be read by the page."""
    key = "0123456789abcdef"
    with threaded(saved_bundle, origins=("*",), keys=(key,)) as server:
        page = {"Sec-Fetch-Site": "cross-site", "Origin": EVIL}
        preflight = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
        assert server.ask("OPTIONS", "/v1/predict", headers=preflight).status == 200
        response = server.ask("POST", "/v1/predict", png, page | {"Content-Type": "image/png"})
        assert response.status == 401 and response.headers["Access-Control-Allow-Origin"] == "*"
        response = server.ask("POST", "/v1/predict", png, page | {"Content-Type": "image/png", "X-API-Key": key})
        assert response.status == 200
        assert server.post(png, Authorization=f"bearer {key}").status == 200
        assert server.post(png, Authorization=f"Basic {key}").status == 401
        assert server.post(png, Authorization=key).status == 401
