"""Chromium through its debugging protocol, for tests of the page."""

import base64
import itertools
import json
import re
import subprocess
import time
import urllib.request
from contextlib import ExitStack


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

    def picture(self):
        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

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
