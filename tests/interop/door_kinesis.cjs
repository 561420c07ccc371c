// A client of the Kinesis door with @aws-sdk/client-kinesis; see `Program` in door_kinesis.py for what comes in and goes out.
"use strict";
const kinesis = require("@aws-sdk/client-kinesis");
const [endpoint, region, stream] = process.argv.slice(2);
const client = new kinesis.KinesisClient({ endpoint, region, maxAttempts: 2 });
const say = (...words) => process.stdout.write(words.join(" ") + "\n");
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function put(batch) {
  const deadline = Date.now() + 60_000;
  let left = batch;
  while (left.length > 0) {
    const Records = left.map(([, key, hash, data]) => ({
      PartitionKey: Buffer.from(key, "base64").toString(),
      Data: Buffer.from(data, "base64"),
      ...(hash === "-" ? {} : { ExplicitHashKey: hash }),
    }));
    try {
      const answer = await client.send(new kinesis.PutRecordsCommand({ StreamName: stream, Records }));
      left.forEach(([id], at) => {
        const { SequenceNumber, ShardId } = answer.Records[at];
        if (SequenceNumber) say("ok", id, ShardId, SequenceNumber);
      });
      left = left.filter((_, at) => !answer.Records[at].SequenceNumber);
    } catch (error) {
      if (Date.now() > deadline) throw error;
      for (const [id] of left) say("again", id);
      await pause(200);
    }
  }
}

async function main() {
  const summary = await client.send(new kinesis.DescribeStreamSummaryCommand({ StreamName: stream }));
  const { StreamStatus, OpenShardCount } = summary.StreamDescriptionSummary;
  const { Shards } = await client.send(new kinesis.ListShardsCommand({ StreamName: stream }));
  const { StreamNames } = await client.send(new kinesis.ListStreamsCommand({}));
  say("calls", JSON.stringify({ status: StreamStatus, open: OpenShardCount, shards: Shards.length, streams: StreamNames }));
  let batch = [];
  for await (const line of require("node:readline").createInterface({ input: process.stdin })) {
    if (line !== "") batch.push(line.split(" "));
    else if (batch.length > 0) await put(batch.splice(0));
  }
  if (batch.length > 0) await put(batch);
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
