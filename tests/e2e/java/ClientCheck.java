import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.Config;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * The Java client on its default settings against a broker. One line of output per check: its name, then "ok" or what
 * went wrong. Usage: ClientCheck bootstrap
 */
public class ClientCheck {
    private static final Duration PATIENCE = Duration.ofSeconds(60);

    /** Anything much older would fall to retention. */
    private static final long RECENT_MS = System.currentTimeMillis() - 600_000;

    private interface Check {
        void run() throws Exception;
    }

    private final String bootstrap;

    private ClientCheck(String bootstrap) {
        this.bootstrap = bootstrap;
    }

    public static void main(String[] arguments) {
        new ClientCheck(arguments[0]).runAll();
        System.exit(0);
    }

    private void runAll() {
        Map<String, Check> checks = new LinkedHashMap<>();
        checks.put("round trip", this::roundTrip);
        for (String codec : List.of("gzip", "snappy", "lz4", "zstd")) {
            checks.put("codec " + codec, () -> codec(codec));
        }
        checks.put("order", this::order);
        checks.put("large records", this::largeRecords);
        checks.put("commit and resume", this::commitAndResume);
        for (String assignor : List.of("Range", "RoundRobin", "Sticky", "CooperativeSticky")) {
            checks.put("assignor " + assignor, () -> assignor(assignor));
        }
        checks.put("static member", this::staticMember);
        checks.put("admin topics", this::adminTopics);
        checks.put("admin configs", this::adminConfigs);
        checks.put("admin cluster", this::adminCluster);
        checks.put("admin offsets", this::adminOffsets);
        checks.put("admin groups", this::adminGroups);
        // Four at a time: most of a check is waiting for the group's heartbeats.
        ExecutorService pool = Executors.newFixedThreadPool(4);
        Map<String, Future<String>> outcomes = new LinkedHashMap<>();
        checks.forEach((name, check) -> outcomes.put(name, pool.submit(() -> outcome(check))));
        outcomes.forEach((name, outcome) -> {
            try {
                System.out.println(name + ": " + outcome.get());
            } catch (InterruptedException | ExecutionException impossible) {
                throw new IllegalStateException(impossible);
            }
        });
    }

    private static String outcome(Check check) {
        try {
            check.run();
            return "ok";
        } catch (Throwable problem) {
            String trace = problem + " at " + Arrays.toString(problem.getStackTrace());
            return trace.replace('\n', ' ');
        }
    }

    private static void require(boolean condition, String otherwise) {
        if (!condition) {
            throw new IllegalStateException(otherwise);
        }
    }

    private static String fresh(String prefix) {
        return prefix + "-" + UUID.randomUUID();
    }

    private static byte[] bytes(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private KafkaProducer<byte[], byte[]> producer(String... settings) {
        Properties properties = properties(settings);
        return new KafkaProducer<>(properties, new ByteArraySerializer(), new ByteArraySerializer());
    }

    private KafkaConsumer<byte[], byte[]> consumer(String group, String... settings) {
        Properties properties = properties(settings);
        properties.put("group.id", group);
        properties.put("auto.offset.reset", "earliest");
        return new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer());
    }

