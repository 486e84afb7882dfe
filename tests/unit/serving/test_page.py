"""The page's files: all there, nothing inline, nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serving import page

FILES = sorted(path for path in (Path(page.__file__).parent / "web").iterdir())


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    app.include_router(page.page_router())
    return TestClient(app)


def test_the_page_and_every_file_it_names_are_served(client: TestClient) -> None:
    index = client.get("/")
    assert index.status_code == 200
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    named = set(re.findall(r'(?:href|src)="(/page/[^"]+)"', index.text))
    assert named == {"/page/app.js", "/page/icon.svg", "/page/style.css"}
    todo, done = list(named), set()
    while todo:
        address = todo.pop()
        answer = client.get(address)
        assert answer.status_code == 200, address
        done.add(address)
        imported = re.findall(r'^import .* from "\./([^"]+)";$', answer.text, re.MULTILINE)
        todo += [f"/page/{name}" for name in imported if f"/page/{name}" not in done]
    assert {path.name for path in FILES} == {address.rsplit("/", 1)[1] for address in done} | {"index.html"}


def test_only_the_pages_own_files_are_served(client: TestClient) -> None:
    for address in ("/page/none.js", "/page/..%2fpage.py", "/page/%2e%2e/page.py", "/page/"):
        assert client.get(address).status_code == 404, address


def test_the_policy_allows_nothing_inline_and_nobody_else(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "http" not in policy
    html = client.get("/").text
    assert not re.search(r'\sstyle="|<style|\son\w+="|<script(?![^>]*\ssrc=)', html)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_server(path: Path) -> None:
    addresses = re.findall(r"https?://[^\s\"'<>)]+", path.read_text())
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}
