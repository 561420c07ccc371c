// The driver of mParticle's SDK for Node (see door_mparticle.py): node door_mparticle.cjs URL KEY
const readline = require("node:readline");
const mParticle = require("mparticle");

const [url, key] = process.argv.slice(2);
const api = new mParticle.EventsApi(new mParticle.Configuration(key, "secret"));
api.apiClient.basePath = url;

function batchOf(event, requestId) {
  const batch = new mParticle.Batch(mParticle.Batch.Environment.production);
  const app = new mParticle.AppEvent(mParticle.AppEvent.CustomEventType.navigation, "Ünïcode");
  app.custom_attributes = event.attributes;
  app.timestamp_unixtime_ms = event.time;
  const screen = new mParticle.ScreenViewEvent();
  screen.screen_name = "s";
  const product = new mParticle.Product();
  Object.assign(product, { name: "p", id: "sku", price: 19.99 });
  const action = new mParticle.ProductAction("purchase");
  action.products = [product];
  const commerce = new mParticle.CommerceEvent();
  commerce.product_action = action;
  for (const one of [app, screen, commerce].slice(0, event.events)) batch.addEvent(one);
  batch.source_request_id = requestId;
  batch.user_attributes = event.attributes;
  batch.user_identities = new mParticle.UserIdentities();
  batch.user_identities.customerid = event.customer;
  batch.user_identities.email = "ä@example.com";
  batch.device_info = new mParticle.DeviceInformation();
  batch.device_info.ios_idfv = event.device;
  if (event.mpid) batch.mpid = event.mpid;
  batch.mp_deviceid = "59780f39-d7a0-4ebe-9950-280f937c29e2";
  const plan = new mParticle.DataPlanContext();
  Object.assign(plan, { plan_id: "plan", plan_version: 1 });
  batch.context = new mParticle.BatchContext();
  batch.context.data_plan = plan;
  return batch;
}

// One after the other, as the SDK holds nothing back by itself.
let last = Promise.resolve();
const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const event = JSON.parse(line);
  last = last.then(
    () =>
      new Promise((resolve) => {
        const batch = batchOf(event, event.id);
        if (event.bytes) {
          // So that the request's body has exactly so many.
          const bytes = Buffer.byteLength(JSON.stringify(batch)) + ',"pad":""'.length;
          batch.user_attributes = { ...batch.user_attributes, pad: "x".repeat(event.bytes - bytes) };
        }
        const sent = JSON.parse(JSON.stringify(batch));
        const told = (error, _data, response) => {
          const status = (response && response.status) || (error && error.status) || 0;
          process.stdout.write(JSON.stringify({ id: event.id, ok: !error, status, sent }) + "\n");
          resolve();
        };
        if (event.call === "bulk") {
          api.bulkUploadEvents([batch, batchOf({ ...event, events: 0 }, event.id + "-second")], told);
        } else {
          api.uploadEvents(batch, told);
        }
      }),
  );
});
lines.on("close", () => last.then(() => process.exit(0)));
