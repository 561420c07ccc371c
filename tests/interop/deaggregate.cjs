// Takes records apart with the npm library aws-kinesis-agg, checksums on. One JSON object a line comes in
// ({"key", "sequence", "data": base64}), one goes out: {"events": [{"key", "hash", "data": base64}]} or {"error"}.
// Works as a filter, so that its opinion can be compared with the Python library's, line by line.
"use strict";
const { deaggregateSync } = require("aws-kinesis-agg");
const lines = require("node:readline").createInterface({ input: process.stdin, crlfDelay: Infinity });
lines.on("line", (line) => {
  const { key, sequence, data } = JSON.parse(line);
  let answer;
  deaggregateSync({ partitionKey: key, sequenceNumber: sequence, data }, true, (error, events) => {
    if (answer !== undefined && answer.error) return; // The library goes on after an error: the first one counts.
    answer = error
      ? { error: String(error.message || error) }
      : { events: events.map((one) => ({ key: one.partitionKey, hash: one.explicitPartitionKey ?? null, data: one.data })) };
  });
  process.stdout.write(JSON.stringify(answer) + "\n");
});
