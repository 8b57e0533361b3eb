import java.util.List;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.admin.DescribeTopicsOptions;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AccessControlEntryFilter;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.errors.ClusterAuthorizationException;
import org.apache.kafka.common.errors.TopicAuthorizationException;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourcePatternFilter;
import org.apache.kafka.common.resource.ResourceType;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * ACLs by the Java client, where clients are known by their client ids: `admin` may everything, `alice` what ACLs give
 * her. Prints "ok" or what went wrong. Usage: AclCheck bootstrap topic
 */
public class AclCheck {
    private final String bootstrap;
    private final String topic;

    private AclCheck(String bootstrap, String topic) {
        this.bootstrap = bootstrap;
        this.topic = topic;
    }

    public static void main(String[] arguments) {
        String outcome = "ok";
        try {
            new AclCheck(arguments[0], arguments[1]).run();
        } catch (Throwable problem) {
            outcome = problem.toString().replace('\n', ' ');
        }
        System.out.println(outcome);
        System.exit(0);
    }

    private Properties as(String name) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("client.id", name);
        return properties;
    }

    private static void require(boolean condition, String otherwise) {
        if (!condition) {
            throw new IllegalStateException(otherwise);
        }
    }

    private static Throwable causeOf(ThrowingRun run) throws Exception {
        try {
            run.run();
        } catch (ExecutionException wrapped) {
            return wrapped.getCause();
        }
        return null;
    }

    private interface ThrowingRun {
        void run() throws Exception;
    }

    private static AclBinding binding(String name, PatternType pattern, AclOperation operation, AclPermissionType what) {
        AccessControlEntry entry = new AccessControlEntry("User:alice", "*", operation, what);
        return new AclBinding(new ResourcePattern(ResourceType.TOPIC, name, pattern), entry);
    }

    private void produce(KafkaProducer<byte[], byte[]> producer) throws Exception {
        producer.send(new ProducerRecord<>(topic, new byte[10])).get();
    }

    private void run() throws Exception {
        String start = topic.substring(0, topic.length() - 2);
        AclBinding write = binding(start, PatternType.PREFIXED, AclOperation.WRITE, AclPermissionType.ALLOW);
        AclBinding read = binding(topic, PatternType.LITERAL, AclOperation.READ, AclPermissionType.DENY);
        AclBindingFilter applying = new AclBindingFilter(
                new ResourcePatternFilter(ResourceType.TOPIC, topic, PatternType.MATCH), AccessControlEntryFilter.ANY);
        Properties producing = as("alice");
        // So that one who may not produce is told at once, by the broker and not by a time-out.
        producing.put("max.block.ms", "30000");
        try (Admin admin = Admin.create(as("admin"));
                Admin alice = Admin.create(as("alice"));
                KafkaProducer<byte[], byte[]> producer =
                        new KafkaProducer<>(producing, new ByteArraySerializer(), new ByteArraySerializer())) {
            admin.createTopics(List.of(new NewTopic(topic, Optional.of(4), Optional.empty()))).all().get();
            require(causeOf(() -> produce(producer)) instanceof TopicAuthorizationException, "she may produce already");
            require(causeOf(() -> alice.createAcls(List.of(write)).all().get()) instanceof ClusterAuthorizationException,
                    "she may give herself rights");
            admin.createAcls(List.of(write, read)).all().get();
            produce(producer);
            DescribeTopicsOptions asking = new DescribeTopicsOptions().includeAuthorizedOperations(true);
            TopicDescription described = alice.describeTopics(List.of(topic), asking).allTopicNames().get().get(topic);
            Set<AclOperation> may = new TreeSet<>(described.authorizedOperations());
            require(may.equals(Set.of(AclOperation.WRITE, AclOperation.DESCRIBE)), "she is told that she may " + may);
            Set<AclBinding> found = Set.copyOf(admin.describeAcls(applying).values().get());
            require(found.equals(Set.of(write, read)), "described: " + found);
            require(causeOf(() -> alice.describeAcls(applying).values().get()) instanceof ClusterAuthorizationException,
                    "she may see ACLs");
            Set<AclBinding> deleted = Set.copyOf(admin.deleteAcls(List.of(applying)).all().get());
            require(deleted.equals(Set.of(write, read)), "deleted: " + deleted);
            require(admin.describeAcls(applying).values().get().isEmpty(), "some are left");
            require(causeOf(() -> produce(producer)) instanceof TopicAuthorizationException, "she may produce still");
        }
    }
}
