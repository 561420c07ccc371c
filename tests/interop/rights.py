"""`forebay iam-policy` and `forebay check` against a real evaluator of policies: ministack's IAM, STS, KMS and Kinesis.

What `iam-policy` prints must be enough for `check` and for delivery; what `check` says is missing must, once added, be all
that was missing.
"""

import json
import os
import subprocess
import tempfile

import agent as agents
import cloud as clouds
import servers

SIMULATE = {"Effect": "Allow", "Action": "iam:SimulatePrincipalPolicy", "Resource": "*"}


def forebay(arguments, env):
    """Exit code, stdout, stderr of a command in an empty home."""
    with tempfile.TemporaryDirectory(prefix="forebay-") as home:
        given = {"PATH": os.environ["PATH"], "HOME": home, "FOREBAY_SPOOL__DIR": home, **env}
        done = subprocess.run([agents.BINARY, *arguments], env=given, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def least(stream, *flags, env=None):
    """The statements of `forebay iam-policy`; with an environment, as AWS tells account and key."""
    asked = ["--ask"] if env else ["--account", clouds.ACCOUNT]
    code, out, err = forebay(["iam-policy", "--stream", stream, "--region", servers.REGION, *asked, *flags], env or {})
    assert code == 0, err
    return json.loads(out)["Statement"]


def check(stream, env, *flags):
    """Exit code and the findings about the stream, by item."""
    code, out, err = forebay(["check", "--json", "--stream", stream, "--region", servers.REGION, *flags], env)
    assert out, err
    return code, {finding["about"]: finding for finding in json.loads(out)["sections"][1]["findings"]}


def outcomes(found, *wanted):
    """The findings whose outcome is none of these."""
    return [f"{about}: {one['outcome']}: {one['text']}" for about, one in found.items() if one["outcome"] not in wanted]


def run(cloud, report, _log_dir):
    """All of it."""
    stream = "rights"
    cloud.create_stream(stream, 2)
    user, env = cloud.user(*least(stream), SIMULATE)
    principal = f"arn:aws:iam::{clouds.ACCOUNT}:user/{user}"

    def green():
        code, found = check(stream, env)
        return outcomes(found, "ok") + ([] if code == 0 else [f"exit code {code}"]) + ([] if len(found) == 7 else [f"{list(found)}"])

    report.check("what iam-policy prints is enough for a green check", green)

    def mended_by_what_it_says(taken_away, about, wanted_code):
        """Takes actions away; the finding must name them; with its statement added all must be green again."""
        statements = json.loads(json.dumps(least(stream)))
        for statement in statements:
            statement["Action"] = [action for action in statement["Action"] if action not in taken_away]
        cloud.allow(user, *statements, SIMULATE)
        code, found = check(stream, env)
        remedies = [remedy for finding in found.values() for remedy in finding.get("remedies", [])]
        findings = [] if code == wanted_code else [f"exit code {code}"]
        findings += [] if found[about]["outcome"] != "ok" else [f"{about} is ok"]
        findings += [] if all(one["add_to"] == principal for one in remedies) else [f"add to {remedies}"]
        findings += [] if all(any(action in str(one["statement"]) for one in remedies) for action in taken_away) else [f"{remedies}"]
        cloud.allow(user, *statements, SIMULATE, *(one["statement"] for one in remedies))
        return findings + green()

    for taken_away, about, code in [
        (["kinesis:PutRecords"], "writing", 0),
        (["kinesis:PutRecords", "kinesis:PutRecord"], "writing", 1),
        (["kinesis:ListShards"], "shards", 0),
        (["kinesis:DescribeStreamSummary"], "stream", 0),
    ]:
        names = " and ".join(taken_away)
        report.check(f"without {names} check says so, and its statement mends it", lambda a=taken_away, b=about, c=code: mended_by_what_it_says(a, b, c))

    def without_simulation():
        cloud.allow(user, *least(stream))
        code, found = check(stream, env)
        return outcomes(found, "ok", "unknown") + ([] if (code, found["writing"]["outcome"]) == (0, "unknown") else [f"{code} {found}"])

    report.check("where IAM may not be asked, writing is not known, and nothing is red", without_simulation)

    def encrypted():
        key = cloud.of("kms").create_key()["KeyMetadata"]["Arn"]
        cloud.client.start_stream_encryption(StreamName=stream, EncryptionType="KMS", KeyId=key)
        cloud.wait_active(stream)
        cloud.allow(user, *least(stream), SIMULATE)
        _, before = check(stream, env)
        cloud.allow(user, *least(stream, "--kms-key", key), SIMULATE)
        code, after = check(stream, env)
        findings = [] if before["encryption"]["outcome"] == "warning" else [f"before: {before['encryption']}"]
        findings += [] if before["encryption"]["remedies"][0]["statement"]["Resource"] == [key] else [f"{before['encryption']}"]
        asked = least(stream, env=env)
        findings += [] if asked == least(stream, "--kms-key", key) else [f"--ask gives {asked}"]
        return findings + outcomes(after, "ok") + ([] if code == 0 else [f"exit code {code}"])

    report.check("an encrypted stream asks for its key, --kms-key grants it, and --ask finds it", encrypted)

    def wrong(variable, value, word):
        code, found = check(stream, {**env, variable: value})
        return [] if code == 1 and word in found["credentials"]["text"] else [f"exit code {code}: {found}"]

    report.check("a stream that is not there is told", lambda: wrong_stream(cloud, env, user))
    report.check("a wrong secret is told", lambda: wrong("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"))
    report.check("missing credentials are told", lambda: wrong("AWS_ACCESS_KEY_ID", "", "AWS_ACCESS_KEY_ID"))


def wrong_stream(cloud, env, user):
    """A name with two letters swapped, which the policy allows."""
    cloud.allow(user, *least("rihgts"), SIMULATE)
    code, found = check("rihgts", env)
    return [] if code == 1 and "does not exist" in found["stream"]["text"] else [f"exit code {code}: {found}"]
