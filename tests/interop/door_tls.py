"""Clients that others wrote, over the TLS listener and over HTTP on a Unix socket, as `forebay dev-cert` tells to set them up.

`tls-clients`: curl, Python's ssl and requests, Node.js, openssl, Java where it is there. Each posts one event and must be
answered 200 with the CA that it was given, and must refuse to speak without it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile

import agent as agents
import readback
import servers
import waiting

NODE = """
const https = require('https'), http = require('http');
const [url, socketPath, body] = process.argv.slice(1);
const options = {method: 'POST', headers: {'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body)}};
const request = socketPath ? http.request({...options, socketPath, path: '/ingest'}) : https.request(url, options);
request.on('response', (answer) => { answer.resume(); console.log(answer.statusCode); });
request.on('error', (error) => { console.log(error.code); process.exitCode = 1; });
request.end(body);
"""

URLLIB = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=30).status)
"""

URLLIB3 = """
import os, sys
import urllib3
pool = urllib3.PoolManager(ca_certs=os.environ.get("REQUESTS_CA_BUNDLE"), retries=False)
print(pool.request("POST", sys.argv[1], body=sys.argv[2].encode(), headers={"Content-Type": "application/json"}).status)
"""

JAVA = """
import java.net.URI;
import java.net.http.*;
public class Post {
    public static void main(String[] a) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(a[0])).header("Content-Type", "application/json")
            .POST(HttpRequest.BodyPublishers.ofString(a[1])).build();
        var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(answer.statusCode() + " " + answer.version());
    }
}
"""


def call(command, env=None):
    """The first line of what a client says, and whether it ended well."""
    done = subprocess.run(command, env={"PATH": os.environ["PATH"], **(env or {})}, capture_output=True, text=True, timeout=120)
    return (done.stdout.strip().splitlines() or [""])[0], done.returncode == 0


def run(server, report, log_dir):
    """One event a client."""
    stream = "tls-clients"
    server.create_stream(stream, 1)
    work = tempfile.mkdtemp(prefix="forebay-tls-")
    port, http_socket = waiting.free_port(), os.path.join(work, "http.sock")
    said = subprocess.run([agents.BINARY, "dev-cert", "--dir", work], check=True, capture_output=True, text=True).stdout
    ca = os.path.join(work, "ca.pem")
    env = {
        **servers.CREDENTIALS,
        "AWS_EC2_METADATA_DISABLED": "true",
        "FOREBAY_LISTEN__HTTPS": f"127.0.0.1:{port}",
        "FOREBAY_LISTEN__TLS_CERTIFICATE": os.path.join(work, "cert.pem"),
        "FOREBAY_LISTEN__TLS_KEY": os.path.join(work, "key.pem"),
        "FOREBAY_LISTEN__HTTP_SOCKET": http_socket,
    }
    agent = agents.Agent(stream, server.endpoint, "off", log_dir, env=env)
    url, sent = f"https://localhost:{port}/ingest", []

    def event(name):
        sent.append(name)
        return json.dumps({"user": name})

    try:
        curl = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code} %{http_version}\n", "-H", "Content-Type: application/json"]
        clients = [
            ("curl, HTTP/2", lambda body: [*curl, "--http2", "--data-binary", body, url], "SSL_CERT_FILE", "200 2"),
            ("curl, HTTP/1.1", lambda body: [*curl, "--http1.1", "--data-binary", body, url], "SSL_CERT_FILE", "200 1.1"),
            ("Python urllib", lambda body: [sys.executable, "-c", URLLIB, url, body], "SSL_CERT_FILE", "200"),
            ("Python urllib3", lambda body: [sys.executable, "-c", URLLIB3, url, body], "REQUESTS_CA_BUNDLE", "200"),
            ("Node.js", lambda body: ["node", "-e", NODE, url, "", body], "NODE_EXTRA_CA_CERTS", "200"),
        ]
        for name, command, variable, wanted in clients:
            report.check(f"tls: the lines of dev-cert name {variable}", lambda v=variable: [] if f"{v}={ca}" in said else [said])
            paths = {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
            report.equal(f"tls: {name} with {variable}", call(command(event(name)), {variable: ca, **paths}), (wanted, True))
            report.equal(f"tls: {name} without", call(command('{"user":"nobody"}'), paths)[1], False)
        java(report, work, ca, url, event)
        report.equal("http_socket: Node.js with socketPath", call(["node", "-e", NODE, "", http_socket, event("node-socket")]), ("200", True))
        unix = [*curl, "--unix-socket", http_socket, "--data-binary", event("curl-socket"), "http://any.host/ingest"]
        report.equal("http_socket: curl", call(unix), ("200 1.1", True))
        agent.wait_delivered(len(sent), 60)
        report.equal("tls: SIGTERM ends it with exit code 0", agent.stop(), 0)
        records = readback.read_stream(server.client, stream)
    finally:
        agent.clean()
        shutil.rmtree(work, ignore_errors=True)
    report.equal("tls: each event arrived once", sorted(json.loads(one.data)["user"] for one in records), sorted(sent))


def java(report, work, ca, url, event):
    """Java's own client, with a truststore made as dev-cert says."""
    if not (shutil.which("java") and shutil.which("keytool")):
        report.leave_out("tls: Java, which is not on this machine")
        return
    store = os.path.join(work, "forebay.p12")
    make = ["keytool", "-importcert", "-noprompt", "-alias", "forebay", "-file", ca, "-keystore", store, "-storepass", "changeit"]
    subprocess.run(make, check=True, capture_output=True)
    source = os.path.join(work, "Post.java")
    with open(source, "w", encoding="utf-8") as file:
        file.write(JAVA)
    trust = [f"-Djavax.net.ssl.trustStore={store}", "-Djavax.net.ssl.trustStorePassword=changeit"]
    report.equal("tls: Java with a truststore", call(["java", *trust, source, url, event("java")]), ("200 HTTP_2", True))
    report.equal("tls: Java without", call(["java", source, url, '{"user":"nobody"}'])[1], False)
