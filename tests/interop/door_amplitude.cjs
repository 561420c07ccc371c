// The drivers of Amplitude's two SDKs for Node (see door_amplitude.py): node door_amplitude.cjs SDK URL
const readline = require("node:readline");

const [sdk, url] = process.argv.slice(2);
let pending = 0;
const tell = (id, ok, sent) => process.stdout.write(JSON.stringify({ id, ok, sent }) + "\n");

function analyticsNode() {
  const { createInstance, Identify, Revenue } = require("@amplitude/analytics-node");
  const client = createInstance();
  client.init("api-key", { serverUrl: url, flushQueueSize: 50, flushIntervalMillis: 100, logLevel: 0 });
  return (event) => {
    const options = { user_id: event.user, device_id: event.device, insert_id: event.id, ...event.options };
    const calls = {
      identify: () => client.identify(new Identify().set("plan", "gold").add("visits", 1).append("tags", "ä").unset("old"), options),
      group: () => client.groupIdentify("org", "acme", new Identify().set("seats", 3), options),
      revenue: () => client.revenue(new Revenue().setPrice(3.99).setQuantity(2).setProductId("product-1"), options),
      set_group: () => client.setGroup("org", ["acme", "other"], options),
      track: () => client.track(event.type, event.properties, options),
    };
    return calls[event.call]().promise.then((result) => tell(event.id, result.code === 200, result.event));
  };
}

function node() {
  const { init } = require("@amplitude/node");
  const { Identify } = require("@amplitude/identify");
  const client = init("api-key", { serverUrl: url, maxCachedEvents: 50, uploadIntervalInSec: 0.1 });
  return (event) => {
    const given = { user_id: event.user, device_id: event.device, insert_id: event.id, time: Date.now(), ...event.options };
    if (event.call === "identify") {
      const identify = new Identify().set("plan", "gold").add("visits", 1).append("tags", "ä").unset("old");
      Object.assign(given, identify.identifyUser(event.user, event.device), { insert_id: event.id });
    } else if (event.call === "group" || event.call === "set_group") {
      Object.assign(given, new Identify().set("seats", 3).identifyGroup("org", "acme"), { insert_id: event.id });
    } else {
      Object.assign(given, { event_type: event.type, event_properties: event.properties });
    }
    return client.logEvent(given).then(
      (response) => tell(event.id, response.statusCode === 200, given),
      () => tell(event.id, false, given),
    );
  };
}

const send = { "analytics-node": analyticsNode, node }[sdk]();
const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const event = JSON.parse(line);
  pending += 1;
  send(event)
    .catch((error) => console.error(error))
    .finally(() => (pending -= 1));
});
lines.on("close", () => {
  const deadline = Date.now() + 60_000;
  const wait = () => (pending === 0 || Date.now() > deadline ? process.stdout.write("", () => process.exit(0)) : setTimeout(wait, 50));
  wait();
});
