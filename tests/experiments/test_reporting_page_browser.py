"""The pages in a headless Chromium: they fit a phone, ask for nothing, complain of nothing, and run no one's script."""

import base64
import fcntl
import json
import os
import select
import shutil
from pathlib import Path

import pytest
from matplotlib.image import imread

from experiments.reporting import page
from experiments.reporting.samples import Ad, Group, Listed, Passage, Piece, Prompt, Sample

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WATCHED = ("Network.requestWillBeSent", "Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
EVIL = (
    "<script>document.title = 'taken'</script><img src=http://example.com/x.png onerror=\"document.title = 'taken'\">"
)


class Browser:
    """Chromium over the pipe of its DevTools protocol: JSON messages, each with a zero byte behind it."""

    def __init__(self, profile):
        read_in, self.out, self.into, write_out = (
            fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (*os.pipe(), *os.pipe())
        )
        switches = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
        quiet = ("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe")
        actions = [(os.POSIX_SPAWN_DUP2, read_in, 3), (os.POSIX_SPAWN_DUP2, write_out, 4)]
        actions.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
        command = [CHROMIUM, *switches, *quiet, f"--user-data-dir={profile}"]
        self.pid = os.posix_spawn(CHROMIUM, command, os.environ, file_actions=actions)
        os.close(read_in)
        os.close(write_out)
        self.buffer, self.number, self.events, self.session = b"", 0, [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (found := self.message()).get("id") != self.number:
            self.events.append(found)
        assert "error" not in found, found
        return found["result"]

    def message(self):
        while b"\0" not in self.buffer:
            assert select.select([self.into], [], [], 60)[0], "Chromium does not answer"
            got = os.read(self.into, 1 << 20)
            assert got, "Chromium ended"
            self.buffer += got
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, path, *, width, dark):
        """Show a page; returns what `WATCHED` was told of meanwhile."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())
        return [(event["method"], event["params"]) for event in self.events if event.get("method") in WATCHED]

    def value(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return imread(path)

    def close(self):
        self.call("Browser.close")
        os.waitpid(self.pid, 0)
        os.close(self.out)
        os.close(self.into)


@pytest.fixture
def browser(tmp_path):
    started = Browser(tmp_path / "profile")
    yield started
    started.close()


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """The page of a study with everything on it and the index, full of names that would like to be markup."""
    claim = {"text": EVIL, "better": "b", "worse": "a", "on": "HR@8", "control": ["c", "a"], "verdict": "undecided"}
    difference = {"mean": 0.02, "low": -0.01, "high": 0.05, "p": 0.04, "p_holm": 0.08}
    claim |= {"source": "", "why": "so", "difference": difference, "control_difference": difference}
    claim |= {"paper_change": 0.3, "our_change": 0.1, "users_needed": None}
    stages = [{"stage": "sft", "name": "sft: main", "key": "k", "steps": 90, "tokens": 9, "seconds": 1.0}]
    (tmp_path / "sft" / "k").mkdir(parents=True)
    logged = "\n".join(json.dumps({"step": step, "train/loss": 9 / step, "valid/hr@8": step}) for step in range(1, 90))
    (tmp_path / "sft" / "k" / "metrics.jsonl").write_text(logged)
    columns = ["HR@1", "HR@4", "HR@8", "NDCG@4", "NDCG@8", "LTRR@4", "LTRR@8", "Diversity@8", "Value@8"]
    rows = [
        {"name": name, "control": name == "c", "system": "LEADRE", "overrides": []}
        | {"not_run": EVIL if name == "d" else None}
        | {"paper": dict.fromkeys(columns, 0.1), "mean": dict.fromkeys(columns, 0.2), "change": {}}
        | {"interval": {"HR@8": [0.1, 0.3]}}
        | {"runs": [{"seed": 0, "key": "k", "path": "scores/k", "scores": {"HR@8": 0.2}, "steps": 9, "tokens": 9}]}
        for name in "abcd"
    ]  # fmt: skip
    for row in rows:
        row["runs"][0]["stages"] = stages
    result = {
        "study": "figure",
        "title": "A figure",
        "question": EVIL,
        "command": "python -m x",
        "date": "2026-11-21T20:15:00Z",
    }
    result |= {"seeds": [0], "users": 9, "data": {"name": "d"}, "columns": columns, "compared": ["HR@8"], "rows": rows}
    result |= {"git": None, "dirty": False, "seconds": 1.0, "confidence": 0.95, "notes": []}
    result |= {"builds": {"asked": 4, "built": 2}}
    ads = [Ad(EVIL, "Games", ("a_1", "b_2")), Ad("w" * 200, "Games", ("a_1", "b_3"))]
    parts = [
        Passage(
            "head", 5, [Piece("text", "very-long-" * 30), Piece("soft", "<Learnable Token>"), Piece("ad", "<a>", EVIL)]
        )
    ]
    sample = Sample("u", ads[0], [Listed("a", ads, 1), Listed("b", ads[1:], None)], [Prompt(["a"], 5, 9, parts, 3)])
    monkeypatch.setattr(page, "read_groups", lambda sources, users_each: [Group(["a"], ["b"], 1, 1.0, [sample])])
    folder = tmp_path / "studies" / "figure" / "now"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result | {"claims": [claim]}))
    return page.write_page(folder, tmp_path), page.write_index(tmp_path / "studies")


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_the_pages_fit_a_wide_screen_and_a_phone_ask_for_nothing_and_complain_of_nothing(browser, pages, tmp_path):
    looks = {}
    for path in pages:
        for width, dark in ((1280, False), (390, True)):
            told = browser.open(path, width=width, dark=dark)
            assert [(what, about["request"]["url"]) for what, about in told] == [(WATCHED[0], path.as_uri())]
            assert browser.value("document.querySelectorAll('details').forEach(one => { one.open = true }), true")
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value("document.title") in {"A figure", "LEADRE: all studies"}
            assert browser.value("document.images.length + document.scripts.length") == 0
            looks[path.name, width] = picture = browser.screenshot(tmp_path / f"{path.stem}_{width}.png")
            assert picture.shape[:2] == (900, width)
            assert picture[..., :3].std() > 0.02  # something is on it
            assert (picture[..., :3].mean() < 0.5) == dark
    browser.open(pages[0], width=390, dark=False)
    wide_lines = browser.value("[...document.querySelectorAll('.plot .track')].every(one => one.clientWidth > 200)")
    assert wide_lines, "a plot is squeezed"
    ticks = browser.value("[...document.querySelectorAll('.up, .ticks span')].map(one => one.offsetHeight)")
    assert ticks
    assert max(ticks) < 24, "the label of a tick is broken"
    assert browser.value("document.querySelectorAll('polyline').length") == 8  # four rows, loss and validation
