"""A real headless Chromium, driven over two pipes by its own protocol: no driver, no port, nothing but the standard library."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--disable-quic", "--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--hide-scrollbars", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
)  # fmt: skip
PATIENCE = 180.0  # seconds for one answer: the machine may be busy


class Browser:
    """One browser with one page. What the page complains of, asks for and opens is kept in `complaints`, `requests` and `dialogs`."""

    def __init__(self, profile):
        self.complaints, self.requests, self.dialogs = [], [], []
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        far = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]  # away from 3 and 4, where Chromium wants them
        command = [CHROMIUM, "--headless", "--remote-debugging-pipe", *QUIET, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{far[0]} 4>&{far[1]}', "bash", *command], pass_fds=far, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # fmt: skip
        for end in (theirs_in, theirs_out, *far):
            os.close(end)
        self.read, self.write, self.buffer, self.count, self.session = ours_in, ours_out, b"", 0, None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def close(self):
        try:
            self.session = None
            self.ask("Browser.close")
            self.process.wait(PATIENCE)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        finally:
            os.close(self.read)
            os.close(self.write)

    def open(self, path):
        """Loads a page and forgets what the page before it did."""
        self.complaints.clear()
        self.requests.clear()
        self.dialogs.clear()
        self.ask("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + PATIENCE
        while self.run("document.readyState") != "complete" or self.run("location.href") != path.as_uri():
            assert time.monotonic() < deadline, "the page does not load"
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def show(self, width=1280, dark=False, media="screen", height=900):
        """Sets the window's width in CSS pixels, light or dark, and screen or print."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def run(self, script):
        """The value of an expression in the page, as plain JSON; a promise is awaited."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, path, clip=None):
        """A PNG of the whole page, or of {"x", "y", "width", "height"}."""
        if clip is None:
            clip = {"x": 0, "y": 0} | {key: self.run(f"document.documentElement.scroll{key.title()}") for key in ("width", "height")}
        data = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip | {"scale": 1})["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self):
        return base64.b64decode(self.ask("Page.printToPDF", preferCSSPageSize=True)["data"])

    def ask(self, method, **params):
        number = self._send(method, params)
        deadline = time.monotonic() + PATIENCE
        while True:
            while b"\0" not in self.buffer:
                assert select.select([self.read], [], [], deadline - time.monotonic() if time.monotonic() < deadline else 0)[0], (
                    f"no answer to {method}"
                )
                part = os.read(self.read, 1 << 20)
                assert part, "the browser has ended"
                self.buffer += part
            line, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer)

    def _send(self, method, params):
        self.count += 1
        message = {"id": self.count, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        content = memoryview(json.dumps(message).encode() + b"\0")
        while content:
            content = content[os.write(self.write, content) :]
        return self.count

    def _note(self, event):
        name, params = event.get("method"), event.get("params", {})
        if name == "Runtime.consoleAPICalled":
            self.complaints.append(str([argument.get("value") for argument in params["args"]]))
        elif name == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])
        elif name == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif name == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif name == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
            self._send("Page.handleJavaScriptDialog", {"accept": True})  # an open one would stop the page; its answer is nobody's
