"""Chromium through its debugging protocol, for tests of the page."""

import base64
import itertools
import json
import re
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from importlib.resources import files


class Browser:
    """Chromium through its debugging protocol: open a page, run script in it, take a picture."""

    FLAGS = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --window-size=1100,1400 --remote-debugging-port=0"
    )

    def __init__(self, url, folder):
        from websockets.sync.client import connect

        command = ["chromium", *self.FLAGS.split(), f"--user-data-dir={folder}", "about:blank"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self._process.stderr:
            if found := re.search(r"ws://([^/]+)/", line):
                break
        with urllib.request.urlopen(f"http://{found[1]}/json", timeout=60) as answer:
            [tab] = [tab for tab in json.load(answer) if tab["type"] == "page"]
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(connect(tab["webSocketDebuggerUrl"], max_size=None))
        self._numbers = itertools.count(1)
        self._call("Page.navigate", url=url)

    def run(self, script):
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        return result["result"].get("value")

    def wait_for(self, condition, timeout_seconds=90):
        deadline = time.monotonic() + timeout_seconds
        while not self.run(condition):
            assert time.monotonic() < deadline, f"{condition} did not come true"
            time.sleep(0.1)

    def shows(self, width, height=900, dark=False):
        """The size of what is looked at, and whether the reader likes it dark."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def violations(self):
        """What axe-core finds wrong for those who hear the page, or see it badly: [(rule, where)]."""
        self.run(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
        self.run("window.found = null; axe.run(document).then((found) => { window.found = found.violations; }); 0")
        self.wait_for("window.found !== null")
        rows = (
            "found.flatMap((rule) => rule.nodes.map((node) => [rule.id, node.target.join(' '), node.failureSummary]))"
        )
        return json.loads(self.run(f"JSON.stringify({rows})"))

    def picture(self, whole=True):
        """A PNG. whole: also what one would have to scroll to."""
        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def close(self):
        self._stack.close()
        self._process.terminate()
        self._process.wait()
        self._process.stderr.close()

    def _call(self, method, **parameters):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                return answer["result"]
