// A client for ../interop.py, called like client.py: java.net.http and JSSE of Java.
import java.io.FileInputStream;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.TrustManagerFactory;

public class Client {
    private static SSLContext trusting(String ca) throws Exception {
        KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
        store.load(null, null);
        try (InputStream pem = new FileInputStream(ca)) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        factory.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, factory.getTrustManagers(), null);
        return context;
    }

    /** With connections of its own. It offers HTTP/2 too, as it does by default. */
    private static HttpClient client(SSLContext context, String version) {
        SSLParameters parameters = new SSLParameters();
        parameters.setProtocols(new String[] {"TLSv" + version});
        return HttpClient.newBuilder().sslContext(context).sslParameters(parameters).build();
    }

    private static void ask(HttpClient client, String method, String url, BodyPublisher body) throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url)).method(method, body).build();
        HttpResponse<InputStream> response = client.send(request, BodyHandlers.ofInputStream());
        if (response.statusCode() != 200) throw new Exception(method + " " + url + ": " + response.statusCode());
        byte[] buffer = new byte[65536];
        for (int count; (count = response.body().read(buffer)) >= 0; ) {
            System.out.write(buffer, 0, count);
            System.out.flush();
        }
    }

    public static void main(String[] args) throws Exception {
        SSLContext context = trusting(args[0]);
        if (args[2].equals("talk")) {
            HttpClient client = client(context, args[1]);
            ask(client, "GET", args[3], BodyPublishers.noBody());
            ask(client, "POST", args[3] + "echo", BodyPublishers.ofFile(Path.of(args[4])));
            ask(client, "GET", args[3] + "bytes/1000000", BodyPublishers.noBody());
        } else {
            for (int i = 3; i < args.length; i++)
                ask(client(context, args[1]), "GET", args[i], BodyPublishers.noBody());
        }
        // The threads of its clients would keep the program for a while.
        System.exit(0);
    }
}
