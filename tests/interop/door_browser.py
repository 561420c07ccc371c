"""A real page in headless Chromium, from another origin than the agent's: what it may send arrives, a stranger's does not.

`browser`: one page of an origin that `listen.allowed_origins` names, one of an origin that it does not, both over plain HTTP
and over the TLS listener (HTTP/2). Each page tells what it saw to the server that it came from; whether anything of the
stranger arrived is told by the agent's account and the stream. Where the agent has the Segment door, analytics.js sends
`page`, `identify` and `track` besides.
"""

import base64
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
import urllib.parse

import agent as agents
import readback
import servers
import waiting

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ANALYTICS = os.path.join(servers.MODULES, "@segment", "analytics-next", "dist", "umd")
SECONDS = 120

# What both pages try. A preflight goes before the first and the third; the second needs none; the rest carry no Origin, but
# for the form.
TRIES = """
const agent = AGENT, who = WHO, told = {};
async function attempt(name, path, options) {
  try {
    const answer = await fetch(agent + path, options);
    told[name] = {status: answer.status, type: answer.type, body: (await answer.text()).slice(0, 200)};
  } catch (error) { told[name] = {error: error.name}; }
}
function loaded(element, name) {
  return new Promise((done) => {
    element.onload = () => { told[name] = 'load'; done(); };
    element.onerror = () => { told[name] = 'error'; done(); };
    document.body.append(element);
  });
}
function event(n) { return JSON.stringify({user: who, n, text: 'grün \\u{1F600}'}) }
async function tries() {
  const json = {'Content-Type': 'application/json', Authorization: 'Basic ' + btoa('key:'), 'X-Retry-Count': '1'};
  await attempt('json', '/ingest', {method: 'POST', headers: json, body: event(1)});
  await attempt('plain', '/ingest', {method: 'POST', headers: {'Content-Type': 'text/plain'}, body: event(2)});
  await attempt('nowhere', '/no/such/path', {method: 'POST', headers: json, body: event(3)});
  await attempt('opaque', '/ingest', {method: 'POST', mode: 'no-cors', body: new Blob([event(4)])});
  await attempt('credentials', '/ingest', {method: 'POST', credentials: 'include', headers: json, body: event(5)});
  told.beacon = navigator.sendBeacon(agent + '/ingest', new Blob([event(6)]));
  const image = document.createElement('img');
  image.src = agent + '/ingest?pixel';
  await loaded(image, 'image');
  const frame = document.createElement('iframe');
  frame.name = 'into';
  document.body.append(frame);
  const form = document.createElement('form');
  form.method = 'POST'; form.enctype = 'text/plain'; form.action = agent + '/ingest'; form.target = 'into';
  const field = document.createElement('input');
  field.name = '{"user":"' + who + '","n":7,"x":"'; field.value = '"}';
  form.append(field);
  document.body.append(form);
  const sent = new Promise((done) => { frame.onload = done; });
  form.submit();
  await sent;
}
tries().catch((error) => { told.failed = String(error); })
  .then(() => fetch('/told', {method: 'POST', body: JSON.stringify(told)}));
"""

SEGMENT = """
<script src="/umd/index.js"></script>
<script>
const told = {};
(async () => {
  const settings = {integrations: {'Segment.io': {apiKey: 'browser-key'}}};
  const [analytics] = await AnalyticsNext.AnalyticsBrowser.load(
    {writeKey: 'browser-key', cdnSettings: settings},
    {integrations: {'Segment.io': {apiHost: AGENT.split('//')[1] + '/v1', protocol: AGENT.split(':')[0]}}});
  told.page = (await analytics.page('Home')).event.messageId;
  told.identify = (await analytics.identify('user-1', {name: 'Zoë'})).event.messageId;
  for (let n = 0; n < 20; n++) told['track' + n] = (await analytics.track('Clicked', {n, text: 'grün'})).event.messageId;
})().catch((error) => { told.failed = String(error); })
  .then(() => fetch('/told', {method: 'POST', body: JSON.stringify(told)}));
</script>
"""


class Pages:
    """A web server of its own origin with one page, `body`, which posts to /told what it saw."""

    def __init__(self):
        self.body, self.told = "", None
        pages = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = os.path.basename(urllib.parse.urlsplit(self.path).path)
                if self.path.startswith("/umd/"):
                    self.answer(200, "text/javascript", open(os.path.join(ANALYTICS, name), "rb").read())
                elif name == "":
                    self.answer(200, "text/html; charset=utf-8", pages.body.encode())
                else:
                    self.answer(404, "text/plain", b"")

            def do_POST(self):
                pages.told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(200, "text/plain", b"")

            def answer(self, status, kind, text):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Another host name than the agent's, so that it is cross-site; loopback all the same.
        self.origin = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def page_of(script, agent, who):
    """A page with the tries."""
    script = script.replace("AGENT", json.dumps(agent)).replace("WHO", json.dumps(who))
    return f"<!doctype html><meta charset=utf-8><body><script>{script}</script></body>"


def look(browser, pages, log_dir, name, flags=()):
    """Opens the page and waits for what it tells."""
    pages.told = None
    profile = tempfile.mkdtemp(prefix="forebay-browser-")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}", *flags]
    command += [pages.origin + "/"]
    child = waiting.Child("browser", command, os.path.join(log_dir, f"browser-{name}.log"), env={**os.environ, "HOME": profile})
    try:
        waiting.until(f"the page of {name} has told", lambda: child.check_alive() and pages.told is not None, SECONDS)
    finally:
        child.terminate(20)
        shutil.rmtree(profile, ignore_errors=True)
    return pages.told