    private Properties properties(String... settings) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        for (int i = 0; i < settings.length; i += 2) {
            properties.put(settings[i], settings[i + 1]);
        }
        return properties;
    }

    private Admin admin() {
        return Admin.create(properties());
    }

    private void create(String topic, int partitions) throws Exception {
        try (Admin admin = admin()) {
            admin.createTopics(List.of(new NewTopic(topic, Optional.of(partitions), Optional.empty()))).all().get();
        }
    }

    private List<RecordMetadata> send(List<ProducerRecord<byte[], byte[]>> records, String... settings)
            throws Exception {
        try (KafkaProducer<byte[], byte[]> producer = producer(settings)) {
            List<Future<RecordMetadata>> sent = new ArrayList<>();
            for (ProducerRecord<byte[], byte[]> record : records) {
                sent.add(producer.send(record));
            }
            List<RecordMetadata> done = new ArrayList<>();
            for (Future<RecordMetadata> future : sent) {
                done.add(future.get());
            }
            return done;
        }
    }

    private List<ProducerRecord<byte[], byte[]>> numbered(String topic, int count) {
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            records.add(new ProducerRecord<>(topic, 0, bytes("key"), bytes("value " + i)));
        }
        return records;
    }

    private static List<ConsumerRecord<byte[], byte[]>> poll(KafkaConsumer<byte[], byte[]> consumer, int count) {
        List<ConsumerRecord<byte[], byte[]>> got = new ArrayList<>();
        long deadline = System.nanoTime() + PATIENCE.toNanos();
        while (got.size() < count) {
            require(System.nanoTime() < deadline, got.size() + " of " + count + " records");
            consumer.poll(Duration.ofMillis(200)).forEach(got::add);
        }
        return got;
    }

    private List<ConsumerRecord<byte[], byte[]>> readAll(String topic, int count) {
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(fresh("group"))) {
            consumer.subscribe(List.of(topic));
            return poll(consumer, count);
        }
    }

    private void roundTrip() throws Exception {
        String topic = fresh("auto-created");
        ProducerRecord<byte[], byte[]> full =
                new ProducerRecord<>(topic, 0, RECENT_MS, bytes("k"), bytes("v"));
        full.headers().add("a", bytes("1")).add("a", bytes("2")).add("none", null);
        List<RecordMetadata> sent =
                send(List.of(full, new ProducerRecord<>(topic, 0, null, bytes("v2")),
                        new ProducerRecord<>(topic, 0, bytes("tombstone"), null)));
        require(sent.get(2).offset() == 2, "offset " + sent.get(2).offset());
        List<ConsumerRecord<byte[], byte[]>> got = readAll(topic, 3);
        require(Arrays.equals(got.get(0).key(), bytes("k")), "key");
        require(Arrays.equals(got.get(0).value(), bytes("v")), "value");
        require(got.get(0).timestamp() == RECENT_MS, "timestamp " + got.get(0).timestamp());
        require(got.get(0).headers().toArray().length == 3, "headers " + got.get(0).headers());
        require(got.get(0).headers().lastHeader("none").value() == null, "null header");
        require(got.get(1).key() == null && got.get(2).value() == null, "nulls");
    }

    private void codec(String codec) throws Exception {
        String topic = fresh("codec");
        create(topic, 1);
        send(numbered(topic, 1_000), "compression.type", codec);
        List<ConsumerRecord<byte[], byte[]>> got = readAll(topic, 1_000);
        for (int i = 0; i < got.size(); i++) {
            require(Arrays.equals(got.get(i).value(), bytes("value " + i)), "record " + i);
        }
    }

    private void order() throws Exception {
        String topic = fresh("order");
        create(topic, 1);
        List<RecordMetadata> sent = send(numbered(topic, 20_000));
        for (int i = 0; i < sent.size(); i++) {
            require(sent.get(i).offset() == i, "record " + i + " has offset " + sent.get(i).offset());
        }
        List<ConsumerRecord<byte[], byte[]>> got = readAll(topic, 20_000);
        for (int i = 0; i < got.size(); i++) {
            require(got.get(i).offset() == i, "offset " + i);
            require(Arrays.equals(got.get(i).value(), bytes("value " + i)), "record " + i);
        }
    }

    private void largeRecords() throws Exception {
        String topic = fresh("large");
        create(topic, 1);
        send(List.of(new ProducerRecord<>(topic, new byte[1_040_000])));
        require(readAll(topic, 1).get(0).value().length == 1_040_000, "length");
        try {
            send(List.of(new ProducerRecord<>(topic, new byte[1_500_000])), "max.request.size", "3000000",
                    "buffer.memory", "33554432");
            require(false, "a record over max.message.bytes was taken");
        } catch (ExecutionException refused) {
            require(refused.getCause().getClass().getSimpleName().equals("RecordTooLargeException"), "" + refused);
        }
    }

    private void commitAndResume() throws Exception {
        String topic = fresh("resume");
        String group = fresh("group");
        create(topic, 1);
        send(numbered(topic, 100));
        TopicPartition partition = new TopicPartition(topic, 0);
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(group, "enable.auto.commit", "false")) {
            consumer.subscribe(List.of(topic));
            poll(consumer, 100);
            consumer.commitSync(Map.of(partition, new OffsetAndMetadata(40, "so far")));
            require(consumer.committed(Set.of(partition)).get(partition).metadata().equals("so far"), "metadata");
        }
        try (KafkaConsumer<byte[], byte[]> consumer = consumer(group)) {
            consumer.subscribe(List.of(topic));
            require(poll(consumer, 60).get(0).offset() == 40, "did not resume at 40");
        }
    }

    private static void settle(Collection<KafkaConsumer<byte[], byte[]>> members, int partitions) {
        long deadline = System.nanoTime() + PATIENCE.toNanos();
        while (true) {
            Set<TopicPartition> owned = new HashSet<>();
            int total = 0;
            boolean everyone = true;
            for (KafkaConsumer<byte[], byte[]> member : members) {
                member.poll(Duration.ofMillis(50));
                everyone &= !member.assignment().isEmpty();
                total += member.assignment().size();
                owned.addAll(member.assignment());
            }
            if (everyone && total == partitions && owned.size() == partitions) {
                return;
            }
            require(System.nanoTime() < deadline, "no complete assignment: " + owned);
        }
    }

    private void assignor(String name) throws Exception {
        String topic = fresh("assignor");
        String group = fresh("group");
        create(topic, 6);
        String[] settings = {
            "partition.assignment.strategy", "org.apache.kafka.clients.consumer." + name + "Assignor"
        };
        try (KafkaConsumer<byte[], byte[]> stays = consumer(group, settings)) {
            stays.subscribe(List.of(topic));
            try (KafkaConsumer<byte[], byte[]> leaves = consumer(group, settings)) {
                leaves.subscribe(List.of(topic));
                settle(List.of(stays, leaves), 6);
            }
            settle(List.of(stays), 6);
        }
    }

    private void staticMember() throws Exception {
        String topic = fresh("static");
        String group = fresh("group");
        create(topic, 4);
        try (KafkaConsumer<byte[], byte[]> one = consumer(group, "group.instance.id", "one")) {
            one.subscribe(List.of(topic));
            Set<TopicPartition> owned;
            try (KafkaConsumer<byte[], byte[]> two = consumer(group, "group.instance.id", "two")) {
                two.subscribe(List.of(topic));
                settle(List.of(one, two), 4);
                owned = new HashSet<>(two.assignment());
            }
            int generation = one.groupMetadata().generationId();
            try (KafkaConsumer<byte[], byte[]> two = consumer(group, "group.instance.id", "two")) {
                two.subscribe(List.of(topic));
                settle(List.of(one, two), 4);
                require(two.assignment().equals(owned), "had " + owned + ", has " + two.assignment());
                require(one.groupMetadata().generationId() == generation, "the group was rebalanced");
            }
        }
    }

    private void adminTopics() throws Exception {
        String topic = fresh("admin");
        create(topic, 3);
        try (Admin admin = admin()) {
            require(admin.listTopics().names().get().contains(topic), "not listed");
            require(admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size() == 3,
                    "partitions");
            expect("TopicExistsException", () -> create(topic, 3));
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(5))).all().get();
            require(admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size() == 5,
                    "partitions after growing");
            admin.deleteTopics(List.of(topic)).all().get();
            long deadline = System.nanoTime() + PATIENCE.toNanos();
            while (admin.listTopics().names().get().contains(topic)) {
                require(System.nanoTime() < deadline, "still listed");
            }
            expect("UnknownTopicOrPartitionException", () -> admin.deleteTopics(List.of(topic)).all().get());
        }
    }

    private static void expect(String exception, Check check) throws Exception {
        try {
            check.run();
        } catch (ExecutionException refused) {
            String name = refused.getCause().getClass().getSimpleName();
            require(name.equals(exception), "expected " + exception + ", got " + refused.getCause());
            return;
        }
        require(false, "expected " + exception);
    }

    private void adminConfigs() throws Exception {
        String topic = fresh("configs");
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        try (Admin admin = admin()) {
            NewTopic wanted = new NewTopic(topic, Optional.of(1), Optional.empty());
            var created = admin.createTopics(List.of(wanted.configs(Map.of("retention.ms", "3600000"))));
            require(created.config(topic).get().get("retention.ms").value().equals("3600000"), "config of a new topic");
            require(created.numPartitions(topic).get() == 1, "partitions of a new topic");
            Config before = admin.describeConfigs(List.of(resource)).all().get().get(resource);
            require(before.get("retention.ms").value().equals("3600000"), "retention.ms");
            require(before.get("cleanup.policy").isDefault(), "cleanup.policy is not the default");
            AlterConfigOp change =
                    new AlterConfigOp(new ConfigEntry("retention.ms", "7200000"), AlterConfigOp.OpType.SET);
            admin.incrementalAlterConfigs(Map.of(resource, List.of(change))).all().get();
            long deadline = System.nanoTime() + PATIENCE.toNanos();
            while (!admin.describeConfigs(List.of(resource)).all().get().get(resource).get("retention.ms").value()
                    .equals("7200000")) {
                require(System.nanoTime() < deadline, "retention.ms was not changed");
            }
            AlterConfigOp bad = new AlterConfigOp(new ConfigEntry("retention.ms", "soon"), AlterConfigOp.OpType.SET);
            expect("InvalidConfigurationException",
                    () -> admin.incrementalAlterConfigs(Map.of(resource, List.of(bad))).all().get());
        }
    }

    private void adminCluster() throws Exception {
        String topic = fresh("cluster");
        create(topic, 1);
        send(List.of(new ProducerRecord<>(topic, new byte[10_000])));
        try (Admin admin = admin()) {
            var cluster = admin.describeCluster();
            require(!cluster.clusterId().get().isEmpty(), "cluster id");
            Set<Integer> nodes = new TreeSet<>();
            cluster.nodes().get().forEach(node -> nodes.add(node.id()));
            require(nodes.contains(cluster.controller().get().id()), "controller");
            long size = 0;
            for (var folders : admin.describeLogDirs(nodes).allDescriptions().get().values()) {
                for (var folder : folders.values()) {
                    var replica = folder.replicaInfos().get(new TopicPartition(topic, 0));
                    size += replica == null ? 0 : replica.size();
                }
            }
            require(size >= 10_000, "size in the log directories: " + size);
        }
    }

    private void adminOffsets() throws Exception {
        String topic = fresh("offsets");
        create(topic, 1);
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        for (int i = 0; i < 10; i++) {
            records.add(new ProducerRecord<>(topic, 0, RECENT_MS + 1_000 * i, null, bytes("" + i)));
        }
        send(records);
        TopicPartition partition = new TopicPartition(topic, 0);
        try (Admin admin = admin()) {
            Map<String, OffsetSpec> specs = new TreeMap<>(Map.of(
                    "earliest", OffsetSpec.earliest(), "latest", OffsetSpec.latest(),
                    "max timestamp", OffsetSpec.maxTimestamp(),
                    "by time", OffsetSpec.forTimestamp(RECENT_MS + 2_500),
                    "past the end", OffsetSpec.forTimestamp(RECENT_MS + 3_600_000)));
            Map<String, Long> expected = Map.of(
                    "earliest", 0L, "latest", 10L, "max timestamp", 9L, "by time", 3L, "past the end", -1L);
            for (var spec : specs.entrySet()) {
                long offset = admin.listOffsets(Map.of(partition, spec.getValue())).all().get().get(partition).offset();
                require(offset == expected.get(spec.getKey()), spec.getKey() + ": " + offset);
            }
            long low = admin.deleteRecords(Map.of(partition, RecordsToDelete.beforeOffset(4)))
                    .lowWatermarks().get(partition).get().lowWatermark();
            require(low == 4, "low watermark " + low);
        }
    }

    private void adminGroups() throws Exception {
        String topic = fresh("groups");
        String group = fresh("group");
        create(topic, 1);
        send(numbered(topic, 10));
        TopicPartition partition = new TopicPartition(topic, 0);
        try (Admin admin = admin()) {
            try (KafkaConsumer<byte[], byte[]> member = consumer(group, "client.id", "the-member")) {
                member.subscribe(List.of(topic));
                poll(member, 10);
                member.commitSync();
                ConsumerGroupDescription found =
                        admin.describeConsumerGroups(List.of(group)).all().get().get(group);
                require(found.groupState().toString().equals("Stable"), "" + found);
                require(found.members().iterator().next().clientId().equals("the-member"), "" + found.members());
                expect("GroupNotEmptyException", () -> admin.deleteConsumerGroups(List.of(group)).all().get());
            }
            require(admin.listGroups().all().get().stream().anyMatch(one -> one.groupId().equals(group)), "not listed");
            long offset = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get()
                    .get(partition).offset();
            require(offset == 10, "offset " + offset);
            admin.alterConsumerGroupOffsets(group, Map.of(partition, new OffsetAndMetadata(5))).all().get();
            admin.deleteConsumerGroupOffsets(group, Set.of(partition)).all().get();
            admin.deleteConsumerGroups(List.of(group)).all().get();
            expect("GroupIdNotFoundException", () -> admin.deleteConsumerGroups(List.of(group)).all().get());
        }
    }
}
