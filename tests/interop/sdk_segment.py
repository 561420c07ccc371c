"""Runs one of the Python SDKs that speak Segment's API: sdk_segment.py NAME URL KEY, with its packages in PYTHONPATH.

Reads calls as JSON, one a line: {"n": 7, "call": "track", "user": ..., ...}. Every call carries its number as context.n, and one with an
"id" has that as its messageId. Writes one line of JSON: the numbers of what the SDK said was delivered, and of what it gave up.
"""

import json
import sys
import threading
import time

NAME, URL, KEY = sys.argv[1:]
FAILED = set()
LOCK = threading.Lock()


def gave_up(_error, items):
    """What every one of these SDKs calls with a batch that it drops."""
    with LOCK:
        FAILED.update(item["context"]["n"] for item in items)


def client():
    """The SDK's client, pointed at the agent."""
    if NAME in ("segment-analytics-python", "analytics-python"):
        from segment.analytics.client import Client

        return Client(KEY, host=URL, on_error=gave_up, **({"gzip": True} if NAME == "segment-analytics-python" else {}))
    if NAME == "rudder-sdk-python":
        from rudderstack.analytics.client import Client

        return Client(KEY, host=URL, on_error=gave_up)
    from analytics import request
    from analytics.client import Client

    # It has no option for its host, only a constant in a function.
    request.post.__code__ = request.post.__code__.replace(
        co_consts=tuple(
            f"{URL}/v1/batch" if one == "https://api.astronomer.io/v1/batch" else one for one in request.post.__code__.co_consts
        )
    )
    return Client(KEY, on_error=gave_up)


def send(sdk, one):
    """One call."""
    ids = {"user_id": one.get("user"), "anonymous_id": one.get("anonymous")}
    context = {"context": {"n": one["n"]}, **({"message_id": one["id"]} if "id" in one else {})}
    call = one["call"]
    if call == "track":
        sdk.track(event=one["event"], properties=one["body"], **ids, **context)
    elif call == "identify":
        sdk.identify(traits=one["body"], **ids, **context)
    elif call == "group":
        sdk.group(group_id=one["group"], traits=one["body"], **ids, **context)
    elif call == "alias":
        sdk.alias(previous_id=one["previous"], user_id=one["user"], **context)
    else:
        getattr(sdk, call)(name=one["name"], properties=one["body"], **ids, **context)


def main():
    sdk = client()
    sent = []
    for line in sys.stdin:
        one = json.loads(line)
        sent.append(one["n"])
        try:
            send(sdk, one)
        except RuntimeError:
            # It refuses by itself what its service would not take.
            with LOCK:
                FAILED.add(one["n"])
        if one.get("pause"):
            time.sleep(one["pause"])
    sdk.flush()
    sdk.join()
    with LOCK:
        print(json.dumps({"delivered": [n for n in sent if n not in FAILED], "failed": sorted(FAILED)}))


main()