def key_of(certificate):
    """The name by which Chromium can be told to take one certificate: SHA-256 of its public key."""
    public = subprocess.run(["openssl", "x509", "-in", certificate, "-pubkey", "-noout"], check=True, capture_output=True).stdout
    der = base64.b64decode("".join(public.decode().splitlines()[1:-1]))
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def run(server, report, log_dir):
    """Both pages over HTTP and TLS; then analytics.js, where it can be."""
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        report.leave_out("browser: no Chromium on this machine")
        return
    stream = "browser"
    server.create_stream(stream, 2)
    tls = tempfile.mkdtemp(prefix="forebay-tls-")
    subprocess.run([agents.BINARY, "dev-cert", "--dir", tls, "--force"], check=True, stdout=subprocess.DEVNULL)
    certificate, https_port = os.path.join(tls, "cert.pem"), waiting.free_port()
    own, foreign = Pages(), Pages()
    env = {
        **servers.CREDENTIALS,
        "AWS_EC2_METADATA_DISABLED": "true",
        "FOREBAY_LISTEN__ALLOWED_ORIGINS": own.origin,
        "FOREBAY_LISTEN__HTTPS": f"127.0.0.1:{https_port}",
        "FOREBAY_LISTEN__TLS_CERTIFICATE": certificate,
        "FOREBAY_LISTEN__TLS_KEY": os.path.join(tls, "key.pem"),
    }
    agent = agents.Agent(stream, server.endpoint, "off", log_dir, env=env)
    sent = []
    try:
        trust = [f"--ignore-certificate-errors-spki-list={key_of(certificate)}"]
        for scheme, address in (("http", f"http://127.0.0.1:{agent.http_port}"), ("https", f"https://127.0.0.1:{https_port}")):
            own.body, foreign.body = page_of(TRIES, address, f"own-{scheme}"), page_of(TRIES, address, f"foreign-{scheme}")
            judge_own(report, scheme, look(browser, own, log_dir, f"own-{scheme}", trust))
            judge_foreign(report, scheme, look(browser, foreign, log_dir, f"foreign-{scheme}", trust))
            # The one with a preflight, the blind one, the beacon. text/plain is no type of this door; nor is a form's.
            sent += [(f"own-{scheme}", n) for n in (1, 4, 6)]
        agent.wait_delivered(len(sent), 60)
        exit_code = agent.stop()
        records = readback.read_stream(server.client, stream)
    finally:
        own.close()
        foreign.close()
        agent.clean()
        shutil.rmtree(tls, ignore_errors=True)
    events = sorted((event["user"], event["n"], event["text"]) for event in (json.loads(one.data) for one in records))
    report.equal("browser: what the named page sent is in the stream, and nothing else", events, [(*one, "grün 😀") for one in sorted(sent)])
    report.equal("browser: SIGTERM ends it with exit code 0", exit_code, 0)
    analytics(server, report, log_dir, browser)


def judge_own(report, scheme, told):
    """A page that may send reads every answer, errors too."""
    name = f"browser, named page over {scheme}: "
    report.check(name + "it ran to its end", lambda: [told["failed"]] if "failed" in told else [])
    report.equal(name + "JSON with a preflight is accepted", (told["json"].get("status"), "accepted" in told["json"].get("body", "")), (200, True))
    report.equal(name + "an unknown type is refused, readably", told["plain"].get("status"), 415)
    report.equal(name + "an unknown path is refused, readably", told["nowhere"].get("status"), 404)
    report.equal(name + "credentials are never allowed", told["credentials"], {"error": "TypeError"})
    report.equal(name + "a beacon is queued", told["beacon"], True)


def judge_foreign(report, scheme, told):
    """A page that may not reads nothing; whether it could write is told by the stream."""
    name = f"browser, stranger's page over {scheme}: "
    report.check(name + "it ran to its end", lambda: [told["failed"]] if "failed" in told else [])
    for what in ("json", "plain", "nowhere", "credentials"):
        report.equal(name + f"{what} is kept from it", told[what], {"error": "TypeError"})
    report.equal(name + "its blind post tells it nothing", (told["opaque"].get("status"), told["opaque"].get("body")), (0, ""))
    report.equal(name + "its image is none", told["image"], "error")


def analytics(server, report, log_dir, browser):
    """analytics.js in a real page."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write('[[stream]]\nname = "x"\nregion = "eu-west-1"\n[[source]]\nname = "js"\nkind = "segment"\n')
        file.flush()
        known = subprocess.run([agents.BINARY, "config", "--config", file.name], capture_output=True).returncode == 0
    if not known:
        report.leave_out("browser: analytics.js, since this agent has no Segment door")
        return
    stream = "analytics-js"
    server.create_stream(stream, 2)
    pages = Pages()
    env = {**servers.CREDENTIALS, "AWS_EC2_METADATA_DISABLED": "true", "FOREBAY_LISTEN__ALLOWED_ORIGINS": pages.origin}
    more = f'\n[[source]]\nname = "js"\nkind = "segment"\nstream = "{stream}"\nkeys = ["browser-key"]\n'
    agent = agents.Agent(stream, server.endpoint, "off", log_dir, env=env, more=more)
    try:
        address = json.dumps(f"http://127.0.0.1:{agent.http_port}")
        pages.body = "<!doctype html><meta charset=utf-8><body>" + SEGMENT.replace("AGENT", address)
        told = look(browser, pages, log_dir, "analytics")
        report.check("browser, analytics.js: it ran to its end", lambda: [told["failed"]] if "failed" in told else [])
        agent.wait_delivered(len(told), 60)
        agent.stop()
        records = readback.read_stream(server.client, stream)
    finally:
        pages.close()
        agent.clean()
    arrived = sorted(json.loads(one.data)["messageId"] for one in records)
    report.equal("browser, analytics.js: page, identify and every track arrived once", arrived, sorted(told.values()))
