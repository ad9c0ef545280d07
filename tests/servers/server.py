"""A stateful server as such servers are: threads, processes, temporary files, semaphores; and what it may not do."""
import errno
import hashlib
import http.server
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import zlib

STATE = os.environ.get("TESTD_STATE", "/sandbox/state")
PORT = int(os.environ["TESTD_PORT"])
lock = threading.Lock()


def number(name, add=0):
    path = os.path.join(STATE, name)
    with lock:
        try:
            with open(path) as file:
                value = int(file.read())
        except FileNotFoundError:
            value = 0
        if add:
            value += add
            with tempfile.NamedTemporaryFile("w", dir=STATE, delete=False) as file:
                file.write(str(value))
                file.flush()
                os.fsync(file.fileno())
            os.replace(file.name, path)
        return value


def became(what):
    try:
        what()
        return 0
    except OSError as error:
        return errno.errorcode.get(error.errno, error.errno)


def write(path):
    with open(path, "w") as file:
        file.write("x")


def pool():
    with multiprocessing.Pool(2) as workers:
        assert workers.map(abs, [-1, -2]) == [1, 2]
        # They leave by themselves: a signal that comes just before a worker waits for its work is not felt until the next.
        workers.close()
        workers.join()


def tried():
    return {
        "may make temporary files": became(lambda: tempfile.TemporaryFile().write(b"x")),
        "may write its state": became(lambda: write(STATE + "/tried")),
        "may use semaphores": became(lambda: multiprocessing.Lock().acquire()),
        "may run workers": became(pool),
        "may run itself": became(lambda: subprocess.run([sys.executable, "-c", "import json"], check=True)),
        "may resolve localhost": became(lambda: socket.getaddrinfo("127.0.0.1", 80)),
        "may count processors": became(lambda: open("/proc/cpuinfo").read() and os.cpu_count()),
        "may hash and pack": became(lambda: hashlib.sha256(zlib.compress(os.urandom(64))).digest()),
        "change its program": became(lambda: write("/app/server")),
        "add to its program": became(lambda: write("/app/new")),
        "add to the library": became(lambda: write(os.path.dirname(os.__file__) + "/new.py")),
        "change the users": became(lambda: write("/etc/passwd")),
        "list the root": became(lambda: os.listdir("/")),
    }


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/incr":
            body = number("clicks", 1)
        elif self.path == "/tried":
            body = tried()
        elif self.path == "/healthz":
            body = "well"
        else:
            with open("/app/VERSION") as file:
                version = file.read().strip()
            body = {"version": version, "starts": starts, "pid": os.getpid(), "clicks": number("clicks")}
        body = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


starts = number("starts", 1)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
