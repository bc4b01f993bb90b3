"""A contestant for the tests: answers every POST with what TEST_ANSWER says, and leaves a process behind.

python -m tests.bench_server
"""

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

from benchmarks.stages import Setup

SLEEPER = "import time; time.sleep(600)"


class Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = os.environ["TEST_ANSWER"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    if os.environ["TEST_ANSWER"] == "none":
        sys.exit("it has nothing to say")
    # In a session of its own, of a parent that ends at once: only by its id is it found again.
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True)"
    subprocess.run([sys.executable, "-c", orphan], check=True)
    HTTPServer(("127.0.0.1", Setup.read().port), Answering).serve_forever()
