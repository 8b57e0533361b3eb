import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ScramCredentialInfo;
import org.apache.kafka.clients.admin.ScramMechanism;
import org.apache.kafka.clients.admin.UserScramCredentialDeletion;
import org.apache.kafka.clients.admin.UserScramCredentialUpsertion;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.errors.AuthenticationException;
import org.apache.kafka.common.errors.ResourceNotFoundException;
import org.apache.kafka.common.errors.UnacceptableCredentialException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/**
 * The Java client through listeners with TLS and SASL. Each argument is a file of client settings; what is tried with it
 * follows from the beginning of its name. One line of output per file: its name, then "ok" or what went wrong.
 *
 * <p>through-: records go in and come out. again-: the same for so long that the client must authenticate again.
 * refused-: the client is told that it may not come in. admin-: passwords are set, described, used and deleted.
 */
public class SecurityCheck {
    private static final Duration PATIENCE = Duration.ofSeconds(60);
    private static final int RECORDS = 20;
    private static final String PASSWORD = "set by admin, =\"quoted\"";

    private final Properties settings;

    private SecurityCheck(Properties settings) {
        this.settings = settings;
    }

    public static void main(String[] arguments) throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(4);
        Map<String, Future<String>> outcomes = new LinkedHashMap<>();
        for (String argument : arguments) {
            Path path = Path.of(argument);
            String name = path.getFileName().toString().replace(".properties", "");
            outcomes.put(name, pool.submit(() -> outcome(name, path)));
        }
        for (Map.Entry<String, Future<String>> outcome : outcomes.entrySet()) {
            System.out.println(outcome.getKey() + ": " + outcome.getValue().get());
        }
        System.exit(0);
    }

    private static String outcome(String name, Path path) {
        try (Reader reader = Files.newBufferedReader(path, StandardCharsets.UTF_8)) {
            Properties settings = new Properties();
            settings.load(reader);
            SecurityCheck check = new SecurityCheck(settings);
            switch (name.substring(0, name.indexOf('-'))) {
                case "through" -> check.through();
                case "again" -> check.again();
                case "refused" -> check.refused();
                case "admin" -> check.admin();
                default -> throw new IllegalArgumentException(name);
            }
            return "ok";
        } catch (Throwable problem) {
            StringBuilder trace = new StringBuilder();
            for (Throwable cause = problem; cause != null; cause = cause.getCause()) {
                trace.append(cause).append("; ");
            }
            return trace.append(Arrays.toString(problem.getStackTrace())).toString().replace('\n', ' ');
        }
    }

    private static void require(boolean condition, String otherwise) {
        if (!condition) {
            throw new IllegalStateException(otherwise);
        }
    }

    private Properties with(String... more) {
        Properties all = new Properties();
        all.putAll(settings);
        for (int i = 0; i < more.length; i += 2) {
            all.put(more[i], more[i + 1]);
        }
        return all;
    }

    private KafkaProducer<String, String> producer(String... more) {
        return new KafkaProducer<>(with(more), new StringSerializer(), new StringSerializer());
    }

    private void through() throws Exception {
        String topic = "java-" + UUID.randomUUID();
        Set<String> wanted = new HashSet<>();
        try (KafkaProducer<String, String> producer = producer()) {
            for (int i = 0; i < RECORDS; i++) {
                wanted.add("value " + i);
                producer.send(new ProducerRecord<>(topic, "value " + i)).get();
            }
        }
        Properties reading = with("group.id", topic, "auto.offset.reset", "earliest");
        try (KafkaConsumer<String, String> consumer =
                new KafkaConsumer<>(reading, new StringDeserializer(), new StringDeserializer())) {
            consumer.subscribe(List.of(topic));
            long deadline = System.nanoTime() + PATIENCE.toNanos();
            while (!wanted.isEmpty()) {
                require(System.nanoTime() < deadline, wanted + " did not come");
                consumer.poll(Duration.ofMillis(200)).forEach(record -> wanted.remove(record.value()));
            }
        }
    }

    /** KIP-368: the client notices by itself that its session is about to end. */
    private void again() throws Exception {
        String topic = "java-" + UUID.randomUUID();
        try (KafkaProducer<String, String> producer = producer("retries", "0", "enable.idempotence", "false")) {
            long deadline = System.nanoTime() + PATIENCE.toNanos();
            while (count(producer, "successful-reauthentication-total") < 3) {
                require(System.nanoTime() < deadline, "it authenticated too rarely");
                producer.send(new ProducerRecord<>(topic, "x")).get();
                Thread.sleep(20);
            }
            require(count(producer, "failed-reauthentication-total") == 0, "a re-authentication failed");
            require(count(producer, "failed-authentication-total") == 0, "an authentication failed");
        }
    }

    private static double count(KafkaProducer<String, String> producer, String name) {
        return producer.metrics().entrySet().stream()
                .filter(entry -> entry.getKey().name().equals(name) && entry.getKey().group().equals("producer-metrics"))
                .mapToDouble(entry -> (Double) entry.getValue().metricValue())
                .sum();
    }

    private void refused() throws Exception {
        try (Admin admin = Admin.create(with("default.api.timeout.ms", "30000"))) {
            admin.describeCluster().nodes().get();
            throw new IllegalStateException("it was let in");
        } catch (ExecutionException problem) {
            require(problem.getCause() instanceof AuthenticationException, problem.toString());
        }
    }

    private void admin() throws Exception {
        String user = "user-" + UUID.randomUUID();
        ScramMechanism mechanism = ScramMechanism.SCRAM_SHA_512;
        try (Admin admin = Admin.create(settings)) {
            ScramCredentialInfo info = new ScramCredentialInfo(mechanism, 4096);
            admin.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion(user, info, PASSWORD))).all().get();
            List<ScramCredentialInfo> infos =
                    admin.describeUserScramCredentials(List.of(user)).description(user).get().credentialInfos();
            require(infos.equals(List.of(info)), infos.toString());
            String escaped = PASSWORD.replace("\\", "\\\\").replace("\"", "\\\"");
            String module = "org.apache.kafka.common.security.scram.ScramLoginModule";
            String login = module + " required username=\"" + user + "\" password=\"" + escaped + "\";";
            SecurityCheck other = new SecurityCheck(with("sasl.mechanism", "SCRAM-SHA-512", "sasl.jaas.config", login));
            other.through();
            info = new ScramCredentialInfo(mechanism, 4095);
            expect(UnacceptableCredentialException.class, admin.alterUserScramCredentials(
                    List.of(new UserScramCredentialUpsertion(user, info, PASSWORD))).all());
            List<org.apache.kafka.clients.admin.UserScramCredentialAlteration> deletion =
                    List.of(new UserScramCredentialDeletion(user, mechanism));
            admin.alterUserScramCredentials(deletion).all().get();
            expect(ResourceNotFoundException.class, admin.alterUserScramCredentials(deletion).all());
            other.refused();
        }
    }

    private static void expect(Class<? extends Exception> kind, Future<Void> future) throws Exception {
        try {
            future.get();
            throw new IllegalStateException("there was no " + kind.getSimpleName());
        } catch (ExecutionException problem) {
            require(kind.isInstance(problem.getCause()), problem.toString());
        }
    }
}
