// Segment's own library as the judge of the classic record.
//
//   judge_segment.cjs generate SEED COUNT   seeded random messages, a JSON text a line, as a client would send them
//   judge_segment.cjs compare               reads {message, shared, record, key} a line, raw texts; writes what differs
//
// The expected record is made here a second time: the message's own members, what the API adds (only `receivedAt` is taken from
// the record), and all of that through the library: JSON.stringify(facade.json()). Records are compared byte by byte.
"use strict";
const readline = require("readline");
const facade = require("@segment/facade");
const newDate = require("new-date");
const isodate = require("@segment/isodate");

const MANAGED = ["type", "messageId", "timestamp", "originalTimestamp", "sentAt", "receivedAt", "writeKey"];
const CLASSES = { track: facade.Track, identify: facade.Identify, page: facade.Page, group: facade.Group, alias: facade.Alias };

// mulberry32: small, seeded, good enough to choose with.
function chance(seed) {
  let state = seed >>> 0;
  const next = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  const below = (n) => Math.floor(next() * n);
  return { below, one: (of) => of[below(of.length)], often: (p) => next() < p };
}

const digits = (c, n) => Array.from({ length: n }, () => c.below(10)).join("");

function date(c) {
  let text = `${c.one(["19", "20", "00", "99"])}${digits(c, 2)}-${digits(c, 2)}-${digits(c, 2)}`;
  if (c.often(0.7)) {
    text += `${c.one(["T", "T", " "])}${digits(c, 2)}${c.one([":", ""])}${digits(c, 2)}`;
    if (c.often(0.8)) text += `${c.one([":", ""])}${digits(c, 2)}`;
    if (c.often(0.5)) text += `${c.one([".", ","])}${digits(c, 1 + c.below(9))}`;
    text += c.one(["", "Z", "+02:00", "-0530", "+14", "z", " "]);
  }
  return text;
}

function value(c, depth) {
  const kind = c.below(depth > 0 ? 12 : 9);
  if (kind === 0) return null;
  if (kind === 1) return c.often(0.5);
  if (kind === 2) return c.below(1e9) - 5e8;
  if (kind === 3) return (c.below(1e9) - 5e8) / c.one([1, 3, 7, 1e-15, 1e200]);
  if (kind <= 5) return date(c);
  if (kind === 6) return c.one(["", "a", "2012-12", "20121202T003008Z", "null", "\u0000", "\\", "\"", "\n\t", "\u2028", "/"]);
  if (kind === 7) return c.one(["ä", "𝄞🚀", "\ud83d", "日本語", "\udfff-", "e\u0301"]) + c.below(100);
  if (kind === 8) return "x".repeat(c.below(300));
  if (kind === 9) return Array.from({ length: c.below(5) }, () => value(c, depth - 1));
  return object(c, depth - 1);
}

function object(c, depth) {
  const made = {};
  for (let n = c.below(6); n > 0; n--) made[c.one(["a", "b c", "2012-12-02", "type", "7", "ä", "", "writeKey", "userId"]) + c.one(["", "x", c.below(9)])] = value(c, depth);
  return made;
}

const soon = (c) => new Date(Date.now() - c.below(1e9));

function time(c) {
  const iso = soon(c).toISOString();
  return c.one([iso, iso, iso.replace("Z", "+00:00"), iso.replace("Z", "+05:30"), iso.slice(0, 10), iso.replace("Z", "456Z"),
    Math.floor(soon(c) / 1000), soon(c).getTime(), null, "", "soon", {}]);
}

function message(c, n) {
  const type = c.one(Object.keys(CLASSES));
  const made = { messageId: `m-${n}`, type };
  if (type === "alias" || c.often(0.7)) made.userId = c.one([`user-${c.below(50)}`, `ä${c.below(9)}`]);
  if (!made.userId || c.often(0.5)) made.anonymousId = `anonymous-${c.below(50)}`;
  if (type === "alias") made.previousId = "p";
  if (type === "track") made.event = c.one(["Song Played", "2012-12-02", "ä"]);
  if (type === "group") made.groupId = "g";
  if (c.often(0.8)) made[type === "track" || type === "page" ? "properties" : "traits"] = object(c, 4);
  if (c.often(0.5)) {
    // JavaScript puts members named like array indexes first, so where one is merged with others the order would differ.
    made.context = Object.fromEntries(Object.entries(object(c, 3)).filter(([name]) => !/^\d+$/.test(name)));
  }
  if (c.often(0.3)) made.integrations = c.one([{}, { All: true }, { Mixpanel: false }, { "Amazon Kinesis": true, All: false }]);
  if (c.often(0.7)) made.timestamp = time(c);
  if (c.often(0.3)) made.originalTimestamp = time(c);
  if (c.often(0.5)) made.sentAt = time(c);
  for (const extra of ["channel", "version", "_metadata", "extra", "writeKey", "receivedAt"]) if (c.often(0.2)) made[extra] = value(c, 2);
  return made;
}

// Valid times only, as the API reads them.
function told(...values) {
  for (const one of values) {
    const is = (typeof one === "string" && isodate.is(one)) || typeof one === "number";
    const read = is ? newDate(one) : null;
    if (read && !isNaN(read)) return { ms: read.getTime(), text: typeof one === "string" ? one : read.toISOString() };
  }
  return null;
}

function expected(message, shared, receivedAt) {
  const made = {};
  for (const name of Object.keys(message)) {
    const merged = ["context", "integrations"].includes(name) && Object.keys(shared[name] || {}).length > 0;
    if (!MANAGED.includes(name) && !merged) made[name] = message[name];
  }
  for (const name of ["context", "integrations"]) {
    if (Object.keys(shared[name] || {}).length === 0) continue;
    const own = message[name] || {};
    made[name] = {};
    for (const key of Object.keys(shared[name])) if (!(key in own)) made[name][key] = shared[name][key];
    Object.assign(made[name], own);
  }
  made.messageId = message.messageId;
  if (!("channel" in message)) made.channel = "server";
  if (!("version" in message)) made.version = 2;
  const received = new Date(receivedAt).getTime();
  const original = told(message.timestamp, message.originalTimestamp);
  const sent = told(message.sentAt, shared.sentAt);
  made.originalTimestamp = original ? original.text : receivedAt;
  if (sent) made.sentAt = sent.text;
  made.receivedAt = receivedAt;
  const ms = !original ? received : sent ? received - (sent.ms - original.ms) : original.ms;
  made.timestamp = new Date(ms).toISOString();
  made.type = message.type;
  return new CLASSES[message.type](made);
}

function compare(line) {
  const { message, shared, record, key } = JSON.parse(line);
  const read = JSON.parse(record);
  const judged = expected(JSON.parse(message), JSON.parse(shared), read.receivedAt);
  const wanted = JSON.stringify(judged.json());
  if (wanted !== record) return { message, wanted, record };
  const wantedKey = judged.userId() || judged.anonymousId();
  return wantedKey === key ? null : { message, wantedKey, key };
}

const [, , verb, seed, count] = process.argv;
if (verb === "generate") {
  const c = chance(Number(seed));
  for (let n = 0; n < Number(count); n++) process.stdout.write(JSON.stringify(message(c, n)) + "\n");
} else {
  let compared = 0;
  const lines = readline.createInterface({ input: process.stdin, crlfDelay: Infinity });
  lines.on("line", (line) => {
    compared += 1;
    const differs = compare(line);
    if (differs) process.stdout.write(JSON.stringify(differs) + "\n");
  });
  lines.on("close", () => process.stdout.write(JSON.stringify({ compared }) + "\n"));
}
