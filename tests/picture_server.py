"""A web server with pages that a test gives it."""

import http.server
import threading
from contextlib import contextmanager


@contextmanager
def serving(pages, moved=None):
    """Serve pages (path -> bytes) and redirections (path -> URL), everything else as 404; give the server's URL."""
    moved = moved or {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content, lead = pages.get(self.path), moved.get(self.path)
            self.send_response(302 if lead else 404 if content is None else 200)
            if lead:
                self.send_header("Location", lead)
            self.end_headers()
            self.wfile.write(content or b"nothing")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
