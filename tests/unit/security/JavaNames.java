import java.util.HexFormat;
import java.util.Scanner;
import javax.security.auth.x500.X500Principal;

/** Reads DER-encoded names, a line of hexadecimal digits each, and writes what Java calls them, likewise. */
public class JavaNames {
    public static void main(String[] arguments) throws Exception {
        HexFormat hex = HexFormat.of();
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            X500Principal name = new X500Principal(hex.parseHex(lines.nextLine()));
            System.out.println(hex.formatHex(name.getName(X500Principal.RFC2253).getBytes("UTF-8")));
        }
    }
}
