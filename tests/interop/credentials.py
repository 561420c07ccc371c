"""Where credentials come from, and what becomes of events when they end: the real agent against ministack with AUTH=true.

Each source gets a stream that its principal alone may write, so that events arrive only by those very credentials.
"""

import json
import os
import threading
import time

import agent as agents
import checks
import cloud as clouds
import readback
import rights
import servers
import waiting
import workload

DELIVERY_SECONDS = 60


def deliver(cloud, agent, name, count=60, stream=None):
    """Sends some events and waits until they are delivered; what is wrong with what arrived. For one stream, in all its runs."""
    client = workload.Lines(name, agent, count, 10)
    workload.run_all([client])
    expected, by_key = workload.expected_of([client])
    agent.wait_delivered(len(expected), DELIVERY_SECONDS, stream)
    return arrived(cloud, stream or agent.stream, expected, by_key)


def arrived(cloud, stream, expected, by_key):
    """Exactly these, in order."""
    events = readback.kcl_events(readback.read_stream(cloud.client, stream))
    return checks.exactly_once(expected, events) + checks.order_by_key(by_key, events)


def sources(cloud, report, log_dir):
    """Each place that AWS' tools look at."""
    for name, given in (
        ("environment", environment),
        ("profile", profile),
        ("web-identity", web_identity),
        ("container", container),
        ("instance", instance),
    ):
        stream = f"from-{name}"
        cloud.create_stream(stream, 2)

        def delivered(given=given, stream=stream, name=name):
            env, keys, closing = given(cloud, stream, log_dir)
            agent = agents.Agent(stream, cloud.endpoint, "off", log_dir, env=env, keys=keys)
            try:
                return deliver(cloud, agent, name)
            finally:
                agent.clean()
                closing()

        report.check(f"credentials from {name}: events arrive", delivered)


def nothing():
    """No server to close."""


def environment(cloud, stream, _log_dir):
    """AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
    return cloud.user(*rights.least(stream))[1], "", nothing


def profile(cloud, stream, log_dir):
    """A profile that assumes a role, by another profile with keys."""
    trust = {**clouds.trust_root(), "Condition": {"StringEquals": {"sts:ExternalId": "of-the-profile"}}}
    role = cloud.role("by-profile", trust, *rights.least(stream))
    _, keys = cloud.user({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role})
    path = os.path.join(log_dir, "aws-config")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"[profile events]\nrole_arn = {role}\nexternal_id = of-the-profile\nsource_profile = keys\n")
        file.write(f"[profile keys]\naws_access_key_id = {keys.pop('AWS_ACCESS_KEY_ID')}\n")
        file.write(f"aws_secret_access_key = {keys.pop('AWS_SECRET_ACCESS_KEY')}\n")
    return {**keys, "AWS_CONFIG_FILE": path}, 'profile = "events"', nothing


def web_identity(cloud, stream, log_dir):
    """A token file, as EKS mounts one for a service account (IRSA)."""
    provider = f"arn:aws:iam::{clouds.ACCOUNT}:oidc-provider/oidc.example.test/cluster"
    trust = {
        "Effect": "Allow",
        "Principal": {"Federated": provider},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {"StringEquals": {"oidc.example.test/cluster:sub": "system:serviceaccount:shop:web"}},
    }
    role = cloud.role("by-web-identity", trust, *rights.least(stream))
    claims = {"iss": "https://oidc.example.test/cluster", "sub": "system:serviceaccount:shop:web", "aud": "sts.amazonaws.com"}
    path = os.path.join(log_dir, "token")
    with open(path, "w", encoding="utf-8") as file:
        file.write(".".join(base64url(json.dumps(part)) for part in ({"alg": "none"}, claims)) + ".x")
    return clouds.environment(cloud, AWS_ROLE_ARN=role, AWS_WEB_IDENTITY_TOKEN_FILE=path), "", nothing


def base64url(text):
    """As tokens want it."""
    return readback.base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def container(cloud, stream, log_dir):
    """The agent of EKS Pod Identity, with its token in a file; that of ECS differs in the path only."""
    handout = machine(cloud, stream, "by-container", 900)
    path = os.path.join(log_dir, "pod-token")
    with open(path, "w", encoding="utf-8") as file:
        file.write(handout.TOKEN)
    return by_container(cloud, handout, path), "", handout.close


def by_container(cloud, handout, token_path):
    """The variables of a pod."""
    return clouds.environment(
        cloud, AWS_CONTAINER_CREDENTIALS_FULL_URI=handout.endpoint + "/v1/credentials", AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=token_path
    )


def instance(cloud, stream, _log_dir):
    """EC2's metadata service, version 2."""
    handout = machine(cloud, stream, "by-instance", 900)
    env = clouds.environment(cloud, AWS_EC2_METADATA_SERVICE_ENDPOINT=handout.endpoint)
    del env["AWS_EC2_METADATA_DISABLED"]
    return env, "", handout.close


