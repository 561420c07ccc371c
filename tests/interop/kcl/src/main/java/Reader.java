import java.io.BufferedWriter;
import java.io.IOException;
import java.net.URI;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Base64;
import java.util.UUID;

import software.amazon.awssdk.auth.credentials.EnvironmentVariableCredentialsProvider;
import software.amazon.awssdk.http.Protocol;
import software.amazon.awssdk.http.nio.netty.NettyNioAsyncHttpClient;
import software.amazon.awssdk.regions.Region;
import software.amazon.awssdk.services.cloudwatch.CloudWatchAsyncClient;
import software.amazon.awssdk.services.dynamodb.DynamoDbAsyncClient;
import software.amazon.awssdk.services.kinesis.KinesisAsyncClient;
import software.amazon.kinesis.common.ConfigsBuilder;
import software.amazon.kinesis.common.InitialPositionInStream;
import software.amazon.kinesis.common.InitialPositionInStreamExtended;
import software.amazon.kinesis.coordinator.Scheduler;
import software.amazon.kinesis.exceptions.InvalidStateException;
import software.amazon.kinesis.exceptions.ShutdownException;
import software.amazon.kinesis.lifecycle.events.InitializationInput;
import software.amazon.kinesis.lifecycle.events.LeaseLostInput;
import software.amazon.kinesis.lifecycle.events.ProcessRecordsInput;
import software.amazon.kinesis.lifecycle.events.ShardEndedInput;
import software.amazon.kinesis.lifecycle.events.ShutdownRequestedInput;
import software.amazon.kinesis.metrics.NullMetricsFactory;
import software.amazon.kinesis.processor.ShardRecordProcessor;
import software.amazon.kinesis.processor.SingleStreamTracker;
import software.amazon.kinesis.retrieval.KinesisClientRecord;
import software.amazon.kinesis.retrieval.polling.PollingConfig;

/**
 * An application of the Kinesis Client Library that writes down what it is handed, one JSON object a line, in the order
 * in which it is handed it: `{"begun": SHARD}`, `{"ended": SHARD}`, and for each user record its shard, sequence and
 * sub-sequence number, key and data (base64).
 *
 * Arguments: the endpoints of Kinesis and DynamoDB, region, stream; then for each application that is to read the stream
 * its name, how many times it may miss a shard in its list before it asks for the list again (1000 is the library's
 * own choice, or 30 s), and its output file.
 *
 * One worker for each, from TRIM_HORIZON, until it is killed. Everything that decides what the application sees is the
 * library's own: how aggregates are taken apart and which are dropped, and that a child waits for its parents. Only its
 * intervals are short. Positions are noted in the lease table at a shard's end alone, as there is no second life to
 * use them.
 */
final class Reader implements ShardRecordProcessor {
    private final BufferedWriter out;
    private String shard;

    private Reader(BufferedWriter out) {
        this.out = out;
    }

    public static void main(String[] arguments) throws IOException {
        URI kinesisEndpoint = URI.create(arguments[0]);
        URI dynamoEndpoint = URI.create(arguments[1]);
        Region region = Region.of(arguments[2]);
        String stream = arguments[3];

        var credentials = EnvironmentVariableCredentialsProvider.create();
        // The library's own choice is HTTP/2, which the servers for tests do not speak.
        var http = NettyNioAsyncHttpClient.builder().protocol(Protocol.HTTP1_1).maxConcurrency(64);
        var kinesis = KinesisAsyncClient.builder().endpointOverride(kinesisEndpoint).region(region)
                .credentialsProvider(credentials).httpClientBuilder(http).build();
        var dynamo = DynamoDbAsyncClient.builder().endpointOverride(dynamoEndpoint).region(region)
                .credentialsProvider(credentials).httpClientBuilder(http).build();
        // Asked for, never used: metrics go nowhere.
        var watch = CloudWatchAsyncClient.builder().endpointOverride(dynamoEndpoint).region(region)
                .credentialsProvider(credentials).httpClientBuilder(http).build();

        for (int at = 4; at < arguments.length; at += 3) {
            String application = arguments[at];
            int misses = Integer.parseInt(arguments[at + 1]);
            var out = Files.newBufferedWriter(Path.of(arguments[at + 2]));
            var start = InitialPositionInStreamExtended.newInitialPosition(InitialPositionInStream.TRIM_HORIZON);
            var configs = new ConfigsBuilder(new SingleStreamTracker(stream, start), application, kinesis, dynamo, watch,
                    UUID.randomUUID().toString(), () -> new Reader(out));
            var leases = configs.leaseManagementConfig().leaseAssignmentIntervalMillis(1000L).shardSyncIntervalMillis(1000L)
                    .maxCacheMissesBeforeReload(misses);
            // Worker metrics are read from the instance metadata of EC2 and containers, which is not there.
            leases.workerUtilizationAwareAssignmentConfig().disableWorkerMetrics(true);
            var polling = new PollingConfig(stream, kinesis).idleTimeBetweenReadsInMillis(500L);
            var scheduler = new Scheduler(
                    configs.checkpointConfig(),
                    configs.coordinatorConfig().parentShardPollIntervalMillis(200L).shardConsumerDispatchPollIntervalMillis(100L),
                    leases,
                    configs.lifecycleConfig(),
                    configs.metricsConfig().metricsFactory(new NullMetricsFactory()),
                    configs.processorConfig(),
                    configs.retrievalConfig().retrievalSpecificConfig(polling));
            new Thread(scheduler, application).start();
        }
    }

    @Override
    public void initialize(InitializationInput input) {
        shard = input.shardId();
        write("{\"begun\":\"" + shard + "\"}\n");
    }

    @Override
    public void processRecords(ProcessRecordsInput input) {
        var lines = new StringBuilder();
        for (KinesisClientRecord one : input.records()) {
            ByteBuffer body = one.data().duplicate();
            byte[] data = new byte[body.remaining()];
            body.get(data);
            lines.append("{\"shard\":\"").append(shard)
                    .append("\",\"sequence\":\"").append(one.sequenceNumber())
                    .append("\",\"sub\":").append(one.subSequenceNumber())
                    .append(",\"aggregated\":").append(one.aggregated())
                    .append(",\"key\":\"").append(base64(one.partitionKey().getBytes(StandardCharsets.UTF_8)))
                    .append("\",\"data\":\"").append(base64(data)).append("\"}\n");
        }
        write(lines.toString());
    }

    @Override
    public void shardEnded(ShardEndedInput input) {
        write("{\"ended\":\"" + shard + "\"}\n");
        try {
            input.checkpointer().checkpoint();
        } catch (ShutdownException | InvalidStateException error) {
            throw new IllegalStateException("the end of " + shard + " could not be noted", error);
        }
    }

    @Override
    public void leaseLost(LeaseLostInput input) {
        write("{\"lost\":\"" + shard + "\"}\n");
    }

    @Override
    public void shutdownRequested(ShutdownRequestedInput input) {
        // It is killed; nobody asks.
    }

    private static String base64(byte[] bytes) {
        return Base64.getEncoder().encodeToString(bytes);
    }

    /** All shards' threads write into the one file: its order is the order in which the application saw things. */
    private void write(String lines) {
        synchronized (out) {
            try {
                out.write(lines);
                out.flush();
            } catch (IOException error) {
                System.err.println("the output cannot be written: " + error);
                Runtime.getRuntime().halt(1);
            }
        }
    }
}
