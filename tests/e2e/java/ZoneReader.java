import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Reads all partitions of a topic from their first records on, as a client of a zone, and prints partition and offset of
 * every record. Without a policy for offsets out of range, so that one ends it. Usage: ZoneReader bootstrap topic
 * partitions zone
 */
public class ZoneReader {
    public static void main(String[] arguments) {
        Properties settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("client.rack", arguments[3]);
        settings.put("auto.offset.reset", "none");
        settings.put("max.poll.records", "200");
        List<TopicPartition> partitions = new ArrayList<>();
        for (int index = 0; index < Integer.parseInt(arguments[2]); index++) {
            partitions.add(new TopicPartition(arguments[1], index));
        }
        try (KafkaConsumer<byte[], byte[]> consumer =
                new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.assign(partitions);
            partitions.forEach(partition -> consumer.seek(partition, 0));
            while (!System.out.checkError()) {
                StringBuilder lines = new StringBuilder();
                for (ConsumerRecord<byte[], byte[]> found : consumer.poll(Duration.ofMillis(500))) {
                    lines.append(found.partition()).append(' ').append(found.offset()).append('\n');
                }
                System.out.print(lines);
                System.out.flush();
            }
        }
        System.exit(0);
    }
}
