import java.util.Arrays;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterClientQuotasOptions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.Metric;
import org.apache.kafka.common.MetricName;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.InvalidRequestException;
import org.apache.kafka.common.quota.ClientQuotaAlteration;
import org.apache.kafka.common.quota.ClientQuotaEntity;
import org.apache.kafka.common.quota.ClientQuotaFilter;
import org.apache.kafka.common.quota.ClientQuotaFilterComponent;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** Client quotas by the Java client: set, told of, kept to, taken away. Prints "ok" or what went wrong. */
public class QuotaCheck {
    private static final double RATE = 500_000;
    private static final int RECORDS = 100;
    private static final int VALUE_BYTES = 20_000;

    private final Properties settings = new Properties();
    private final String topic;

    private QuotaCheck(String bootstrap, String topic) {
        settings.put("bootstrap.servers", bootstrap);
        settings.put("client.id", "app");
        this.topic = topic;
    }

    /** Usage: QuotaCheck bootstrap topic */
    public static void main(String[] arguments) {
        String outcome = "ok";
        try {
            new QuotaCheck(arguments[0], arguments[1]).run();
        } catch (Throwable problem) {
            outcome = problem.toString().replace('\n', ' ');
        }
        System.out.println(outcome);
        System.exit(0);
    }

    private static void require(boolean condition, String otherwise) {
        if (!condition) {
            throw new IllegalStateException(otherwise);
        }
    }

    private static ClientQuotaEntity entity(String... typesAndNames) {
        Map<String, String> parts = new HashMap<>();
        for (int i = 0; i < typesAndNames.length; i += 2) {
            parts.put(typesAndNames[i], typesAndNames[i + 1]);
        }
        return new ClientQuotaEntity(parts);
    }

    private static ClientQuotaAlteration set(ClientQuotaEntity entity, String key, Double value) {
        return new ClientQuotaAlteration(entity, List.of(new ClientQuotaAlteration.Op(key, value)));
    }

    private void run() throws Exception {
        try (Admin admin = Admin.create(settings)) {
            admin.createTopics(List.of(new NewTopic(topic, 2, (short) 1))).all().get();
            ClientQuotaEntity app = entity(ClientQuotaEntity.CLIENT_ID, "app");
            ClientQuotaEntity anyUser = entity(ClientQuotaEntity.USER, null, ClientQuotaEntity.CLIENT_ID, "other");
            Collection<ClientQuotaAlteration> wanted = Arrays.asList(
                    set(app, "producer_byte_rate", RATE),
                    set(anyUser, "request_percentage", 12.5));
            admin.alterClientQuotas(wanted, new AlterClientQuotasOptions().validateOnly(true)).all().get();
            require(told(admin, ClientQuotaFilter.all()).isEmpty(), "validate only has set something");
            admin.alterClientQuotas(wanted).all().get();
            admin.alterClientQuotas(List.of(set(app, "consumer_byte_rate", RATE))).all().get();
            Map<String, Double> ofApp = Map.of("producer_byte_rate", RATE, "consumer_byte_rate", RATE);
            require(told(admin, ClientQuotaFilter.all())
                    .equals(Map.of(app, ofApp, anyUser, Map.of("request_percentage", 12.5))), "told otherwise");
            require(told(admin, ClientQuotaFilter.containsOnly(
                    List.of(ClientQuotaFilterComponent.ofEntity(ClientQuotaEntity.CLIENT_ID, "app"))))
                    .equals(Map.of(app, ofApp)), "a strict filter finds otherwise");
            require(told(admin, ClientQuotaFilter.contains(
                    List.of(ClientQuotaFilterComponent.ofDefaultEntity(ClientQuotaEntity.USER))))
                    .keySet().equals(Map.of(anyUser, 1).keySet()), "a filter for the default finds otherwise");
            try {
                admin.alterClientQuotas(List.of(set(app, "producer_byte_rate", -1.0))).all().get();
                require(false, "a negative rate was taken");
            } catch (ExecutionException refused) {
                require(refused.getCause() instanceof InvalidRequestException, "refused as " + refused.getCause());
            }
            produce();
            consume();
            admin.alterClientQuotas(Arrays.asList(set(app, "producer_byte_rate", null),
                    set(app, "consumer_byte_rate", null), set(anyUser, "request_percentage", null))).all().get();
            require(told(admin, ClientQuotaFilter.all()).isEmpty(), "what was taken away is still there");
        }
    }

    private static Map<ClientQuotaEntity, Map<String, Double>> told(Admin admin, ClientQuotaFilter filter)
            throws Exception {
        return admin.describeClientQuotas(filter).entities().get();
    }

    private void produce() throws Exception {
        long began = System.nanoTime();
        try (KafkaProducer<byte[], byte[]> producer =
                new KafkaProducer<>(settings, new ByteArraySerializer(), new ByteArraySerializer())) {
            for (int i = 0; i < RECORDS; i++) {
                producer.send(new ProducerRecord<>(topic, i % 2, null, new byte[VALUE_BYTES]));
            }
            producer.flush();
            double throttled = metric(producer.metrics(), "produce-throttle-time-max");
            require(throttled > 0, "the producer was not told that it is throttled");
        }
        keptTo(began, "producing");
    }

    private void consume() {
        long began = System.nanoTime();
        Properties own = new Properties();
        own.putAll(settings);
        own.put("auto.offset.reset", "earliest");
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(own, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.assign(List.of(new TopicPartition(topic, 0), new TopicPartition(topic, 1)));
            int count = 0;
            while (count < RECORDS) {
                count += consumer.poll(java.time.Duration.ofSeconds(1)).count();
                require(System.nanoTime() - began < 60e9, "consuming takes too long");
            }
            double throttled = metric(consumer.metrics(), "fetch-throttle-time-max");
            require(throttled > 0, "the consumer was not told that it is throttled");
        }
        keptTo(began, "consuming");
    }

    /** Two megabytes at half a megabyte a second, of which the first second's worth comes at once. */
    private static void keptTo(long began, String what) {
        double seconds = (System.nanoTime() - began) / 1e9;
        double expected = RECORDS * VALUE_BYTES / RATE - 1;
        require(seconds > expected * 0.8, what + " took only " + seconds + " s");
    }

    private static double metric(Map<MetricName, ? extends Metric> metrics, String name) {
        return metrics.entrySet().stream().filter(entry -> entry.getKey().name().equals(name))
                .mapToDouble(entry -> (double) entry.getValue().metricValue()).max().orElse(Double.NaN);
    }
}