def machine(cloud, stream, role_name, seconds):
    """A handout of a role's credentials, each for so long."""
    role = cloud.role(role_name, clouds.trust_root(), *rights.least(stream))
    _, keys = cloud.user({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role})
    sts = cloud.of("sts", keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"])
    return clouds.Handout(lambda: cloud.session(role, seconds, sts))


def external_ids(cloud, report, log_dir):
    """One agent, one role, a stream for each external id; a third stream brings a wrong one and harms nobody."""
    names = ["ids-one", "ids-two", "ids-wrong"]
    for stream in names:
        cloud.create_stream(stream, 1)
    trust = {**clouds.trust_root(), "Condition": {"StringEquals": {"sts:ExternalId": ["ids-one-id", "ids-two-id"]}}}
    role = cloud.role("by-external-id", trust, *[statement for stream in names for statement in rights.least(stream)])
    _, env = cloud.user({"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role})
    more = "".join(
        f'\n[[stream]]\nname = "{name}"\nregion = "{servers.REGION}"\nendpoint = "{cloud.endpoint}"\nrole_arn = "{role}"\n'
        f'external_id = "{name}-id"\n\n[[source]]\nname = "{name}"\nstream = "{name}"\npartition_key = ["/user"]\n'
        for name in names[1:]
    )
    keys = f'role_arn = "{role}"\nexternal_id = "ids-one-id"'
    agent = agents.Agent(names[0], cloud.endpoint, "off", log_dir, env=env, keys=keys, more=more)
    try:
        clients = {}
        for stream in names:
            client = workload.Lines(stream, agent, 60, 10)
            client.greeting_options = " source=" + ("web" if stream == names[0] else stream)
            clients[stream] = client
        clients[names[1]].bad_event = clients[names[2]].bad_event = lambda _number: None
        workload.run_all(clients.values())
        for stream in names[:2]:
            expected, by_key = workload.expected_of([clients[stream]])
            agent.wait_delivered(len(expected), DELIVERY_SECONDS, stream)
            report.check(f"{stream} arrives by its external id", lambda s=stream, e=expected, b=by_key: arrived(cloud, s, e, b))
        reason = waiting.until("the wrong id pauses its stream", lambda: agent.status("ids-wrong")["paused_reason"], 30)
        report.check("the wrong external id is told with the role", lambda: [] if role in reason and "external_id" in reason else [reason])
        report.equal("and its events wait", agent.status("ids-wrong")["account"]["pending"], 60)
    finally:
        agent.clean()


def elsewhere(cloud, report, log_dir):
    """One agent, three streams: its own region and account, another region, another account by a role and an external id."""
    home, region, account = "at-home", "in-another-region", "in-another-account"
    far = "us-east-1"
    owners = {
        home: cloud.client,
        region: cloud.of("kinesis", region=far),
        account: cloud.of("kinesis", key=clouds.OTHER_ACCOUNT),
    }
    for stream, client in owners.items():
        client.create_stream(StreamName=stream, ShardCount=1)

    def least(stream, *changes):
        text = json.dumps(rights.least(stream))
        for old, new in changes:
            text = text.replace(old, new)
        return json.loads(text)

    trust = {**clouds.trust_root(), "Condition": {"StringEquals": {"sts:ExternalId": "partner"}}}
    foreign = least(account, (clouds.ACCOUNT, clouds.OTHER_ACCOUNT))
    role = cloud.role("writer", trust, *foreign, account=clouds.OTHER_ACCOUNT)
    assume = {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": role}
    _, env = cloud.user(*least(home), *least(region, (servers.REGION, far)), assume)

    def table(stream, *lines):
        lines = "\n".join((f'endpoint = "{cloud.endpoint}"', *lines))
        source = f'[[source]]\nname = "{stream}"\nstream = "{stream}"\npartition_key = ["/user"]\n'
        return f'\n[[stream]]\nname = "{stream}"\n{lines}\n\n{source}'

    more = table(region, f'region = "{far}"')
    more += table(account, f'region = "{servers.REGION}"', f'role_arn = "{role}"', 'external_id = "partner"')
    agent = agents.Agent(home, cloud.endpoint, "off", log_dir, env=env, more=more)
    try:
        clients = {}
        for stream in owners:
            client = workload.Lines(stream, agent, 60, 10)
            client.greeting_options = " source=" + ("web" if stream == home else stream)
            # Lines that are no event are the default source's affair.
            client.bad_event = client.bad_event if stream == home else lambda _number: None
            clients[stream] = client
        workload.run_all(clients.values())
        for stream, owner in owners.items():
            expected, by_key = workload.expected_of([clients[stream]])
            agent.wait_delivered(len(expected), DELIVERY_SECONDS, stream)

            def wrong(stream=stream, owner=owner, expected=expected, by_key=by_key):
                events = readback.kcl_events(readback.read_stream(owner, stream))
                return checks.exactly_once(expected, events) + checks.order_by_key(by_key, events)

            report.check(f"the stream {stream} has its own events and no others", wrong)
    finally:
        agent.clean()


def expiry(cloud, report, log_dir):
    """Credentials that end while events flow: renewed in time; not renewed for a while; refused before their time."""
    stream = "expiry"
    cloud.create_stream(stream, 2)
    role = cloud.role("by-expiry", clouds.trust_root(), *rights.least(stream))
    state = {"seconds": 20, "told": None, "away": False}

    def give():
        if state["away"]:
            return None
        given = cloud.session(role, state["seconds"])
        return {**given, "Expiration": clouds.stamp(state["told"])} if state["told"] else given

    handout = clouds.Handout(give)
    path = os.path.join(log_dir, "expiry-token")
    with open(path, "w", encoding="utf-8") as file:
        file.write(handout.TOKEN)
    agent = agents.Agent(stream, cloud.endpoint, "off", log_dir, env=by_container(cloud, handout, path))
    expected, by_key, paused = {}, {}, set()
    stop = threading.Event()

    def watch():
        while not stop.wait(0.05):
            paused.add(agent.status()["paused_reason"])

    def send(seconds):
        # Names differ, so that no two events are the same.
        client = workload.Lines(f"expiry-{len(expected)}", agent, int(seconds * 20), 10, 20)
        workload.run_all([client])
        sent, keys = workload.expected_of([client])
        expected.update(sent)
        by_key.update(keys)

    def send_until(what, condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
            send(1)

    def send_until_asked(what):
        asked = handout.asked
        send_until(what, lambda: handout.asked > asked, 60)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        send(25)
        agent.wait_delivered(len(expected), DELIVERY_SECONDS)
        report.check("credentials of 20 s are renewed again and again", lambda: [] if handout.asked >= 3 else [f"asked {handout.asked} times"])
        report.equal("and delivery never pauses", paused, {""})

        # The next set holds for 30 s, and every renewal fails: the old one serves to its end, and then delivery waits.
        state.update(seconds=30)
        send_until_asked("the next set is taken")
        state.update(away=True)
        send_until_asked("a renewal fails")
        send(3)
        agent.wait_delivered(len(expected), 10)
        report.equal("while renewals fail the old credentials serve", paused, {""})
        send_until("delivery pauses at the end of the old ones", lambda: agent.status()["paused_reason"], 60)
        reason = agent.status()["paused_reason"]
        report.check("which is told", lambda: [] if "NoCredentials" in reason else [reason])
        state.update(away=False)
        agent.wait_delivered(len(expected), DELIVERY_SECONDS)

        # What is handed out claims an hour, and ends after 8 s: the service says so, and others are looked for at once.
        state.update(seconds=8, told=3600)
        send_until_asked("a set that ends too early is taken")
        taken = handout.asked
        send_until("it is refused", lambda: any("Expired" in one for one in paused), 60)
        state.update(seconds=900, told=None)
        send(2)
        agent.wait_delivered(len(expected), DELIVERY_SECONDS)
        report.check("credentials that are refused before their time are replaced", lambda: [] if handout.asked > taken else ["not asked again"])
        status = agent.status()
    finally:
        stop.set()
        watcher.join()
        agent.clean()
        handout.close()
    report.check("no event is lost, repeated or overtaken by all that", lambda: arrived(cloud, stream, expected, by_key))
    report.equal("nothing was sent twice", status["duplicated"], {})


def rotation(cloud, report, log_dir):
    """Keys in a shared file are replaced, and the old ones deleted, while the agent runs."""
    stream = "rotation"
    cloud.create_stream(stream, 1)
    user, env = cloud.user(*rights.least(stream))
    old, path = env.pop("AWS_ACCESS_KEY_ID"), os.path.join(log_dir, "aws-credentials")

    def write(key, secret):
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        os.replace(path + ".new", path)

    write(old, env.pop("AWS_SECRET_ACCESS_KEY"))
    agent = agents.Agent(stream, cloud.endpoint, "off", log_dir, env={**env, "AWS_SHARED_CREDENTIALS_FILE": path})
    try:
        first = workload.Lines("before", agent, 40, 10)
        workload.run_all([first])
        agent.wait_delivered(40, DELIVERY_SECONDS)
        fresh = cloud.of("iam").create_access_key(UserName=user)["AccessKey"]
        write(fresh["AccessKeyId"], fresh["SecretAccessKey"])
        cloud.of("iam").delete_access_key(UserName=user, AccessKeyId=old)
        second = workload.Lines("after", agent, 40, 10)
        workload.run_all([second])
        expected, by_key = workload.expected_of([first, second])
        agent.wait_delivered(80, DELIVERY_SECONDS)
        report.check("rotated keys are found without a restart", lambda: arrived(cloud, stream, expected, by_key))
    finally:
        agent.clean()


def endpoints(cloud, report, log_dir):
    """Proxies by environment, and the switches for FIPS and dual-stack endpoints, as the proxy sees them asked for."""
    stream = "by-proxy"
    cloud.create_stream(stream, 1)
    host, port = cloud.endpoint.removeprefix("http://").split(":")
    proxy = clouds.Proxy((host, int(port)))
    try:
        _, env = cloud.user(*rights.least(stream))
        agent = agents.Agent(stream, "http://kinesis.example.test", "off", log_dir, env={**env, "HTTP_PROXY": proxy.url})
        try:
            report.check("events arrive through HTTP_PROXY", lambda: deliver(cloud, agent, "by-proxy"))
        finally:
            agent.clean()
        report.equal("and only Kinesis was asked for", proxy.hosts, {"kinesis.example.test"})

        path = os.path.join(log_dir, "fips-token")
        with open(path, "w", encoding="utf-8") as file:
            file.write("a.b.c")
        keys = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "x"}
        token = {"AWS_ROLE_ARN": f"arn:aws:iam::{clouds.ACCOUNT}:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": path}
        fips, dual = {"AWS_USE_FIPS_ENDPOINT": "true"}, {"AWS_USE_DUALSTACK_ENDPOINT": "true"}
        for what, given, hosts in [
            ("no switch", keys, {"sts.us-east-2.amazonaws.com", "kinesis.us-east-2.amazonaws.com"}),
            ("FIPS", {**keys, **fips}, {"sts-fips.us-east-2.amazonaws.com", "kinesis-fips.us-east-2.amazonaws.com"}),
            ("dual stack", {**keys, **dual}, {"sts.us-east-2.api.aws", "kinesis.us-east-2.api.aws"}),
            ("FIPS and dual stack", {**keys, **fips, **dual}, {"sts-fips.us-east-2.api.aws", "kinesis-fips.us-east-2.api.aws"}),
            ("FIPS with a web identity", {**token, **fips}, {"sts-fips.us-east-2.amazonaws.com"}),
        ]:
            proxy.hosts.clear()
            env = {"HTTPS_PROXY": proxy.url, "AWS_EC2_METADATA_DISABLED": "true", **given}
            rights.forebay(["check", "--stream", "x", "--region", "us-east-2"], env)
            report.equal(f"with {what} the endpoints are right", proxy.hosts, {host + ":443" for host in hosts})
    finally:
        proxy.close()


ALL = {"sources": sources, "external-ids": external_ids, "elsewhere": elsewhere, "expiry": expiry, "rotation": rotation, "endpoints": endpoints}
