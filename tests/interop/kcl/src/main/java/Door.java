import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;

import software.amazon.awssdk.core.SdkBytes;
import software.amazon.awssdk.http.Protocol;
import software.amazon.awssdk.http.nio.netty.NettyNioAsyncHttpClient;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.kinesis.KinesisAsyncClient;
import software.amazon.awssdk.services.kinesis.model.PutRecordsRequestEntry;
import software.amazon.awssdk.services.kinesis.model.PutRecordsResponse;
import software.amazon.awssdk.services.kinesis.model.PutRecordsResultEntry;
import software.amazon.awssdk.services.kinesis.model.StreamDescriptionSummary;

/**
 * A client of the Kinesis door with the AWS SDK for Java, which speaks CBOR; see `Program` in door_kinesis.py for what comes in
 * and goes out. Arguments: HTTP1_1 or HTTP2, endpoint, region, stream.
 */
final class Door {
    private final KinesisAsyncClient client;
    private final String stream;

    private Door(KinesisAsyncClient client, String stream) {
        this.client = client;
        this.stream = stream;
    }

    public static void main(String[] arguments) throws IOException, InterruptedException {
        KinesisAsyncClient client = KinesisAsyncClient.builder()
            .endpointOverride(URI.create(arguments[1]))
            .region(Region.of(arguments[2]))
            .httpClientBuilder(NettyNioAsyncHttpClient.builder().protocol(Protocol.valueOf(arguments[0])))
            .build();
        Door door = new Door(client, arguments[3]);
        door.ask();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        List<String[]> batch = new ArrayList<>();
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            if (!line.isEmpty()) {
                batch.add(line.split(" "));
            } else if (!batch.isEmpty()) {
                door.put(batch);
                batch = new ArrayList<>();
            }
        }
        if (!batch.isEmpty()) {
            door.put(batch);
        }
        System.exit(0);
    }

    private void ask() {
        StreamDescriptionSummary summary =
            client.describeStreamSummary(request -> request.streamName(stream)).join().streamDescriptionSummary();
        int shards = client.listShards(request -> request.streamName(stream)).join().shards().size();
        List<String> streams = client.listStreams().join().streamNames();
        // A time is read, too.
        long created = summary.streamCreationTimestamp().toEpochMilli();
        say("calls {\"status\":\"" + summary.streamStatus() + "\",\"open\":" + summary.openShardCount() + ",\"shards\":" + shards
            + ",\"streams\":[\"" + String.join("\",\"", streams) + "\"],\"created\":" + created + "}");
    }

    private void put(List<String[]> batch) throws InterruptedException {
        long deadline = System.nanoTime() + 60_000_000_000L;
        List<String[]> left = batch;
        while (!left.isEmpty()) {
            List<PutRecordsRequestEntry> entries = new ArrayList<>();
            for (String[] event : left) {
                PutRecordsRequestEntry.Builder entry = PutRecordsRequestEntry.builder()
                    .partitionKey(new String(Base64.getDecoder().decode(event[1]), StandardCharsets.UTF_8))
                    .data(SdkBytes.fromByteArray(Base64.getDecoder().decode(event[3])));
                entries.add(event[2].equals("-") ? entry.build() : entry.explicitHashKey(event[2]).build());
            }
            PutRecordsResponse answer;
            try {
                answer = client.putRecords(request -> request.streamName(stream).records(entries)).join();
            } catch (RuntimeException error) {
                if (System.nanoTime() > deadline) {
                    throw error;
                }
                for (String[] event : left) {
                    say("again " + event[0]);
                }
                Thread.sleep(200);
                continue;
            }
            List<String[]> failed = new ArrayList<>();
            for (int at = 0; at < left.size(); at++) {
                PutRecordsResultEntry entry = answer.records().get(at);
                if (entry.sequenceNumber() == null) {
                    failed.add(left.get(at));
                } else {
                    say("ok " + left.get(at)[0] + " " + entry.shardId() + " " + entry.sequenceNumber());
                }
            }
            left = failed;
        }
    }

    private static void say(String line) {
        System.out.println(line);
    }
}
