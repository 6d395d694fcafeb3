"""Downloads against a server on this machine: whole and checked, or not there at all."""

import hashlib
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from twotower.data.download import fetch, md5_of, published_md5
from twotower.data.schema import DataError

CONTENT = bytes(range(256)) * 8192  # two chunks


@pytest.fixture
def host():
    """Base address of a server, and the answers it gives by path: body and promised length."""
    answers = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in answers:
                self.send_error(404)
                return
            body, length = answers[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()
    thread.join()


def md5(content):
    return hashlib.md5(content).hexdigest()


def refused(url, path, match, expected=None):
    with pytest.raises(DataError, match=match) as caught:
        fetch(url, path, md5=expected)
    assert "say data.archive=<file>" in str(caught.value)
    assert not path.parent.exists() or list(path.parent.iterdir()) == []


def test_a_file_with_the_given_md5_arrives_whole(host, tmp_path, caplog):
    base, answers = host
    answers["/a.zip"] = CONTENT, len(CONTENT)
    path = tmp_path / "new" / "a.zip"
    with caplog.at_level(logging.INFO):
        fetch(f"{base}/a.zip", path, md5=md5(CONTENT))
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["a.zip"]
    assert md5_of(path) == md5(CONTENT)
    assert f"Downloading {base}/a.zip" in caplog.text


@pytest.mark.parametrize("form", ["MD5 (a.zip) = {}\n", "{}  a.zip\n", "{}"])
def test_without_an_md5_the_published_one_counts(host, tmp_path, form, caplog):
    base, answers = host
    answers["/a.zip"] = CONTENT, len(CONTENT)
    text = form.format(md5(CONTENT).upper()).encode()
    answers["/a.zip.md5"] = text, len(text)
    with caplog.at_level(logging.INFO):
        fetch(f"{base}/a.zip", tmp_path / "a.zip", md5=None)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert f"Published MD5 of {base}/a.zip: {md5(CONTENT)}" in caplog.text


def test_another_md5_is_refused(host, tmp_path):
    base, answers = host
    answers["/a.zip"] = CONTENT, len(CONTENT)
    match = f"its MD5 is {md5(CONTENT)}, published is {'0' * 32}"
    refused(f"{base}/a.zip", tmp_path / "d" / "a.zip", match, "0" * 32)


def test_a_transfer_that_breaks_off_is_refused(host, tmp_path):
    base, answers = host
    answers["/a.zip"] = CONTENT[:1000], len(CONTENT)
    refused(f"{base}/a.zip", tmp_path / "d" / "a.zip", "cannot download .*1000", md5(CONTENT))


def test_an_interrupt_leaves_nothing_behind(host, tmp_path, monkeypatch):
    base, answers = host
    answers["/a.zip"] = CONTENT, len(CONTENT)

    class Interrupting:
        def update(self, data):
            raise KeyboardInterrupt

    monkeypatch.setattr("twotower.data.download.hashlib.md5", lambda **_: Interrupting())
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{base}/a.zip", tmp_path / "a.zip", md5="0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_refused(host, tmp_path):
    base, _ = host
    refused(f"{base}/a.zip", tmp_path / "a.zip", "cannot download .*/a.zip: .*404", "0" * 32)
    refused(f"{base}/a.zip", tmp_path / "a.zip", r"cannot download .*/a\.zip\.md5: .*404")


def test_a_host_that_cannot_be_reached_is_refused(host, tmp_path):
    refused("http://127.0.0.1:1/a.zip", tmp_path / "a.zip", "cannot download .*refused", "0" * 32)


def test_a_page_instead_of_an_md5_is_refused(host):
    base, answers = host
    page = b"<html>moved</html>"
    answers["/a.zip.md5"] = page, len(page)
    with pytest.raises(DataError, match="no MD5 in it, got '<html>moved</html>'"):
        published_md5(f"{base}/a.zip")
