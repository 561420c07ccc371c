// Runs one of the Node SDKs that speak Segment's API: sdk_segment.cjs NAME URL KEY. As sdk_segment.py.
"use strict";
const readline = require("readline");
const [, , name, url, key] = process.argv;
const delivered = [];
const failed = [];
let open = 0;
let ended = false;

function client() {
  if (name === "@segment/analytics-node" || name === "@customerio/cdp-analytics-node") {
    const { Analytics } = require(name);
    return new Analytics({ writeKey: key, host: url, flushAt: 20, flushInterval: 200 });
  }
  if (name === "@rudderstack/rudder-sdk-node") {
    const Rudder = require(name);
    return new (Rudder.default || Rudder)(key, { dataPlaneUrl: url, flushAt: 20, flushInterval: 200, logLevel: "error" });
  }
  const Analytics = require(name);
  return new Analytics(key, { host: url, flushAt: 20, flushInterval: 200 });
}

const sdk = client();
// Without a listener an error would end the process.
if (typeof sdk.on === "function") sdk.on("error", () => {});

function finish() {
  if (!ended || open > 0) return;
  process.stdout.write(JSON.stringify({ delivered, failed }) + "\n", () => process.exit(0));
}

function send(one) {
  const message = { context: { n: one.n } };
  if (one.id !== undefined) message.messageId = one.id;
  if (one.user !== undefined) message.userId = one.user;
  if (one.anonymous !== undefined) message.anonymousId = one.anonymous;
  if (one.call === "track") Object.assign(message, { event: one.event, properties: one.body });
  else if (one.call === "identify") Object.assign(message, { traits: one.body });
  else if (one.call === "group") Object.assign(message, { groupId: one.group, traits: one.body });
  else if (one.call === "alias") message.previousId = one.previous;
  else Object.assign(message, { name: one.name, properties: one.body });
  open += 1;
  let told = false;
  sdk[one.call](message, (error) => {
    if (told) return;
    told = true;
    open -= 1;
    (error ? failed : delivered).push(one.n);
    finish();
  });
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin, crlfDelay: Infinity })) {
    const one = JSON.parse(line);
    send(one);
    // Callers of these libraries give them a turn of the event loop now and then.
    await new Promise((done) => setTimeout(done, (one.pause || 0) * 1000));
  }
  ended = true;
  if (typeof sdk.flush === "function") for (let n = 0; n < 3; n++) await Promise.resolve(sdk.flush()).catch(() => {});
  finish();
}

main();
